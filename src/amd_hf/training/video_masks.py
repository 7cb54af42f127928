"""Test-time adaptation to the evidence of a whole video, in place of the published loss.

A departure from the paper. From few training videos, five translations explain the camera's motion
first, and minimizing the photometric loss on a test video lets the object grow into its
surroundings. A whole video knows more than a pair: what moves against the camera now and then, what
stands out in single frames, what the model sees in them, where all of it goes along the optical
flow, and which colors it has.
These are fused into one soft object mask per frame, and the appearance pathway is fitted to them.
No labels, no other weights, no flow network (classical DIS flow).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amd_hf.image_io_amd import MIN_SIDE
from amd_hf.training.classical_motion import MovingObject, classical_flow, resize_probability
from amd_hf.training.moving_objects import moving_object_loss, pair_objective
from amd_hf.training.objectives import OBJECTIVES
from amd_hf.training.pseudo_masks import (
    INSIDE_WEIGHT,
    background_saliency,
    flow_evidence,
    object_masks,
    pseudo_mask,
)
from amd_hf.warping_amd import backward_warp

# Short side at which evidence is fused; flow is computed at the frames' own size.
WORKING_SHORT_SIDE = 96
# Each round averages a mask with those of the neighboring frames, brought here along the flow.
SMOOTHING_ROUNDS = 8
# Color histogram in CIELAB: number of bins and range per channel; weight of its log odds.
COLOR_BINS = (12, 18, 18)
COLOR_LOW = (0.0, -60.0, -60.0)
COLOR_HIGH = (100.0, 60.0, 60.0)
COLOR_WEIGHT = 0.5
MAX_COLOR_EVIDENCE = 4.0
MIN_COLOR_SHARE = 1e-5
# Probabilities beyond these carry no more evidence.
PROBABILITY_MARGIN = 0.02
FRAMES_AT_ONCE = 8

VIDEO_MASK = "video_mask"
# Chosen on the development sequences (docs/evaluation.md).
VIDEO_MASK_SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "parameters": "appearance",
}
# Side of the crops as a share of the frame's short side, the published one. With two thirds a step
# costs half as much, but the model fits less well on whole frames (docs/evaluation.md).
VIDEO_MASK_CROP = 0.96


class VideoMaskObjective:
    """Objective of `adapt_to_video`: the object segment fits the video's own fused masks.

    Attributes:
        color_weight: Weight of the color evidence of the whole video; 0 leaves it out.
        smoothing_rounds: Rounds of averaging along the flow; 0 leaves it out.
        use_saliency: Whether saliency of the single frames is added to motion and model.
        object_segment: Segment that becomes the object; None takes that of the configuration.

    Raises:
        ValueError: If a weight or a number is negative.
    """

    def __init__(
        self,
        color_weight: float = COLOR_WEIGHT,
        smoothing_rounds: int = SMOOTHING_ROUNDS,
        use_saliency: bool = True,
        object_segment: int | None = None,
    ) -> None:
        if color_weight < 0 or smoothing_rounds < 0:
            raise ValueError(
                "`color_weight` and `smoothing_rounds` must be at least 0, got "
                f"{color_weight} and {smoothing_rounds}."
            )
        self.color_weight = color_weight
        self.smoothing_rounds = smoothing_rounds
        self.use_saliency = use_saliency
        self.object_segment = object_segment

    def video_targets(self, model: nn.Module, frames: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Soft object masks of all frames; `adapt_to_video` calls it once, before the first step.

        Args:
            model: The model before adaptation, in eval mode.
            frames: Frame number -> uint8 tensor (3, H, W); adjacent numbers are adjacent frames.

        Returns:
            Frame number -> mask in [0, 1] of shape (h, w), float32, on the CPU.

        Raises:
            ValueError: If the model has no segment of the number `object_segment`.
        """
        num_segments: int = model.config.num_segments  # type: ignore[union-attr,assignment]
        if self.object_segment is not None and not 0 <= self.object_segment < num_segments:
            raise ValueError(
                f"`object_segment` must lie in 0..{num_segments - 1} for this model, got "
                f"{self.object_segment}."
            )
        numbers = list(frames)
        masks, flows = _frame_masks(model, frames, self.use_saliency, self.object_segment)
        masks = smooth_along_flow(masks, flows, _neighbors(numbers), self.smoothing_rounds)
        if self.color_weight:
            small = torch.cat(
                [_reduced(frames[number].unsqueeze(0), masks.shape[1:]) for number in numbers]
            )
            logits = masks.logit(eps=PROBABILITY_MARGIN)
            masks = (logits + self.color_weight * color_evidence(small, masks)).sigmoid()
        return dict(zip(numbers, masks, strict=True))

    def __call__(self, model: nn.Module, pixel_values: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of the object segment against the masks of both frames.

        Args:
            model: The model that adapts.
            pixel_values: Normalized pairs (B, 2, 3, H, W).
            targets: Masks in [0, 1], shape (B, 2, H, W).
        """
        config: Any = getattr(model, "module", model).config
        chosen = config.object_segment if self.object_segment is None else self.object_segment
        outputs = model(pixel_values=pixel_values.flatten(0, 1))
        target = targets.flatten(0, 1)
        usable = torch.ones(len(target), dtype=torch.bool, device=target.device)
        found = MovingObject(target, usable)
        return moving_object_loss(outputs.segment_logits, found, chosen, INSIDE_WEIGHT)


def adaptation_preset(
    name: str, short_side: int | None = None, object_segment: int | None = None
) -> dict[str, Any]:
    """Returns settings for `adapt_to_video` that belong together, by the name of the objective.

    Args:
        name: "video_mask", or a registered training objective, such as
            "segment_flow_moving_object", which leaves the published settings as they are.
        short_side: The `short_side` of the adaptation, see `adaptation_scale`; the crops of
            "video_mask" follow it. None leaves size and crops as they are.
        object_segment: Segment that "video_mask" makes the object; None takes that of the model's
            configuration. Other objectives have no use for it.

    Returns:
        Keyword arguments, among them `objective`; override any of them.

    Raises:
        ValueError: If there is no such objective.
    """
    if name == VIDEO_MASK:
        objective = VideoMaskObjective(object_segment=object_segment)
        preset = {"objective": objective, **VIDEO_MASK_SETTINGS}
        if short_side is not None:
            crop_size = max(int(short_side * VIDEO_MASK_CROP), MIN_SIDE)
            preset |= {"short_side": short_side, "crop_size": crop_size}
        return preset
    if name not in OBJECTIVES:
        known = ", ".join(sorted([*OBJECTIVES, VIDEO_MASK]))
        raise ValueError(f"`objective` must be one of {known}, got {name}.")
    return {"objective": pair_objective(name)}


def _neighbors(numbers: list[int]) -> list[tuple[int, int]]:
    """Positions (here, there) of frames whose numbers are adjacent, both directions."""
    position = {number: index for index, number in enumerate(numbers)}
    return [
        (here, position[number + step])
        for number, here in position.items()
        for step in (1, -1)
        if number + step in position
    ]


def _reduced(frames: Tensor, size: tuple[int, ...]) -> Tensor:
    """RGB in [0, 1] of uint8 frames (N, 3, H, W), averaged down to (h, w)."""
    return F.adaptive_avg_pool2d(frames.float() / 255.0, (size[0], size[1]))


def _reduced_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Flow (M, 2, H, W) averaged down to (h, w), in pixels of that size."""
    height, width = flow.shape[-2:]
    scale = flow.new_tensor([size[1] / width, size[0] / height]).view(1, 2, 1, 1)
    return F.adaptive_avg_pool2d(flow, size) * scale


def _frame_masks(
    model: Any,
    frames: Mapping[int, Tensor],
    use_saliency: bool,
    object_segment: int | None,
) -> tuple[Tensor, Tensor]:
    """Masks (N, h, w) of single frames, and flows (M, 2, h, w) of their `_neighbors`."""
    numbers = list(frames)
    height, width = frames[numbers[0]].shape[-2:]
    scale = min(WORKING_SHORT_SIDE / min(height, width), 1.0)
    size = (round(height * scale), round(width * scale))
    masks: list[Tensor] = []
    for start in range(0, len(numbers), FRAMES_AT_ONCE):
        batch = torch.stack([frames[n] for n in numbers[start : start + FRAMES_AT_ONCE]])
        images = batch.to(model.device).float() / 255.0
        found = object_masks(model, images, min(height, width), object_segment)
        masks.append(resize_probability(found.cpu(), size))
    fused = torch.cat(masks)
    flows: list[Tensor] = []
    pairs = _neighbors(numbers)
    for here, number in enumerate(numbers):
        others = [there for first, there in pairs if first == here]
        if not others:  # nothing to compare it with: the model's word stands alone
            continue
        frame = frames[number].float() / 255.0
        second = torch.stack([frames[numbers[there]] for there in others]).float() / 255.0
        flow = classical_flow(frame.expand_as(second), second)
        evidence = flow_evidence(flow)
        seen = F.interpolate(fused[here].view(1, 1, *size), (height, width), mode="bilinear")
        saliency = background_saliency(frame) if use_saliency else None
        mask = pseudo_mask(evidence, seen.view(height, width), saliency)
        fused[here] = resize_probability(mask.unsqueeze(0), size)[0]
        flows.append(_reduced_flow(flow, size))
    return fused, torch.cat(flows) if flows else torch.empty(0, 2, *size)


def smooth_along_flow(
    masks: Tensor, flows: Tensor, neighbors: list[tuple[int, int]], num_rounds: int
) -> Tensor:
    """Returns masks averaged with those of adjacent frames along the flow, again and again.

    Args:
        masks: Soft masks of shape (N, H, W).
        flows: For each entry of `neighbors` the flow from the first to the second frame, shape
            (M, 2, H, W) in pixels.
        neighbors: Pairs of positions among the N frames.
        num_rounds: Rounds; each reaches one frame farther.

    Returns:
        Masks of shape (N, H, W).
    """
    if not neighbors:
        return masks
    here = torch.tensor([first for first, _ in neighbors])
    there = torch.tensor([second for _, second in neighbors])
    count = torch.ones(len(masks)).index_add_(0, here, torch.ones(len(here)))
    for _ in range(num_rounds):
        brought = backward_warp(masks[there].unsqueeze(1), flows).squeeze(1)
        masks = masks.index_add(0, here, brought) / count.view(-1, 1, 1)
    return masks


def color_evidence(frames: Tensor, masks: Tensor) -> Tensor:
    """Returns how much more often a pixel's color occurs inside the masks than outside.

    Args:
        frames: RGB in [0, 1], shape (N, 3, H, W): the whole video.
        masks: Soft masks of shape (N, H, W).

    Returns:
        Logarithm of the ratio of both color distributions, within +-4, shape (N, H, W).

    Raises:
        ImportError: If OpenCV is missing.
    """
    bins = _color_bins(frames)
    total = COLOR_BINS[0] * COLOR_BINS[1] * COLOR_BINS[2]
    shares = []
    for weight in (masks, 1.0 - masks):
        counts = torch.bincount(bins.flatten(), weight.flatten(), minlength=total).float()
        smooth = F.avg_pool3d(counts.view(1, 1, *COLOR_BINS), 3, stride=1, padding=1).flatten()
        shares.append(smooth / smooth.sum().clamp(min=1e-6) + MIN_COLOR_SHARE)
    ratio = (shares[0] / shares[1]).log().clamp(-MAX_COLOR_EVIDENCE, MAX_COLOR_EVIDENCE)
    return ratio[bins]


def _color_bins(frames: Tensor) -> Tensor:
    """Number of the color bin of every pixel, int64 of shape (N, H, W)."""
    import cv2

    lab = torch.stack(
        [
            torch.from_numpy(cv2.cvtColor(frame.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2LAB))
            for frame in frames
        ]
    )
    number = torch.zeros(lab.shape[:3], dtype=torch.long)
    for channel, (bins, low, high) in enumerate(
        zip(COLOR_BINS, COLOR_LOW, COLOR_HIGH, strict=True)
    ):
        index = ((lab[..., channel] - low) / (high - low) * bins).long().clamp(0, bins - 1)
        number = number * bins + index
    return number


__all__ = [
    "VIDEO_MASK",
    "VideoMaskObjective",
    "adaptation_preset",
    "color_evidence",
    "smooth_along_flow",
]
