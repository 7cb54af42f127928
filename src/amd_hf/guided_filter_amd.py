"""Edges of soft masks that follow those of their image: a guided filter at full resolution."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

GUIDED_RADIUS = 0.02  # share of the diagonal
GUIDED_EPSILON = 1e-3  # of intensities in [0, 1]
GUIDED_WORKING_SIDE = 240


def _box_mean(values: Tensor, radius: int) -> Tensor:
    """Mean over windows of side 2 * radius + 1, cut at the border; shape (1, C, H, W) is kept."""
    side = 2 * radius + 1
    # Row by row, then column by column: the same mean for a fraction of the work.
    rows = F.avg_pool2d(values, (1, side), 1, (0, radius), count_include_pad=False)
    return F.avg_pool2d(rows, (side, 1), 1, (radius, 0), count_include_pad=False)


def guided_filter(
    guide: Tensor, soft_masks: Tensor, radius: float = GUIDED_RADIUS, eps: float = GUIDED_EPSILON
) -> Tensor:
    """Soft masks whose edges follow those of a color image.

    Inside each window the result is a linear function of the colors. Its coefficients are computed
    at a reduced size (short side at most 240) and applied at full resolution.

    Args:
        guide: RGB image of shape (3, H, W) in [0, 1].
        soft_masks: Soft masks of shape (K, H, W) in [0, 1].
        radius: Radius of the windows as a share of the diagonal.
        eps: Variance below which a window counts as flat.

    Returns:
        Soft masks of shape (K, H, W) in [0, 1]; constant masks stay as they are.

    Raises:
        ValueError: If the shapes do not match or a parameter is not positive.

    Source: He et al., Guided image filtering, ECCV 2010, Eqs. 19-21 (color guide), and its fast
    version, He and Sun, 2015.
    """
    if guide.ndim != 3 or len(guide) != 3 or guide.shape[1:] != soft_masks.shape[1:]:
        raise ValueError(
            "`guide` must have shape (3, H, W) and `soft_masks` (K, H, W), got "
            f"{tuple(guide.shape)} and {tuple(soft_masks.shape)}."
        )
    if radius <= 0 or eps <= 0:
        raise ValueError(f"`radius` and `eps` must be positive, got {radius} and {eps}.")
    height, width = guide.shape[1:]
    scale = min(1.0, GUIDED_WORKING_SIDE / min(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    small_guide = F.interpolate(guide[None].float(), size, mode="area")
    small_masks = F.interpolate(soft_masks[None].float(), size, mode="area")
    window = max(1, round(radius * float(np.hypot(*size))))
    slopes, offsets = _linear_coefficients(small_guide, small_masks, window, eps)
    K = len(soft_masks)
    slopes = F.interpolate(_box_mean(slopes, window), (height, width), mode="bilinear")
    offsets = F.interpolate(_box_mean(offsets, window), (height, width), mode="bilinear")
    slopes = slopes.reshape(K, 3, height, width)
    return (torch.einsum("kchw,chw->khw", slopes, guide.float()) + offsets[0]).clamp(0, 1)


def _linear_coefficients(
    guide: Tensor, masks: Tensor, window: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Slopes (1, 3K, h, w) and offsets (1, K, h, w) of the windows around every pixel."""
    K = masks.shape[1]
    mean_guide, mean_masks = _box_mean(guide, window), _box_mean(masks, window)
    products = torch.einsum("bihw,bjhw->bijhw", guide, guide).flatten(1, 2)
    mean_products = _box_mean(products, window).unflatten(1, (3, 3))
    covariance = mean_products - torch.einsum("bihw,bjhw->bijhw", mean_guide, mean_guide)
    crossed = torch.einsum("bihw,bkhw->bikhw", guide, masks).flatten(1, 2)
    mean_crossed = _box_mean(crossed, window).unflatten(1, (3, K))
    crossed_covariance = mean_crossed - torch.einsum("bihw,bkhw->bikhw", mean_guide, mean_masks)
    # Per pixel a 3x3 system with K right sides.
    system = covariance[0].permute(2, 3, 0, 1) + eps * torch.eye(3, device=guide.device)
    slopes = torch.linalg.solve(system, crossed_covariance[0].permute(2, 3, 0, 1))  # (h, w, 3, K)
    slopes = slopes.permute(3, 2, 0, 1)  # (K, 3, h, w)
    offsets = mean_masks[0] - torch.einsum("kchw,chw->khw", slopes, mean_guide[0])
    return slopes.flatten(0, 1)[None], offsets[None]


__all__ = ["guided_filter"]
