"""The published computation, replicated in float32 as the baseline of the benchmark.

Our own code, written from a description of the method. It computes what the published training
code computes and in its way, the parts included that reach no output: the unpooled ("whole") flow
with its loss, the smoothness term, and the read-out of every segment on a full map. Directions and
frames run one after the other, maps are in the default memory format, and the cost volume
multiplies one shifted map per displacement. Operators are vectorized (no Python loop over pixels),
so the baseline is not slower than it must be. Weights are those of an `AMDModel`, outputs agree
with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amd_hf import AMDModel
from amd_hf.motion_amd import normalize_features
from amd_hf.warping_amd import backward_warp, visibility_from_flow

# Settings of the smoothness term, which the published code computes and drops.
EDGE_WEIGHT = 10.0
SSIM_C1, SSIM_C2 = 1e-4, 9e-4


@dataclass
class ReplicaOutput:
    """What the published training step computes.

    Attributes:
        loss: Photometric loss of the segment flow, the only term that is minimized.
        dropped: Loss of the unpooled flow and smoothness of both, computed and not used.
        segment_logits: Logits of the segments, (B, 2, K, h, w).
        segment_motion_12: Motion per segment in pixels, (B, K, 2).
        segment_motion_21: The same from frame 2 to frame 1.
    """

    loss: Tensor
    dropped: Tensor
    segment_logits: Tensor
    segment_motion_12: Tensor
    segment_motion_21: Tensor


@dataclass
class _Flows:
    segments: list[Tensor]
    pixels: list[Tensor]
    motion: Tensor


class PublishedReplica(nn.Module):
    """The published training computation over the weights of `model`.

    Args:
        model: The model whose parameters and batch statistics are used, not copied.
    """

    def __init__(self, model: AMDModel) -> None:
        super().__init__()
        self.model = model

    def segment(self, images: Tensor) -> Tensor:
        """Maps normalized images (B, 3, H, W) to segment logits (B, K, ceil(H/8), ceil(W/8))."""
        appearance = self.model.appearance
        features = appearance.backbone(images)[-1]
        return self.model.segment_classifier(appearance.dropout(appearance.head(features)))

    def forward(self, pixel_values: Tensor) -> ReplicaOutput:
        """Computes the loss of normalized pairs (B, 2, 3, H, W)."""
        B = pixel_values.shape[0]
        logits = self.segment(pixel_values.flatten(0, 1)).unflatten(0, (B, 2))
        masks = logits.softmax(dim=2)
        frames = [self.model.frames_in_rgb(pixel_values[:, i]) for i in range(2)]
        pyramids = [self._pyramid(frame) for frame in frames]
        forth = self._flows(pyramids[0], pyramids[1], masks[:, 1])
        back = self._flows(pyramids[1], pyramids[0], masks[:, 0])
        loss, smoothness = self._loss(frames, forth.segments, back.segments)
        whole, whole_smoothness = self._loss(frames, forth.pixels, back.pixels)
        return ReplicaOutput(
            loss, whole + smoothness + whole_smoothness, logits, forth.motion, back.motion
        )

    def _pyramid(self, frame: Tensor) -> list[Tensor]:
        outputs = []
        for level in self.model.segment_flow.motion_pathway.pyramid.levels:
            frame = level(frame)
            outputs.append(frame)
        return outputs[::-1]

    def _flows(self, references: list[Tensor], targets: list[Tensor], masks: Tensor) -> _Flows:
        """The coarse-to-fine loop of one direction."""
        pathway = self.model.segment_flow.motion_pathway
        stride = self.model.segment_flow.output_stride
        flow = references[0].new_zeros(references[0].shape[0], 2, *references[0].shape[-2:])
        pixel_flow = flow
        motion_maps: list[Tensor] | None = None
        flows, pixel_flows = [], []
        for level in range(pathway.num_levels):
            reference, target = references[level], targets[level]
            size = reference.shape[-2:]
            if level:
                flow, pixel_flow = (_resize(2.0 * f, size) for f in (flow, pixel_flow))
                target = backward_warp(target, flow)
            matched = (reference, target)
            if pathway.normalize_cost_volume:  # off in the published configuration
                matched = (normalize_features(reference), normalize_features(target))
            cost = _cost_volume(*matched, pathway.search_range)
            context = F.leaky_relu(pathway.context_convs[level](reference), self._slope)
            features = pathway.estimator(
                torch.cat([F.leaky_relu(cost, self._slope), context, flow], 1)
            )
            pixel_flow = pixel_flow + self._read(features)
            level_masks = _resize(masks, size)
            residuals = self._read_segments(features, level_masks)
            if motion_maps is not None:
                previous = [_resize(2.0 * motion, size) for motion in motion_maps]
                residuals = [p + r for p, r in zip(previous, residuals, strict=True)]
            motion_maps = residuals
            flow = sum(
                (level_masks[:, k : k + 1] * motion for k, motion in enumerate(motion_maps)),
                start=torch.zeros_like(flow),
            )
            flows.append(_enlarge(flow, stride))
            pixel_flows.append(_enlarge(pixel_flow, stride))
        assert motion_maps is not None
        motion = torch.stack([stride * motion[:, :, 0, 0] for motion in motion_maps], dim=1)
        return _Flows(flows[::-1], pixel_flows[::-1], motion)

    @property
    def _slope(self) -> float:
        return float(self.model.config.negative_slope)

    def _read(self, features: Tensor) -> Tensor:
        """The read-out as two 1x1 convolutions over the map."""
        hidden, output = (
            self.model.segment_flow.readout.hidden,
            self.model.segment_flow.readout.output,
        )
        features = F.conv2d(features, hidden.weight[:, :, None, None], hidden.bias)
        features = F.leaky_relu(features, self._slope)
        return F.conv2d(features, output.weight[:, :, None, None], output.bias)

    def _read_segments(self, features: Tensor, masks: Tensor) -> list[Tensor]:
        """Pools under each mask, spreads the mean over the map and reads it out there."""
        motions = []
        for k in range(masks.shape[1]):
            mask = masks[:, k : k + 1]
            pooled = (features * mask).sum((2, 3), keepdim=True) / mask.sum((2, 3), keepdim=True)
            motions.append(self._read(pooled.expand_as(features).contiguous()))
        return motions

    def _loss(
        self, frames: list[Tensor], flows_12: list[Tensor], flows_21: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Photometric loss and smoothness of both directions."""
        config = self.model.config
        visible = [
            visibility_from_flow(opposite[0], float(config.visibility_threshold))
            for opposite in (flows_21, flows_12)
        ]
        total = frames[0].new_zeros(())
        smoothness = frames[0].new_zeros(())
        for scale, weight in enumerate(config.scale_weights):
            if not weight:
                continue
            size = (flows_12[scale].shape[-2], flows_12[scale].shape[-1])
            images = [F.adaptive_avg_pool2d(frame, size) for frame in frames]
            for i, flow in enumerate((flows_12[scale], flows_21[scale])):
                synthesized = backward_warp(images[1 - i], flow)
                mask = F.interpolate(visible[i], size=size, mode="nearest")
                total = total + 0.5 * weight * self._photometric(images[i], synthesized, mask)
                if scale == 0:
                    smoothness = smoothness + 0.5 * _smoothness(images[i], flow)
        return total, smoothness

    def _photometric(self, image: Tensor, synthesized: Tensor, mask: Tensor) -> Tensor:
        config = self.model.config
        absolute = ((image - synthesized).abs() * mask).mean()
        structural = _ssim_distance(synthesized * mask, image * mask).mean()
        weighted = config.l1_weight * absolute + config.ssim_weight * structural
        return weighted / mask.mean()


def _cost_volume(reference: Tensor, target: Tensor, search_range: int) -> Tensor:
    _, _, H, W = reference.shape
    padded = F.pad(target, (search_range,) * 4)
    costs = [
        (reference * padded[:, :, dy : dy + H, dx : dx + W]).mean(1, keepdim=True)
        for dy in range(2 * search_range + 1)
        for dx in range(2 * search_range + 1)
    ]
    return torch.cat(costs, dim=1)


def _resize(maps: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


def _enlarge(flow: Tensor, factor: int) -> Tensor:
    return F.interpolate(
        factor * flow, scale_factor=float(factor), mode="bilinear", align_corners=True
    )


def _ssim_distance(x: Tensor, y: Tensor) -> Tensor:
    mean_x, mean_y = F.avg_pool2d(x, 3, 1), F.avg_pool2d(y, 3, 1)
    variance_x = F.avg_pool2d(x * x, 3, 1) - mean_x**2
    variance_y = F.avg_pool2d(y * y, 3, 1) - mean_y**2
    covariance = F.avg_pool2d(x * y, 3, 1) - mean_x * mean_y
    numerator = (2 * mean_x * mean_y + SSIM_C1) * (2 * covariance + SSIM_C2)
    denominator = (mean_x**2 + mean_y**2 + SSIM_C1) * (variance_x + variance_y + SSIM_C2)
    return torch.clamp((1 - numerator / denominator) / 2, 0, 1)


def _smoothness(image: Tensor, flow: Tensor) -> Tensor:
    """First-order smoothness of the flow, less at edges of the image."""
    total = flow.new_zeros(())
    for dim in (2, 3):
        edges = image.diff(dim=dim).abs().mean(1, keepdim=True)
        total = total + (torch.exp(-EDGE_WEIGHT * edges) * flow.diff(dim=dim).abs()).mean() / 2
    return total
