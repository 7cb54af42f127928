"""Converts a checkpoint of the published AMD code into a folder that `from_pretrained` reads.

The published code stores one flat state dict (380 tensors for its ResNet-50 model). Every tensor
keeps its values; names change one to one, and the 1x1 convolutions of the motion read-out become
linear layers. The widths of the network are read from the shapes, so narrower or deeper models that
were trained with that code convert as well.
"""

from __future__ import annotations

import math
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from amd_hf import AMDConfig, AMDImageProcessor, AMDModel
from amd_hf.training.checkpointing import TORCH_LOAD_ERRORS

BACKBONE = "backbone2"
MOTION = "decode_head.flownet"
HEAD = "decode_head2"

_WEIGHT = ("weight",)
_AFFINE = ("weight", "bias")
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_NUM_NAMES_SHOWN = 3


@dataclass(frozen=True)
class KeyRow:
    """One line of the key table: a tensor's official name, its new name and its new shape."""

    official: str
    ours: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
        config: The configuration, its widths read from the shapes.
        rows: One entry per converted tensor.
        extra_keys: Keys of the file that the model has no place for; they were left out.
        output_dir: The folder that was written.
    """

    config: AMDConfig
    rows: tuple[KeyRow, ...]
    extra_keys: tuple[str, ...]
    output_dir: Path

    @property
    def num_parameters(self) -> int:
        """Number of converted values that are trained (batch statistics are not)."""
        trained = (row for row in self.rows if not row.official.endswith(_STATISTICS))
        return sum(math.prod(row.shape) for row in trained)


def read_official_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Reads the state dict of a published checkpoint without executing anything it contains.

    Args:
        path: A `.pth` or `.pt` file (a flat state dict, or one under the key `state_dict` as mmcv
            writes it), or a `.safetensors` file with the same keys.

    Returns:
        Official name -> tensor on the CPU; a `module.` prefix is removed.

    Raises:
        ValueError: If the file is missing, unreadable, or holds anything but named tensors.
    """
    path = Path(path)
    if not os.path.isfile(path):  # false, not an error, for names that no file can have
        raise ValueError(f"`{path}` is not a file; pass the checkpoint of the published code.")
    if path.suffix == ".safetensors":
        content = _load_safetensors(path)
    elif path.suffix in (".pth", ".pt"):
        content = _load_pickle(path)
    else:
        raise ValueError(
            f"`{path}` must end in .pth, .pt or .safetensors, got '{path.suffix}'; "
            "rename it to the format it has."
        )
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(
            f"`{path}` must hold a state dict (name -> tensor), got {type(content).__name__}; "
            "pass the file that the published training code saved."
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"`{path}` must map names to tensors, got {type(value).__name__} for {name!r}; "
                "pass the file that the published training code saved."
            )
    return {name.removeprefix("module."): value for name, value in content.items()}


def _load_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"`{path}` is not a readable safetensors file ({error}); download it again."
        ) from error


def _load_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"`{path}` holds more than tensors and plain values, or is no checkpoint; it was not "
            "opened, as unpickling can run code: save its state dict alone."
        ) from error
    except TORCH_LOAD_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"`{path}` is truncated or damaged ({reason}); download it again."
        ) from error


def infer_config(state_dict: Mapping[str, Tensor], object_segment: int = 0) -> AMDConfig:
    """Reads the widths and depths of the network from the shapes of its tensors.

    Strides, dilations, motion size and loss weights leave no trace in a state dict; they are those
    of the published code.

    Args:
        state_dict: Official name -> tensor.
        object_segment: Index of the segment that is read as the object.

    Returns:
        The configuration.

    Raises:
        ValueError: If a tensor that tells a width is missing or shaped otherwise.
    """
    shapes = _Shapes(state_dict)
    if not any(name.startswith((BACKBONE, MOTION, HEAD)) for name in state_dict):
        raise ValueError(
            f"This is not a checkpoint of the published AMD code: none of its "
            f"{len(state_dict)} names starts with '{BACKBONE}', '{MOTION}' or '{HEAD}' "
            f"(the first is '{next(iter(state_dict))}')."
        )
    stages = range(1, 1 + shapes.count(rf"{BACKBONE}\.layer(\d+)\."))
    pyramid_levels = range(shapes.count(rf"{MOTION}\.feature_pyramid_extractor\.convs\.(\d+)\."))
    context_channels = shapes.size(f"{MOTION}.conv_1x1.0.0.weight", 0, 4)
    cost_channels = shapes.size(f"{MOTION}.flow_estimators.conv1.0.weight", 1, 4)
    cost_channels -= context_channels + 2  # the current flow
    side = math.isqrt(max(cost_channels, 0))
    if side**2 != cost_channels or side % 2 == 0:
        raise ValueError(
            f"`{MOTION}.flow_estimators.conv1.0.weight` leaves {cost_channels} channels for the "
            "cost volume, which is not (2 r + 1)^2 for any search range r."
        )
    num_levels = shapes.count(rf"{MOTION}\.conv_1x1\.(\d+)\.")
    scale_weights = [*AMDConfig.official().scale_weights, *[0.0] * num_levels][:num_levels]
    return AMDConfig.official(
        num_segments=shapes.size(f"{HEAD}.conv_seg.weight", 0, 4),
        object_segment=object_segment,
        stem_channels=shapes.size(f"{BACKBONE}.conv1.weight", 0, 4),
        base_channels=shapes.size(f"{BACKBONE}.layer1.0.conv1.weight", 0, 4),
        block_counts=[shapes.count(rf"{BACKBONE}\.layer{i}\.(\d+)\.") for i in stages],
        head_channels=shapes.size(f"{HEAD}.convs.0.conv.weight", 0, 4),
        num_head_convs=shapes.count(rf"{HEAD}\.convs\.(\d+)\."),
        pyramid_channels=[
            shapes.size(f"{MOTION}.feature_pyramid_extractor.convs.{i}.0.0.weight", 0, 4)
            for i in pyramid_levels
        ],
        num_motion_levels=num_levels,
        scale_weights=scale_weights,
        search_range=side // 2,
        context_channels=context_channels,
        estimator_channels=[
            shapes.size(f"{MOTION}.flow_estimators.conv{i}.0.weight", 0, 4) for i in range(1, 6)
        ],
        readout_channels=shapes.size(f"{MOTION}.flow_estimators.predict_flow1.0.weight", 0, 4),
    )


class _Shapes:
    """Questions about the shapes of a state dict, answered with one sentence where they fail."""

    def __init__(self, state_dict: Mapping[str, Tensor]) -> None:
        self.state_dict = state_dict

    def size(self, name: str, axis: int, rank: int) -> int:
        if name not in self.state_dict:
            raise ValueError(
                f"The checkpoint misses `{name}`, which tells a width of the network; "
                "only checkpoints of the published AMD code can be converted."
            )
        shape = tuple(self.state_dict[name].shape)
        if len(shape) != rank:
            raise ValueError(f"`{name}` must have {rank} axes, got the shape {shape}.")
        return shape[axis]

    def count(self, pattern: str) -> int:
        matches = (re.match(pattern, name) for name in self.state_dict)
        return len({match.group(1) for match in matches if match})


def official_key_table(config: AMDConfig) -> dict[str, str]:
    """Lists the name of every tensor in the published code and in this package.

    Args:
        config: Tells the number of blocks, levels and convolutions.

    Returns:
        Official name -> name in `AMDModel`, in the order of the published file.
    """
    return {
        f"{official}.{tensor}": f"{ours}.{tensor}"
        for official, ours, tensors in _module_pairs(config)
        for tensor in tensors
    }


def _module_pairs(config: AMDConfig) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    backbone = "appearance.backbone"
    yield f"{BACKBONE}.conv1", f"{backbone}.stem_conv", _WEIGHT
    yield f"{BACKBONE}.bn1", f"{backbone}.stem_norm", _NORM
    for stage, count in enumerate(config.block_counts):
        for block in range(count):
            official = f"{BACKBONE}.layer{stage + 1}.{block}"
            ours = f"{backbone}.stages.{stage}.{block}"
            for i in (1, 2, 3):
                yield f"{official}.conv{i}", f"{ours}.conv{i}", _WEIGHT
                yield f"{official}.bn{i}", f"{ours}.norm{i}", _NORM
            if block == 0:
                yield f"{official}.downsample.0", f"{ours}.shortcut.0", _WEIGHT
                yield f"{official}.downsample.1", f"{ours}.shortcut.1", _NORM
    motion = "segment_flow.motion_pathway"
    for level in range(len(config.pyramid_channels)):
        for i in (0, 1):
            official = f"{MOTION}.feature_pyramid_extractor.convs.{level}.{i}.0"
            yield official, f"{motion}.pyramid.levels.{level}.{2 * i}", _AFFINE
    for i in range(5):
        official = f"{MOTION}.flow_estimators.conv{i + 1}.0"
        yield official, f"{motion}.estimator.convs.{i}", _AFFINE
    yield f"{MOTION}.flow_estimators.predict_flow1.0", "segment_flow.readout.hidden", _AFFINE
    yield f"{MOTION}.flow_estimators.predict_flow2.0", "segment_flow.readout.output", _AFFINE
    for level in range(config.num_motion_levels):
        yield f"{MOTION}.conv_1x1.{level}.0", f"{motion}.context_convs.{level}", _AFFINE
    yield f"{HEAD}.conv_seg", "segment_classifier", _AFFINE
    for i in range(config.num_head_convs):
        yield f"{HEAD}.convs.{i}.conv", f"appearance.head.{i}.conv", _WEIGHT
        yield f"{HEAD}.convs.{i}.bn", f"appearance.head.{i}.norm", _NORM


def convert_state_dict(
    state_dict: Mapping[str, Tensor], config: AMDConfig
) -> tuple[dict[str, Tensor], list[KeyRow], list[str]]:
    """Renames the tensors of the published code.

    Args:
        state_dict: Official name -> tensor.
        config: Configuration of the model that the tensors are for.

    Returns:
        The state dict of `AMDModel`, one row per tensor, and the names that were left out.

    Raises:
        ValueError: If a tensor is missing, has another shape, or holds values that are not finite.
    """
    table = official_key_table(config)
    missing = [name for name in table if name not in state_dict]
    if missing:
        raise ValueError(
            f"The checkpoint misses {len(missing)} of {len(table)} tensors "
            f"({_first_names(missing)}); only complete checkpoints of the published AMD code can "
            "be converted."
        )
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in AMDModel(config).state_dict().items()}
    converted, rows = {}, []
    for official, ours in table.items():
        tensor = state_dict[official]
        if ours.startswith("segment_flow.readout.") and tensor.dim() == 4:
            tensor = tensor.flatten(1)  # a 1x1 convolution is a linear layer
        if tensor.shape != shapes[ours]:
            raise ValueError(
                f"`{official}` must have shape {tuple(shapes[ours])} to fit the other tensors, "
                f"got {tuple(tensor.shape)}; the file mixes two models."
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"`{official}` holds values that are not finite; take an earlier checkpoint."
            )
        converted[ours] = tensor.contiguous()
        rows.append(KeyRow(official, ours, tuple(tensor.shape)))
    return converted, rows, [name for name in state_dict if name not in table]


def _first_names(names: list[str]) -> str:
    more = len(names) - _NUM_NAMES_SHOWN
    shown = ", ".join(f"`{name}`" for name in names[:_NUM_NAMES_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown


def format_key_table(rows: tuple[KeyRow, ...] | list[KeyRow]) -> str:
    """Returns the rows as an aligned text table: official name, new name, shape."""
    left = max((len(row.official) for row in rows), default=0)
    middle = max((len(row.ours) for row in rows), default=0)
    return "\n".join(
        f"{row.official:<{left}}  ->  {row.ours:<{middle}}  {_format_shape(row.shape)}"
        for row in rows
    )


def _format_shape(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape) or "scalar"


def convert_official_checkpoint(
    checkpoint: str | Path, output_dir: str | Path, object_segment: int = 0
) -> ConversionReport:
    """Writes the folder (weights, configuration, image processor) of a published checkpoint.

    Args:
        checkpoint: File of the published code, see `read_official_state_dict`.
        output_dir: Folder to write; made if it is missing.
        object_segment: Index of the segment that is read as the object. The README of the
            published code says 0, its inference code reads 1.

    Returns:
        What was converted and what was left out.

    Raises:
        ValueError: If the file is not a complete checkpoint of the published code, or the folder
            cannot be written.
    """
    official = read_official_state_dict(checkpoint)
    config = infer_config(official, object_segment)
    converted, rows, extra_keys = convert_state_dict(official, config)
    model = AMDModel(config)
    model.load_state_dict(converted, strict=True)
    output_dir = Path(output_dir)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(output_dir)
        AMDImageProcessor.from_model_config(config).save_pretrained(output_dir)
    except OSError as error:
        raise ValueError(
            f"`{output_dir}` cannot be written ({error.strerror or error}); choose another folder."
        ) from error
    return ConversionReport(config, tuple(rows), tuple(extra_keys), output_dir)
