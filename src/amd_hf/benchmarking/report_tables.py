"""Cells and tables of the benchmark's report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table, the first column to the left and the others to the right.

    Args:
        header: Names of the columns.
        rows: Cells as texts.
    """
    marks = [":--"] + ["--:"] * (len(header) - 1)
    lines = [header, marks, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def share_of_limit(
    measurement: Mapping[str, Any], variant: str, limits: Mapping[str, float]
) -> float | None:
    """FLOP/s of a variant over the machine's own rate, with the useful operations of ours.

    Args:
        measurement: One measurement as plain values.
        variant: Name of the variant.
        limits: Limits of the machine by name.

    Returns:
        The share, or None where there is no such limit.
    """
    limit = limits.get(RATE_LIMITS.get((measurement["name"], variant), ""))
    if not limit or not measurement["flops"]:
        return None
    rate = measurement["flops"] / measurement["timings"][variant]["median"]
    return float(rate / limit)


def seconds_text(value: float) -> str:
    """A time in seconds or milliseconds."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"
