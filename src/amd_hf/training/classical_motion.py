"""What moves against the camera, without learning: classical flow minus the dominant motion.

A departure from the paper for small data: a frame pair tells where something moves on its own long
before a small network finds it out. Classical optical flow (DIS, Kroeger et al. 2016; no learned
weights) is explained by one smooth motion of the whole frame, the camera's; where it cannot be, an
object moves. Still no labels, no pre-trained weights and no flow network.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from amd_hf.dis_flow import dis_flow

# Residuals are measured in units of their median; smaller medians than this (pixels) are noise.
MIN_RESIDUAL_SCALE = 0.15
# Rows (or columns, if fewer) of the grid of pixels that the dominant motion is fitted to.
FIT_GRID = 48
# A residual of 2.25 medians is still background, one of 3.75 surely moves on its own.
RESIDUAL_LOW = 2.25
RESIDUAL_HIGH = 3.75
# Pairs whose moving part is smaller or larger than these shares of the frame, or lies on more of
# the frame's border, are mostly failures of the dominant motion.
MIN_AREA = 0.008
MAX_AREA = 0.45
MAX_BORDER_SHARE = 0.35
# Mean residual of the moving part in pixels from which the motion is more than noise.
MIN_RESIDUAL = 0.35


@dataclass(frozen=True)
class MovingObject:
    """Where something moves on its own.

    Attributes:
        probability: Soft target in [0, 1], shape (B, H, W).
        is_usable: Whether the pair shows a plausible object, bool of shape (B,).
    """

    probability: Tensor
    is_usable: Tensor


def classical_flow(first: Tensor, second: Tensor) -> Tensor:
    """Returns dense flow from `first` to `second`: that of `dis_flow`.

    Args:
        first: RGB frames in [0, 1], shape (B, 3, H, W), at least 16 pixels high and wide.
        second: Frames of the same shape.

    Returns:
        Flow on the grid of `first`, shape (B, 2, H, W) in pixels, float32, on its device.

    Raises:
        ImportError: If OpenCV is missing.
        ValueError: If the shapes differ.
    """
    if first.shape != second.shape or first.dim() != 4:
        raise ValueError(
            "`first` and `second` must have one shape (B, 3, H, W), "
            f"got {tuple(first.shape)} and {tuple(second.shape)}."
        )
    # Not OpenCV's gray, one level off for one color in 800: published figures rest on this one.
    luma = first.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    gray = [((x * luma).sum(1) * 255.0).round().byte().cpu().numpy() for x in (first, second)]
    flows = [torch.from_numpy(flow) for flow in dis_flow(*gray)]
    return torch.stack(flows).to(first.device)


def _polynomials(like: Tensor) -> Tensor:
    """Returns 1, x, y, x^2, xy, y^2 per pixel of a map (..., H, W), shape (H * W, 6)."""
    height, width = like.shape[-2:]
    y = (torch.arange(height, device=like.device, dtype=like.dtype) - height / 2) * 2 / width
    x = (torch.arange(width, device=like.device, dtype=like.dtype) - width / 2) * 2 / width
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], dim=-1).flatten(0, 1)


def _border_prior(like: Tensor) -> Tensor:
    """Returns 1 within 15 % of the frame's border and 0.3 inside: the border shows background."""
    height, width = like.shape[-2:]
    y = torch.arange(height, device=like.device, dtype=like.dtype)
    x = torch.arange(width, device=like.device, dtype=like.dtype)
    distance_y = torch.minimum(y, height - 1 - y) / height
    distance_x = torch.minimum(x, width - 1 - x) / width
    distance = torch.minimum(distance_y.unsqueeze(1), distance_x.unsqueeze(0))
    return torch.where(distance < 0.15, 1.0, 0.3).to(like.dtype).flatten()


def dominant_motion_residual(flow: Tensor, num_iterations: int = 12) -> tuple[Tensor, Tensor]:
    """Returns how far the flow departs from the dominant motion of the frame.

    The dominant motion is quadratic in position and fitted by iteratively reweighted least squares
    (Geman-McClure weights in units of the median residual), starting from the border.

    Args:
        flow: Flow of shape (B, 2, H, W) in pixels.
        num_iterations: Reweighted fits.

    Returns:
        Residual of shape (B, H, W) in pixels, and its scale of shape (B,): the median, at least
        `MIN_RESIDUAL_SCALE`.
    """
    with torch.autocast(flow.device.type, enabled=False):  # normal equations need float32
        return _fit_and_subtract(flow.float(), num_iterations)


def _fit_and_subtract(flow: Tensor, num_iterations: int) -> tuple[Tensor, Tensor]:
    height, width = flow.shape[-2:]
    step = max(min(height, width) // FIT_GRID, 1)
    coarse = flow[:, :, ::step, ::step]
    vectors = coarse.flatten(2).transpose(1, 2)  # (B, N, 2)
    whole = _polynomials(flow)  # (H * W, 6)
    basis = whole.view(height, width, -1)[::step, ::step].flatten(0, 1)  # (N, 6)
    prior = _border_prior(coarse)
    ridge = 1e-3 * torch.eye(basis.shape[1], device=flow.device)
    weights = prior.expand(len(flow), -1)
    for _ in range(num_iterations):
        weighted = basis * weights.unsqueeze(2)  # (B, N, 6)
        normal = weighted.transpose(1, 2) @ basis + ridge
        coefficients = torch.linalg.solve(normal, weighted.transpose(1, 2) @ vectors)  # (B, 6, 2)
        residual = (vectors - basis @ coefficients).norm(dim=2)
        scale = residual.median(dim=1).values.clamp(min=MIN_RESIDUAL_SCALE)
        robust = (1.0 + (residual / scale.unsqueeze(1)).square()).reciprocal().square()
        weights = robust * prior.clamp(min=0.6)
    fitted = whole @ coefficients  # (B, H*W, 2)
    fitted = fitted.transpose(1, 2).unflatten(2, flow.shape[-2:])
    return (flow - fitted).norm(dim=1), scale


def moving_object(flow: Tensor) -> MovingObject:
    """Returns where something moves against the dominant motion.

    Args:
        flow: Flow of shape (B, 2, H, W) in pixels.

    Returns:
        Soft target per pixel and whether the pair is usable.
    """
    residual, scale = dominant_motion_residual(flow)
    ratio = residual / scale.view(-1, 1, 1)
    probability = ((ratio - RESIDUAL_LOW) / (RESIDUAL_HIGH - RESIDUAL_LOW)).clamp(0.0, 1.0)
    moves = (probability > 0.5).float()
    area = moves.mean(dim=(1, 2))
    edges = (moves[:, 0], moves[:, -1], moves[:, :, 0], moves[:, :, -1])
    border = torch.cat(edges, dim=1).mean(dim=1)
    strength = (residual * moves).sum(dim=(1, 2)) / moves.sum(dim=(1, 2)).clamp(min=1.0)
    usable = (area > MIN_AREA) & (area < MAX_AREA) & (border < MAX_BORDER_SHARE)
    return MovingObject(probability, usable & (strength > MIN_RESIDUAL))


def resize_probability(probability: Tensor, size: tuple[int, int]) -> Tensor:
    """Averages a map (B, H, W) down to `size` (bilinear where it grows)."""
    maps = probability.unsqueeze(1)
    if size[0] <= maps.shape[-2] and size[1] <= maps.shape[-1]:
        return F.adaptive_avg_pool2d(maps, size).squeeze(1)
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False).squeeze(1)


__all__ = [
    "MovingObject",
    "classical_flow",
    "dominant_motion_residual",
    "moving_object",
    "resize_probability",
]
