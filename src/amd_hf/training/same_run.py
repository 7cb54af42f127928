"""Whether a checkpoint is of the run that goes on from it: configuration, options, versions."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig

from amd_hf._version import __version__
from amd_hf.configuration_amd import AMDConfig
from amd_hf.training.arguments import PretrainingArguments

logger = logging.getLogger(__name__)

# Options that decide which samples come in which order: a change makes the position meaningless.
DATA_OPTIONS = (
    "dataset",
    "augmentation",
    "crop_size",
    "flip",
    "frame_gap",
    "target_dt",
    "pairs_per_clip",
    "dataset_weights",
    "min_difference",
    "shuffle",
    "seed",
    "per_device_train_batch_size",
    "dataloader_num_workers",
)
# The state of one optimizer does not fit another.
STATE_OPTIONS = ("optimizer",)
# Of all other options, a change of these alters the weights: worth a warning.
RESULT_OPTIONS = (
    "learning_rate",
    "min_learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "motion_lr_scale",
    "max_grad_norm",
    "gradient_accumulation_steps",
    "lr_scheduler_type",
    "poly_power",
    "num_warmup_steps",
    "max_train_steps",
    "ema_decay",
    "stages",
    "motion_warmup_steps",
    "mixed_precision",
    "channels_last",
)


def config_fields(config: AMDConfig) -> dict[str, Any]:
    """The fields that must be equal for weights to be continued, as JSON has them."""
    values = json.loads(config.to_json_string(use_diff=False))
    names = {item.name for item in fields(AMDConfig)} - {
        item.name for item in fields(PreTrainedConfig)
    }
    chosen_after_training = {"object_segment", "object_segment_confidence"}
    return {name: values[name] for name in sorted(names - chosen_after_training)}


def versions() -> dict[str, str]:
    """Versions of the libraries that decide the numbers of a run."""
    return {
        "amd_hf": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def check_same_run(
    args: PretrainingArguments,
    config: AMDConfig,
    num_processes: int,
    record: Mapping[str, Any],
    checkpoint: Path,
) -> None:
    """Checks that a run can go on from a checkpoint.

    Args:
        args: The options of the present run.
        config: The configuration of the present model.
        num_processes: Number of processes now.
        record: What `run.json` of the checkpoint says.
        checkpoint: Its folder.

    Raises:
        ValueError: If it cannot; options that only change the result are warned about.
    """
    present = config_fields(config)
    differing = [
        f"{name} was {value}, is {present.get(name)}"
        for name, value in record["config"].items()
        if value != present.get(name)
    ]
    if differing:
        raise ValueError(
            f"{checkpoint} is of another configuration: {'; '.join(differing)}; use the same "
            "--config_name and --config_overrides, or start a new run from its weights with "
            "--model_name_or_path."
        )
    saved = record["options"]
    now = args.to_dict()
    changed = [
        f"{name} was {saved[name]!r}, is {now[name]!r}"
        for name in [*STATE_OPTIONS, *([] if args.restart_data_stream else DATA_OPTIONS)]
        if name in saved and saved[name] != now[name]
    ]
    if num_processes != record["num_processes"] and not args.restart_data_stream:
        changed.append(f"number of processes was {record['num_processes']}, is {num_processes}")
    if changed:
        raise ValueError(
            f"{checkpoint} cannot be continued exactly: {'; '.join(changed)}; restore these, or "
            "give up the order of the samples with --restart_data_stream."
        )
    _warn_about_changes(saved, now)


def _warn_about_changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changes = [
        f"{name} was {saved[name]!r}, is {now[name]!r}"
        for name in RESULT_OPTIONS
        if name in saved and saved[name] != now[name]
    ]
    if changes:
        logger.warning(
            "Options differ from those of the checkpoint, so the result will differ from that of "
            "an uninterrupted run: %s.",
            "; ".join(changes),
        )
