"""Adapting the demo's model to a video: what the page offers, its progress, its limits."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from amd_hf import AMDImageProcessor, AMDModel
from amd_hf.adaptation_amd import AdaptationResult, adapt_to_video, adaptation_scale
from amd_hf.cli.adaptation_objectives import (
    SEGMENT_FLOW,
    VIDEO_MASK,
    WITHOUT_OPENCV,
    offered_objectives,
)
from amd_hf.cli.demo_actions import Frame, Report

MAX_ADAPT_STEPS = 100
MAX_ADAPT_SECONDS = 100.0

# Name of each objective on the page, and what is said about it; the first one is the default.
OBJECTIVES = {
    VIDEO_MASK: (
        "Masks of the whole video",
        "fits the copy to masks that join motion, saliency, model and color over the whole video; "
        "better from small models such as the bundled one",
    ),
    SEGMENT_FLOW: (
        "Published loss",
        "explains each frame from the next by the motion of the segments",
    ),
}
# How often `video_targets` looks at a frame: once for what the model sees in it, once for its
# colors, and at the ends of three flows. Only the progress bar depends on it.
LOOKS_PER_FRAME = 5


def chosen_objective(name: str | None) -> str:
    """Returns the name of an objective that works on this machine.

    Args:
        name: What the visitor chose; None takes the default.

    Raises:
        ValueError: If there is no such objective, or it needs what is not installed.
    """
    offered = offered_objectives()
    if name is None:
        return offered[0]
    if not isinstance(name, str) or name not in OBJECTIVES:  # a caller of the API sends anything
        known = ", ".join(OBJECTIVES)
        raise ValueError(f"There is no adaptation objective {name!r}; choose one of {known}.")
    if name not in offered:
        raise ValueError(f"{WITHOUT_OPENCV[:-1]}; choose {offered[0]}.")
    return name


def adapt(
    model: AMDModel,
    processor: AMDImageProcessor,
    frames: list[Frame],
    num_steps: int,
    objective: str,
    report: Report,
) -> AdaptationResult:
    """Returns a copy of the model adapted to the video; reports on the way.

    Args:
        model: The model; it stays as it is.
        processor: Its image processor; the adaptation works at its size.
        frames: RGB frames of shape (H, W, 3), uint8.
        num_steps: Number of adaptation steps, at most `MAX_ADAPT_STEPS`; the result says how many
            of them the time allowed.
        objective: A name that `chosen_objective` returned.
        report: Hears about the progress.

    Raises:
        ValueError: If `num_steps` is out of range, or the masks of the whole video take longer
            than `MAX_ADAPT_SECONDS`.
    """
    if not 0 < num_steps <= MAX_ADAPT_STEPS:
        raise ValueError(f"Adaptation takes 1 to {MAX_ADAPT_STEPS} steps, got {num_steps}.")

    def after_step(step: int, total: int, loss: float) -> None:
        report(step / total, f"Adapting to this video: step {step} of {total}")

    report(0.0, "Adapting to this video")
    adapted: AdaptationResult = adapt_to_video(
        model,
        frames,
        num_steps,
        callback=after_step,
        return_history=True,
        time_limit=MAX_ADAPT_SECONDS,
        **_settings(objective, processor, report),
    )
    return adapted


def _settings(objective: str, processor: AMDImageProcessor, report: Report) -> dict[str, Any]:
    """The settings of an objective at the processor's size."""
    scale = adaptation_scale(processor)
    if objective == SEGMENT_FLOW:
        return scale
    from amd_hf.training.video_masks import adaptation_preset

    preset = adaptation_preset(objective, scale["short_side"])
    return preset | {"objective": _WatchedObjective(preset["objective"], report)}


class _WatchedObjective:
    """An objective that reports, and can be stopped, while it makes the masks of the video."""

    def __init__(self, objective: Any, report: Report) -> None:
        self._objective = objective
        self._report = report

    def video_targets(self, model: nn.Module, frames: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The masks of the watched objective."""
        watched = _WatchedFrames(frames, self._report, time.monotonic() + MAX_ADAPT_SECONDS)
        targets: dict[int, Tensor] = self._objective.video_targets(model, watched)
        return targets

    def __call__(self, model: nn.Module, pixel_values: Tensor, targets: Tensor) -> Tensor:
        """The loss of the watched objective."""
        loss: Tensor = self._objective(model, pixel_values, targets)
        return loss


class _WatchedFrames(Mapping[int, Tensor]):
    """Frames that report every look at one of them."""

    def __init__(self, frames: Mapping[int, Tensor], report: Report, deadline: float) -> None:
        self._frames = frames
        self._report = report
        self._deadline = deadline
        self._num_looks = 0

    def __getitem__(self, number: int) -> Tensor:
        if time.monotonic() > self._deadline:
            raise ValueError(
                f"Making the masks of the whole video took longer than {MAX_ADAPT_SECONDS:.0f} s; "
                f"choose the published loss ({SEGMENT_FLOW}) or a shorter video."
            )
        self._num_looks += 1
        share = min(self._num_looks / (LOOKS_PER_FRAME * len(self._frames)), 1.0)
        self._report(share, f"Looking at the whole video: {share:.0%}")
        return self._frames[number]

    def __iter__(self) -> Iterator[int]:
        return iter(self._frames)

    def __len__(self) -> int:
        return len(self._frames)
