"""How time and memory grow with one size at a time; every point in a process of its own.

    python -m amd_hf.benchmarking.growth '{"work": "inference", "preset": "small", ...}'

measures one point and prints it as JSON.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from amd_hf import AMDConfig
from amd_hf.adaptation_amd import adapt_to_video
from amd_hf.benchmarking import workloads
from amd_hf.benchmarking.inputs import example_pairs, seeded_model, write_frames
from amd_hf.benchmarking.timing import Timing, measure, peak_memory

if TYPE_CHECKING:
    from amd_hf.benchmarking.suite import BenchmarkSettings

logger = logging.getLogger(__name__)

PRESETS: dict[str, Callable[..., AMDConfig]] = {
    "official": AMDConfig.official,
    "small": AMDConfig.small,
    "tiny": AMDConfig.tiny,
}


@dataclass(frozen=True)
class Point:
    """One size of one piece of work.

    Attributes:
        work: "training step", "inference" or "adaptation".
        against: What grows.
        value: How far it has grown.
        preset: Architecture.
        device: Device to measure.
        side: Side of crops or images in pixels.
        batch: Pairs or images at once.
        segments: Number of segments K; 0 keeps that of the preset.
        frames: Frames of the adapted video.
        rounds: Rounds that count.
        threads: Threads of torch.
    """

    work: str
    against: str
    value: int
    preset: str = "official"
    device: str = "cpu"
    side: int = 128
    batch: int = 1
    segments: int = 0
    frames: int = 8
    rounds: int = 3
    threads: int = 1


def growth_points(settings: BenchmarkSettings) -> Iterator[Point]:
    """The points that the settings ask for.

    Args:
        settings: Sizes; the `growth_*` fields are the values that are visited.
    """
    base: dict[str, Any] = {
        "preset": settings.preset,
        "device": settings.device,
        "rounds": settings.rounds,
        "threads": torch.get_num_threads(),
    }
    small = base | {"side": min(settings.growth_crops)}
    for side in settings.growth_crops:
        yield Point("training step", "crop", side, **base | {"side": side})
    for batch in settings.growth_batches:
        yield Point("training step", "pairs", batch, **small, batch=batch)
    for count in settings.growth_segments:
        yield Point("training step", "segments", count, **small, segments=count)
    for side in settings.growth_sides:
        yield Point("inference", "side", side, **base | {"side": side})
    small = base | {"side": min(settings.growth_sides)}
    for batch in settings.growth_batches:
        yield Point("inference", "images", batch, **small, batch=batch)
    for count in settings.growth_segments:
        yield Point("inference", "segments", count, **small, segments=count)
    for count in settings.growth_frames:
        yield Point("adaptation", "frames", count, **base | {"rounds": 1}, frames=count)


def measure_growth(settings: BenchmarkSettings) -> list[dict[str, Any]]:
    """Seconds and memory in bfloat16 as one size at a time grows.

    Args:
        settings: Sizes; the `growth_*` fields are the values that are visited.

    Returns:
        Rows of `work`, `against`, `value`, `seconds`, `cpu` (processor seconds) and `memory` (peak
        in GB; None for points that share this process).
    """
    rows = []
    for point in growth_points(settings):
        logger.info("  %s, %s %d", point.work, point.against, point.value)
        row = _measure_aside(point) if settings.isolate_growth else measure_point(point)
        rows.append({"work": point.work, "against": point.against, "value": point.value} | row)
    return rows


def measure_point(point: Point) -> dict[str, Any]:
    """Seconds and processor seconds of one point in this process.

    Args:
        point: What to measure.

    Raises:
        ValueError: If the work or the preset is unknown.
    """
    if point.preset not in PRESETS or point.work not in _WORK:
        raise ValueError(f"There is no {point.work!r} of the preset {point.preset!r} to measure.")
    chosen = {"num_segments": point.segments} if point.segments else {}
    timing = _WORK[point.work](point, PRESETS[point.preset](**chosen))
    return {"seconds": timing.median, "cpu": timing.cpu, "memory": None}


def _training(point: Point, config: AMDConfig) -> Timing:
    pairs = example_pairs(point.batch, point.side, point.device)
    step = workloads.TrainingStep(seeded_model(config, point.device), pairs, autocast=True)
    return measure({"step": step}, point.rounds, point.device)["step"]


def _inference(point: Point, config: AMDConfig) -> Timing:
    model = seeded_model(config, point.device).eval().bfloat16()
    images = torch.zeros(
        point.batch, 3, point.side, point.side, device=point.device, dtype=torch.bfloat16
    )
    work = workloads.without_gradient(model, images)
    return measure({"images": work}, point.rounds, point.device)["images"]


def _adaptation(point: Point, config: AMDConfig) -> Timing:
    """Reading a video and taking one step on small crops."""
    model = seeded_model(config, point.device)
    with tempfile.TemporaryDirectory() as folder:
        write_frames(Path(folder), point.frames, (240, 426))
        adapt = partial(
            adapt_to_video,
            model,
            folder,
            1,
            short_side=240,
            crop_size=128,
            autocast_dtype=torch.bfloat16,
        )
        return measure({"video": adapt}, point.rounds, point.device)["video"]


_WORK: dict[str, Callable[[Point, AMDConfig], Timing]] = {
    "training step": _training,
    "inference": _inference,
    "adaptation": _adaptation,
}


def _measure_aside(point: Point) -> dict[str, Any]:
    """Measures a point in a process of its own, whose peak of memory is that of the point."""
    done = subprocess.run(
        [sys.executable, "-m", "amd_hf.benchmarking.growth", json.dumps(asdict(point))],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"Measuring {point} failed: {done.stderr.strip()[-500:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main(text: str) -> dict[str, Any]:
    """Measures the point that a JSON object describes; its memory, too."""
    point = Point(**json.loads(text))
    torch.set_num_threads(point.threads)
    return measure_point(point) | {"memory": peak_memory(point.device)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1])) + "\n")
