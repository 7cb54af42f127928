"""Which of the K segments is the object, chosen from unlabelled video alone.

Training gives the segments no names, and which one holds the objects differs from run to run.
Five cues, each in [0, 1] and larger for what objects do, are averaged over unlabelled pairs:

    relative_motion   moves differently from the rest of the frame
    area              neither a speck nor the whole frame
    border_contact    stays off the border of the frame (1 = never touches it)
    centrality        lies near the center, where people point their cameras
    consistency       is the same region in the next frame, moved by its own motion
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amd_hf.warping_amd import backward_warp

CUE_WEIGHTS: dict[str, float] = {
    "relative_motion": 1.0,
    "area": 1.0,
    "border_contact": 1.0,
    "centrality": 1.0,
    "consistency": 0.5,
}
# Area score: 0 up to none of the frame, 1 on the plateau, 0 again from the last value on.
AREA_PLATEAU = (0.03, 0.35, 0.7)
STILL_MOTION = 0.1  # pixels; below it a difference of motions is noise
EPSILON = 1e-6


@dataclass(frozen=True)
class ObjectSegmentChoice:
    """The chosen segment and why.

    Attributes:
        index: Index of the chosen segment.
        confidence: Share of the pairs, in [0, 1], whose own best segment is the chosen one; 1 / K
            is chance.
        scores: Weighted mean of the cues per segment, K values in [0, 1].
        cues: The mean of every cue per segment: cue name -> K values in [0, 1].
        num_pairs: Number of pairs that were looked at.
    """

    index: int
    confidence: float
    scores: list[float]
    cues: dict[str, list[float]]
    num_pairs: int

    def table(self) -> str:
        """The cues as a Markdown table, one row per segment; the chosen one is marked."""
        names = list(self.cues)
        lines = [
            f"| segment | {' | '.join(names)} | score |",
            "|" + "---|" * (len(names) + 2),
        ]
        for segment, score in enumerate(self.scores):
            mark = " (object)" if segment == self.index else ""
            values = " | ".join(f"{self.cues[name][segment]:.3f}" for name in names)
            lines.append(f"| {segment}{mark} | {values} | {score:.3f} |")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "object_segment": self.index,
            "object_segment_confidence": self.confidence,
            "scores": self.scores,
            "cues": self.cues,
            "num_pairs": self.num_pairs,
        }


def segment_cues(
    segment_masks: Tensor,
    segment_motion_12: Tensor,
    motion_size: tuple[int, int] | list[int],
) -> dict[str, Tensor]:
    """The five cues of every pair and segment.

    Args:
        segment_masks: Soft masks of both frames, (B, 2, K, h, w), summing to 1 over K.
        segment_motion_12: Motion from frame 1 to frame 2 per segment, (B, K, 2), in pixels of
            `motion_size`.
        motion_size: (Hm, Wm), the size at which motion is measured.

    Returns:
        Cue name -> values of shape (B, K) in [0, 1]; larger is more object-like.

    Raises:
        ValueError: If the shapes do not belong together.
    """
    if segment_masks.ndim != 5 or segment_masks.shape[1] != 2:
        raise ValueError(
            f"`segment_masks` must have shape (B, 2, K, h, w), got {tuple(segment_masks.shape)}; "
            "pass the masks of a pair."
        )
    B, _, K = segment_masks.shape[:3]
    if segment_motion_12.shape != (B, K, 2):
        raise ValueError(
            f"`segment_motion_12` must have shape {(B, K, 2)} to match `segment_masks`, got "
            f"{tuple(segment_motion_12.shape)}."
        )
    masks = segment_masks.float()
    motion = segment_motion_12.float()
    both = masks.mean(dim=1)  # (B, K, h, w)
    area = both.mean(dim=(-2, -1))  # (B, K)
    return {
        "relative_motion": _relative_motion(motion, area),
        "area": _area_score(area),
        "border_contact": _off_border(both),
        "centrality": _centrality(both, area),
        "consistency": _consistency(masks, motion, motion_size),
    }


def _relative_motion(motion: Tensor, area: Tensor) -> Tensor:
    weighted = motion * area[..., None]  # (B, K, 2)
    rest_area = (area.sum(dim=1, keepdim=True) - area).clamp(min=EPSILON)
    rest = (weighted.sum(dim=1, keepdim=True) - weighted) / rest_area[..., None]
    difference = (motion - rest).norm(dim=-1)  # (B, K)
    # Relative to the pair's fastest segment: zoomed or slow clips count as much as fast ones.
    return difference / (difference.amax(dim=1, keepdim=True) + STILL_MOTION)


def _area_score(area: Tensor) -> Tensor:
    least, most, end = AREA_PLATEAU
    rising = area / least
    falling = (end - area) / (end - most)
    return torch.minimum(rising, falling).clamp(0, 1)


def _off_border(masks: Tensor) -> Tensor:
    h, w = masks.shape[-2:]
    ring = masks.new_zeros(h, w)
    ring[0] = ring[-1] = 1
    ring[:, 0] = ring[:, -1] = 1
    on_border = (masks * ring).sum(dim=(-2, -1)) / ring.sum()
    inside = (masks * (1 - ring)).sum(dim=(-2, -1)) / (1 - ring).sum().clamp(min=1)
    # Densities, so that a small segment is not off the border by its size alone.
    return 1 - on_border / (on_border + inside).clamp(min=EPSILON)


def _centrality(masks: Tensor, area: Tensor) -> Tensor:
    h, w = masks.shape[-2:]
    y = torch.linspace(-1, 1, h, device=masks.device)[:, None]
    x = torch.linspace(-1, 1, w, device=masks.device)[None, :]
    distance = (x.square() + y.square()).sqrt() / 2**0.5  # (h, w), 0 at the center, 1 at corners
    return 1 - (masks * distance).mean(dim=(-2, -1)) / area.clamp(min=EPSILON)


def _consistency(masks: Tensor, motion: Tensor, motion_size: tuple[int, int] | list[int]) -> Tensor:
    B, _, K, h, w = masks.shape
    scale = motion.new_tensor(
        [(w - 1) / max(motion_size[1] - 1, 1), (h - 1) / max(motion_size[0] - 1, 1)]
    )
    flow = (motion * scale).reshape(B * K, 2, 1, 1).expand(-1, -1, h, w)
    first = masks[:, 0].reshape(B * K, 1, h, w)
    moved = backward_warp(masks[:, 1].reshape(B * K, 1, h, w), flow)
    overlap = torch.minimum(first, moved).sum(dim=(1, 2, 3))
    union = torch.maximum(first, moved).sum(dim=(1, 2, 3)).clamp(min=EPSILON)
    return (overlap / union).reshape(B, K)


def choose_from_cues(
    cues: Mapping[str, Tensor], cue_weights: Mapping[str, float] | None = None
) -> ObjectSegmentChoice:
    """The choice from the cues of all pairs.

    Args:
        cues: Cue name -> values of shape (N, K), as of `segment_cues`.
        cue_weights: Weight of every cue; None takes `CUE_WEIGHTS`.

    Returns:
        The choice.

    Raises:
        ValueError: If there are no pairs, or the names of cues and weights differ.
    """
    weights = dict(CUE_WEIGHTS if cue_weights is None else cue_weights)
    if set(weights) != set(cues) or sum(weights.values()) <= 0:
        raise ValueError(
            f"`cue_weights` must give weights with a positive sum for {sorted(cues)}, "
            f"got {weights}."
        )
    if not all(len(values) for values in cues.values()):
        raise ValueError("`cues` must hold at least one pair, got none; pass unlabelled video.")
    total = sum(weights.values())
    scores = torch.stack([values * (weights[name] / total) for name, values in cues.items()]).sum(0)
    mean = scores.mean(dim=0)  # (K,)
    index = int(mean.argmax())
    return ObjectSegmentChoice(
        index=index,
        confidence=float((scores.argmax(dim=1) == index).float().mean()),
        scores=mean.tolist(),
        cues={name: values.mean(dim=0).tolist() for name, values in cues.items()},
        num_pairs=len(scores),
    )


@torch.no_grad()
def choose_object_segment(
    model: Any,
    pairs: Iterable[Tensor | Mapping[str, Any]],
    *,
    num_pairs: int = 256,
    cue_weights: Mapping[str, float] | None = None,
) -> ObjectSegmentChoice:
    """Chooses the object segment of a model from unlabelled frame pairs.

    Args:
        model: An `AMDModel`; its mode is left as it was.
        pairs: Batches of pairs, (B, 2, 3, H, W), or mappings that hold them as `pixel_values`.
        num_pairs: Number of pairs to look at, at most.
        cue_weights: Weight of every cue; None takes `CUE_WEIGHTS`.

    Returns:
        The choice; `store_object_segment` writes it into a configuration.

    Raises:
        ValueError: If `num_pairs` is not positive, or `pairs` is empty.
    """
    if num_pairs < 1:
        raise ValueError(f"`num_pairs` must be at least 1, got {num_pairs}.")
    was_training = model.training
    model.eval()
    found: dict[str, list[Tensor]] = {name: [] for name in CUE_WEIGHTS}
    count = 0
    try:
        for batch in pairs:
            pixel_values = batch if isinstance(batch, Tensor) else batch["pixel_values"]
            pixel_values = pixel_values[: num_pairs - count].to(model.device)
            outputs = model(pixel_values=pixel_values, return_loss=False)
            cues = segment_cues(
                outputs.segment_masks, outputs.segment_motion_12, model.config.motion_size
            )
            for name, values in cues.items():
                found[name].append(values.cpu())
            count += len(pixel_values)
            if count >= num_pairs:
                break
    finally:
        model.train(was_training)
    if not count:
        raise ValueError("`pairs` must hold at least one pair, got none; pass unlabelled video.")
    return choose_from_cues(
        {name: torch.cat(values) for name, values in found.items()}, cue_weights
    )


def store_object_segment(config: Any, choice: ObjectSegmentChoice) -> None:
    """Writes a choice into an `AMDConfig`: `object_segment` and `object_segment_confidence`."""
    config.object_segment = choice.index
    config.object_segment_confidence = round(choice.confidence, 4)
