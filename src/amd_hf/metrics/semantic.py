"""Mean IoU of label maps from one confusion matrix."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

IGNORE_INDEX = 255


class ConfusionMatrix:
    """Counts of (reference, predicted) label pairs; memory does not grow with the data set.

    Args:
        num_labels: Number of classes, background included.
        ignore_index: Label of reference pixels that are left out, or None.

    Raises:
        ValueError: If `num_labels` is below 1.
    """

    def __init__(self, num_labels: int, ignore_index: int | None = IGNORE_INDEX) -> None:
        """Starts with nothing counted."""
        if num_labels < 1:
            raise ValueError(
                f"`num_labels` must be at least 1, got {num_labels}; VOC has 21 with background."
            )
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.counts: NDArray[np.int64] = np.zeros((num_labels, num_labels), dtype=np.int64)

    def update(self, prediction: ArrayLike, reference: ArrayLike) -> None:
        """Adds one pair of label maps of the same shape.

        Args:
            prediction: Integer labels in [0, num_labels).
            reference: Integer labels in [0, num_labels) or `ignore_index`.

        Raises:
            ValueError: If the shapes differ or a label is out of range.
        """
        predicted, expected = np.asarray(prediction), np.asarray(reference)
        if predicted.shape != expected.shape:
            raise ValueError(
                f"`prediction` and `reference` must have the same shape, got {predicted.shape} "
                f"and {expected.shape}; resize the prediction to the size of the reference."
            )
        if self.ignore_index is None:
            kept = np.ones(expected.shape, dtype=bool)
        else:
            kept = expected != self.ignore_index
        predicted, expected = predicted[kept].astype(np.int64), expected[kept].astype(np.int64)
        for name, labels in (("prediction", predicted), ("reference", expected)):
            if labels.size and not (labels.min() >= 0 and labels.max() < self.num_labels):
                raise ValueError(
                    f"`{name}` must hold labels from 0 to {self.num_labels - 1}, got "
                    f"{labels.min()} to {labels.max()}; check `num_labels` and `ignore_index`."
                )
        pairs = np.bincount(expected * self.num_labels + predicted, minlength=self.num_labels**2)
        self.counts += pairs.reshape(self.num_labels, self.num_labels)

    def compute(self) -> dict[str, float | list[float]]:
        """Scores of everything counted so far.

        Returns:
            `mean_iou` (over the classes that occur in prediction or reference), `pixel_accuracy`,
            `mean_accuracy` (over the classes of the reference), each in [0, 1], and `iou`, one
            value per class with NaN for classes that never occur.

        Raises:
            ValueError: If nothing was counted.
        """
        total = self.counts.sum()
        if total == 0:
            raise ValueError("Mean IoU needs at least one labelled pixel, got none.")
        hits = np.diag(self.counts).astype(np.float64)
        expected, predicted = self.counts.sum(axis=1), self.counts.sum(axis=0)
        union = expected + predicted - hits
        iou = np.divide(hits, union, out=np.full(self.num_labels, np.nan), where=union > 0)
        accuracy = np.divide(
            hits, expected, out=np.full(self.num_labels, np.nan), where=expected > 0
        )
        return {
            "mean_iou": float(np.nanmean(iou)),
            "mean_accuracy": float(np.nanmean(accuracy)),
            "pixel_accuracy": float(hits.sum() / total),
            "iou": [float(value) for value in iou],
        }
