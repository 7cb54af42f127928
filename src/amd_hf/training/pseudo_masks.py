"""Object masks of training frames without labels: what moves, what stands out, what a model sees.

A departure from the paper for small data. Three witnesses err in different places, and what they
say is added as evidence (log odds): classical motion (two flows per frame, see `classical_motion`);
saliency of the single frame, a classical prior by which the background is what is connected to the
image's border; and, in later rounds, a model that was trained on the masks of the round before.
Any of them can be left out; motion alone is the plain form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amd_hf.saliency import robust_background_saliency
from amd_hf.training.classical_motion import (
    RESIDUAL_HIGH,
    RESIDUAL_LOW,
    MovingObject,
    classical_flow,
    dominant_motion_residual,
)
from amd_hf.training.moving_objects import MOVING_OBJECT_WEIGHT, moving_object_loss
from amd_hf.training.objectives import Batch, output_statistics, register_objective

# Log odds per unit of evidence: of the model's object segment, and of the logarithm of the motion
# ratio above its middle (RESIDUAL_LOW + RESIDUAL_HIGH) / 2. Chosen on the development sequences.
MODEL_WEIGHT = 2.0
# Of the log odds of saliency above its middle; saliency is never more certain than the margin.
SALIENCY_WEIGHT = 2.0
SALIENCY_MIDDLE = 0.5
SALIENCY_MARGIN = 0.02
MOTION_WEIGHT = 4.5
MAX_MOTION_EVIDENCE = 4.5
# Weight of pixels inside of a pseudo-mask relative to the others. The masks are nearly whole: with
# 1.5, objects come out too large (their threshold had to be 0.6).
INSIDE_WEIGHT = 1.0
# A mask is kept if it covers a share of the frame between these, touches at most so much of the
# border, and moves by at least so many pixels against the camera.
MIN_AREA = 0.012
MAX_AREA = 0.42
MAX_BORDER_SHARE = 0.28
MIN_RESIDUAL = 0.45
# Color models: short side at which GrabCut works, its iterations; pixels farther from the mask than
# the radius are background, pixels deeper inside it than the core are object (both in pixels).
GRABCUT_SHORT_SIDE = 96
GRABCUT_ITERATIONS = 3
GRABCUT_RADIUS = 6
GRABCUT_CORE = 2
MIN_GRABCUT_PIXELS = 30


@dataclass(frozen=True)
class MotionEvidence:
    """How clearly each pixel of a frame moves against the camera.

    Attributes:
        ratio: Residual in units of its median, geometric mean over both flows, shape (H, W).
        residual: The same mean of the residuals in pixels, shape (H, W).
    """

    ratio: Tensor
    residual: Tensor


def motion_evidence(frame: Tensor, others: Tensor) -> MotionEvidence:
    """Returns the evidence for motion against the camera in `frame`.

    Chance errors of one flow rarely repeat in another one, so the geometric mean over several
    flows is cleaner than any of them.

    Args:
        frame: RGB frame in [0, 1], shape (3, H, W).
        others: Frames of the same clip near it, shape (N, 3, H, W), N >= 1.

    Returns:
        The evidence per pixel of `frame`.
    """
    return flow_evidence(classical_flow(frame.unsqueeze(0).expand_as(others), others))


def flow_evidence(flows: Tensor) -> MotionEvidence:
    """Returns the evidence of flows (N, 2, H, W) from one frame to N others, in pixels."""
    residual, scale = dominant_motion_residual(flows)
    ratio = residual / scale.view(-1, 1, 1)

    def geometric_mean(values: Tensor) -> Tensor:
        return values.clamp(min=1e-3).log().mean(dim=0).exp()

    return MotionEvidence(geometric_mean(ratio), geometric_mean(residual))


def background_saliency(frame: Tensor) -> Tensor:
    """Returns how little each pixel of a frame is connected to the image's border.

    Args:
        frame: RGB frame in [0, 1], shape (3, H, W).

    Returns:
        Saliency in [0, 1], shape (H, W).

    Raises:
        ImportError: If scikit-image is not installed.

    Source: robust background detection, Zhu et al., CVPR 2014; no learned part.
    """
    pixels = (frame * 255.0).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    return torch.from_numpy(robust_background_saliency(pixels.numpy()))


def pseudo_mask(
    evidence: MotionEvidence, object_mask: Tensor | None = None, saliency: Tensor | None = None
) -> Tensor:
    """Returns the probability that a pixel shows an object.

    Args:
        evidence: What moves, of shape (H, W).
        object_mask: Soft object mask in [0, 1] of a model, of the same shape; None leaves it out.
        saliency: Saliency in [0, 1] of the same shape, as `background_saliency` gives it; None
            leaves it out.

    Returns:
        Probability in [0, 1], shape (H, W); of motion alone where both are None.
    """
    if object_mask is None and saliency is None:
        return ((evidence.ratio - RESIDUAL_LOW) / (RESIDUAL_HIGH - RESIDUAL_LOW)).clamp(0.0, 1.0)
    middle = math.log((RESIDUAL_LOW + RESIDUAL_HIGH) / 2)
    odds = MOTION_WEIGHT * (evidence.ratio.log() - middle)
    odds = odds.clamp(-MAX_MOTION_EVIDENCE, MAX_MOTION_EVIDENCE)
    if object_mask is not None:
        odds = odds + MODEL_WEIGHT * object_mask.float().logit(eps=1e-4)
    if saliency is not None:
        above = saliency.float().logit(eps=SALIENCY_MARGIN) - _logit(SALIENCY_MIDDLE)
        odds = odds + SALIENCY_WEIGHT * above
    return odds.sigmoid()


def _logit(probability: float) -> float:
    return math.log(probability / (1.0 - probability))


def refine_by_color(frame: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean of a soft mask and of the cut that the colors inside and outside favor.

    Where both agree the result is certain, elsewhere it is near one half, which weighs little in
    `moving_object_loss`. Pixels far outside stay background.

    Args:
        frame: RGB frame in [0, 1], shape (3, H, W).
        mask: Soft mask in [0, 1], shape (H, W).

    Returns:
        Soft mask in [0, 1], shape (H, W); the given one where it is too small for color models.

    Source: Rother et al., "GrabCut", SIGGRAPH 2004 (OpenCV).
    """
    height, width = mask.shape
    scale = min(GRABCUT_SHORT_SIDE / min(height, width), 1.0)
    size = (round(height * scale), round(width * scale))
    small = F.interpolate(
        torch.cat([frame, mask.unsqueeze(0)]).unsqueeze(0), size, mode="bilinear", antialias=True
    ).squeeze(0)
    cut = _grab_cut(small[:3], small[3])
    if cut is None:
        return mask
    cut = F.interpolate(cut.view(1, 1, *size), (height, width), mode="bilinear").view_as(mask)
    return (mask + cut) / 2


def _grab_cut(frame: Tensor, mask: Tensor) -> Tensor | None:
    """Returns the cut as 0 and 1, shape (H, W); None where one side is too small for colors."""
    import cv2

    probability = mask.numpy()
    inside = (probability > 0.5).astype(np.uint8)
    if not MIN_GRABCUT_PIXELS < inside.sum() < inside.size - MIN_GRABCUT_PIXELS:
        return None
    near = cv2.dilate((probability > 0.3).astype(np.uint8), _disk(GRABCUT_RADIUS))
    core = cv2.erode(inside, _disk(GRABCUT_CORE))
    labels = np.where(inside, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[near == 0] = cv2.GC_BGD
    labels[(core > 0) & (probability > 0.9)] = cv2.GC_FGD
    pixels = (frame.permute(1, 2, 0).numpy()[..., ::-1] * 255).round().astype(np.uint8)
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    whole = (0, 0, 1, 1)  # a rectangle is not used where labels are given
    mode = cv2.GC_INIT_WITH_MASK
    cv2.setRNGSeed(0)  # its clustering draws random centers
    try:
        cv2.grabCut(pixels, labels, whole, background, foreground, GRABCUT_ITERATIONS, mode)
    except cv2.error:  # one side has too few distinct colors for a mixture
        return None
    return torch.from_numpy((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).float()


def _disk(radius: int) -> np.ndarray:
    import cv2

    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def is_plausible(mask: Tensor, evidence: MotionEvidence) -> bool:
    """Whether a soft mask (H, W) looks like one moving object: size, border contact, motion."""
    inside = mask > 0.5
    area = float(inside.float().mean())
    if not MIN_AREA < area < MAX_AREA:
        return False
    border = torch.cat([inside[0], inside[-1], inside[:, 0], inside[:, -1]]).float().mean()
    moves = float(evidence.residual[inside].mean()) > MIN_RESIDUAL
    return float(border) < MAX_BORDER_SHARE and moves


@torch.no_grad()
def object_masks(
    model: Any, frames: Tensor, short_side: int, object_segment: int | None = None
) -> Tensor:
    """Returns the model's soft object masks, averaged over the frames and their mirror images.

    Args:
        model: An `AMDModel` in eval mode.
        frames: RGB in [0, 1], shape (T, 3, H, W).
        short_side: Short side at which the model looks at them, in pixels.
        object_segment: Segment that is read; None takes that of the configuration.

    Returns:
        Masks in [0, 1] of shape (T, H, W).
    """
    config: Any = model.config
    height, width = frames.shape[-2:]
    scale = short_side / min(height, width)
    size = (round(height * scale), round(width * scale))
    mean, std = (
        frames.new_tensor(values).view(3, 1, 1) for values in (config.image_mean, config.image_std)
    )
    images = F.interpolate(frames, size=size, mode="bilinear", antialias=True)
    pixels = (images * 255.0 - mean) / std
    with torch.autocast(frames.device.type, torch.bfloat16):
        straight = model(pixel_values=pixels).segment_masks
        mirrored = model(pixel_values=pixels.flip(-1)).segment_masks.flip(-1)
    chosen = config.object_segment if object_segment is None else object_segment
    soft = (straight + mirrored)[:, chosen].float().unsqueeze(1) / 2
    return F.interpolate(soft, size=(height, width), mode="bilinear").squeeze(1)


@register_objective("pseudo_mask")
def pseudo_mask_objective(
    model: nn.Module, batch: Batch, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Appearance pathway alone: the object segment learns the pseudo-mask of one frame per pair.

    Needs batches with `object_masks` and `has_object_mask` (see `amd_hf.data.object_masks`): a
    `dataset` that scripts/make_pseudo_masks.py wrote.

    Raises:
        ValueError: If the batch has no masks.
    """
    pixel_values, has_mask = batch["pixel_values"], _checked(batch)
    # The first frame, or the second one where only that has a mask.
    column = (~has_mask[:, 0]).long()
    rows = torch.arange(len(column), device=column.device)
    target = MovingObject(batch["object_masks"][rows, column], has_mask[rows, column])
    outputs = model(pixel_values=pixel_values[rows, column])
    object_segment = _config(model).object_segment
    loss = moving_object_loss(outputs.segment_logits, target, object_segment, INSIDE_WEIGHT)
    share = outputs.segment_masks.detach()[:, object_segment].mean()
    logs = {
        "pseudo_mask_loss": loss,
        "object_share": share,
        "usable_share": target.is_usable.float().mean(),
    }
    return loss, logs


@register_objective("segment_flow_pseudo_mask")
def joint_objective(model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The published photometric loss of the segment flow, plus the pseudo-masks of both frames.

    The second term keeps the object in its segment while the other segments learn to share the
    rest of the frame out by common motion.

    Raises:
        ValueError: If the batch has no masks.
    """
    has_mask = _checked(batch)
    outputs = model(pixel_values=batch["pixel_values"])
    target = MovingObject(batch["object_masks"].flatten(0, 1), has_mask.flatten())
    logits = outputs.segment_logits.flatten(0, 1)
    guided = moving_object_loss(logits, target, _config(model).object_segment, INSIDE_WEIGHT)
    logs = {"photometric_loss": outputs.loss, "pseudo_mask_loss": guided}
    return outputs.loss + MOVING_OBJECT_WEIGHT * guided, {**logs, **output_statistics(outputs)}


def _checked(batch: Batch) -> Tensor:
    """Returns which frames have a mask; refuses batches without masks."""
    if "object_masks" not in batch:
        raise ValueError(
            "Stages with pseudo-masks need a `dataset` of scripts/make_pseudo_masks.py; this one "
            "has no object masks."
        )
    return batch["has_object_mask"]


def _config(model: nn.Module) -> Any:
    return getattr(model, "module", model).config


__all__ = [
    "MotionEvidence",
    "background_saliency",
    "flow_evidence",
    "is_plausible",
    "motion_evidence",
    "object_masks",
    "pseudo_mask",
    "refine_by_color",
]
