"""Segment flow: segment masks x motion features -> one motion vector per segment -> flow.

Owns the coarse-to-fine loop. Masks arrive as tensors, so the appearance pathway is unknown here.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_amd import AMDConfig
from .motion_amd import AMDMotionPathway
from .warping_amd import full_precision


def masks_of_level(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (B, K, h, w) at the `size` of a level: bilinear, align_corners=True.

    Source: released code (masks are resized to every level after the softmax).
    """
    return F.interpolate(masks, size=size, mode="bilinear", align_corners=True)


def pool_features(features: Tensor, masks: Tensor) -> Tensor:
    """Averages features over every segment, in float32 or wider.

    Args:
        features: Motion features of shape (B, C, H, W).
        masks: Segment masks of shape (B, K, H, W).

    Returns:
        Pooled features of shape (B, K, C); zeros for a segment of no mass.

    Source: AMD paper, Sec. 3 (V_m = sum(V * S_m) / sum(S_m)). The released code divides without a
    guard and returns NaN for an empty segment; we clamp the divisor, equal everywhere else.
    """
    features, masks = full_precision(features), full_precision(masks)
    mass = masks.sum(dim=(2, 3)).clamp(min=torch.finfo(masks.dtype).tiny)
    with torch.autocast(features.device.type, enabled=False):
        return torch.einsum("bchw,bkhw->bkc", features, masks) / mass.unsqueeze(2)


def compose_flow(masks: Tensor, segment_motion: Tensor) -> Tensor:
    """Spreads one motion vector per segment over the segments' soft masks.

    Args:
        masks: Segment masks of shape (B, K, H, W).
        segment_motion: Motion of shape (B, K, 2) in pixels of this resolution.

    Returns:
        Segment flow of shape (B, 2, H, W), in float32 or wider.

    Source: AMD paper, Sec. 3 (F = sum_m F_m * S_m).
    """
    masks, segment_motion = full_precision(masks), full_precision(segment_motion)
    with torch.autocast(masks.device.type, enabled=False):
        return torch.einsum("bkhw,bkc->bchw", masks, segment_motion)


@dataclass
class SegmentFlow:
    """Result of the coarse-to-fine loop for a batch of reference frames.

    Attributes:
        segment_motion: Motion per segment in pixels of the motion size, (B, K, 2); `None` where the
            loop ran per pixel.
        flows: Flow at every scale, finest (the motion size) first, (B, 2, H / 2**s, W / 2**s) in
            pixels of its own scale.
        pixel_flow: Unpooled flow (B, 2, H, W) at the motion size, or `None`.
    """

    segment_motion: Tensor | None
    flows: list[Tensor]
    pixel_flow: Tensor | None


class AMDReadout(nn.Module):
    """Motion feature -> motion vector: the map g of the paper, shared by segments and levels."""

    def __init__(self, in_channels: int, hidden_channels: int, negative_slope: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_channels, hidden_channels)
        self.activation = nn.LeakyReLU(negative_slope)
        self.output = nn.Linear(hidden_channels, 2)

    def forward(self, features: Tensor) -> Tensor:
        """Maps features (..., C) to motion (..., 2), in the dtype of the weights.

        Source: AMD paper, Sec. 3 (a linear layer); the released code has a hidden layer.
        """
        return self.output(self.activation(self.hidden(features.to(self.hidden.weight.dtype))))


class AMDSegmentFlow(nn.Module):
    """Motion pathway, pooling and read-out in a coarse-to-fine loop.

    At every level the motion vectors of the segments are refined by a residual, and the flow that
    warps the next level is composed anew from the accumulated vectors and this level's masks.
    """

    def __init__(self, config: AMDConfig) -> None:
        super().__init__()
        self.motion_pathway = AMDMotionPathway(config)
        self.readout = AMDReadout(
            self.motion_pathway.out_channels, config.readout_channels, config.negative_slope
        )
        # Stride of the finest level that is estimated; flows are enlarged by it at the end.
        self.output_stride = 2 ** (len(config.pyramid_channels) - config.num_motion_levels + 1)

    def forward(
        self,
        references: list[Tensor],
        targets: list[Tensor],
        masks: Tensor | None,
        output_pixel_flow: bool = False,
    ) -> SegmentFlow:
        """Estimates the flow on the grid of the reference frames.

        Args:
            references: Pyramid of the reference frames, coarsest first.
            targets: Pyramid of the other frames.
            masks: Segment masks (B, K, h, w) of the *other* frames, the source of the synthesis; or
                `None` to estimate one vector per pixel instead (motion warm-up).
            output_pixel_flow: Also accumulate the unpooled flow, which is not fed back.

        Returns:
            The segment motion and the flow at every scale; scale s has the motion size divided by
            2**s and vectors in pixels of that scale.

        Source: released code; the paper's figure has a single level.
        """
        B = references[0].shape[0]
        flow = full_precision(references[0].new_zeros(B, 2, *references[0].shape[-2:]))
        motion: Tensor | None = None
        pixel_flow: Tensor | None = None
        flows = []
        for level in range(self.motion_pathway.num_levels):
            size = (references[level].shape[-2], references[level].shape[-1])
            if level:
                flow = _double(flow, size)
                pixel_flow = None if pixel_flow is None else _double(pixel_flow, size)
            features = self.motion_pathway(references[level], targets[level], flow, level)
            if masks is None or output_pixel_flow:
                dense = self._read_pixels(features)
                pixel_flow = dense if pixel_flow is None else pixel_flow + dense
            if masks is not None:
                level_masks = masks_of_level(full_precision(masks), size)
                residual = self._read_segments(features, level_masks)
                motion = residual if motion is None else 2.0 * motion + residual
                flow = compose_flow(level_masks, motion)
            elif pixel_flow is not None:
                flow = pixel_flow
            flows.append(flow)
        stride = self.output_stride
        return SegmentFlow(
            segment_motion=None if motion is None else stride * motion,
            flows=[_enlarge(flow, stride) for flow in flows[::-1]],
            pixel_flow=None if pixel_flow is None else _enlarge(pixel_flow, stride),
        )

    def _read_segments(self, features: Tensor, masks: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return full_precision(self.readout(pool_features(features, masks)))

    def _read_pixels(self, features: Tensor) -> Tensor:
        vectors = self.readout(features.permute(0, 2, 3, 1))  # (B, H, W, 2)
        return full_precision(vectors).permute(0, 3, 1, 2)


def _double(flow: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(2.0 * flow, size=size, mode="bilinear", align_corners=True)


def _enlarge(flow: Tensor, factor: int) -> Tensor:
    return F.interpolate(
        factor * flow, scale_factor=float(factor), mode="bilinear", align_corners=True
    )


__all__ = [
    "AMDReadout",
    "AMDSegmentFlow",
    "SegmentFlow",
    "compose_flow",
    "masks_of_level",
    "pool_features",
]
