"""Boundary accuracy F as an `evaluate` metric: `evaluate.load(".../boundary_accuracy")`."""

from typing import Any

from amd_hf.metrics.boundary import BOUNDARY_TOLERANCE, boundary_accuracy
from amd_hf.metrics.evaluate_skin import StreamingMetric
from amd_hf.metrics.region import sequence_statistics


class BoundaryAccuracy(StreamingMetric):
    """F mean, recall and decay of one sequence of masks; option `tolerance`."""

    description = "Boundary accuracy F of the masks of one sequence (DAVIS protocol)."
    citation = "Perazzi et al., CVPR 2016; Martin et al., PAMI 2004."
    prediction_type = "bool"

    def reset(self, tolerance: float = BOUNDARY_TOLERANCE, **options: Any) -> None:
        """Starts a new sequence."""
        if options:
            raise ValueError(f"`boundary_accuracy` takes `tolerance` only, got {sorted(options)}.")
        self.tolerance = tolerance
        self.values: list[float] = []

    def update(self, prediction: Any, reference: Any) -> None:
        """Adds the next frame of the sequence."""
        self.values.append(boundary_accuracy(prediction, reference, self.tolerance))

    def result(self) -> dict[str, Any]:
        """`F`, `F_recall` and `F_decay`."""
        statistics = sequence_statistics(self.values)
        return {"F": statistics.mean, "F_recall": statistics.recall, "F_decay": statistics.decay}
