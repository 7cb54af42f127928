"""Boundary accuracy F of binary masks (DAVIS protocol)."""

import math

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
    height, width = points.shape
    padded_width = width + 2 * radius
    padded = np.zeros((height + 2 * radius) * padded_width, dtype=bool)
    rows, columns = np.nonzero(points)
    flat = (rows + radius) * padded_width + columns + radius
    for dy in range(-radius, radius + 1):
        reach = math.isqrt(radius * radius - dy * dy)
        for dx in range(-reach, reach + 1):
            padded[flat + dy * padded_width + dx] = True
    grid = padded.reshape(height + 2 * radius, padded_width)
    return grid[radius : radius + height, radius : radius + width]


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
    predicted, expected = as_mask(prediction, "prediction"), as_mask(reference, "reference")
    check_same_shape(predicted, expected)
    if tolerance <= 0:
        raise ValueError(f"`tolerance` must be positive, got {tolerance}; the default is 0.008.")
    radius = math.ceil(tolerance if tolerance >= 1 else tolerance * math.hypot(*predicted.shape))
    predicted_boundary, expected_boundary = mask_boundary(predicted), mask_boundary(expected)
    num_predicted = int(np.count_nonzero(predicted_boundary))
    num_expected = int(np.count_nonzero(expected_boundary))
    if num_predicted == 0 or num_expected == 0:
        return 1.0 if num_predicted == num_expected else 0.0
    matched = predicted_boundary & dilate_with_disk(expected_boundary, radius)
    recalled = expected_boundary & dilate_with_disk(predicted_boundary, radius)
    precision = int(np.count_nonzero(matched)) / num_predicted
    recall = int(np.count_nonzero(recalled)) / num_expected
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0
