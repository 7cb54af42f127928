"""The training signal: how well one frame is synthesized from the other.

Tensors in, scalar out; nothing here knows about segments or motion.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Stabilizers of SSIM (Wang et al. 2004) for a dynamic range of 1: (0.01)^2 and (0.03)^2.
SSIM_C1 = 1e-4
SSIM_C2 = 9e-4


class _WindowSum(torch.autograd.Function):
    """Sum over every 3x3 window, (B, C, H, W) -> (B, C, H - 2, W - 2).

    Rows, then columns, as additions of whole maps: many times faster than average pooling on a CPU.
    The backward pass is the same sum over the padded gradient.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        rows = maps[:, :, :-2] + maps[:, :, 1:-1]
        rows += maps[:, :, 2:]
        sums = rows[..., :-2] + rows[..., 1:-1]
        sums += rows[..., 2:]
        return sums

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _WindowSum.apply(F.pad(gradient, (2, 2, 2, 2)))


def _window_means(maps: list[Tensor]) -> tuple[Tensor, ...]:
    """Returns the 3x3 means of some maps (B, C, H, W), each of shape (B, C, H - 2, W - 2)."""
    means = _WindowSum.apply(torch.cat(maps, dim=1)) / 9.0
    return means.split(maps[0].shape[1], dim=1)


def ssim_distance(first: Tensor, second: Tensor) -> Tensor:
    """Returns the structural dissimilarity (1 - SSIM) / 2 of two images, clamped to [0, 1].

    Args:
        first: Image of shape (B, C, H, W) with values in [0, 1].
        second: Image of the same shape.

    Returns:
        Distance per channel and 3x3 window, shape (B, C, H - 2, W - 2); 0 for equal images.

    Raises:
        ValueError: If the shapes differ or a side is shorter than 3 pixels.

    Source: Wang et al. 2004 with a uniform 3x3 window without padding and biased variances, as in
    the released code.
    """
    if first.shape != second.shape or first.dim() != 4 or min(first.shape[-2:]) < 3:
        raise ValueError(
            "`first` and `second` must have one shape (B, C, H, W) of at least 3x3 pixels, "
            f"got {tuple(first.shape)} and {tuple(second.shape)}."
        )
    # Apart, since only one of the images has a gradient in training.
    mean_1, square_1, product = _window_means([first, first * first, first * second])
    mean_2, square_2 = _window_means([second, second * second])
    variance_1 = square_1 - mean_1 * mean_1
    variance_2 = square_2 - mean_2 * mean_2
    covariance = product - mean_1 * mean_2
    numerator = (2.0 * mean_1 * mean_2 + SSIM_C1) * (2.0 * covariance + SSIM_C2)
    denominator = (mean_1 * mean_1 + mean_2 * mean_2 + SSIM_C1) * (
        variance_1 + variance_2 + SSIM_C2
    )
    return ((1.0 - numerator / denominator) / 2.0).clamp(0.0, 1.0)


def photometric_loss(
    image: Tensor,
    synthesized: Tensor,
    visibility: Tensor,
    l1_weight: float = 0.15,
    ssim_weight: float = 0.85,
) -> Tensor:
    """Returns the mean difference of an image and its synthesis over visible pixels.

    (l1_weight * mean(|image - synthesized| * v)
    + ssim_weight * mean(D(synthesized * v, image * v))) / mean(v), means over the whole batch.

    Args:
        image: Target frames of shape (B, C, H, W) in [0, 1].
        synthesized: Synthesized frames of the same shape.
        visibility: 1 where visible, shape (B, 1, H, W).
        l1_weight: Weight of the absolute difference.
        ssim_weight: Weight of the structural dissimilarity.

    Returns:
        Scalar loss in float32 or wider; 0 for a perfect synthesis and where nothing is visible.

    Source: released code (the paper names SSIM only). The released code divides by mean(v)
    unguarded, which is NaN for a fully occluded pair; we clamp it, equal everywhere else. As there,
    masked pixels count as zeros in both means and mask borders enter SSIM.
    """
    absolute = ((image - synthesized).abs() * visibility).mean()
    structural = ssim_distance(synthesized * visibility, image * visibility).mean()
    visible_share = visibility.mean().clamp(min=1e-6)
    return (l1_weight * absolute + ssim_weight * structural) / visible_share


__all__ = ["photometric_loss", "ssim_distance"]
