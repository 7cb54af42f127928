"""The benchmark's figures as JSON and as Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amd_hf.benchmarking.plots import growth_figure
from amd_hf.benchmarking.report_tables import seconds_text, share_of_limit, table
from amd_hf.benchmarking.targets import targets_table

FIGURE_NAME = "benchmark_growth.svg"
BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"


def write_report(result: Mapping[str, Any], folder: str | Path) -> tuple[Path, ...]:
    """Writes `benchmark.json`, `benchmark.md` and, with growth, its figure.

    Args:
        result: What `run_benchmark` returned.
        folder: Folder to write to; made if it is missing.

    Returns:
        The files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "benchmark.json", folder / "benchmark.md"]
    files[0].write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    files[1].write_text(markdown(result, FIGURE_NAME), encoding="utf-8")
    if has_growth(result):
        files.append(write_figure(result, folder / FIGURE_NAME))
    return tuple(files)


def write_into(result: Mapping[str, Any], page: str | Path) -> tuple[Path, ...]:
    """Replaces the text between the marks of a Markdown page by the tables.

    The figure goes into the folder `figures` beside the page.

    Args:
        result: What `run_benchmark` returned.
        page: A page with the lines `<!-- benchmark: begin -->` and `<!-- benchmark: end -->`.

    Returns:
        The files that were written.

    Raises:
        ValueError: If the page lacks a mark.
    """
    page = Path(page)
    text = page.read_text(encoding="utf-8")
    check_page(page)
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    figure = f"figures/{FIGURE_NAME}"
    body = markdown(result, figure)
    page.write_text(f"{before}{BEGIN}\n\n{body}\n{END}{after}", encoding="utf-8")
    if not has_growth(result):
        return (page,)
    return page, write_figure(result, page.parent / figure)


def check_page(page: str | Path) -> None:
    """Raises a ValueError for a page that lacks the marks of `write_into`."""
    text = Path(page).read_text(encoding="utf-8")
    if not 0 <= text.find(BEGIN) < text.find(END):
        raise ValueError(f"{page} must hold the lines {BEGIN} and {END}; add them.")


def has_growth(result: Mapping[str, Any]) -> bool:
    """Whether there is anything to draw."""
    return bool(result.get("growth") or result.get("processes"))


def write_figure(result: Mapping[str, Any], path: Path) -> Path:
    """Draws growth and processes as an SVG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [*result.get("growth", []), *result.get("processes", [])]
    path.write_text(growth_figure(rows), encoding="utf-8")
    return path


def markdown(result: Mapping[str, Any], figure: str = FIGURE_NAME) -> str:
    """Returns the tables: targets, machine and limits, speed beside both, memory and growth.

    Args:
        result: What `run_benchmark` returned.
        figure: Where the figure of the growth lies, seen from the text.
    """
    machine, settings = result["machine"], result["settings"]
    parts = [
        f"{result['time']} UTC, `{settings['preset']}` configuration, {machine['device']}, "
        f"{machine['cores']} cores, {machine['threads']} threads, torch {machine['torch']}, "
        f"load {machine['load']} at the start and {machine['load_at_end']} at the end.",
        targets_table(result),
        _limits_table(result["limits"]),
    ]
    if result["measurements"]:
        parts.append(_speed_table(result["measurements"], result["limits"]))
    notes = [line for m in result["measurements"] for line in _notes(m)]
    if notes:
        parts.append("\n".join(notes))
    if "memory" in result:
        parts.append(_memory_table(result["memory"]))
    if "processes" in result:
        parts.append(_processes_table(result["processes"]))
    if "growth" in result:
        parts.append(_growth_table(result["growth"]))
    if has_growth(result):
        parts.append(f"![Growth of time and memory]({figure})")
    if result["seconds"]:
        spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result["seconds"].items())
        parts.append(f"Time of the sections: {spent}.")
    parts += [f"**{name} failed**: {reason}" for name, reason in result["failures"].items()]
    return "\n\n".join(part for part in parts if part) + "\n"


def _limits_table(limits: Mapping[str, float]) -> str:
    rows = []
    for name, value in limits.items():
        is_rate = name.startswith(("gemm", "convolution"))
        shown = f"{value / 1e9:.0f} GFLOP/s" if is_rate else f"{value:.0f} /s"
        rows.append((name.replace("_", " "), shown))
    return table(("limit of the machine", "measured"), rows)


def _speed_table(measurements: Sequence[Mapping[str, Any]], limits: Mapping[str, float]) -> str:
    rows = []
    for measurement in measurements:
        for variant, timing in measurement["timings"].items():
            rows.append(
                (
                    f"{measurement['name']}, {measurement['setting']}",
                    variant,
                    seconds_text(timing["median"]),
                    f"{timing['spread']:.0%}",
                    seconds_text(timing["cpu"]),
                    _times(measurement["speedup"][variant]),
                    _times(measurement["speedup_cpu"][variant]),
                    _share_text(measurement, variant, limits),
                )
            )
    header = ("work", "variant", "median", "spread", "processor time")
    return table((*header, "x published", "x (processor time)", "of the limit"), rows)


def _share_text(measurement: Mapping[str, Any], variant: str, limits: Mapping[str, float]) -> str:
    share = share_of_limit(measurement, variant, limits)
    return "-" if share is None else f"{share:.0%}"


def _notes(measurement: Mapping[str, Any]) -> list[str]:
    lines = []
    if measurement["flops"]:
        lines.append(
            f"- {measurement['name']}, {measurement['setting']}: "
            f"{measurement['flops'] / 1e9:.1f} GFLOP"
        )
    for name, value in measurement["notes"].items():
        shown = value if isinstance(value, Mapping) else {"": value}
        figures = ", ".join(f"{key} {number:.3g}".strip() for key, number in shown.items())
        lines.append(f"- {measurement['name']}: {name.replace('_', ' ')}: {figures}")
    return lines


def _memory_table(memory: Mapping[str, float]) -> str:
    rows = [(name, f"{gigabytes:.2f} GB") for name, gigabytes in memory.items()]
    return table(("training step in a process of its own", "peak memory"), rows)


def _growth_table(growth: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            row["work"],
            row["against"],
            str(row["value"]),
            seconds_text(row["seconds"]),
            seconds_text(row["cpu"]),
            "-" if row["memory"] is None else f"{row['memory']:.2f} GB",
        )
        for row in growth
    ]
    return table(("work", "against", "value", "median", "processor time", "peak memory"), rows)


def _processes_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Seconds by number of processes, and how many times faster than with the first number."""
    first: dict[str, float] = {}
    lines = []
    for row in sorted(rows, key=lambda row: (row["work"], row["value"])):
        base = first.setdefault(row["work"], row["seconds"])
        ratio = f"{base / row['seconds']:.2f}x"
        lines.append((row["work"], str(row["value"]), seconds_text(row["seconds"]), ratio))
    return table(("work", "processes of one thread", "time", "against the first"), lines)


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
