"""Motion pathway: frame pair -> feature pyramid -> cost volume -> motion features per level.

No layer of this pathway is normalized and every convolution has a bias, as in the published code.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_amd import AMDConfig
from .warping_amd import backward_warp, channels_last, full_precision


def normalize_features(features: Tensor) -> Tensor:
    """Returns features of zero mean per channel and unit variance per sample, shape (B, C, H, W).

    The mean is taken over space, so that what is the same everywhere does not dominate the
    correlation; the variance over channels and space.

    Source: after UFlow (Jonschkowski et al. 2020), Sec. 3, which takes both over channels and
    space; not in the released AMD code.
    """
    wide = full_precision(features)
    centered = wide - wide.mean(dim=(2, 3), keepdim=True)
    variance = centered.square().mean(dim=(1, 2, 3), keepdim=True)
    return (centered * torch.rsqrt(variance.clamp(min=1e-12))).to(features.dtype)


def _blocks(features: Tensor, block: int) -> Tensor:
    """Splits (B, C, h*b, w*b) into blocks with their channels last, (B, h, b, w, b, C)."""
    B, C, H, W = features.shape
    parts = features.reshape(B, C, H // block, block, W // block, block)
    return parts.permute(0, 2, 3, 4, 5, 1)


def _windows(target: Tensor, block: int) -> Tensor:
    """Joins each block with its right and lower neighbors: (B, h, w, (2b)^2, C), one fewer each."""
    parts = _blocks(target, block)
    parts = torch.cat([parts[:, :-1], parts[:, 1:]], dim=2)  # (B, h, 2b, w + 1, b, C)
    parts = torch.cat([parts[:, :, :, :-1], parts[:, :, :, 1:]], dim=4)  # (B, h, 2b, w, 2b, C)
    return parts.transpose(2, 3).flatten(3, 4)


def cost_volume(reference: Tensor, target: Tensor, search_range: int) -> Tensor:
    """Correlates every reference pixel with the target pixels around the same position.

    Channel (dy + r) * (2 r + 1) + (dx + r) is the mean over feature channels of
    reference(p) * target(p + (dx, dy)), with zeros outside of the target. Pixels are processed in
    blocks of side 2 r, whose neighborhood is exactly 2x2 blocks: one matrix product per block, of
    which the needed band is read through strides, so neither a loop over displacements nor a copy
    per displacement is made.

    Args:
        reference: Features of shape (B, C, H, W).
        target: Features of shape (B, C, H, W), already warped towards the reference.
        search_range: Radius r of the search window in pixels, at least 1.

    Returns:
        Cost volume of shape (B, (2 r + 1)**2, H, W), in channels-last memory format.

    Raises:
        ValueError: If the shapes differ or the radius is not positive.

    Source: PWC-Net (Sun et al. 2018), Sec. 3; released code: no difference.
    """
    if reference.shape != target.shape or reference.dim() != 4:
        raise ValueError(
            "`reference` and `target` must have one shape (B, C, H, W), "
            f"got {tuple(reference.shape)} and {tuple(target.shape)}."
        )
    if search_range < 1:
        raise ValueError(f"`search_range` must be at least 1, got {search_range}.")
    B, C, H, W = reference.shape
    r, side, block = search_range, 2 * search_range + 1, 2 * search_range
    pad_h, pad_w = -H % block, -W % block
    h, w = (H + pad_h) // block, (W + pad_w) // block
    pixels = _blocks(F.pad(reference, (0, pad_w, 0, pad_h)), block).transpose(2, 3)
    pixels = pixels.reshape(B * h * w, block * block, C)
    windows = _windows(F.pad(target, (r, r + pad_w, r, r + pad_h)), block)
    products = torch.bmm(pixels / C, windows.reshape(B * h * w, -1, C).transpose(1, 2))
    # Pixel (i, j) of a block needs row i + dy and column j + dx of its own 2b x 2b products.
    reach, row = 2 * block, 4 * block * block
    one = block * block * row
    band = products.as_strided(
        (B, h, w, block, block, side, side),
        (h * w * one, w * one, one, block * row + reach, row + 1, reach, 1),
    )
    costs = band.transpose(2, 3).reshape(B, h * block, w * block, side * side)
    return costs.permute(0, 3, 1, 2)[:, :, :H, :W]


class AMDFeaturePyramid(nn.Module):
    """Image -> features at strides 2, 4, ..., two 3x3 convolutions per level."""

    def __init__(self, config: AMDConfig) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        channels = config.num_channels
        for out_channels in config.pyramid_channels:
            self.levels.append(
                nn.Sequential(
                    nn.Conv2d(channels, out_channels, 3, stride=2, padding=1),
                    nn.LeakyReLU(config.negative_slope, inplace=True),
                    nn.Conv2d(out_channels, out_channels, 3, padding=1),
                    nn.LeakyReLU(config.negative_slope, inplace=True),
                )
            )
            channels = out_channels

    def forward(self, frames: Tensor) -> list[Tensor]:
        """Maps RGB frames in [0, 1] of shape (B, 3, H, W) to features, coarsest first."""
        outputs = []
        x = channels_last(frames)
        for level in self.levels:
            x = level(x)
            outputs.append(x)
        return outputs[::-1]


class AMDMotionEstimator(nn.Module):
    """Cost volume, context and flow -> motion features; one set of weights for all levels."""

    def __init__(self, config: AMDConfig) -> None:
        super().__init__()
        channels = (2 * config.search_range + 1) ** 2 + config.context_channels + 2
        widths = config.estimator_channels
        inputs = [channels, widths[0]]
        inputs += [first + second for first, second in itertools.pairwise(widths[:4])]
        self.convs = nn.ModuleList(
            nn.Conv2d(n, m, 3, padding=1) for n, m in zip(inputs, widths, strict=True)
        )
        self.activation = nn.LeakyReLU(config.negative_slope, inplace=True)
        self.out_channels = widths[3] + widths[4]

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, D + context + 2, H, W) to motion features (B, C, H, W)."""
        first = self.activation(self.convs[0](x))
        second = self.activation(self.convs[1](first))
        third = self.activation(self.convs[2](torch.cat([first, second], dim=1)))
        fourth = self.activation(self.convs[3](torch.cat([second, third], dim=1)))
        fifth = self.activation(self.convs[4](torch.cat([third, fourth], dim=1)))
        return torch.cat([fourth, fifth], dim=1)


class AMDMotionPathway(nn.Module):
    """Frames -> feature pyramid; reference, target and current flow -> motion features."""

    def __init__(self, config: AMDConfig) -> None:
        super().__init__()
        self.num_levels = config.num_motion_levels
        self.search_range = config.search_range
        self.normalize_cost_volume = config.normalize_cost_volume
        self.pyramid = AMDFeaturePyramid(config)
        coarse_to_fine = list(config.pyramid_channels)[::-1][: self.num_levels]
        self.context_convs = nn.ModuleList(
            nn.Conv2d(channels, config.context_channels, 1) for channels in coarse_to_fine
        )
        self.activation = nn.LeakyReLU(config.negative_slope, inplace=True)
        self.estimator = AMDMotionEstimator(config)
        self.out_channels = self.estimator.out_channels

    def forward(self, reference: Tensor, target: Tensor, flow: Tensor, level: int) -> Tensor:
        """Returns the motion features of one level.

        Args:
            reference: Features of the reference frame, shape (B, C, H, W).
            target: Features of the other frame, same shape.
            flow: Current flow on the reference grid, shape (B, 2, H, W) in pixels of this level.
            level: Index of the level, 0 = coarsest.

        Returns:
            Motion features of shape (B, C', H, W).

        Source: released code (PWC-style estimator shared by all levels); the paper draws a single
        level.
        """
        # The flow is zero at the coarsest level: nothing to warp.
        aligned = backward_warp(target, flow) if level else target
        matched = reference
        if self.normalize_cost_volume:
            matched, aligned = normalize_features(reference), normalize_features(aligned)
        cost = self.activation(cost_volume(matched, aligned, self.search_range))
        context = self.activation(self.context_convs[level](reference))
        current = channels_last(flow.to(context.dtype))
        return self.estimator(torch.cat([cost, context, current], dim=1))


__all__ = [
    "AMDFeaturePyramid",
    "AMDMotionEstimator",
    "AMDMotionPathway",
    "cost_volume",
    "normalize_features",
]
