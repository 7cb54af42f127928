"""The benchmark's figures against the targets that the project has set itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from amd_hf.benchmarking.report_tables import seconds_text, share_of_limit, table
from amd_hf.benchmarking.workloads_video import WHOLE_RUN

LEAST_SPEEDUP = 2.5
LEAST_ADAPTATION_SPEEDUP = 6.0
LEAST_SHARE = 0.70
LEAST_LOADER_SHARE = 0.90
ADAPTATION_STEPS = WHOLE_RUN


@dataclass(frozen=True)
class Target:
    """One line of the table.

    Attributes:
        work: What was measured.
        published: Figure of the published computation, in words; "-" without one.
        ours: Our figure, in words.
        ratio: How many times faster; None without a published figure.
        share: Share of the limit; None without one.
        least_ratio: What `ratio` must reach; None where it need not.
        least_share: What `share` must reach; None where it need not.
    """

    work: str
    published: str
    ours: str
    ratio: float | None = None
    share: float | None = None
    least_ratio: float | None = None
    least_share: float | None = None

    @property
    def is_met(self) -> bool:
        """Whether everything that is asked for is reached."""
        pairs = ((self.ratio, self.least_ratio), (self.share, self.least_share))
        return all(least is None or (got is not None and got >= least) for got, least in pairs)

    def row(self) -> tuple[str, ...]:
        """The cells of the line."""
        asked = []
        if self.least_ratio is not None:
            asked.append(f"{self.least_ratio:g}x")
        if self.least_share is not None:
            asked.append(f"{self.least_share:.0%} of the limit")
        return (
            self.work,
            self.published,
            self.ours,
            "-" if self.ratio is None else f"{self.ratio:.2f}x",
            "-" if self.share is None else f"{self.share:.0%}",
            " and ".join(asked) or "-",
            "yes" if self.is_met else "no",
        )


def targets_table(result: Mapping[str, Any]) -> str:
    """Returns the table of targets as Markdown, empty where none of their works was measured.

    Args:
        result: What `run_benchmark` returned.
    """
    rows = [target.row() for target in targets(result)]
    header = ("work", "published", "ours", "ratio", "share of limit", "target", "met")
    return table(header, rows) if rows else ""


def targets(result: Mapping[str, Any]) -> Iterator[Target]:
    """Yields the targets whose work was measured.

    Args:
        result: What `run_benchmark` returned.
    """
    measured: dict[str, list[Mapping[str, Any]]] = {}
    for measurement in result["measurements"]:
        measured.setdefault(measurement["name"], []).append(measurement)
    limits = result["limits"]
    for training in measured.get("training step", []):
        yield _speed(training, "bf16", limits)
    inference = measured.get("inference", [])
    for measurement in inference[:1]:
        for variant in ("bf16", "onnx int8"):
            if variant in measurement["timings"]:
                yield _speed(measurement, variant, limits)
    if len(inference) > 1:
        yield from _batches(inference)
    for measurement in measured.get("adaptation", []):
        yield from _adaptations(measurement)
    for loader in measured.get("data loader", []):
        yield from _loader(loader, measured.get("training step", []))


def _speed(measurement: Mapping[str, Any], variant: str, limits: Mapping[str, float]) -> Target:
    timings = measurement["timings"]
    share = share_of_limit(measurement, variant, limits)
    return Target(
        f"{measurement['name']}, {measurement['setting']}, {variant}",
        seconds_text(timings["published"]["median"]),
        seconds_text(timings[variant]["median"]),
        measurement["speedup"][variant],
        share,
        LEAST_SPEEDUP,
        None if share is None else LEAST_SHARE,
    )


def _batches(inference: list[Mapping[str, Any]]) -> Iterator[Target]:
    """Whether an image of a large batch is not slower than one alone."""
    alone, many = (m["notes"]["images_per_second"] for m in (inference[0], inference[-1]))
    for variant in ("bf16", "onnx int8"):
        if variant in alone and variant in many:
            yield Target(
                f"inference, {inference[-1]['setting']}, {variant}, per image against one alone",
                f"{seconds_text(1 / alone[variant])} (one alone)",
                seconds_text(1 / many[variant]),
                many[variant] / alone[variant],
                None,
                1.0,
            )


def _adaptations(measurement: Mapping[str, Any]) -> Iterator[Target]:
    whole = measurement["notes"][f"seconds_of_{ADAPTATION_STEPS}_steps"]
    for variant, seconds in whole.items():
        if variant.startswith("bf16"):
            yield Target(
                f"adaptation, {ADAPTATION_STEPS} steps (from {measurement['setting']}), {variant}",
                seconds_text(whole["published"]),
                seconds_text(seconds),
                whole["published"] / seconds,
                None,
                LEAST_ADAPTATION_SPEEDUP,
            )


def _loader(loader: Mapping[str, Any], trainings: list[Mapping[str, Any]]) -> Iterator[Target]:
    notes = loader["notes"]
    rate = notes["pairs_per_second"]["loader"]
    yield Target(
        f"data loader, {loader['setting']}",
        "-",
        f"{rate:.0f} pairs/s",
        None,
        notes["share_of_limit"],
        None,
        LEAST_LOADER_SHARE,
    )
    for training in trainings:
        pairs = int(training["setting"].split()[0])
        wanted = pairs / training["timings"]["bf16"]["median"]
        yield Target(
            "data loader against the training step (bf16)",
            f"{wanted:.2f} pairs/s wanted",
            f"{rate:.0f} pairs/s",
            rate / wanted,
            None,
            1.0,
        )
