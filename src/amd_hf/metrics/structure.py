"""S-measure: structural similarity between a soft mask and a mask."""

import numpy as np
from numpy.typing import ArrayLike

from amd_hf.metrics._arrays import BoolArray, FloatArray
from amd_hf.metrics.saliency import checked_pair

# One unit in the last place of 1.0: keeps divisions finite and changes nothing else.
EPSILON = np.spacing(1)


def s_measure(prediction: ArrayLike, reference: ArrayLike, alpha: float = 0.5) -> float:
    """Structure measure: object-aware and region-aware similarity, weighted by `alpha`.

    Args:
        prediction: Soft mask of shape (H, W) in [0, 1].
        reference: Mask of the same shape: booleans, 0/1 or 0/255.
        alpha: Weight of the object-aware part, in [0, 1].

    Returns:
        S in [0, 1]; higher is better.

    Raises:
        ValueError: If an argument is malformed, the shapes differ or `alpha` leaves [0, 1].

    Source: Fan et al., Structure-measure, ICCV 2017, Eqs. 1-8.
    """
    soft, expected = checked_pair(prediction, reference)
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"`alpha` must lie in [0, 1], got {alpha}; the usual value is 0.5.")
    share = float(expected.mean())
    if share == 0.0:
        return float(1.0 - soft.mean())
    if share == 1.0:
        return float(soft.mean())
    object_score = share * _object_similarity(soft[expected])
    object_score += (1.0 - share) * _object_similarity(1.0 - soft[~expected])
    region_score = _region_similarity(soft, expected)
    return max(0.0, alpha * object_score + (1.0 - alpha) * region_score)


def _object_similarity(values: FloatArray) -> float:
    """High where the values of one region are near 1 and uniform (Eq. 4)."""
    mean = float(values.mean())
    spread = float(values.std(ddof=1)) if values.size > 1 else 0.0
    return 2.0 * mean / (mean * mean + 1.0 + spread + EPSILON)


def _region_similarity(soft: FloatArray, expected: BoolArray) -> float:
    """Similarity of the four blocks around the centroid of the reference, weighted by area."""
    height, width = expected.shape
    rows, columns = np.nonzero(expected)
    # The centroid's row and column belong to the upper left block, as in the authors' code.
    split_row, split_column = round(float(rows.mean())) + 1, round(float(columns.mean())) + 1
    score = 0.0
    for row_block in (slice(0, split_row), slice(split_row, height)):
        for column_block in (slice(0, split_column), slice(split_column, width)):
            block = soft[row_block, column_block]
            if block.size:
                similarity = _block_similarity(block, expected[row_block, column_block])
                score += similarity * block.size / expected.size
    return score


def _block_similarity(soft: FloatArray, expected: BoolArray) -> float:
    """Structural similarity of one block without stabilizing constants (Eq. 7)."""
    reference = expected.astype(np.float64)
    mean_soft, mean_reference = float(soft.mean()), float(reference.mean())
    count = soft.size - 1 + EPSILON
    variance_soft = float(((soft - mean_soft) ** 2).sum()) / count
    variance_reference = float(((reference - mean_reference) ** 2).sum()) / count
    covariance = float(((soft - mean_soft) * (reference - mean_reference)).sum()) / count
    numerator = 4.0 * mean_soft * mean_reference * covariance
    denominator = (mean_soft**2 + mean_reference**2) * (variance_soft + variance_reference)
    if numerator != 0.0:
        return numerator / (denominator + EPSILON)
    return 1.0 if denominator == 0.0 else 0.0
