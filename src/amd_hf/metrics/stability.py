"""Temporal stability of the masks of one video; no reference mask is needed."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amd_hf.metrics._arrays import BoolArray, as_mask, check_same_shape
from amd_hf.metrics.region import region_similarity


def follow_flow(mask: ArrayLike, flow: ArrayLike) -> BoolArray:
    """The mask sampled where the flow points, on the grid of the flow.

    Convention: pixel units, u right / v down; nearest neighbor; outside counts as empty.

    Args:
        mask: Mask of the later frame, shape (H, W).
        flow: `flow_12` of shape (2, H, W) on the earlier frame's grid.

    Returns:
        Boolean array of shape (H, W) on the earlier frame's grid.

    Raises:
        ValueError: If the shapes do not match.
    """
    source, offsets = as_mask(mask, "mask"), np.asarray(flow, dtype=np.float64)
    height, width = source.shape
    if offsets.shape != (2, height, width):
        raise ValueError(
            f"`flow` must have shape (2, {height}, {width}) to match `mask`, got {offsets.shape}; "
            "pass pixel offsets (u, v)."
        )
    columns = np.rint(np.arange(width)[None, :] + offsets[0]).astype(int)
    rows = np.rint(np.arange(height)[:, None] + offsets[1]).astype(int)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    sampled = source[np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)]
    return sampled & inside


class TemporalStability:
    """Mean J between the masks of neighboring frames; holds one mask at a time.

    With flows the later mask is brought back to the earlier frame first, so that only flicker
    lowers the score and not the motion itself. Without flows fast objects score lower than slow
    ones: compare methods on the same video, or with the value of the annotated masks.
    """

    def __init__(self) -> None:
        """Starts before the first frame."""
        self._previous: BoolArray | None = None
        self._total = 0.0
        self.num_pairs = 0

    def update(self, mask: ArrayLike, flow_from_previous: NDArray | None = None) -> None:
        """Adds the next frame.

        Args:
            mask: Mask of shape (H, W).
            flow_from_previous: Offsets of shape (2, H, W) in pixels from the previous frame to
                this one, on the previous frame's grid; None compares in place.

        Raises:
            ValueError: If the shapes do not match.
        """
        current = as_mask(mask, "mask")
        if self._previous is not None:
            check_same_shape(current, self._previous)
            brought_back = (
                current if flow_from_previous is None else follow_flow(current, flow_from_previous)
            )
            self._total += region_similarity(brought_back, self._previous)
            self.num_pairs += 1
        self._previous = current

    def compute(self) -> float:
        """Mean J over neighboring pairs, in [0, 1]; 1.0 for fewer than two frames."""
        return self._total / self.num_pairs if self.num_pairs else 1.0


def temporal_stability(masks: Iterable[ArrayLike], flows: Iterable[NDArray] | None = None) -> float:
    """Mean J between the masks of neighboring frames of one video.

    Args:
        masks: Masks of shape (H, W) in the order of time; an iterator is read once.
        flows: One offset field of shape (2, H, W) per neighboring pair, from the earlier frame to
            the later; None compares in place.

    Returns:
        Stability in [0, 1]; 1.0 for fewer than two frames.

    Raises:
        ValueError: If shapes do not match or there are fewer flows than pairs.

    Source: Comparison with CIS in the AMD talk ("temporally unsmooth"), made a number here.
    """
    score = TemporalStability()
    steps = None if flows is None else iter(flows)
    for index, mask in enumerate(masks):
        if index == 0 or steps is None:
            score.update(mask)
            continue
        flow = next(steps, None)
        if flow is None:
            raise ValueError(
                f"`flows` must hold one field per neighboring pair, got only {index - 1}; "
                "pass flows for every pair or None."
            )
        score.update(mask, flow)
    return score.compute()
