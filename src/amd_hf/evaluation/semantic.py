"""Class segmentation: mean IoU of a fine-tuned model."""

import math
from typing import Any

import numpy as np
import torch
from transformers.utils.logging import tqdm

from amd_hf.data.annotations import Benchmark, read_frame, read_labels
from amd_hf.data.ranks import Ranks
from amd_hf.data.voc import VOC_LABELS
from amd_hf.evaluation.settings import EvaluationSettings
from amd_hf.metrics import ConfusionMatrix


@torch.inference_mode()
def evaluate_semantic(
    model: Any,
    processor: Any,
    benchmark: Benchmark,
    settings: EvaluationSettings,
    progress: bool,
    ranks: Ranks,
) -> dict[str, Any]:
    """Mean IoU over the classes of a benchmark of class labels.

    There is no segment to choose, so there is no oracle.

    Args:
        model: An `AMDForSemanticSegmentation` with 21 labels.
        processor: Its image processor.
        benchmark: The benchmark, of kind `semantic`.
        settings: Settings of the evaluation.
        progress: Whether to show a progress bar.
        ranks: The processes that score together, each its share of the images.

    Returns:
        Counts, `selected` (with `mean_iou`), `per_class` and `rows` (one per image). Empty in
        processes other than the main one.

    Raises:
        ValueError: If the model has no classifier, or its number of labels differs from 21.
    """
    num_labels = len(VOC_LABELS)
    if not hasattr(model, "classifier") or model.config.num_labels != num_labels:
        raise ValueError(
            f"{benchmark.title} needs an AMDForSemanticSegmentation with {num_labels} labels, got "
            f"{type(model).__name__} with {model.config.num_labels}; fine-tune one first."
        )
    images = [sequence.annotated[0] for sequence in benchmark.sequences if sequence.annotated]
    images = images[:: settings.stride][: settings.limit_frames]
    total = ConfusionMatrix(num_labels)
    rows = []
    model.eval()
    for frame in tqdm(
        ranks.share(images), desc=benchmark.title, unit="image", disable=not progress
    ):
        reference = read_labels(frame.masks[0])
        options: dict[str, Any] = {}
        if settings.short_side is not None:
            options["size"] = {"shortest_edge": settings.short_side}
        pixels = processor(read_frame(frame.image), return_tensors="pt", **options)["pixel_values"]
        outputs = model(pixel_values=pixels.to(model.device, model.dtype))
        (labels,) = processor.post_process_semantic_segmentation(
            outputs, target_sizes=[reference.shape]
        )
        predicted = labels.cpu().numpy()
        single = ConfusionMatrix(num_labels)
        single.update(predicted, reference)
        total.update(predicted, reference)
        scores = single.compute()
        rows.append(
            {
                "name": frame.name,
                "mean_iou": scores["mean_iou"],
                "pixel_accuracy": scores["pixel_accuracy"],
            }
        )
    shares = ranks.gather((rows, total.counts))
    if shares is None:
        return {}
    parts = [part for part, _ in shares]
    rows = [parts[index % ranks.count][index // ranks.count] for index in range(len(images))]
    total.counts = sum((counts for _, counts in shares), np.zeros_like(total.counts))
    scores = total.compute()
    per_class = dict(zip(VOC_LABELS, _as_list(scores.pop("iou")), strict=True))
    return {
        "num_scored": len(rows),
        "is_subset": settings.scores_a_part or not benchmark.is_complete,
        "selected": scores,
        "oracle": None,
        "per_class": per_class,
        "rows": rows,
    }


def _as_list(values: float | list[float]) -> list[float | None]:
    """Per-class values with None where a class never occurs; JSON has no NaN."""
    assert isinstance(values, list)
    return [None if math.isnan(value) else value for value in values]
