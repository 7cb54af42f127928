"""All measurements of the benchmark in one run, and how cost grows."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from amd_hf import AMDConfig
from amd_hf.benchmarking import limits, workloads, workloads_video
from amd_hf.benchmarking.inputs import example_pairs, seeded_model
from amd_hf.benchmarking.timing import describe_machine, load, measure
from amd_hf.benchmarking.workloads import Measurement

logger = logging.getLogger(__name__)

PRESETS: dict[str, Callable[..., AMDConfig]] = {
    "official": AMDConfig.official,
    "small": AMDConfig.small,
    "tiny": AMDConfig.tiny,
}


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
        num_workers: Worker processes of the data loader.
        num_batches: Batches of the data loader that are timed.
        limit_size: Side of the matrices that measure the machine.
        growth_crops: Crops of the growth of training.
        growth_batches: Batches of the growth of training.
        growth_segments: Numbers of segments of the growth of training.
        growth_sides: Image sides of the growth of inference.
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
    num_workers: int = 2
    num_batches: int = 12
    limit_size: int = 1536
    growth_crops: tuple[int, ...] = (128, 192, 256, 384)
    growth_batches: tuple[int, ...] = (1, 2, 4)
    growth_segments: tuple[int, ...] = (3, 5, 8, 16)
    growth_sides: tuple[int, ...] = (128, 256, 384, 512)

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
            num_workers=0,
            num_batches=1,
            limit_size=64,
            growth_crops=(64,),
            growth_batches=(1,),
            growth_segments=(2, 3),
            growth_sides=(64,),
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


SECTIONS = ("training", "inference", "adaptation", "loader", "start", "memory", "growth")


def run_benchmark(
    settings: BenchmarkSettings, sections: tuple[str, ...] = SECTIONS
) -> dict[str, Any]:
    """Runs the chosen sections, always between two measurements of the machine's limits.

    Args:
        settings: Sizes.
        sections: Some of `SECTIONS`.

    Returns:
        A dict of plain values: `time`, `machine`, `settings`, `limits`, `measurements`, `memory`
        and `growth`.

    Raises:
        ValueError: If a section or the preset is unknown.
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
    }
    for section in (s for s in SECTIONS if s in sections):
        logger.info("measuring: %s", section)
        if section == "memory":
            result["memory"] = workloads_video.peak_memory(config, settings.crop, settings.batch)
        elif section == "growth":
            result["growth"] = measure_growth(settings)
        else:
            measured = _MEASUREMENTS[section](settings, config)
            result["measurements"] += [m.to_dict() for m in measured]
    # The faster of before and after: a limit is what the machine can do, not what it was left.
    result["limits"] = _fastest(result["limits"], _limits(settings))
    result["machine"]["load_at_end"] = load()
    return result


def measure_growth(settings: BenchmarkSettings) -> list[dict[str, Any]]:
    """Seconds of a bfloat16 training step and of inference as one size at a time grows.

    Args:
        settings: Sizes; the `growth_*` fields are the values that are visited.

    Returns:
        Rows of `work`, `against`, `value`, `seconds` and `cpu`.
    """
    device = settings.device
    rows = []

    def row(work: str, against: str, value: int, function: Callable[[], Any]) -> None:
        timing = measure({work: function}, settings.rounds, device)[work]
        rows.append(
            {
                "work": work,
                "against": against,
                "value": value,
                "seconds": timing.median,
                "cpu": timing.cpu,
            }
        )

    def training(config: AMDConfig, crop: int, batch: int) -> workloads.TrainingStep:
        model = seeded_model(config, device)
        pairs = example_pairs(batch, crop, device)
        return workloads.TrainingStep(model, pairs, autocast=True)

    crop = min(settings.growth_crops)
    for side in settings.growth_crops:
        row("training step", "crop", side, training(settings.config, side, 1))
    for batch in settings.growth_batches:
        row("training step", "pairs", batch, training(settings.config, crop, batch))
    for count in settings.growth_segments:
        config = PRESETS[settings.preset](num_segments=count)
        row("training step", "segments", count, training(config, crop, 1))
    model = seeded_model(settings.config, device).eval().bfloat16()
    for side in settings.growth_sides:
        images = torch.zeros(1, 3, side, side, device=device, dtype=torch.bfloat16)
        row(
            "inference",
            "side",
            side,
            workloads.without_gradient(model, images),
        )
    return rows


def _training(settings: BenchmarkSettings, config: AMDConfig) -> list[Measurement]:
    return [
        workloads.time_training(
            config, settings.crop, settings.batch, settings.rounds, settings.device
        )
    ]


def _inference(settings: BenchmarkSettings, config: AMDConfig) -> list[Measurement]:
    return workloads.time_inference(
        config, settings.image_size, settings.batches, settings.rounds, settings.device
    )


def _adaptation(settings: BenchmarkSettings, config: AMDConfig) -> list[Measurement]:
    return [
        workloads_video.time_adaptation(
            config,
            settings.num_steps,
            frame_size=settings.frame_size,
            short_side=settings.short_side,
            device=settings.device,
        )
    ]


def _loader(settings: BenchmarkSettings, config: AMDConfig) -> list[Measurement]:
    return [workloads_video.time_loader(settings.num_workers, settings.num_batches)]


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
