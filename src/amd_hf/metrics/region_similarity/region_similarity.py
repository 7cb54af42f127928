"""Region similarity J as an `evaluate` metric: `evaluate.load(".../region_similarity")`."""

from typing import Any

from amd_hf.metrics.evaluate_skin import StreamingMetric
from amd_hf.metrics.region import PooledIoU, region_similarity, sequence_statistics

CITATION = (
    "@inproceedings{perazzi2016benchmark, title={A benchmark dataset and evaluation methodology "
    "for video object segmentation}, author={Perazzi, F. and others}, booktitle={CVPR}, "
    "year={2016}}"
)


class RegionSimilarity(StreamingMetric):
    """J mean, recall and decay of one sequence of masks, and the pooled IoU."""

    description = "Region similarity J (intersection over union) of the masks of one sequence."
    citation = CITATION
    prediction_type = "bool"

    def reset(self, **options: Any) -> None:
        """Starts a new sequence; takes no options."""
        if options:
            raise ValueError(f"`region_similarity` takes no options, got {sorted(options)}.")
        self.values: list[float] = []
        self.pooled = PooledIoU()

    def update(self, prediction: Any, reference: Any) -> None:
        """Adds the next frame of the sequence."""
        self.values.append(region_similarity(prediction, reference))
        self.pooled.update(prediction, reference)

    def result(self) -> dict[str, Any]:
        """`J`, `J_recall`, `J_decay`, `pooled_iou` and `pooled_mean_iou`."""
        statistics = sequence_statistics(self.values)
        scores = {"J": statistics.mean, "J_recall": statistics.recall, "J_decay": statistics.decay}
        return scores | self.pooled.compute()
