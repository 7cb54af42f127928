"""Access to the tensors recorded from the published code, and the tolerances for comparing.

The tolerances are those that the recording measured between the published code in float32 and in
float64, and between two machines, each rounded up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from amd_hf import AMDModel, modeling_amd, motion_amd, segment_flow_amd
from amd_hf.hub.convert_official import convert_state_dict, infer_config
from amd_hf.segment_flow_amd import SegmentFlow

# Absolute tolerances, float32.
LOGITS_ATOL = 1e-3
TRAIN_LOGITS_ATOL = 2e-3
MASKS_ATOL = 2e-4
TRAIN_MASKS_ATOL = 5e-4
FEATURES_ATOL = 2e-4
POOLED_ATOL = 5e-5
FLOW_ATOL = 2e-4
WARP_ATOL = 1e-4
LOSS_ATOL = 2e-6
ADAM_STEP_ATOL = 2e-4
OPERATOR_ATOL = 1e-5
# Pixels of a visibility or thresholded mask that may flip on other hardware.
FLIPPED_PIXELS = 3
# float64; the published code averages the visibility in float32, which is the noise of the loss.
FLOAT64_ATOL = 1e-9
FLOAT64_LOSS_RTOL = 2e-7
FLOAT64_GRADIENT_RTOL = 2e-7
FLOAT64_ADAM_ATOL = 1e-7

DIRECTIONS = ("fw", "bw")  # flow on the grid of frame 1 / of frame 2


def tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """Reads the tensors whose name starts with `prefix`, which is cut off."""
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


def official_model(folder: Path, **overrides: Any) -> AMDModel:
    """The recorded small model, converted; `overrides` replace fields of its configuration."""
    official = load_file(folder / "official_state_dict.safetensors")
    config = infer_config(official)
    config = type(config)(**{**config.to_dict(), **overrides})
    converted, _, extra_keys = convert_state_dict(official, config)
    assert not extra_keys
    model = AMDModel(config)
    model.load_state_dict(converted, strict=True)
    return model.eval()


def subsampled(name: str, tensor: Tensor) -> Tensor:
    """Every N-th row and column of `tensor` where the recorded name ends in `.subN`."""
    suffix = name.rpartition(".")[2]
    if not suffix.startswith("sub"):
        return tensor
    step = int(suffix.removeprefix("sub"))
    return tensor[..., ::step, ::step]


class Recording:
    """Everything that one forward of a pair computes, under the recorded names."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()

    def add(self, name: str, tensor: Tensor) -> None:
        assert name not in self.values, f"{name} was computed twice"
        self.values[name] = tensor.detach().clone()  # layers may work in place

    def add_directions(self, name: str, tensor: Tensor) -> None:
        """Adds the halves of a batch that holds both directions."""
        for direction, half in zip(DIRECTIONS, tensor.chunk(2), strict=True):
            self.add(f"{direction}.{name}", half)

    def add_level(self, name: str, tensor: Tensor) -> None:
        """Adds both directions of what is called once per level, coarsest first."""
        self.add_directions(f"{name}.level{self._counts[name]}", tensor)
        self._counts[name] += 1

    def on_backbone(self, _module: Any, _inputs: Any, outputs: list[Tensor]) -> None:
        for stage, output in enumerate(outputs):
            self.add(f"backbone.out{stage}", output)

    def on_pyramid(self, _module: Any, inputs: tuple[Tensor], outputs: list[Tensor]) -> None:
        self.add("frames", torch.cat(inputs[0].chunk(2), dim=1))
        for level, output in enumerate(outputs):
            for frame, half in enumerate(output.chunk(2)):
                self.add(f"pyramid.frame{frame}.level{level}", half)

    def on_motion(self, _module: Any, _inputs: Any, output: Tensor) -> None:
        self.add_level("motion_feat", output)

    def on_readout(self, _module: Any, _inputs: Any, output: Tensor) -> None:
        if output.dim() == 3:
            self.add_level("segment_flow_residual", output)
        else:
            self.add_level("dense_flow_residual", output.permute(0, 3, 1, 2))

    def on_segment_flow(self, _module: Any, _inputs: Any, output: SegmentFlow) -> None:
        self.add_directions("segment_flow_vectors", output.segment_motion)
        for scale, flow in enumerate(output.flows):
            self.add_directions(f"segment_flow.scale{scale}", flow)
        if output.pixel_flow is not None:
            self.add_directions("dense_flow.scale0", output.pixel_flow)

    def on_cost_volume(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        output = function(*arguments)
        self.add_level("corr_raw", output)
        return output

    def on_pool_features(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        output = function(*arguments)
        self.add_level("pooled_feat", output)
        return output

    def on_photometric_loss(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        image, synthesized, visibility = arguments[:3]
        output = function(*arguments)
        scale, frame = divmod(self._counts["photometric_loss"], 2)
        self._counts["photometric_loss"] += 1
        place = f"im{frame + 1}.scale{scale}"
        self.add(f"warped.{place}", synthesized)
        self.add(f"valid_mask.{place}", visibility)
        self.add(f"image.{place}", image)
        self.add(f"loss.seg.photo.{place}", output)
        return output


def _replaced(module: ModuleType, name: str, replacement: Callable[..., Tensor]) -> Any:
    original = getattr(module, name)

    def call(*arguments: Any) -> Tensor:
        return replacement(original, *arguments)

    return mock.patch.object(module, name, call)


@contextmanager
def record(model: AMDModel) -> Iterator[Recording]:
    """Records the intermediate tensors of the next forward of a pair through `model`."""
    recording = Recording()
    flow = model.segment_flow
    hooks = [
        model.appearance.backbone.register_forward_hook(recording.on_backbone),
        flow.motion_pathway.pyramid.register_forward_hook(recording.on_pyramid),
        flow.motion_pathway.register_forward_hook(recording.on_motion),
        flow.readout.register_forward_hook(recording.on_readout),
        flow.register_forward_hook(recording.on_segment_flow),
    ]
    with (
        _replaced(motion_amd, "cost_volume", recording.on_cost_volume),
        _replaced(segment_flow_amd, "pool_features", recording.on_pool_features),
        _replaced(modeling_amd, "photometric_loss", recording.on_photometric_loss),
    ):
        yield recording
    for hook in hooks:
        hook.remove()
