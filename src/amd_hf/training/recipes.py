"""Named sets of training options: the published recipe, and ours for small data.

A recipe only changes defaults: every flag given by the user wins over it.
"""

from __future__ import annotations

from typing import Any

RECIPES: dict[str, dict[str, Any]] = {
    # The released code and the paper: Adam, poly schedule, no warm-up, no clipping, fp32, adjacent
    # frames, 100K steps of 16 pairs (8 devices x 2 pairs).
    "published": {
        "config_name": "official",
        "optimizer": "adam",
        "learning_rate": 1e-4,
        "min_learning_rate": 1e-6,
        "weight_decay": 1e-6,
        "lr_scheduler_type": "poly",
        "poly_power": 0.9,
        "num_warmup_steps": 0,
        "max_grad_norm": 0.0,
        "max_train_steps": 100_000,
        "per_device_train_batch_size": 2,
        "motion_warmup_steps": 0,
        "ema_decay": 0.0,
        "augmentation": "published",
        "frame_gap": "1",
    },
    # Small data and few steps: the small configuration (Kaiming weights of the motion pathway and a
    # normalized cost volume) and dense-flow warm-up leave the zero-flow trap; larger steps in time,
    # since crops are small.
    "small": {
        "config_name": "small",
        "optimizer": "adamw",
        "learning_rate": 3e-4,
        "min_learning_rate": 3e-6,
        "weight_decay": 1e-4,
        "lr_scheduler_type": "cosine",
        "num_warmup_steps": 200,
        "max_grad_norm": 1.0,
        "max_train_steps": 20_000,
        "per_device_train_batch_size": 8,
        "motion_warmup_steps": 2_000,
        "ema_decay": 0.999,
        "augmentation": "published",
        "frame_gap": "1-3",
    },
    # What the bundled checkpoint was trained with: each pathway first learns alone from what moves
    # against the camera (classical flow, no labels), then both from segment flow as published.
    "moving_objects": {
        "config_name": "small",
        "stages": "classical_flow:3000,moving_object:4000,segment_flow_moving_object",
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "min_learning_rate": 1e-5,
        "weight_decay": 1e-2,
        "lr_scheduler_type": "cosine",
        "num_warmup_steps": 100,
        "max_grad_norm": 1.0,
        "max_train_steps": 8_000,
        "per_device_train_batch_size": 8,
        "ema_decay": 0.995,
        "augmentation": "heavy",
        "crop_size": "128x192",
        "frame_gap": "1-2",
        "channels_last": True,
    },
}


def recipe_options(name: str) -> dict[str, Any]:
    """The options of a recipe, by the field names of `PretrainingArguments`.

    Args:
        name: Name of the recipe, a key of `RECIPES`.

    Returns:
        A fresh dict of options.

    Raises:
        ValueError: If there is no such recipe.
    """
    if name not in RECIPES:
        raise ValueError(f"`recipe` must be one of {', '.join(sorted(RECIPES))}, got {name!r}.")
    return dict(RECIPES[name])
