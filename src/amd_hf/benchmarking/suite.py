"""All measurements of the benchmark in one run, and how cost grows."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from amd_hf import AMDConfig
from amd_hf.benchmarking import limits, processes, workloads, workloads_loader, workloads_video
from amd_hf.benchmarking.growth import PRESETS, measure_growth
from amd_hf.benchmarking.timing import describe_machine, load
from amd_hf.benchmarking.workloads import Measurement

logger = logging.getLogger(__name__)

# What a section may fail with without taking the others along.
SECTION_ERRORS = (RuntimeError, ValueError, OSError, ImportError)


@dataclass(frozen=True)
class BenchmarkSettings:
    """Sizes of the measurements; the defaults are those of the published settings.

    Attributes:
        preset: Architecture: "official", "small" or "tiny".
        device: Device to measure.
        rounds: Rounds of every measurement.
        crop: Side of the training crops.
        batch: Pairs per training step.
        image_size: Height and width of the images at inference.
        batches: Images per forward pass at inference.
        num_steps: Steps of the adaptation that are timed.
        frame_size: Height and width of the frames of the adapted video.
        short_side: Short side from which the crops of the adaptation are cut.
        small_sides: Short sides of the adaptation with smaller crops.
        num_workers: Worker processes of the data loader.
        num_batches: Batches of the data loader per round.
        loader_source: Source of the frame pairs; None generates 480p frames.
        compiles: Whether inference is also timed under `torch.compile`.
        limit_size: Side of the matrices that measure the machine.
        growth_crops: Crops of the growth of training.
        growth_batches: Batches of the growth of training.
        growth_segments: Numbers of segments of the growth of training.
        growth_sides: Image sides of the growth of inference.
        growth_frames: Frames of the adapted video in the growth of the adaptation.
        isolate_growth: Measure every point in a process of its own, which tells its memory.
        processes: Numbers of processes that share work.
        process_videos: Videos that they share.
    """

    preset: str = "official"
    device: str = "cpu"
    rounds: int = 3
    crop: int = 384
    batch: int = 2
    image_size: tuple[int, int] = (392, 697)
    batches: tuple[int, ...] = (1, 8)
    num_steps: int = 2
    frame_size: tuple[int, int] = (480, 854)
    short_side: int = workloads_video.PUBLISHED_SHORT_SIDE
    small_sides: tuple[int, ...] = workloads_video.SMALL_SHORT_SIDES
    num_workers: int = 2
    num_batches: int = 12
    loader_source: str | None = None
    compiles: bool = True
    limit_size: int = 1536
    growth_crops: tuple[int, ...] = (128, 192, 256, 384)
    growth_batches: tuple[int, ...] = (1, 2, 4)
    growth_segments: tuple[int, ...] = (3, 5, 8, 16)
    growth_sides: tuple[int, ...] = (128, 256, 384, 512)
    growth_frames: tuple[int, ...] = (8, 32, 128)
    isolate_growth: bool = True
    processes: tuple[int, ...] = (1, 2)
    process_videos: int = 8

    @classmethod
    def quick(cls, **overrides: Any) -> BenchmarkSettings:
        """Sizes at which the whole benchmark takes seconds; its figures mean little."""
        small = cls(
            preset="tiny",
            rounds=1,
            crop=64,
            batch=1,
            image_size=(64, 96),
            batches=(1,),
            num_steps=1,
            frame_size=(72, 96),
            short_side=64,
            small_sides=(60,),
            num_workers=0,
            num_batches=1,
            compiles=False,
            limit_size=64,
            growth_crops=(64,),
            growth_batches=(1,),
            growth_segments=(2, 3),
            growth_sides=(64,),
            growth_frames=(4,),
            isolate_growth=False,
            processes=(1,),
            process_videos=1,
        )
        return replace(small, **overrides)

    @property
    def config(self) -> AMDConfig:
        """The architecture of the preset.

        Raises:
            ValueError: If the preset is unknown.
        """
        if self.preset not in PRESETS:
            raise ValueError(f"`preset` must be one of {sorted(PRESETS)}, got {self.preset!r}.")
        return PRESETS[self.preset]()


SECTIONS = (
    "training",
    "inference",
    "adaptation",
    "loader",
    "start",
    "memory",
    "processes",
    "growth",
)


def run_benchmark(
    settings: BenchmarkSettings,
    sections: tuple[str, ...] = SECTIONS,
    after_section: Callable[[dict[str, Any]], Any] | None = None,
) -> dict[str, Any]:
    """Runs the chosen sections, always between two measurements of the machine's limits.

    A section that fails does not stop the others; it is told under `failures`.

    Args:
        settings: Sizes.
        sections: Some of `SECTIONS`.
        after_section: Called with the result so far after every section.

    Returns:
        A dict of plain values: `time`, `machine`, `settings`, `limits`, `measurements`,
        `failures`, `seconds` by section, and `memory`, `processes` and `growth` where they were
        asked for.

    Raises:
        ValueError: If a section or the preset is unknown, or the number of rounds not positive.
    """
    if unknown := sorted(set(sections) - set(SECTIONS)):
        raise ValueError(f"Unknown sections {unknown}; choose from {', '.join(SECTIONS)}.")
    config = settings.config
    result: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "machine": describe_machine(settings.device),
        "settings": {name: getattr(settings, name) for name in settings.__dataclass_fields__},
        "limits": _limits(settings),
        "measurements": [],
        "failures": {},
        "seconds": {},
    }
    result["machine"]["load_at_end"] = None  # not there yet
    for section in (s for s in SECTIONS if s in sections):
        logger.info("measuring: %s", section)
        begin = time.monotonic()
        try:
            _run_section(section, settings, config, result)
        except SECTION_ERRORS as error:
            logger.warning("%s failed: %s", section, error)
            result["failures"][section] = " ".join(str(error).split())
        result["seconds"][section] = round(time.monotonic() - begin, 1)
        if after_section is not None:
            after_section(result)
    # The faster of before and after: a limit is what the machine can do, not what it was left.
    result["limits"] = _fastest(result["limits"], _limits(settings))
    result["machine"]["load_at_end"] = load()
    return result


def _run_section(
    section: str, settings: BenchmarkSettings, config: AMDConfig, result: dict[str, Any]
) -> None:
    """Measures one section and adds its figures to the result."""
    if section == "memory":
        result["memory"] = workloads_video.memory_of_training(config, settings.crop, settings.batch)
    elif section == "growth":
        result["growth"] = measure_growth(settings)
    elif section == "processes":
        small = PRESETS["tiny" if settings.preset == "tiny" else "small"]()
        result["processes"] = processes.time_processes(
            settings.processes, num_videos=settings.process_videos, preset=small.to_diff_dict()
        )
    else:
        measured = _MEASUREMENTS[section](settings, config)
        result["measurements"] += [m.to_dict() for m in measured]


def _training(settings: BenchmarkSettings, config: AMDConfig) -> list[Measurement]:
    return [
        workloads.time_training(
            config, settings.crop, settings.batch, settings.rounds, settings.device
        )
    ]


def _inference(settings: BenchmarkSettings, config: AMDConfig) -> list[Measurement]:
    return workloads.time_inference(
        config,
        settings.image_size,
        settings.batches,
        settings.rounds,
        settings.device,
        compiles=settings.compiles,
    )


def _adaptation(settings: BenchmarkSettings, config: AMDConfig) -> list[Measurement]:
    return [
        workloads_video.time_adaptation(
            config,
            settings.num_steps,
            frame_size=settings.frame_size,
            short_side=settings.short_side,
            small_sides=settings.small_sides,
            device=settings.device,
        )
    ]


def _loader(settings: BenchmarkSettings, config: AMDConfig) -> list[Measurement]:
    return [
        workloads_loader.time_loader(
            settings.num_workers,
            settings.num_batches,
            crop=settings.crop,
            source=settings.loader_source,
            rounds=settings.rounds,
        )
    ]


def _start(settings: BenchmarkSettings, config: AMDConfig) -> list[Measurement]:
    return [workloads_video.time_start(settings.rounds)]


_MEASUREMENTS: dict[str, Callable[[BenchmarkSettings, AMDConfig], list[Measurement]]] = {
    "training": _training,
    "inference": _inference,
    "adaptation": _adaptation,
    "loader": _loader,
    "start": _start,
}


def _limits(settings: BenchmarkSettings) -> dict[str, float]:
    products = limits.gemm_limits(settings.limit_size, settings.rounds, settings.device)
    side = 48 if settings.limit_size > 512 else 8
    convolutions = limits.convolution_limits(side, rounds=settings.rounds, device=settings.device)
    return {
        **{f"gemm_{name}": rate for name, rate in products.items()},
        **{f"convolution_{name}": rate for name, rate in convolutions.items()},
        "jpeg_480p_per_second": 1.0 / limits.decode_limit(settings.rounds).fastest,
    }


def _fastest(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    return {name: max(first[name], second[name]) for name in first}
