"""From predictions to rows (one per sequence or image) and from rows to summaries.

Every row holds the scores of all K segments. That is what lets one pass report the selected
segment, the one that the references would choose (oracle), and the best segment of every row.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amd_hf.evaluation.bootstrap import bootstrap_interval
from amd_hf.evaluation.predictors import Prediction
from amd_hf.metrics import (
    TemporalStability,
    adaptive_e_measure,
    adaptive_f_beta,
    boundary_accuracies,
    e_measure_curve,
    f_beta_curve,
    mean_absolute_error,
    region_similarity,
    s_measure,
    sequence_statistics,
    stretch_to_unit_range,
)

CURVE_SCALE = 65535
VIDEO_MEASURES = ("J", "J_recall", "J_decay", "F", "temporal_stability")
IMAGE_MEASURES = (
    "mean_f_beta",
    "adaptive_f_beta",
    "mae",
    "s_measure",
    "iou",
    "mean_e_measure",
    "adaptive_e_measure",
)
# What decides which segment the references would choose.
DECIDING = {"video": "J", "image": "iou"}

Row = dict[str, Any]


@dataclass
class ScoredRows:
    """Rows of one pass over a benchmark, and F-beta curves where it is made of images.

    Attributes:
        rows: One per sequence or image.
        curves: F-beta curves (K, 256) per image in steps of 1/65535 (2.5 KiB for K = 5).
        thumbnails: JPEG files by row name, for the contact sheet; empty where none is wanted.
    """

    rows: list[Row] = field(default_factory=list)
    curves: list[NDArray[np.uint16]] = field(default_factory=list)
    thumbnails: dict[str, bytes] = field(default_factory=dict)

    def add(self, other: "ScoredRows") -> None:
        """Takes over the rows of other passes that are not here yet."""
        known = {row["name"] for row in self.rows}
        fresh = [index for index, row in enumerate(other.rows) if row["name"] not in known]
        self.rows += [other.rows[index] for index in fresh]
        self.curves += [other.curves[index] for index in fresh if other.curves]
        self.thumbnails |= other.thumbnails

    def in_order(self, names: Sequence[str]) -> "ScoredRows":
        """The rows of these names, in this order.

        Raises:
            RuntimeError: If one of them was not scored.
        """
        place = {row["name"]: index for index, row in enumerate(self.rows)}
        missing = [name for name in names if name not in place]
        if missing:
            raise RuntimeError(
                f"{len(missing)} of {len(names)} were not scored ({missing[0]}, ...); run the same "
                "command again."
            )
        order = [place[name] for name in names]
        thumbnails = {name: self.thumbnails[name] for name in names if name in self.thumbnails}
        curves = [self.curves[index] for index in order] if self.curves else []
        return ScoredRows([self.rows[index] for index in order], curves, thumbnails)


def score_video(
    name: str, predictions: Iterable[Prediction], selected: int, threshold: float
) -> Row:
    """The row of one sequence; holds one frame at a time.

    Args:
        name: Name of the sequence.
        predictions: Its frames, in order.
        selected: Index of the segment read as the object.
        threshold: Probability above which a pixel belongs to it.

    Returns:
        The row: scores of the selected segment at the top, those of all under `per_segment`.
    """
    regions: list[list[float]] = []
    boundaries: list[list[float]] = []
    intersection: NDArray[np.int64] | int = 0
    union: NDArray[np.int64] | int = 0
    stability: list[TemporalStability] = []
    annotated = TemporalStability()
    for prediction in predictions:
        masks, reference = prediction.soft_masks > threshold, prediction.reference
        if not stability:
            stability = [TemporalStability() for _ in masks]
        regions.append([region_similarity(mask, reference) for mask in masks])
        boundaries.append(boundary_accuracies(masks, reference))
        intersection = intersection + (masks & reference).sum(axis=(1, 2))
        union = union + (masks | reference).sum(axis=(1, 2))
        for score, mask in zip(stability, masks, strict=True):
            score.update(mask)
        annotated.update(reference)
    statistics = [sequence_statistics(values) for values in zip(*regions, strict=True)]
    per_segment = {
        "J": [value.mean for value in statistics],
        "J_recall": [value.recall for value in statistics],
        "J_decay": [value.decay for value in statistics],
        "F": np.mean(boundaries, axis=0).tolist(),
        "temporal_stability": [score.compute() for score in stability],
        "intersection": np.asarray(intersection).tolist(),
        "union": np.asarray(union).tolist(),
    }
    return {
        "name": name,
        "num_frames": len(regions),
        **{measure: per_segment[measure][selected] for measure in VIDEO_MEASURES},
        "reference_stability": annotated.compute(),
        "selected_segment": selected,
        "best_segment": int(np.argmax(per_segment["J"])),
        "per_segment": per_segment,
    }


def score_image(
    name: str, prediction: Prediction, selected: int, threshold: float, stretch: bool
) -> tuple[Row, NDArray[np.uint16]]:
    """The row of one image and its F-beta curves.

    Args:
        name: Name of the image.
        prediction: Its soft masks and reference.
        selected: Index of the segment read as the object.
        threshold: Probability above which a pixel belongs to it, for `iou`.
        stretch: Whether soft masks are stretched to [0, 1] first.

    Returns:
        The row, and curves of shape (K, 256) in steps of 1/65535.
    """
    reference = prediction.reference
    per_segment: dict[str, list[float]] = {measure: [] for measure in IMAGE_MEASURES}
    curves = []
    for values in prediction.soft_masks:
        soft = stretch_to_unit_range(values) if stretch else values.astype(np.float64)
        curve = f_beta_curve(soft, reference)
        curves.append(np.rint(curve * CURVE_SCALE).astype(np.uint16))
        scores = {
            "mean_f_beta": curve.mean(),
            "adaptive_f_beta": adaptive_f_beta(soft, reference),
            "mae": mean_absolute_error(soft, reference),
            "s_measure": s_measure(soft, reference),
            "iou": region_similarity(values > threshold, reference),
            "mean_e_measure": e_measure_curve(soft, reference).mean(),
            "adaptive_e_measure": adaptive_e_measure(soft, reference),
        }
        for measure, value in scores.items():
            per_segment[measure].append(float(value))
    row = {
        "name": name,
        **{measure: per_segment[measure][selected] for measure in IMAGE_MEASURES},
        "selected_segment": selected,
        "best_segment": int(np.argmax(per_segment["iou"])),
        "per_segment": per_segment,
    }
    return row, np.stack(curves)


def oracle_segment(rows: Sequence[Row], kind: str) -> int:
    """The one segment that the references would choose for the whole benchmark."""
    table = np.array([row["per_segment"][DECIDING[kind]] for row in rows])
    return int(table.mean(axis=0).argmax())


def summarize(
    scored: ScoredRows, kind: str, choice: int | None, num_bootstrap: int, seed: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Scores of one choice of segment over all rows, and their 95 % intervals.

    Args:
        scored: The rows.
        kind: `video` or `image`.
        choice: Index of the segment; None takes the best segment of every row.
        num_bootstrap: Number of resamples; 0 leaves the intervals out.
        seed: Seed of the resampling.

    Returns:
        Scores by name, and `[low, high]` by name for the means over rows.
    """
    rows = scored.rows
    picks = [row["best_segment"] if choice is None else choice for row in rows]
    measures = VIDEO_MEASURES if kind == "video" else IMAGE_MEASURES
    table = {
        measure: np.array(
            [row["per_segment"][measure][pick] for row, pick in zip(rows, picks, strict=True)]
        )
        for measure in measures
    }
    scores = {measure: float(values.mean()) for measure, values in table.items()}
    intervals: dict[str, list[float]] = {}
    if num_bootstrap:
        intervals = {
            measure: list(bootstrap_interval(values, num_bootstrap, seed=seed))
            for measure, values in table.items()
        }
    if kind == "video":
        scores |= _over_frames(rows, picks, table["J"])
        return scores, intervals
    curves = np.stack(
        [curve[pick] for curve, pick in zip(scored.curves, picks, strict=True)]
    ).astype(np.float32)
    mean_curve = curves.mean(axis=0, dtype=np.float64) / CURVE_SCALE
    scores = {"max_f_beta": float(mean_curve.max()), **scores}
    if num_bootstrap:
        ends = bootstrap_interval(
            curves, num_bootstrap, seed=seed, statistic=lambda means: means.max(axis=1)
        )
        intervals = {"max_f_beta": [end / CURVE_SCALE for end in ends], **intervals}
    return scores, intervals


def _over_frames(
    rows: Sequence[Row], picks: Sequence[int], per_sequence: NDArray[np.float64]
) -> dict[str, float]:
    """Means over all frames, and the pooled IoU of the published code."""
    frames = np.array([row["num_frames"] for row in rows])
    pairs = list(zip(rows, picks, strict=True))
    intersection = sum(row["per_segment"]["intersection"][pick] for row, pick in pairs)
    union = sum(row["per_segment"]["union"][pick] for row, pick in pairs)
    return {
        "J_frames": float((per_sequence * frames).sum() / frames.sum()),
        "pooled_iou": intersection / union if union else 1.0,
        "reference_stability": float(np.mean([row["reference_stability"] for row in rows])),
    }
