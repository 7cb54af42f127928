"""E-measure: enhanced alignment between a thresholded soft mask and a mask."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amd_hf.metrics._arrays import FloatArray
from amd_hf.metrics.saliency import adaptive_threshold, checked_pair, counts_above_thresholds

# One unit in the last place of 1.0: keeps divisions finite and changes nothing else.
EPSILON = np.spacing(1)


def e_measure_curve(prediction: ArrayLike, reference: ArrayLike) -> FloatArray:
    """Enhanced-alignment measure at the 256 thresholds 0, 1/255, ..., 1.

    Args:
        prediction: Soft mask of shape (H, W) in [0, 1].
        reference: Mask of the same shape: booleans, 0/1 or 0/255.

    Returns:
        Array of shape (256,), in [0, 1] up to the factor N / (N - 1) of its definition.

    Raises:
        ValueError: If an argument is malformed or the shapes differ.

    Source: Fan et al., Enhanced-alignment measure, IJCAI 2018, Eqs. 1-5.
    """
    soft, expected = checked_pair(prediction, reference)
    hits, num_predicted = counts_above_thresholds(soft, expected)
    return _alignment(hits, num_predicted, int(np.count_nonzero(expected)), expected.size)


def adaptive_e_measure(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Enhanced-alignment measure at twice the mean of the prediction.

    Args:
        prediction: Soft mask of shape (H, W) in [0, 1].
        reference: Mask of the same shape: booleans, 0/1 or 0/255.

    Returns:
        E in [0, 1] up to the factor N / (N - 1) of its definition.

    Raises:
        ValueError: If an argument is malformed or the shapes differ.

    Source: Fan et al., IJCAI 2018.
    """
    soft, expected = checked_pair(prediction, reference)
    chosen = soft >= adaptive_threshold(soft)
    hits = np.array(np.count_nonzero(chosen & expected))
    num_chosen = np.array(np.count_nonzero(chosen))
    return float(_alignment(hits, num_chosen, int(np.count_nonzero(expected)), expected.size))


def _alignment(
    hits: NDArray, num_predicted: NDArray, num_expected: int, num_pixels: int
) -> FloatArray:
    """The measure from counts: binary maps take only four value pairs, so no pixel is visited."""
    normalizer = num_pixels - 1 + EPSILON
    if num_expected == 0:
        return (num_pixels - num_predicted) / normalizer
    if num_expected == num_pixels:
        return num_predicted / normalizer
    mean_predicted, mean_expected = num_predicted / num_pixels, num_expected / num_pixels
    total = np.zeros(np.shape(hits))
    for predicted, expected, count in (
        (1, 1, hits),
        (1, 0, num_predicted - hits),
        (0, 1, num_expected - hits),
        (0, 0, num_pixels - num_predicted - num_expected + hits),
    ):
        bias_predicted, bias_expected = predicted - mean_predicted, expected - mean_expected
        alignment = 2 * bias_predicted * bias_expected
        alignment = alignment / (bias_predicted**2 + bias_expected**2 + EPSILON)
        total = total + count * (1 + alignment) ** 2 / 4
    return total / normalizer
