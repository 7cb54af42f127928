"""Label-free refinements of segment masks, each an option that is reported apart.

    flips          average over the frame and its mirror image
    scales         average over three input sizes
    common-motion  segments that move with the object join it
    temporal       average with the neighboring frames along the segment flow
    guided-filter  edge-aware smoothing at full resolution

They run in this order; nothing but the neighborhood of the current frame is kept in memory.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from amd_hf.data.annotations import (
    AnnotatedFrame,
    AnnotatedSequence,
    read_frame,
    read_reference,
)
from amd_hf.evaluation.predictors import ModelPredictor, Prediction
from amd_hf.guided_filter_amd import guided_filter
from amd_hf.modeling_amd import MIN_IMAGE_SIZE, AMDModel
from amd_hf.warping_amd import backward_warp, resize_flow

OUTPUT_STRIDE = 8
SCALES = (0.75, 1.0, 1.25)
NEIGHBOR_WEIGHT = 0.25
# Pixels at the motion size: less apart than this, two motions say nothing about who belongs where.
DISTINCT_MOTION = 1.0


def merge_common_motion(masks: Tensor, motion: Tensor) -> Tensor:
    """Every segment as an object, joined by the segments that move like it.

    The background is the segment that holds most of the frame's border. A segment joins object k
    where its motion is nearer to that of k than to the background's, provided k itself moves apart
    from the background.

    Args:
        masks: Segment masks of shape (K, h, w), summing to 1 over K.
        motion: Motion per segment in pixels, shape (K, 2).

    Returns:
        Object masks of shape (K, h, w) in [0, 1]: number k is the object that grew from segment k.
        They overlap, and those of the background segment and of still segments are unchanged.

    Raises:
        ValueError: If the shapes do not belong together.
    """
    if masks.ndim != 3 or motion.shape != (len(masks), 2):
        raise ValueError(
            "`masks` must have shape (K, h, w) and `motion` (K, 2), got "
            f"{tuple(masks.shape)} and {tuple(motion.shape)}."
        )
    border = torch.cat([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]], dim=1)
    background = int(border.sum(dim=1).argmax())
    apart = (motion[:, None] - motion[None]).norm(dim=-1)  # (K, K)
    from_background = apart[background]
    joins = apart < from_background[:, None]  # (member, object)
    joins &= (from_background > DISTINCT_MOTION)[None, :]
    joins[background] = False
    joins[:, background] = False
    joins |= torch.eye(len(masks), dtype=torch.bool, device=masks.device)
    return torch.einsum("mk,mhw->khw", joins.to(masks.dtype), masks).clamp(0, 1)


def refined_predictions(
    predictor: ModelPredictor,
    model: AMDModel,
    sequence: AnnotatedSequence,
    frames: Sequence[AnnotatedFrame],
) -> Iterator[Prediction]:
    """Predictions of one model with the refinements that the predictor's settings name.

    Args:
        predictor: Predictor whose settings and processor are used.
        model: The model, adapted or not.
        sequence: The whole sequence; neighbors of a frame come from here.
        frames: Annotated frames to predict, in order.

    Yields:
        Refined predictions.
    """
    window = _Window(predictor, model, sequence)
    positions = {frame.name: index for index, frame in enumerate(sequence.frames)}
    sharpens = "guided-filter" in predictor.settings.refinements
    for frame in frames:
        masks = window.smoothed(positions[frame.name])
        reference = read_reference(frame)
        soft = predictor.enlarge(masks, reference.shape)
        if sharpens:
            soft = _sharpened(frame, soft, predictor.model.device)
        yield Prediction(frame, soft, reference)


def _sharpened(frame: AnnotatedFrame, soft: np.ndarray, device: torch.device) -> np.ndarray:
    """Soft masks (K, H, W) after the guided filter."""
    image = read_frame(frame.image).resize((soft.shape[2], soft.shape[1]))
    guide = torch.from_numpy(np.array(image)).permute(2, 0, 1).to(device).float() / 255
    return guided_filter(guide, torch.from_numpy(soft).to(device)).cpu().numpy()


class _Window:
    """Masks and flows around the current frame, computed once each and dropped behind it."""

    def __init__(
        self, predictor: ModelPredictor, model: AMDModel, sequence: AnnotatedSequence
    ) -> None:
        """Starts empty."""
        self.predictor = predictor
        self.model = model
        self.frames = sequence.frames
        self.options = predictor.settings.refinements
        self._pairs: dict[int, Any] = {}
        self._masks: dict[int, Tensor] = {}

    def smoothed(self, index: int) -> Tensor:
        """Masks (K, h, w) of one frame, averaged along the flow where that is asked for."""
        for cache in (self._pairs, self._masks):
            for old in [key for key in cache if abs(key - index) > 1]:
                del cache[old]
        masks = self.masks(index)
        if "temporal" not in self.options:
            return masks
        total, weight = masks.clone(), 1.0
        for neighbor in (index - 1, index + 1):
            if 0 <= neighbor < len(self.frames):
                total += NEIGHBOR_WEIGHT * self._brought_here(index, neighbor)
                weight += NEIGHBOR_WEIGHT
        return total / weight

    def _brought_here(self, index: int, neighbor: int) -> Tensor:
        """The neighbor's masks on this frame's grid, along the segment flow."""
        pair = self.pair(min(index, neighbor))
        flow = pair.segment_flow_12 if neighbor > index else pair.segment_flow_21
        source = self.masks(neighbor)
        flow = resize_flow(flow.float(), (source.shape[1], source.shape[2]))
        return backward_warp(source[None], flow)[0]

    def masks(self, index: int) -> Tensor:
        """Masks (K, h, w) of one frame before temporal smoothing."""
        if index not in self._masks:
            masks = self._averaged(self.frames[index])
            if "common-motion" in self.options and len(self.frames) > 1:
                # The last frame has no successor; its motion is read from the pair that ends in it.
                ends = index == len(self.frames) - 1
                pair = self.pair(index - 1 if ends else index)
                motion = pair.segment_motion_21 if ends else pair.segment_motion_12
                masks = merge_common_motion(masks, motion[0].float())
            self._masks[index] = masks
        return self._masks[index]

    @torch.inference_mode()
    def pair(self, index: int) -> Any:
        """Model output for the frames `index` and `index + 1`."""
        if index not in self._pairs:
            pixels = [
                self.predictor.pixel_values(self.frames[number]) for number in (index, index + 1)
            ]
            with self.predictor.autocast():
                output = self.model(pixel_values=torch.stack(pixels, dim=1), return_loss=False)
            self._pairs[index] = output
        return self._pairs[index]

    def _averaged(self, frame: AnnotatedFrame) -> Tensor:
        """Masks (K, h, w) averaged over mirror images and input sizes as asked for."""
        base = self.predictor.pixel_values(frame)
        variants = [base]
        if "scales" in self.options:
            short = min(base.shape[-2:])
            sides = [max(MIN_IMAGE_SIZE, round(short * scale)) for scale in SCALES]
            variants = [
                base if side == short else self.predictor.pixel_values(frame, short_side=side)
                for side in sides
            ]
        found = []
        for pixels in variants:
            found.append(self.predictor.segment_masks(self.model, pixels))
            if "flips" in self.options:
                mirrored = self.predictor.segment_masks(self.model, pixels.flip(-1))
                found.append(mirrored.flip(-1))
        if len(found) == 1:
            return found[0][0]
        size = (-(-base.shape[-2] // OUTPUT_STRIDE), -(-base.shape[-1] // OUTPUT_STRIDE))
        resized = [
            F.interpolate(masks, size, mode="bilinear", align_corners=True) for masks in found
        ]
        return torch.cat(resized).mean(dim=0)
