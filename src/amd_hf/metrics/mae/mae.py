"""MAE as an `evaluate` metric: `evaluate.load(".../mae")`."""

from typing import Any

from amd_hf.metrics.evaluate_skin import StreamingMetric
from amd_hf.metrics.saliency import mean_absolute_error


class Mae(StreamingMetric):
    """MAE averaged over images."""

    description = "Mean absolute error of soft masks in [0, 1]."
    citation = "Perazzi et al., Saliency filters, CVPR 2012."

    def reset(self, **options: Any) -> None:
        """Starts a new data set; takes no options."""
        if options:
            raise ValueError(f"`mae` takes no options, got {sorted(options)}.")
        self.total = 0.0
        self.count = 0

    def update(self, prediction: Any, reference: Any) -> None:
        """Adds one image."""
        self.total += mean_absolute_error(prediction, reference)
        self.count += 1

    def result(self) -> dict[str, Any]:
        """`mae`, the mean over the images."""
        return {"mae": self.total / self.count}
