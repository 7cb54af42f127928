"""View synthesis: segment flow + the other frame -> synthesized frame and its visibility."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .warping_amd import backward_warp, visibility_from_flow


@dataclass
class SynthesizedView:
    """One scale of a synthesis, everything on the grid of the target frames.

    Attributes:
        image: Target frames at this scale, (B, 3, H, W) in [0, 1].
        synthesized: The same frames synthesized from the other ones, (B, 3, H, W) in [0, 1].
        visibility: 1 where the target is seen in the source, (B, 1, H, W).
    """

    image: Tensor
    synthesized: Tensor
    visibility: Tensor


def area_resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns `frames` averaged down to `size` (adaptive average pooling)."""
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames
    return F.adaptive_avg_pool2d(frames, size)


def synthesize_views(
    targets: Tensor,
    sources: Tensor,
    flows: list[Tensor],
    opposite_flow: Tensor,
    scale_weights: list[float],
    visibility_threshold: float,
) -> list[SynthesizedView | None]:
    """Synthesizes the target frames from the source frames at every scale that has a weight.

    Args:
        targets: Frames to be synthesized, (B, 3, H, W) in [0, 1].
        sources: Frames to sample, same shape.
        flows: Flow on the grid of the targets at every scale, finest first, in pixels of its scale.
        opposite_flow: Flow from the sources to the targets at the finest scale; tells visibility.
        scale_weights: Weight of every scale; scales of weight 0 are skipped (`None`).
        visibility_threshold: See `visibility_from_flow`.

    Returns:
        One view per scale. The visibility is computed at the finest scale and reduced by taking the
        nearest pixel.

    Source: released code, no difference.
    """
    visibility = visibility_from_flow(opposite_flow, visibility_threshold)
    frames = torch.cat([targets, sources])
    views: list[SynthesizedView | None] = []
    for scale, flow in enumerate(flows):
        if scale and not scale_weights[scale]:
            views.append(None)
            continue
        size = (flow.shape[-2], flow.shape[-1])
        # From the scale before: means of means of blocks of one size are the means.
        frames = area_resize(frames, size)
        image, source = frames.chunk(2)
        views.append(
            SynthesizedView(
                image=image,
                synthesized=backward_warp(source, flow),
                visibility=F.interpolate(visibility, size=size, mode="nearest")
                if scale
                else visibility,
            )
        )
    return views


__all__ = ["SynthesizedView", "area_resize", "synthesize_views"]
