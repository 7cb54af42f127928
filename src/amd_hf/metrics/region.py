"""Region similarity J of binary masks, its statistics over a sequence, and pooled IoU."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from amd_hf.metrics._arrays import as_mask, check_same_shape

NUM_DECAY_BINS = 4
RECALL_THRESHOLD = 0.5


def region_similarity(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Intersection over union of two masks; 1.0 where both are empty.

    Args:
        prediction: Mask of shape (H, W): booleans, 0/1 or 0/255.
        reference: Mask of the same shape.

    Returns:
        J in [0, 1].

    Raises:
        ValueError: If a mask is malformed or the shapes differ.

    Source: DAVIS benchmark (Perazzi et al., CVPR 2016), Sec. 4.
    """
    predicted, expected = as_mask(prediction, "prediction"), as_mask(reference, "reference")
    check_same_shape(predicted, expected)
    union = int(np.count_nonzero(predicted | expected))
    return int(np.count_nonzero(predicted & expected)) / union if union else 1.0


@dataclass(frozen=True)
class SequenceStatistics:
    """Mean, recall and decay of a per-frame measure over one sequence, each a plain float.

    Attributes:
        mean: Mean over the frames, in [0, 1].
        recall: Share of frames above 0.5, in [0, 1].
        decay: Mean of the first quarter minus mean of the last, in [-1, 1]; lower is better.
    """

    mean: float
    recall: float
    decay: float


def sequence_statistics(values: Sequence[float]) -> SequenceStatistics:
    """Mean, recall (share above 0.5) and decay of a measure over the frames of one sequence.

    Args:
        values: One value in [0, 1] per frame, in the order of time.

    Returns:
        The statistics. Neighbouring quarters share one frame, as in the benchmark's own code, so
        one frame is enough for a decay of 0.

    Raises:
        ValueError: If `values` is empty or holds NaN.

    Source: DAVIS benchmark (Perazzi et al., CVPR 2016), Sec. 5.1.
    """
    per_frame = np.asarray(values, dtype=np.float64)
    if per_frame.ndim != 1 or per_frame.size == 0 or np.isnan(per_frame).any():
        raise ValueError(
            f"`values` must be a non-empty list of numbers, got shape {per_frame.shape}; "
            "leave out frames that have no mask."
        )
    # The edges are rounded half up on a 1-based axis, hence the small positive offset.
    edges = np.round(np.linspace(1, per_frame.size, NUM_DECAY_BINS + 1) + 1e-10).astype(int) - 1
    first, last = per_frame[edges[0] : edges[1] + 1], per_frame[edges[-2] : edges[-1] + 1]
    return SequenceStatistics(
        mean=float(per_frame.mean()),
        recall=float((per_frame > RECALL_THRESHOLD).mean()),
        decay=float(first.mean() - last.mean()),
    )


class PooledIoU:
    """IoU of intersections and unions summed over a whole data set; memory does not grow.

    This is what the published AMD code computes: large objects and long sequences weigh more than
    in the mean of J, so the two numbers must not be compared.
    """

    def __init__(self) -> None:
        """Starts with nothing counted."""
        self.intersection = 0
        self.union = 0
        self.background_intersection = 0
        self.background_union = 0

    def update(self, prediction: ArrayLike, reference: ArrayLike) -> None:
        """Adds one pair of masks of shape (H, W).

        Raises:
            ValueError: If a mask is malformed or the shapes differ.
        """
        predicted, expected = as_mask(prediction, "prediction"), as_mask(reference, "reference")
        check_same_shape(predicted, expected)
        both = int(np.count_nonzero(predicted & expected))
        either = int(np.count_nonzero(predicted | expected))
        self.intersection += both
        self.union += either
        self.background_intersection += predicted.size - either
        self.background_union += predicted.size - both

    def compute(self) -> dict[str, float]:
        """The pooled scores.

        Returns:
            `pooled_iou` (foreground) and `pooled_mean_iou` (mean of foreground and background),
            in [0, 1]; a class that never occurs counts as 1.
        """
        foreground = self.intersection / self.union if self.union else 1.0
        background = (
            self.background_intersection / self.background_union if self.background_union else 1.0
        )
        return {"pooled_iou": foreground, "pooled_mean_iou": (foreground + background) / 2}
