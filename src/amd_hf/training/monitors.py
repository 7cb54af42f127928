"""What to watch in a run without labels: use of the segments, their motion, and collapse."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

OCCUPIED_SHARE = 0.01  # a segment is in use if it wins at least this share of the pixels
UNIFORM_ENTROPY = 0.98  # of the largest possible; random weights start at about 0.95
DOMINANT_SHARE = 0.98
STILL_MOTION = 0.05  # pixels at `config.motion_size`
INVISIBLE_SHARE = 0.05

ADVICE = {
    "uniform": (
        "the masks are uniform (every segment everywhere): raise the learning rate of the "
        "appearance pathway, keep the default initialization of its classifier, or warm the "
        "motion pathway up first (--motion_warmup_steps)"
    ),
    "dominant": (
        "one segment takes the whole frame: lower the learning rate, lengthen the warm-up, or use "
        "5 or more segments (fewer train unstably)"
    ),
    "invisible": (
        "the flow leaves the frame, so that nothing is visible and the loss is empty: clip the "
        "gradient (--max_grad_norm 1), lower the learning rate, or start the motion pathway near "
        "zero (--config_overrides motion_initialization=kaiming)"
    ),
    "still": (
        "all segment motions are zero (the zero-flow trap): use --config_overrides "
        "motion_initialization=kaiming,normalize_cost_volume=true, --motion_warmup_steps, or a "
        "larger --frame_gap"
    ),
}


def mask_statistics(segment_masks: Tensor) -> dict[str, Tensor]:
    """How the segments share the frames.

    Args:
        segment_masks: Soft masks of shape (..., K, h, w) that sum to 1 over K.

    Returns:
        `mask_entropy` in [0, 1] (1 = uniform; mean over pixels, relative to ln K),
        `segment_share` (K,) summing to 1 (mean mask), `num_occupied_segments` (those that win at
        least 1 % of the pixels), all without gradient.
    """
    masks = segment_masks.detach().float().flatten(0, -4)
    K = masks.shape[-3]
    entropy = -torch.xlogy(masks, masks).sum(dim=-3).mean() / math.log(K)
    winners = torch.bincount(masks.argmax(dim=-3).flatten(), minlength=K)
    occupied = winners >= OCCUPIED_SHARE * winners.sum()
    return {
        "mask_entropy": entropy,
        "segment_share": masks.mean(dim=(0, 2, 3)),  # (K,)
        "num_occupied_segments": occupied.sum().float(),
    }


def motion_statistics(segment_motion_12: Tensor, segment_motion_21: Tensor) -> dict[str, Tensor]:
    """How the segments move.

    Args:
        segment_motion_12: Motions of shape (B, K, 2) in pixels of `config.motion_size`.
        segment_motion_21: The same for the other direction.

    Returns:
        `segment_motion_length` (mean length) and `segment_motion_spread` (root mean square
        distance from the mean motion of the pair), in pixels, without gradient.
    """
    motion = torch.cat([segment_motion_12, segment_motion_21]).detach().float()
    deviation = motion - motion.mean(dim=1, keepdim=True)
    return {
        "segment_motion_length": motion.norm(dim=-1).mean(),
        "segment_motion_spread": deviation.square().sum(dim=-1).mean().sqrt(),
    }


class MetricAverager:
    """Averages of logged values on their device, so that no step waits for the host."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Adds one step's values, scalars or vectors."""
        for name, value in values.items():
            addend = value.detach().float()
            present = self._sums.get(name)
            self._sums[name] = addend.clone() if present is None else present + addend
            self._counts[name] = self._counts.get(name, 0) + 1

    def pop(self) -> dict[str, Tensor]:
        """The means since the last call, by name."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        """Restores what `state_dict` gave, on `device`."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._counts = dict(state["counts"])


def flatten_metrics(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Plain numbers by name; the entries of a vector become `name/0`, `name/1`, ..."""
    flat: dict[str, float] = {}
    for name, value in values.items():
        if value.ndim == 0:
            flat[name] = float(value)
        else:
            flat |= {f"{name}/{index}": float(entry) for index, entry in enumerate(value)}
    return flat


@dataclass
class CollapseMonitor:
    """Notices a run that has stopped learning segments, and says what to do about it.

    Args:
        patience: Steps that a collapsed state must last before it is reported.
    """

    patience: int
    state: str | None = None
    since_step: int = 0
    reported: bool = False

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"`patience` must be at least 1, got {self.patience}.")

    def update(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Looks at the logged means of a step.

        Args:
            step: Number of optimizer steps done.
            metrics: Flat metrics as of `flatten_metrics`. The state is unchanged if they hold none
                of the watched values.

        Returns:
            A sentence once the same collapsed state has lasted `patience` steps, else None.
        """
        if not {"mask_entropy", "visible_share"} & set(metrics):
            return None
        state = collapsed_state(metrics)
        if state != self.state:
            self.state, self.since_step, self.reported = state, step, False
        if state is None or self.reported or step - self.since_step < self.patience:
            return None
        self.reported = True
        return f"The run has collapsed since step {self.since_step}: {ADVICE[state]}."

    def state_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` gave, but for the patience."""
        self.state = state["state"]
        self.since_step = state["since_step"]
        self.reported = state["reported"]


def collapsed_state(metrics: Mapping[str, float]) -> str | None:
    """The kind of collapse that flat metrics show, a key of `ADVICE`; None if there is none."""
    if metrics.get("visible_share", 1.0) < INVISIBLE_SHARE:
        return "invisible"
    if metrics.get("mask_entropy", 0.0) > UNIFORM_ENTROPY:
        return "uniform"
    shares = [value for name, value in metrics.items() if name.startswith("segment_share/")]
    if max(shares, default=0.0) > DOMINANT_SHARE:
        return "dominant"
    if metrics.get("segment_motion_length", math.inf) < STILL_MOTION:
        return "still"
    return None


class BufferGuard:
    """Undoes what a non-finite forward pass did to the running statistics of batch norm.

    A single NaN would stay in them for the rest of the run although the step is skipped.

    Args:
        model: The model whose floating-point buffers are guarded.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = list(model.buffers())
        self._copies = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def remember(self) -> None:
        """Copies the present buffers."""
        for copy, buffer in zip(self._copies, self._buffers, strict=True):
            copy.copy_(buffer)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the remembered buffers back."""
        for copy, buffer in zip(self._copies, self._buffers, strict=True):
            buffer.copy_(copy)
