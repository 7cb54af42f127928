"""S-measure as an `evaluate` metric: `evaluate.load(".../s_measure")`."""

from typing import Any

from amd_hf.metrics.evaluate_skin import StreamingMetric
from amd_hf.metrics.structure import s_measure


class SMeasure(StreamingMetric):
    """S-measure averaged over images."""

    description = "Structure measure of soft masks in [0, 1]."
    citation = "Fan et al., Structure-measure, ICCV 2017."

    def reset(self, **options: Any) -> None:
        """Starts a new data set; takes no options."""
        if options:
            raise ValueError(f"`s_measure` takes no options, got {sorted(options)}.")
        self.total = 0.0
        self.count = 0

    def update(self, prediction: Any, reference: Any) -> None:
        """Adds one image."""
        self.total += s_measure(prediction, reference)
        self.count += 1

    def result(self) -> dict[str, Any]:
        """`s_measure`, the mean over the images."""
        return {"s_measure": self.total / self.count}
