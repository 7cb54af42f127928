"""Temporal stability as an `evaluate` metric: `evaluate.load(".../mask_stability")`."""

from typing import Any

from amd_hf.metrics.evaluate_skin import StreamingMetric
from amd_hf.metrics.stability import TemporalStability


class MaskStability(StreamingMetric):
    """Stability of the predicted masks of one video beside that of the annotated ones."""

    description = "Mean J between the masks of neighboring frames of one video."
    citation = "Liu et al., The emergence of objectness, NeurIPS 2021 (talk)."
    prediction_type = "bool"

    def reset(self, **options: Any) -> None:
        """Starts a new video; takes no options."""
        if options:
            raise ValueError(f"`mask_stability` takes no options, got {sorted(options)}.")
        self.predicted, self.annotated = TemporalStability(), TemporalStability()

    def update(self, prediction: Any, reference: Any) -> None:
        """Adds the next frame."""
        self.predicted.update(prediction)
        self.annotated.update(reference)

    def result(self) -> dict[str, Any]:
        """`temporal_stability` of the predictions and `reference_stability` of the references."""
        return {
            "temporal_stability": self.predicted.compute(),
            "reference_stability": self.annotated.compute(),
        }
