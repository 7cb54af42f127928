"""Mean IoU as an `evaluate` metric: `evaluate.load(".../mean_iou", num_labels=21)`."""

from typing import Any

from amd_hf.metrics.evaluate_skin import StreamingMetric
from amd_hf.metrics.semantic import IGNORE_INDEX, ConfusionMatrix


class MeanIou(StreamingMetric):
    """Mean IoU over the classes of a data set; options `num_labels` and `ignore_index`."""

    description = "Mean IoU of integer label maps from one confusion matrix."
    citation = "Everingham et al., The PASCAL visual object classes challenge, IJCV 2010."
    prediction_type = "int64"
    reference_type = "int64"

    def reset(
        self, num_labels: int = 21, ignore_index: int | None = IGNORE_INDEX, **options: Any
    ) -> None:
        """Starts a new data set."""
        if options:
            raise ValueError(
                f"`mean_iou` takes `num_labels` and `ignore_index` only, got {sorted(options)}."
            )
        self.matrix = ConfusionMatrix(num_labels, ignore_index)

    def update(self, prediction: Any, reference: Any) -> None:
        """Adds one pair of label maps."""
        self.matrix.update(prediction, reference)

    def result(self) -> dict[str, Any]:
        """`mean_iou`, `mean_accuracy`, `pixel_accuracy` and `iou` per class."""
        return dict(self.matrix.compute())
