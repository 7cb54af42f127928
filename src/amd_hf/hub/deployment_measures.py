"""What an export is worth: its speed and its score, measured like those of the model itself."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amd_hf import AMDImageProcessor
from amd_hf.data.annotations import read_frame, read_reference
from amd_hf.data.benchmarks import open_benchmark
from amd_hf.metrics.region import region_similarity


def time_segmenter(segmenter: Any, pixel_values: Tensor, rounds: int = 5) -> float:
    """Returns the median seconds of `segmenter(pixel_values=...)` after one warm-up."""
    seconds = []
    with torch.inference_mode():
        for _ in range(rounds + 1):
            begin = time.perf_counter()
            segmenter(pixel_values=pixel_values)
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


def score_segmenters(
    segmenters: Mapping[str, Any],
    processor: AMDImageProcessor,
    benchmark: str,
    data: str | Path,
    sequences: Sequence[str] | None = None,
) -> dict[str, float]:
    """Returns the mean region similarity J of each segmenter on a benchmark of object masks.

    Per frame, without adaptation, with the object segment of the processor; means over the frames
    of a sequence, then over sequences.

    Args:
        segmenters: Map `pixel_values` to an output of `AMDModel`, by name.
        processor: Prepares the frames and makes the masks.
        benchmark: Name of the benchmark.
        data: Its folder.
        sequences: Sequences to keep; None keeps all.

    Raises:
        ValueError: If the benchmark is unknown or not found, or has no object masks.
    """
    found = open_benchmark(benchmark, data, sequences=sequences)
    if found.kind == "semantic":
        raise ValueError(f"`benchmark` must have object masks, got {benchmark} with classes.")
    means: dict[str, list[float]] = {name: [] for name in segmenters}
    for sequence in found.sequences:
        values: dict[str, list[float]] = {name: [] for name in segmenters}
        for frame in sequence.annotated:
            reference = read_reference(frame)
            image = read_frame(frame.image)
            inputs = processor(image, return_tensors="pt")["pixel_values"]
            for name, segmenter in segmenters.items():
                with torch.inference_mode():
                    output = segmenter(pixel_values=inputs)
                (mask,) = processor.post_process_object_segmentation(output, [reference.shape])
                values[name].append(region_similarity(mask.numpy(), reference))
        for name, per_frame in values.items():
            if per_frame:
                means[name].append(statistics.fmean(per_frame))
    return {name: statistics.fmean(per_sequence) for name, per_sequence in means.items()}
