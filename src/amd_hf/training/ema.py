"""Exponential moving average of the weights, with a decay that warms up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class ExponentialMovingAverage:
    """Keeps an averaged copy of a model: parameters and floating-point buffers alike.

    The decay of update n is min(`decay`, (1 + n) / (10 + n)), so that the random start is
    forgotten quickly. Batch-norm statistics are averaged too, since those of the raw model belong
    to other weights.

    Args:
        model: The model to follow, not wrapped for distributed training.
        decay: Largest decay, in [0, 1).

    Raises:
        ValueError: If `decay` is out of range.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"`decay` must be in [0, 1), got {decay}.")
        self.decay = decay
        self._averaged = AveragedModel(model, multi_avg_fn=self._average, use_buffers=True)
        self._averaged.requires_grad_(False)
        self._averaged.eval()

    @property
    def module(self) -> nn.Module:
        """The averaged model, in evaluation mode."""
        return self._averaged.module

    @property
    def num_updates(self) -> int:
        """Number of updates so far; the first one copies the model."""
        return int(self._averaged.n_averaged)

    def decay_of_update(self, num_updates: int) -> float:
        """The decay that the update after `num_updates` earlier ones uses, in [0, `decay`]."""
        return min(self.decay, (1 + num_updates) / (10 + num_updates))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the present weights of `model`."""
        self._averaged.update_parameters(model)

    def _average(
        self,
        averaged: tuple[Tensor, ...] | list[Tensor],
        current: tuple[Tensor, ...] | list[Tensor],
        num_averaged: Tensor | int,
    ) -> None:
        if not averaged[0].is_floating_point():
            _copy(averaged, current)
            return
        decay = self.decay_of_update(int(num_averaged))
        get_ema_multi_avg_fn(decay)(averaged, current, num_averaged)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights and buffers, and the number of updates as `num_updates`."""
        state = dict(self.module.state_dict())
        return {**state, "num_updates": self._averaged.n_averaged.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` gave.

        Args:
            state: The dict; it is not changed.

        Raises:
            RuntimeError: If the weights do not fit the model.
        """
        weights = dict(state)
        num_updates = weights.pop("num_updates")
        self.module.load_state_dict(weights)
        self._averaged.n_averaged.copy_(num_updates)


def _copy(averaged: Sequence[Tensor], current: Sequence[Tensor]) -> None:
    for target, source in zip(averaged, current, strict=True):
        target.copy_(source)
