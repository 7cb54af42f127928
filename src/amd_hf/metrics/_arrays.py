"""Checks shared by the metrics: what a mask and a soft mask must look like."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


def as_mask(mask: ArrayLike, name: str) -> BoolArray:
    """A two-dimensional boolean mask.

    Args:
        mask: Array of shape (H, W) holding booleans, 0/1 or 0/255.
        name: Argument name for the error message.

    Returns:
        Boolean array of shape (H, W).

    Raises:
        ValueError: If the array is not two-dimensional, is empty, or holds other values.
    """
    array = np.asarray(mask)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(
            f"`{name}` must be a non-empty mask of shape (H, W), got shape {array.shape}; "
            "pass one frame at a time."
        )
    if array.dtype == np.bool_:
        return array
    on = array > 0
    if on.any():
        top = array.max()
        if top not in (1, 255) or not np.all(array[on] == top) or array.min() < 0:
            raise ValueError(
                f"`{name}` must be boolean or hold only 0/1 or 0/255, got values from "
                f"{array.min()} to {top}; threshold it first."
            )
    return on


def as_soft_mask(soft_mask: ArrayLike, name: str) -> FloatArray:
    """A two-dimensional float64 mask with values in [0, 1].

    Args:
        soft_mask: Array of shape (H, W) with values in [0, 1]; booleans are accepted.
        name: Argument name for the error message.

    Returns:
        Array of shape (H, W), float64.

    Raises:
        ValueError: If the array is not two-dimensional, is empty or leaves [0, 1].
    """
    array = np.asarray(soft_mask, dtype=np.float64)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(
            f"`{name}` must be a non-empty soft mask of shape (H, W), got shape {array.shape}; "
            "pass one image at a time."
        )
    low, high = array.min(), array.max()
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(
            f"`{name}` must lie in [0, 1], got values from {low:g} to {high:g}; "
            "divide 8-bit maps by 255."
        )
    return array


def check_same_shape(prediction: NDArray, reference: NDArray) -> None:
    """Raises ValueError when prediction and reference differ in shape."""
    if prediction.shape != reference.shape:
        raise ValueError(
            f"`prediction` and `reference` must have the same shape, got {prediction.shape} and "
            f"{reference.shape}; resize the prediction to the size of the reference."
        )
