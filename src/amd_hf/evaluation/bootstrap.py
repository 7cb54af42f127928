"""Bootstrap intervals of means over sequences or images."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95


def bootstrap_interval(
    values: ArrayLike,
    num_resamples: int = 1000,
    *,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of the mean over units.

    Args:
        values: One row per unit (sequence or image), shape (N,) or (N, M).
        num_resamples: Number of resamples.
        seed: Seed of the resampling.
        confidence: Coverage, in (0, 1).
        statistic: Maps means of shape (R, M) to (R,), such as a maximum over thresholds; None for
            plain means.

    Returns:
        Lower and upper end; both equal the value itself for one unit.

    Raises:
        ValueError: If there are no units or an argument is out of range.

    Source: Efron and Tibshirani, An introduction to the bootstrap, 1993, Ch. 13.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim not in (1, 2) or len(data) == 0:
        raise ValueError(f"`values` must have shape (N,) or (N, M) with N >= 1, got {data.shape}.")
    if num_resamples < 1 or not 0 < confidence < 1:
        raise ValueError(
            "`num_resamples` must be at least 1 and `confidence` in (0, 1), got "
            f"{num_resamples} and {confidence}."
        )
    rng = np.random.default_rng(seed)
    units = len(data)
    # Resampling with replacement is a multinomial draw of weights: no copies of the rows.
    weights = rng.multinomial(units, np.full(units, 1 / units), size=num_resamples) / units
    means = weights @ (data if data.ndim == 2 else data[:, None])  # (R, M)
    estimates = means[:, 0] if statistic is None else statistic(means)
    tail = (1 - confidence) / 2
    low, high = np.quantile(estimates, (tail, 1 - tail))
    return float(low), float(high)
