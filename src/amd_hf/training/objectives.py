"""What a step minimizes: named objective functions, and the stages of a run that use them.

An objective is `objective(model, batch, step) -> (loss, logs)`: `model` is the wrapped AMDModel in
train mode, `batch` what the data stream yields (`pixel_values` of shape (B, 2, 3, H, W) and the
keys of the samples), `step` the number of optimizer steps done, `loss` a scalar to minimize and
`logs` scalars or vectors without gradient that are averaged over the logged interval. A new
objective needs one decorated function; `--stages` then knows its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from amd_hf.training.monitors import mask_statistics, motion_statistics

Batch = Mapping[str, Any]
Objective = Callable[[nn.Module, Batch, int], tuple[Tensor, dict[str, Tensor]]]

OBJECTIVES: dict[str, Objective] = {}


def register_objective(name: str) -> Callable[[Objective], Objective]:
    """Makes a function available to `--stages` under a name.

    Args:
        name: Name without `:` and `,`.

    Returns:
        A decorator that leaves the function as it is.

    Raises:
        ValueError: If the name is taken or cannot be written in `--stages`.
    """
    if name in OBJECTIVES or set(name) & set(":,"):
        raise ValueError(f"`name` must be new and without ':' and ',', got {name!r}.")

    def register(function: Objective) -> Objective:
        OBJECTIVES[name] = function
        return function

    return register


@register_objective("segment_flow")
def segment_flow_objective(
    model: nn.Module, batch: Batch, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """The published objective: photometric loss of the views synthesized by segment flow."""
    outputs = model(pixel_values=batch["pixel_values"])
    return outputs.loss, {"photometric_loss": outputs.loss, **output_statistics(outputs)}


@register_objective("pixel_flow")
def pixel_flow_objective(
    model: nn.Module, batch: Batch, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Motion warm-up: the same loss with one free vector per pixel; trains no segments."""
    outputs = model(pixel_values=batch["pixel_values"], pixel_flow_only=True)
    logs = {"pixel_flow_loss": outputs.loss}
    if outputs.pixel_flow_12 is not None:
        logs["pixel_flow_length"] = outputs.pixel_flow_12.norm(dim=1).mean()
    if outputs.visibility_1 is not None:
        logs["visible_share"] = outputs.visibility_1.mean()
    return outputs.loss, logs


def output_statistics(outputs: Any) -> dict[str, Tensor]:
    """The monitored values of a pair's `AMDModelOutput`: masks, motion and visible share."""
    visible = (outputs.visibility_1.mean() + outputs.visibility_2.mean()) / 2
    return {
        **mask_statistics(outputs.segment_masks),
        **motion_statistics(outputs.segment_motion_12, outputs.segment_motion_21),
        "visible_share": visible,
    }


@dataclass(frozen=True)
class Stage:
    """A part of a run: which objective, and up to which step (exclusive; None = the end)."""

    name: str
    until_step: int | None

    @property
    def objective(self) -> Objective:
        """The function that a step of this stage minimizes."""
        return OBJECTIVES[self.name]


def parse_stages(text: str, motion_warmup_steps: int = 0) -> list[Stage]:
    """The stages of a run from `name:steps,name:steps,name`.

    Args:
        text: Objectives in turn; all but the last one need their number of steps.
        motion_warmup_steps: Steps of `pixel_flow` before these stages.

    Returns:
        The stages in order; the last one has no end.

    Raises:
        ValueError: If a name is unknown or a number of steps is missing or wrong.
    """
    entries = [entry.strip() for entry in text.split(",")]
    if motion_warmup_steps:
        entries.insert(0, f"pixel_flow:{motion_warmup_steps}")
    stages: list[Stage] = []
    step = 0
    for position, entry in enumerate(entries):
        name, colon, count = entry.partition(":")
        if name not in OBJECTIVES:
            known = ", ".join(sorted(OBJECTIVES))
            raise ValueError(f"`stages` must name objectives ({known}), got {name!r}.")
        is_last = position == len(entries) - 1
        if is_last and not colon:
            stages.append(Stage(name, None))
        elif is_last or not count.isdigit() or int(count) < 1:
            raise ValueError(
                "`stages` must give a positive number of steps for every stage but the last, "
                f"which takes the rest of the run, got {text!r}."
            )
        else:
            step += int(count)
            stages.append(Stage(name, step))
    return stages


def stage_at(stages: list[Stage], step: int) -> Stage:
    """The stage that the step after `step` optimizer steps belongs to."""
    for stage in stages:
        if stage.until_step is None or step < stage.until_step:
            return stage
    return stages[-1]
