"""Boundary accuracy F of binary masks (DAVIS protocol)."""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from amd_hf.metrics._arrays import BoolArray, as_mask, check_same_shape

BOUNDARY_TOLERANCE = 0.008


def mask_boundary(mask: ArrayLike) -> BoolArray:
    """One-pixel-wide boundary of a mask.

    A pixel belongs to it when its right, lower or lower-right neighbour has the other label; the
    border of the image is no boundary.

    Args:
        mask: Mask of shape (H, W): booleans, 0/1 or 0/255.

    Returns:
        Boolean array of shape (H, W).

    Raises:
        ValueError: If the mask is malformed.

    Source: boundary map of the Berkeley segmentation benchmark (Martin et al., 2004) as the DAVIS
    benchmark uses it.
    """
    inside = as_mask(mask, "mask")
    boundary = np.zeros_like(inside)
    boundary[:, :-1] |= inside[:, :-1] ^ inside[:, 1:]
    boundary[:-1, :] |= inside[:-1, :] ^ inside[1:, :]
    boundary[:-1, :-1] |= inside[:-1, :-1] ^ inside[1:, 1:]
    return boundary


def dilate_with_disk(points: BoolArray, radius: int) -> BoolArray:
    """Pixels at a distance of at most `radius` from a set pixel.

    Work grows with the number of set pixels, which suits thin boundaries.

    Args:
        points: Boolean array of shape (H, W).
        radius: Radius of the disk in pixels, >= 0.

    Returns:
        Boolean array of shape (H, W).
    """
    padded = np.pad(points, radius)
    flat = np.flatnonzero(padded)
    row_length = padded.shape[1]
    grown = padded.ravel().copy()
    for dy in range(-radius, radius + 1):
        reach = math.isqrt(radius * radius - dy * dy)
        for dx in range(-reach, reach + 1):
            grown[flat + (dy * row_length + dx)] = True
    height, width = points.shape
    return grown.reshape(padded.shape)[radius : radius + height, radius : radius + width]


def boundary_accuracy(
    prediction: ArrayLike, reference: ArrayLike, tolerance: float = BOUNDARY_TOLERANCE
) -> float:
    """Harmonic mean of boundary precision and recall within a small distance.

    Args:
        prediction: Mask of shape (H, W): booleans, 0/1 or 0/255.
        reference: Mask of the same shape.
        tolerance: Distance as a share of the image diagonal (rounded up to whole pixels), or in
            pixels when it is >= 1.

    Returns:
        F in [0, 1]; 1.0 where neither mask has a boundary.

    Raises:
        ValueError: If a mask is malformed, the shapes differ or `tolerance` is not positive.

    Source: DAVIS benchmark (Perazzi et al., CVPR 2016), Sec. 4; matching by dilation with a disk.
    """
    return boundary_accuracies([prediction], reference, tolerance)[0]


def boundary_accuracies(
    predictions: Iterable[ArrayLike], reference: ArrayLike, tolerance: float = BOUNDARY_TOLERANCE
) -> list[float]:
    """Boundary accuracy of several masks against one reference, whose part is done once.

    Args:
        predictions: Masks of shape (H, W).
        reference: Mask of the same shape.
        tolerance: As for `boundary_accuracy`.

    Returns:
        One F in [0, 1] per prediction.

    Raises:
        ValueError: If a mask is malformed, the shapes differ or `tolerance` is not positive.
    """
    expected = as_mask(reference, "reference")
    if tolerance <= 0:
        raise ValueError(f"`tolerance` must be positive, got {tolerance}; the default is 0.008.")
    radius = math.ceil(tolerance if tolerance >= 1 else tolerance * math.hypot(*expected.shape))
    boundary = mask_boundary(expected)
    near_boundary = dilate_with_disk(boundary, radius)
    scores = []
    for prediction in predictions:
        predicted = as_mask(prediction, "prediction")
        check_same_shape(predicted, expected)
        scores.append(_boundary_f(mask_boundary(predicted), boundary, near_boundary, radius))
    return scores


def _boundary_f(
    predicted: BoolArray, expected: BoolArray, near_expected: BoolArray, radius: int
) -> float:
    """F of two boundaries; `near_expected` is the second one dilated."""
    num_predicted = int(np.count_nonzero(predicted))
    num_expected = int(np.count_nonzero(expected))
    if num_predicted == 0 or num_expected == 0:
        return 1.0 if num_predicted == num_expected else 0.0
    precision = int(np.count_nonzero(predicted & near_expected)) / num_predicted
    near_predicted = dilate_with_disk(predicted, radius)
    recall = int(np.count_nonzero(expected & near_predicted)) / num_expected
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0
