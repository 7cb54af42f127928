"""Objectives of the small-data recipe: learn from what moves against the camera.

`moving_object` trains the appearance pathway alone, `classical_flow` the motion pathway alone,
`segment_flow_moving_object` adds the first to the published loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amd_hf.training.classical_motion import (
    MovingObject,
    classical_flow,
    moving_object,
    resize_probability,
)
from amd_hf.training.objectives import OBJECTIVES, Batch, output_statistics, register_objective

# Weight of the moving-object term beside the photometric loss (which is about 0.3 after warm-up).
MOVING_OBJECT_WEIGHT = 1.0
# Weight of moving pixels relative to the others: motion finds objects only in part.
MOVING_WEIGHT = 2.2


def _unwrapped(model: nn.Module) -> Any:
    return getattr(model, "module", model)


def _flows(frames: Tensor) -> Tensor:
    """Returns classical flow of both directions for frames (2B, 3, H, W): first, then second."""
    return classical_flow(frames, frames.roll(frames.shape[0] // 2, dims=0))


def _rgb(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """Undoes the normalization at the input's own size: (B, 2, 3, H, W) -> (2B, 3, H, W)."""
    config = _unwrapped(model).config
    frames = pixel_values.transpose(0, 1).flatten(0, 1).float()
    mean = frames.new_tensor(config.image_mean).view(1, 3, 1, 1)
    std = frames.new_tensor(config.image_std).view(1, 3, 1, 1)
    return ((frames * std + mean) / 255.0).clamp(0.0, 1.0)


def moving_object_loss(
    segment_logits: Tensor,
    target: MovingObject,
    object_segment: int,
    moving_weight: float = MOVING_WEIGHT,
) -> Tensor:
    """Returns the cross-entropy of the object segment against what moves on its own.

    Args:
        segment_logits: Logits of shape (B, K, h, w).
        target: Soft targets of any size; pairs that are not usable do not count.
        object_segment: Index of the segment that shall be the object; the others share the rest.
        moving_weight: Weight of moving pixels relative to the others.

    Returns:
        Scalar in float32; uncertain pixels (near 0.5) weigh a fifth of certain ones; 0 where no
        pair is usable.
    """
    logits = segment_logits.float()
    log_masks = logits.log_softmax(dim=1)
    log_object = log_masks[:, object_segment]
    others = [k for k in range(logits.shape[1]) if k != object_segment]
    log_rest = torch.logsumexp(log_masks[:, others], dim=1)
    probability = resize_probability(target.probability, (logits.shape[-2], logits.shape[-1]))
    certainty = 0.2 + 0.8 * (2.0 * probability - 1.0).abs()
    weight = certainty * torch.where(probability > 0.5, moving_weight, 1.0)
    entropy = -(probability * log_object + (1.0 - probability) * log_rest) * weight
    usable = target.is_usable.to(entropy.dtype)
    return (entropy.mean(dim=(1, 2)) * usable).sum() / usable.sum().clamp(min=1.0)


def _targets(model: nn.Module, pixel_values: Tensor) -> MovingObject:
    with torch.no_grad():
        return moving_object(_flows(_rgb(model, pixel_values)))


@register_objective("moving_object")
def moving_object_objective(
    model: nn.Module, batch: Batch, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Appearance warm-up: the object segment learns what moves on its own, from one image."""
    pixel_values = batch["pixel_values"]
    target = _targets(model, pixel_values)
    outputs = model(pixel_values=pixel_values.transpose(0, 1).flatten(0, 1))
    object_segment = _unwrapped(model).config.object_segment
    loss = moving_object_loss(outputs.segment_logits, target, object_segment)
    return loss, {"moving_object_loss": loss, "usable_share": target.is_usable.float().mean()}


@register_objective("classical_flow")
def classical_flow_objective(
    model: nn.Module, batch: Batch, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Motion warm-up: the motion pathway's pixel flow follows classical flow at every level."""
    inner = _unwrapped(model)
    frames = inner.frames_in_rgb(batch["pixel_values"].transpose(0, 1).flatten(0, 1))
    with torch.no_grad():
        target = _flows(frames)
    outputs = model(pixel_values=batch["pixel_values"], pixel_flow_only=True, return_loss=False)
    loss = torch.stack([_flow_error(flow, target) for flow in outputs.flow_scales]).sum()
    end_point_error = (outputs.flow_scales[0].detach() - target).norm(dim=1).mean()
    return loss, {"classical_flow_loss": loss, "end_point_error": end_point_error}


def _flow_error(flow: Tensor, target: Tensor) -> Tensor:
    """Mean distance of a flow to the target, in pixels of the target's size."""
    factor = target.shape[-1] / flow.shape[-1]
    reduced = F.adaptive_avg_pool2d(target, (flow.shape[-2], flow.shape[-1])) / factor
    return factor * ((flow - reduced).square().sum(dim=1) + 1e-3).sqrt().mean()


@register_objective("segment_flow_moving_object")
def joint_objective(model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The published photometric loss of the segment flow, plus the moving-object term."""
    pixel_values = batch["pixel_values"]
    target = _targets(model, pixel_values)
    outputs = model(pixel_values=pixel_values)
    logits = outputs.segment_logits.transpose(0, 1).flatten(0, 1)
    guided = moving_object_loss(logits, target, _unwrapped(model).config.object_segment)
    logs = {"photometric_loss": outputs.loss, "moving_object_loss": guided}
    return outputs.loss + MOVING_OBJECT_WEIGHT * guided, {**logs, **output_statistics(outputs)}


def pair_objective(name: str) -> Callable[[nn.Module, Tensor], Tensor]:
    """Returns a registered objective as a function of a model and pairs, for `adapt_to_video`.

    Args:
        name: Key of `OBJECTIVES`, such as "segment_flow_moving_object".

    Raises:
        ValueError: If there is no such objective.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"`objective` must be one of {', '.join(sorted(OBJECTIVES))}, got {name}.")
    return lambda model, pairs: OBJECTIVES[name](model, {"pixel_values": pairs}, 0)[0]
