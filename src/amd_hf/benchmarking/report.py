"""The benchmark's figures as JSON and as Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# The machine's own rate that a variant of some work is held against.
RATE_LIMITS = {
    ("training step", "published"): "convolution_fp32_training",
    ("training step", "fp32"): "convolution_fp32_training",
    ("training step", "bf16"): "convolution_bf16_training",
    ("inference", "published"): "convolution_fp32_forward",
    ("inference", "fp32"): "convolution_fp32_forward",
    ("inference", "bf16"): "convolution_bf16_forward",
    ("inference", "onnx fp32"): "convolution_fp32_forward",
}


def write_report(result: Mapping[str, Any], folder: str | Path) -> tuple[Path, Path]:
    """Writes `benchmark.json` and `benchmark.md`.

    Args:
        result: What `run_benchmark` returned.
        folder: Folder to write to; made if it is missing.

    Returns:
        The two files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / "benchmark.json", folder / "benchmark.md"
    files[0].write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    files[1].write_text(markdown(result), encoding="utf-8")
    return files


def markdown(result: Mapping[str, Any]) -> str:
    """Returns the tables: machine and limits, speed beside both, memory and growth.

    Args:
        result: What `run_benchmark` returned.
    """
    machine, settings = result["machine"], result["settings"]
    parts = [
        f"{result['time']} UTC, `{settings['preset']}` configuration, {machine['device']}, "
        f"{machine['cores']} cores, {machine['threads']} threads, torch {machine['torch']}, "
        f"load {machine['load']} at the start and {machine['load_at_end']} at the end.",
        _limits_table(result["limits"]),
    ]
    if result["measurements"]:
        parts.append(_speed_table(result["measurements"], result["limits"]))
    notes = [line for m in result["measurements"] for line in _notes(m)]
    if notes:
        parts.append("\n".join(notes))
    if "memory" in result:
        parts.append(_memory_table(result["memory"]))
    if "growth" in result:
        parts.append(_growth_table(result["growth"]))
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table, the first column to the left and the others to the right.

    Args:
        header: Names of the columns.
        rows: Cells as texts.
    """
    marks = [":--"] + ["--:"] * (len(header) - 1)
    lines = [header, marks, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


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
                    _seconds(timing["median"]),
                    f"{timing['spread']:.0%}",
                    _seconds(timing["cpu"]),
                    _times(measurement["speedup"][variant]),
                    _times(measurement["speedup_cpu"][variant]),
                    _share_of_limit(measurement, variant, limits),
                )
            )
    header = ("work", "variant", "median", "spread", "processor time")
    return table((*header, "x published", "x (processor time)", "of the limit"), rows)


def _share_of_limit(
    measurement: Mapping[str, Any], variant: str, limits: Mapping[str, float]
) -> str:
    """FLOP/s of the variant over the machine's rate, with the useful operations of ours."""
    limit = limits.get(RATE_LIMITS.get((measurement["name"], variant), ""))
    if not limit or not measurement["flops"]:
        return "-"
    rate = measurement["flops"] / measurement["timings"][variant]["median"]
    return f"{rate / limit:.0%}"


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
            _seconds(row["seconds"]),
            _seconds(row["cpu"]),
        )
        for row in growth
    ]
    return table(("work", "against", "value", "median", "processor time"), rows)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
