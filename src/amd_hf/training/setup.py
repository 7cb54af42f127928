"""The parts of a pre-training run, built from its arguments: accelerator, model, optimizer."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import nn

from amd_hf.configuration_amd import AMDConfig
from amd_hf.modeling_amd import AMDModel
from amd_hf.training.arguments import PretrainingArguments

logger = logging.getLogger(__name__)

PRESETS = {"official": AMDConfig.official, "small": AMDConfig.small, "tiny": AMDConfig.tiny}
TRAIN_EXTRA = 'Pre-training needs the `train` extra: pip install "amd-hf[train]".'


def parse_overrides(text: str) -> dict[str, Any]:
    """Configuration values from `name=value,name=value`.

    Args:
        text: Values are read as JSON where they are (numbers, true, [192,320]) and as text
            otherwise; commas inside brackets belong to the value.

    Returns:
        Values by field name.

    Raises:
        ValueError: If an entry has no `=`, or names no field of the configuration.
    """
    known = {item.name for item in fields(AMDConfig)}
    overrides: dict[str, Any] = {}
    for entry in _split_outside_brackets(text):
        name, equals, value = entry.partition("=")
        name = name.strip()
        if not equals or name not in known:
            raise ValueError(
                f"`config_overrides` must be name=value pairs of AMDConfig fields, got {entry!r}."
            )
        try:
            overrides[name] = json.loads(value)
        except json.JSONDecodeError:
            overrides[name] = value.strip()
    return overrides


def _split_outside_brackets(text: str) -> list[str]:
    entries, depth = [""], 0
    for character in text:
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            entries.append("")
        else:
            entries[-1] += character
    return [entry for entry in entries if entry.strip()]


def build_config(args: PretrainingArguments) -> AMDConfig:
    """The configuration of a fresh model: a preset or a folder's, with the overrides.

    Raises:
        ValueError: If an override is wrong; the message names the field.
    """
    overrides = parse_overrides(args.config_overrides)
    if args.config_name in PRESETS:
        return PRESETS[args.config_name](**overrides)
    return AMDConfig.from_pretrained(args.config_name, **overrides)


def build_model(args: PretrainingArguments) -> AMDModel:
    """A model with fresh weights from `args.seed`, or the one of `args.model_name_or_path`."""
    torch.manual_seed(args.seed)
    if args.model_name_or_path:
        return AMDModel.from_pretrained(args.model_name_or_path)
    return AMDModel(build_config(args))


def build_optimizer(args: PretrainingArguments, model: nn.Module) -> torch.optim.Optimizer:
    """Adam as published (weight decay as L2 on all parameters), or AdamW.

    Args:
        args: The options of the run.
        model: An `AMDModel`, not wrapped; its motion pathway gets `motion_lr_scale`.

    Returns:
        The optimizer, with one group for the appearance and one for the motion pathway. On CPUs and
        CUDA it updates all weights in one pass (`fused`), equal to the plain update to rounding.

    Source: released code; no warm-up, no clipping, one group (equal to ours at scale 1).
    """
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    devices = {parameter.device.type for parameter in model.parameters()}
    for name, parameter in model.named_parameters():
        groups[name.startswith("segment_flow.")].append(parameter)
    optimizer_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[args.optimizer]
    return optimizer_class(
        [
            {"params": groups[False]},
            {"params": groups[True], "lr": args.learning_rate * args.motion_lr_scale},
        ],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=args.weight_decay,
        fused=devices <= {"cpu", "cuda"},
    )


def build_accelerator(args: PretrainingArguments, has_unused_parameters: bool) -> Any:
    """The Accelerator of the run.

    Args:
        args: The options of the run.
        has_unused_parameters: Whether some stage leaves parameters without gradient.

    Raises:
        ImportError: If the `train` extra is not installed; the message says how.
    """
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs
    except ImportError as error:
        raise ImportError(TRAIN_EXTRA) from error
    return Accelerator(
        mixed_precision=args.mixed_precision,
        log_with=args.report_to if args.with_tracking else None,
        project_dir=args.output_dir,
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=has_unused_parameters)
        ],
    )


def convert_batch_norm(model: nn.Module, accelerator: Any) -> nn.Module:
    """Shares batch-norm statistics over all processes where PyTorch can: on CUDA devices."""
    if accelerator.num_processes == 1:
        return model
    if accelerator.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    logger.warning(
        "SyncBatchNorm exists on CUDA only: each of the %d processes on %s normalizes with its own "
        "batch; use a larger --per_device_train_batch_size to come close.",
        accelerator.num_processes,
        accelerator.device.type,
    )
    return model


def seed_process(seed: int, rank: int) -> None:
    """Seeds what this process draws itself (dropout); the data has its own seed."""
    random.seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)
    torch.manual_seed(seed + rank)


def random_state() -> dict[str, Any]:
    """The states of all random generators of this process, as plain values and tensors."""
    numpy_state: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, gauss = numpy_state
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restores what `random_state` gave."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Whatever the block draws, the run goes on as if it had not."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
