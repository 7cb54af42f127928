"""What the machine itself can do: matrix products, convolutions and JPEG decoding."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from amd_hf.benchmarking.timing import Timing, measure

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Channels, kernel and dilation of a late 3x3 convolution of a ResNet: as fast as convolutions get.
CONVOLUTION = {"channels": 256, "kernel": 3, "dilation": 1}
FRAME_SIZE = (480, 854)
JPEG_QUALITY = 90


def gemm_limits(size: int = 1536, rounds: int = 3, device: str = "cpu") -> dict[str, float]:
    """FLOP/s of a square matrix product in float32 and bfloat16.

    Args:
        size: Side of the matrices.
        rounds: Rounds of which the fastest counts.
        device: Device to measure.

    Returns:
        `fp32` and `bf16`, in floating-point operations per second (2 per multiply-add).
    """
    work = {}
    for name, dtype in DTYPES.items():
        first, second = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        work[name] = _product(first, second)
    return {name: 2 * size**3 / t.fastest for name, t in measure(work, rounds, device).items()}


def convolution_limits(
    side: int = 48, batch: int = 4, rounds: int = 3, device: str = "cpu"
) -> dict[str, float]:
    """FLOP/s of a 3x3 convolution, forward and with both gradients, in float32 and bfloat16.

    Args:
        side: Height and width of the feature map; 48 is that of a 384-pixel crop.
        batch: Number of maps; 4 is that of two pairs.
        rounds: Rounds of which the fastest counts.
        device: Device to measure.

    Returns:
        `fp32_forward`, `fp32_training`, `bf16_forward` and `bf16_training`, in floating-point
        operations per second (2 per multiply-add; training counts three convolutions).
    """
    channels, kernel = CONVOLUTION["channels"], CONVOLUTION["kernel"]
    flops = 2 * batch * side * side * channels * channels * kernel * kernel
    rates = {}
    for name, dtype in DTYPES.items():
        images = torch.randn(batch, channels, side, side, device=device).to(dtype)
        images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
        weights = torch.randn(channels, channels, kernel, kernel, device=device).to(dtype)
        weights = weights.contiguous(memory_format=torch.channels_last).requires_grad_()
        timings = measure(_convolutions(images, weights), rounds, device)
        rates[f"{name}_forward"] = flops / timings["forward"].fastest
        rates[f"{name}_training"] = 3 * flops / timings["training"].fastest
    return rates


def decode_limit(rounds: int = 5, size: tuple[int, int] = FRAME_SIZE) -> Timing:
    """Time to decode one JPEG frame with Pillow on one core, everything else left out.

    Args:
        rounds: Number of rounds.
        size: Height and width of the frame.
    """
    frame = example_frame(size)
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=JPEG_QUALITY)
    data = buffer.getvalue()
    return measure({"decode": lambda: Image.open(io.BytesIO(data)).convert("RGB")}, rounds)[
        "decode"
    ]


def example_frame(size: tuple[int, int] = FRAME_SIZE, seed: int = 0) -> np.ndarray:
    """A generated frame with the texture of a photo, uint8 of shape (H, W, 3)."""
    from amd_hf.data.synthetic_objects import generate_clip

    return generate_clip(1, *size, seed=seed)[0][0]


def _product(first: torch.Tensor, second: torch.Tensor) -> Callable[[], Any]:
    return lambda: first @ second


def _convolutions(images: torch.Tensor, weights: torch.Tensor) -> dict[str, Callable[[], Any]]:
    padding = CONVOLUTION["dilation"] * (CONVOLUTION["kernel"] // 2)

    def forward() -> torch.Tensor:
        return F.conv2d(images, weights, padding=padding)

    gradient = torch.randn_like(forward())

    def forward_alone() -> torch.Tensor:
        with torch.no_grad():
            return forward()

    def training() -> Any:
        return torch.autograd.grad(forward(), (images, weights), gradient)

    return {"forward": forward_alone, "training": training}
