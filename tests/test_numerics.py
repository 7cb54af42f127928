"""Extreme frames, masks and number formats: finite losses and gradients, or a clear refusal."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amd_hf import AMDConfig, AMDForSemanticSegmentation, AMDImageProcessor, AMDModel
from amd_hf.image_io_amd import read_image
from amd_hf.loss_amd import photometric_loss
from amd_hf.training import adapt_to_video
from amd_hf.video_amd import FrameStream

SIZE = (64, 64)
MOST_LOSS = 1.0  # 0.15 + 0.85: no pixel can differ by more
VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "small-scale": {"normalize_cost_volume": True, "motion_initialization": "kaiming"},
}


def checkerboard() -> Tensor:
    """Black and white pixels in turn, the highest frequency that there is."""
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in SIZE), indexing="ij")
    return ((rows + columns) % 2).float()


def gray(level: float) -> Tensor:
    return torch.full(SIZE, level)


def single_pixel() -> Tensor:
    frame = torch.zeros(SIZE)
    frame[31, 31] = 1.0
    return frame


def noise(seed: int) -> Tensor:
    return torch.rand(SIZE, generator=torch.Generator().manual_seed(seed))


PAIRS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "black": lambda: (gray(0.0), gray(0.0)),
    "white": lambda: (gray(1.0), gray(1.0)),
    "black to white": lambda: (gray(0.0), gray(1.0)),
    "one level apart": lambda: (gray(0.5), gray(0.5 + 1 / 255)),
    "identical noise": lambda: (noise(0), noise(0)),
    "unrelated noise": lambda: (noise(0), noise(1)),
    "checkerboard inverted": lambda: (checkerboard(), 1 - checkerboard()),
    "one pixel": lambda: (single_pixel(), gray(0.0)),
    "noise to black": lambda: (noise(0), gray(0.0)),
}


def pair_of(name: str, config: AMDConfig) -> Tensor:
    """Normalized pixel values (1, 2, 3, H, W) of a pair of gray frames in [0, 1]."""
    frames = torch.stack([frame.expand(3, *SIZE) for frame in PAIRS[name]()])
    mean = torch.tensor(config.image_mean).view(3, 1, 1)
    std = torch.tensor(config.image_std).view(3, 1, 1)
    return ((frames * 255.0 - mean) / std).unsqueeze(0)


def model_of(**settings: Any) -> AMDModel:
    torch.manual_seed(0)
    return AMDModel(AMDConfig.tiny(**settings))


def assert_finite_step(model: nn.Module, loss: Tensor) -> None:
    """The loss is in its range, and so are all gradients."""
    assert loss.dtype == torch.float32
    assert -1e-6 <= float(loss.detach()) <= MOST_LOSS * 3  # the sum over three scales
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert gradients
    assert [name for name, grad in gradients.items() if not torch.isfinite(grad).all()] == []


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("is_training", [True, False], ids=["train", "eval"])
def test_extreme_frames(name: str, variant: str, is_training: bool) -> None:
    model = model_of(**VARIANTS[variant]).train(is_training)
    pixel_values = pair_of(name, model.config)
    # Training on one image has no batch statistics at the coarsest level.
    outputs = model(pixel_values=pixel_values.repeat(2, 1, 1, 1, 1))
    for value in (outputs.segment_masks, outputs.segment_flow_12, outputs.visibility_1):
        assert torch.isfinite(value).all()
    assert_finite_step(model, outputs.loss)


@pytest.mark.parametrize("name", ["identical noise", "black", "white"])
def test_identical_frames_cost_nothing_at_zero_flow(name: str) -> None:
    model = model_of().eval()
    with torch.no_grad():
        for parameter in model.segment_flow.readout.parameters():
            parameter.zero_()
        loss = model(pixel_values=pair_of(name, model.config)).loss
    assert float(loss) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
def test_fully_occluded_pairs(offset: float) -> None:
    """A motion out of the frame leaves no visible pixel: no cost, and nothing divides by zero."""
    model = model_of().train()
    with torch.no_grad():
        model.segment_flow.readout.output.bias.fill_(offset)
    outputs = model(pixel_values=pair_of("unrelated noise", model.config).repeat(2, 1, 1, 1, 1))
    assert float(outputs.visibility_1.detach().mean()) < 0.01
    assert_finite_step(model, outputs.loss)


@pytest.mark.parametrize("height", [1e2, 1e4])
def test_masks_of_zero_mass(height: float) -> None:
    """One segment takes every pixel; the others have no pixel to pool motion over."""
    model = model_of().train()
    with torch.no_grad():
        model.segment_classifier.weight.zero_()
        model.segment_classifier.bias.zero_()
        model.segment_classifier.bias[0] = height
    outputs = model(pixel_values=pair_of("unrelated noise", model.config).repeat(2, 1, 1, 1, 1))
    masks = outputs.segment_masks
    # exp(-100) is subnormal, which is zero or not by the mode of the processor; a mass below the
    # smallest normal number is none for the pooling.
    assert float(masks[:, :, 1:].detach().max()) < torch.finfo(torch.float32).tiny
    assert torch.isfinite(outputs.segment_motion_12).all()
    assert_finite_step(model, outputs.loss)


def test_nothing_visible_has_a_finite_gradient() -> None:
    synthesized = torch.rand(1, 3, 8, 8, requires_grad=True)
    visibility = torch.zeros(1, 1, 8, 8, requires_grad=True)
    photometric_loss(torch.rand(1, 3, 8, 8), synthesized, visibility).backward()
    for leaf in (synthesized, visibility):
        assert leaf.grad is not None
        assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("name", ["black to white", "checkerboard inverted", "unrelated noise"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["autocast", "weights"])
def test_half_precision(name: str, dtype: torch.dtype, way: str) -> None:
    model = model_of().train()
    pixel_values = pair_of(name, model.config).repeat(2, 1, 1, 1, 1)
    if way == "weights":
        model, pixel_values = model.to(dtype), pixel_values.to(dtype)
        loss = model(pixel_values=pixel_values).loss
    else:
        with torch.autocast("cpu", dtype=dtype):
            loss = model(pixel_values=pixel_values).loss
    assert_finite_step(model, loss)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_of_any_finite_size(scale: float, dtype: torch.dtype) -> None:
    """What is no normalized image still gives finite masks; 1e3 is 58,000 gray levels."""
    model = model_of().eval().to(dtype)
    masks = model(pixel_values=torch.randn(1, 3, *SIZE).mul(scale).to(dtype)).segment_masks
    assert torch.isfinite(masks).all()
    assert torch.allclose(masks.sum(1), torch.ones(()), atol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
class TestNonFiniteInput:
    """Arrays and tensors of frames are refused; a tensor behind the processor stays what it is."""

    def frames(self, value: float) -> list[np.ndarray]:
        frames = [np.random.default_rng(n).random((48, 64, 3)).astype(np.float32) for n in (0, 1)]
        frames[1][20, 30, 1] = value
        return frames

    def test_images(self, value: float) -> None:
        frame = self.frames(value)[1]
        with pytest.raises(ValueError, match=r"Image values must lie in 0\.\.255, got"):
            read_image(frame)
        with pytest.raises(ValueError, match="Image values must lie in"):
            AMDImageProcessor()(frame, return_tensors="pt")
        with pytest.raises(ValueError, match="Image values must lie in"):
            list(FrameStream(self.frames(value)))

    def test_adaptation(self, value: float, tiny_model: AMDModel) -> None:
        with pytest.raises(ValueError, match="Image values must lie in"):
            adapt_to_video(tiny_model, self.frames(value), num_steps=1)

    def test_a_loss_never_hides_it(self, value: float) -> None:
        model = model_of().train()
        pixel_values = pair_of("unrelated noise", model.config).repeat(2, 1, 1, 1, 1)
        pixel_values[0, 1, 1, 20, 30] = value
        assert not math.isfinite(float(model(pixel_values=pixel_values).loss.detach()))


@pytest.mark.parametrize("name", ["black", "identical noise"])
def test_adaptation_to_a_still_video(name: str, tiny_model: AMDModel) -> None:
    first, second = PAIRS[name]()
    frames = [
        np.repeat((frame.numpy() * 255).round().astype(np.uint8)[..., None], 3, -1)
        for frame in (first, second, first)
    ]
    adapted = adapt_to_video(tiny_model, frames, num_steps=3, crop_size=64, short_side=64)
    assert all(torch.isfinite(value).all() for value in adapted.state_dict().values())


def test_labels_that_are_all_ignored() -> None:
    torch.manual_seed(0)
    model = AMDForSemanticSegmentation(AMDConfig.tiny(num_labels=3)).train()
    labels = torch.full((2, *SIZE), 255)
    loss = model(pixel_values=torch.randn(2, 3, *SIZE), labels=labels).loss
    assert float(loss.detach()) == 0.0
    assert_finite_step(model, loss)


# Bitwise reproducibility: same seed, same machine, same number of threads, same bits.


def digest(model: nn.Module) -> str:
    """SHA-256 of all weights."""
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(
            name.encode() + value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return total.hexdigest()


def trained(seed: int) -> str:
    """The weights after some optimizer steps, and then an adaptation, from a seed."""
    torch.manual_seed(seed)
    model = AMDModel(AMDConfig.tiny()).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    for _ in range(3):
        optimizer.zero_grad()
        model(pixel_values=torch.randn(2, 2, 3, *SIZE)).loss.backward()
        optimizer.step()
    frames = [(noise(n).numpy() * 255).astype(np.uint8)[..., None].repeat(3, -1) for n in range(4)]
    adapted = adapt_to_video(model, frames, num_steps=2, crop_size=64, short_side=64, seed=seed)
    return digest(adapted)


def test_a_seed_decides_every_bit() -> None:
    assert trained(3) == trained(3)
    assert trained(3) != trained(4)


@pytest.mark.slow
def test_a_seed_decides_every_bit_across_processes() -> None:
    program = "from tests.test_numerics import trained; print(trained(3))"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    found = [
        subprocess.run(
            [sys.executable, "-c", program],
            env=environment | {"PYTHONHASHSEED": str(number)},
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for number in (1, 2)
    ]
    assert found[0] == found[1]
    assert len(found[0].strip()) == 64
