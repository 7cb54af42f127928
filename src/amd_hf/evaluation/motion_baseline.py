"""Classical motion baseline: what deviates from the dominant motion, by Otsu's threshold."""

import numpy as np
from numpy.typing import NDArray

from amd_hf.dis_flow import dis_flow, import_opencv
from amd_hf.metrics._arrays import FloatArray

NUM_ROUNDS = 10
NUM_FIT_POINTS = 4000
NUM_OTSU_BINS = 256
SMALLEST_SCALE = 0.1  # pixels


def dense_flow(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The flow of `dis_flow` between two RGB frames.

    Args:
        first: RGB frame of shape (H, W, 3), uint8, at least 16 pixels high and wide.
        second: The next frame, same shape.

    Returns:
        Offsets of shape (2, H, W) in pixels on the grid of the first frame.

    Raises:
        ImportError: If OpenCV is not installed.
    """
    cv2 = import_opencv()
    grays = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (first, second)]
    return dis_flow(grays[:1], grays[1:])[0]


def dominant_motion(flow: NDArray[np.float32]) -> FloatArray:
    """The quadratic motion field that most pixels follow, by reweighted least squares.

    Args:
        flow: Offsets of shape (2, H, W) in pixels.

    Returns:
        Offsets of shape (2, H, W); equals `flow` where it is quadratic in position itself.
    """
    height, width = flow.shape[1:]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    basis = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=-1).reshape(-1, 6)
    values = flow.reshape(2, -1).T.astype(np.float64)
    step = max(1, len(basis) // NUM_FIT_POINTS)
    points, targets = basis[::step], values[::step]
    weights = np.ones(len(points))
    for _ in range(NUM_ROUNDS):
        roots = np.sqrt(weights)[:, None]
        coefficients = np.linalg.lstsq(points * roots, targets * roots, rcond=None)[0]
        errors = np.linalg.norm(targets - points @ coefficients, axis=1)
        # Cauchy weights with the median error as scale: a moving minority loses its say.
        scale = max(1.4826 * float(np.median(errors)), SMALLEST_SCALE)
        weights = 1 / (1 + (errors / scale) ** 2)
    return (basis @ coefficients).T.reshape(2, height, width)


def otsu_threshold(values: FloatArray) -> float:
    """The threshold that separates two classes best (largest variance between them).

    Args:
        values: Numbers of any shape, finite.

    Returns:
        The threshold; the common value where all are equal.

    Source: Otsu, A threshold selection method from gray-level histograms, 1979.
    """
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return high
    counts, edges = np.histogram(values, bins=NUM_OTSU_BINS, range=(low, high))
    centers = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sum_below = np.cumsum(counts * centers)[:-1]
    sum_above = (counts * centers).sum() - sum_below
    means = sum_below / np.maximum(below, 1) - sum_above / np.maximum(above, 1)
    # Empty bins between the classes tie; the middle of the tie is the natural cut.
    variance = below * above * means**2
    best = np.flatnonzero(variance >= variance.max() * (1 - 1e-12))
    return float(edges[1:-1][best].mean())


def motion_saliency(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Deviation from the dominant motion; 0.5 lies at Otsu's threshold.

    Args:
        first: RGB frame of shape (H, W, 3), uint8.
        second: A neighboring frame, same shape.

    Returns:
        Soft mask of shape (H, W) in [0, 1]; zeros where nothing moves.

    Raises:
        ImportError: If OpenCV is not installed.
    """
    flow = dense_flow(first, second)
    deviation = np.linalg.norm(flow - dominant_motion(flow), axis=0)
    threshold = otsu_threshold(deviation)
    if threshold < SMALLEST_SCALE:
        return np.zeros(deviation.shape, dtype=np.float32)
    return np.clip(deviation / (2 * threshold), 0, 1).astype(np.float32)
