"""Scores of soft masks against one binary mask per image: F-beta and mean absolute error."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amd_hf.metrics._arrays import BoolArray, FloatArray, as_mask, as_soft_mask, check_same_shape

BETA_SQUARED = 0.3
NUM_THRESHOLDS = 256


def checked_pair(prediction: ArrayLike, reference: ArrayLike) -> tuple[FloatArray, BoolArray]:
    """The soft prediction as float64 and the reference as booleans, of one shape.

    Raises:
        ValueError: If an argument is malformed or the shapes differ.
    """
    soft, expected = as_soft_mask(prediction, "prediction"), as_mask(reference, "reference")
    check_same_shape(soft, expected)
    return soft, expected


def stretch_to_unit_range(soft_mask: ArrayLike) -> FloatArray:
    """The soft mask scaled so that its values span [0, 1]; a constant one is left as it is.

    Saliency toolboxes do this to every map before scoring it. A probability has no need of it, so
    nothing here does it unasked.

    Args:
        soft_mask: Array of shape (H, W) with values in [0, 1].

    Returns:
        Array of shape (H, W), float64.

    Raises:
        ValueError: If the soft mask is malformed.
    """
    values = as_soft_mask(soft_mask, "soft_mask")
    low, high = values.min(), values.max()
    return values if high == low else (values - low) / (high - low)


def adaptive_threshold(soft_mask: FloatArray) -> float:
    """Twice the mean of a soft mask of shape (H, W), at most 1.

    Source: Achanta et al., Frequency-tuned salient region detection, CVPR 2009.
    """
    return min(2.0 * float(soft_mask.mean()), 1.0)


def counts_above_thresholds(
    prediction: FloatArray, reference: BoolArray
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of pixels at or above each of 256 thresholds, on the object and in all.

    Args:
        prediction: Soft mask of shape (H, W) in [0, 1], cut to 8 bits first.
        reference: Boolean mask of shape (H, W).

    Returns:
        Two integer arrays of shape (256,), threshold i / 255 at index i.
    """
    levels = (prediction * (NUM_THRESHOLDS - 1)).astype(np.uint8)
    everywhere = np.bincount(levels.ravel(), minlength=NUM_THRESHOLDS)
    on_object = np.bincount(levels[reference], minlength=NUM_THRESHOLDS)
    return np.cumsum(on_object[::-1])[::-1], np.cumsum(everywhere[::-1])[::-1]


def _f_beta_from_counts(
    hits: NDArray, num_predicted: NDArray, num_expected: int, beta_squared: float
) -> FloatArray:
    """F-beta from counts; 0 where nothing is hit."""
    precision = hits / np.maximum(num_predicted, 1)
    recall = hits / max(num_expected, 1)
    return np.where(
        hits > 0,
        (1 + beta_squared)
        * precision
        * recall
        / np.where(hits > 0, beta_squared * precision + recall, 1.0),
        0.0,
    )


def f_beta_curve(
    prediction: ArrayLike, reference: ArrayLike, beta_squared: float = BETA_SQUARED
) -> FloatArray:
    """F-beta at the 256 thresholds 0, 1/255, ..., 1.

    Args:
        prediction: Soft mask of shape (H, W) in [0, 1].
        reference: Mask of the same shape: booleans, 0/1 or 0/255.
        beta_squared: Weight; 0.3 stresses precision, as is usual for saliency.

    Returns:
        Array of shape (256,), in [0, 1]; 0 where the reference is empty.

    Raises:
        ValueError: If an argument is malformed or the shapes differ.

    Source: Achanta et al., CVPR 2009, Eq. 6; thresholds as in the usual saliency toolboxes.
    """
    soft, expected = checked_pair(prediction, reference)
    hits, num_predicted = counts_above_thresholds(soft, expected)
    return _f_beta_from_counts(hits, num_predicted, int(np.count_nonzero(expected)), beta_squared)


def adaptive_f_beta(
    prediction: ArrayLike, reference: ArrayLike, beta_squared: float = BETA_SQUARED
) -> float:
    """F-beta at twice the mean of the prediction.

    Args:
        prediction: Soft mask of shape (H, W) in [0, 1].
        reference: Mask of the same shape: booleans, 0/1 or 0/255.
        beta_squared: Weight of precision against recall.

    Returns:
        F-beta in [0, 1].

    Raises:
        ValueError: If an argument is malformed or the shapes differ.

    Source: Achanta et al., CVPR 2009.
    """
    soft, expected = checked_pair(prediction, reference)
    chosen = soft >= adaptive_threshold(soft)
    hits = np.array(np.count_nonzero(chosen & expected))
    num_chosen = np.array(np.count_nonzero(chosen))
    return float(
        _f_beta_from_counts(hits, num_chosen, int(np.count_nonzero(expected)), beta_squared)
    )


def mean_absolute_error(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Mean absolute difference between a soft mask and a mask.

    Args:
        prediction: Soft mask of shape (H, W) in [0, 1].
        reference: Mask of the same shape: booleans, 0/1 or 0/255.

    Returns:
        Error in [0, 1]; lower is better.

    Raises:
        ValueError: If an argument is malformed or the shapes differ.

    Source: Perazzi et al., Saliency filters, CVPR 2012.
    """
    soft, expected = checked_pair(prediction, reference)
    return float(np.abs(soft - expected).mean())


@dataclass
class FBetaScores:
    """Maximum, mean and adaptive F-beta over a data set; memory does not grow with it.

    The curve is averaged over the images first; its maximum and mean are taken afterwards, as in
    the usual saliency toolboxes.

    Attributes:
        beta_squared: Weight of precision against recall.
    """

    beta_squared: float = BETA_SQUARED
    num_images: int = 0
    curve_sum: FloatArray = field(default_factory=lambda: np.zeros(NUM_THRESHOLDS))
    adaptive_sum: float = 0.0

    def update(self, prediction: ArrayLike, reference: ArrayLike) -> None:
        """Adds one image: a soft mask in [0, 1] and a mask, both of shape (H, W).

        Raises:
            ValueError: If an argument is malformed or the shapes differ.
        """
        self.curve_sum += f_beta_curve(prediction, reference, self.beta_squared)
        self.adaptive_sum += adaptive_f_beta(prediction, reference, self.beta_squared)
        self.num_images += 1

    def compute(self) -> dict[str, float]:
        """`max_f_beta`, `mean_f_beta` and `adaptive_f_beta`, each in [0, 1].

        Raises:
            ValueError: If no image was added.
        """
        if self.num_images == 0:
            raise ValueError("F-beta needs at least one image, got none; call `update` first.")
        curve = self.curve_sum / self.num_images
        return {
            "max_f_beta": float(curve.max()),
            "mean_f_beta": float(curve.mean()),
            "adaptive_f_beta": self.adaptive_sum / self.num_images,
        }
