"""E-measure as an `evaluate` metric: `evaluate.load(".../e_measure")`."""

from typing import Any

import numpy as np

from amd_hf.metrics.alignment import adaptive_e_measure, e_measure_curve
from amd_hf.metrics.evaluate_skin import StreamingMetric
from amd_hf.metrics.saliency import NUM_THRESHOLDS


class EMeasure(StreamingMetric):
    """Maximum, mean and adaptive enhanced-alignment measure of soft masks."""

    description = "Enhanced-alignment measure of soft masks in [0, 1] at 256 thresholds."
    citation = "Fan et al., Enhanced-alignment measure, IJCAI 2018."

    def reset(self, **options: Any) -> None:
        """Starts a new data set; takes no options."""
        if options:
            raise ValueError(f"`e_measure` takes no options, got {sorted(options)}.")
        self.curve = np.zeros(NUM_THRESHOLDS)
        self.adaptive = 0.0
        self.count = 0

    def update(self, prediction: Any, reference: Any) -> None:
        """Adds one image."""
        self.curve += e_measure_curve(prediction, reference)
        self.adaptive += adaptive_e_measure(prediction, reference)
        self.count += 1

    def result(self) -> dict[str, Any]:
        """`max_e_measure`, `mean_e_measure` and `adaptive_e_measure`."""
        curve = self.curve / self.count
        return {
            "max_e_measure": float(curve.max()),
            "mean_e_measure": float(curve.mean()),
            "adaptive_e_measure": self.adaptive / self.count,
        }
