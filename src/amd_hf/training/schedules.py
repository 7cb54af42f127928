"""Learning-rate schedules, on top of those of transformers."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
)


def build_schedule(
    name: str,
    optimizer: Optimizer,
    *,
    num_train_steps: int,
    num_warmup_steps: int = 0,
    min_learning_rate: float = 0.0,
    poly_power: float = 0.9,
) -> LRScheduler:
    """A schedule that is stepped once per optimizer step.

    Args:
        name: `poly`: lr = (base - min)(1 - t)^power + min, the published one; `cosine`: half a
            cosine from base to min; `constant`. All rise linearly from 0 during the warm-up.
        optimizer: The optimizer whose parameter groups are changed; all groups start from the
            learning rate that they have now.
        num_train_steps: Steps after which `min_learning_rate` is reached.
        num_warmup_steps: Steps of the linear warm-up.
        min_learning_rate: Learning rate at the end, for the optimizer's default learning rate.
        poly_power: Power of the poly schedule.

    Returns:
        The schedule.

    Raises:
        ValueError: If there is no schedule of that name.

    Source: released code, poly with power 0.9 per iteration, floor 1e-6; no warm-up.
    """
    if name == "poly":
        return get_polynomial_decay_schedule_with_warmup(
            optimizer,
            num_warmup_steps=num_warmup_steps,
            num_training_steps=num_train_steps,
            lr_end=min_learning_rate,
            power=poly_power,
        )
    if name == "cosine":
        return get_cosine_with_min_lr_schedule_with_warmup(
            optimizer,
            num_warmup_steps=num_warmup_steps,
            num_training_steps=num_train_steps,
            min_lr=min_learning_rate,
        )
    if name == "constant":
        return get_constant_schedule_with_warmup(optimizer, num_warmup_steps=num_warmup_steps)
    raise ValueError(f"`name` must be one of poly, cosine, constant, got {name!r}.")
