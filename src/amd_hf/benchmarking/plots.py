"""Growth of time and memory as one SVG figure, drawn without further packages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

WIDTH, HEIGHT, COLUMNS = 260, 190, 3
LEFT, RIGHT, TOP, BOTTOM = 46, 46, 30, 34
TIME_COLOR, MEMORY_COLOR = "#1f5fa8", "#b3541e"
STYLE = "font-family:sans-serif;font-size:11px"


@dataclass(frozen=True)
class Panel:
    """One diagram.

    Attributes:
        title: What was measured.
        label: What grows.
        values: How far, ascending.
        seconds: Time at each value.
        memory: Peak of memory in GB at each value; empty where it was not measured.
    """

    title: str
    label: str
    values: tuple[int, ...]
    seconds: tuple[float, ...]
    memory: tuple[float, ...]


def panels(rows: Iterable[Mapping[str, Any]]) -> list[Panel]:
    """Rows of the growth, one panel for each piece of work and thing that grows.

    Args:
        rows: Rows of `work`, `against`, `value`, `seconds` and, where it is known, `memory`.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["work"], row["against"]), []).append(row)
    made = []
    for (work, against), group in groups.items():
        group = sorted(group, key=lambda row: int(row["value"]))
        memory = [row.get("memory") for row in group]
        made.append(
            Panel(
                work,
                against,
                tuple(int(row["value"]) for row in group),
                tuple(float(row["seconds"]) for row in group),
                tuple(float(gb) for gb in memory if gb is not None) if all(memory) else (),
            )
        )
    return made


def growth_figure(rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns an SVG with a panel for each piece of work and thing that grows.

    Both axes begin at zero, so that a straight line is proportional growth. Time is on the left,
    memory on the right.

    Args:
        rows: Rows of `work`, `against`, `value`, `seconds` and, where it is known, `memory`.
    """
    drawn = panels(rows)
    columns = min(COLUMNS, max(len(drawn), 1))
    width, height = columns * WIDTH, -(-len(drawn) // columns) * HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" style="{STYLE}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for index, panel in enumerate(drawn):
        x, y = index % columns * WIDTH, index // columns * HEIGHT
        parts.append(f'<g transform="translate({x},{y})">{_panel(panel)}</g>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel) -> str:
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    xs = [LEFT + inner_width * value / max(panel.values) for value in panel.values]
    parts = [
        _text(LEFT + inner_width / 2, 16, f"{panel.title} / {panel.label}", "middle", "#222"),
        f'<rect x="{LEFT}" y="{TOP}" width="{inner_width}" height="{inner_height}" fill="none" '
        'stroke="#bbb"/>',
    ]
    last = -math.inf
    for x, value in zip(xs, panel.values, strict=True):
        if x - last >= 24:  # room for a number
            parts.append(_text(x, HEIGHT - BOTTOM + 14, str(value), "middle", "#444"))
            last = x
    sides = [(panel.seconds, TIME_COLOR, LEFT - 5, "end", "s")]
    if panel.memory:
        sides.append((panel.memory, MEMORY_COLOR, WIDTH - RIGHT + 5, "start", "GB"))
    for numbers, color, x, anchor, unit in sides:
        top = _round_up(max(numbers))
        ys = [TOP + inner_height * (1 - number / top) for number in numbers]
        parts += [
            _text(x, TOP + 8, f"{top:g} {unit}", anchor, color),
            _text(x, HEIGHT - BOTTOM, "0", anchor, color),
            _line(xs, ys, color),
        ]
    return "".join(parts)


def _line(xs: Sequence[float], ys: Sequence[float], color: str) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"/>'
        for x, y in zip(xs, ys, strict=True)
    )
    return f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5"/>{dots}'


def _text(x: float, y: float, text: str, anchor: str, color: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{escape(text)}</text>'
    )


def _round_up(value: float) -> float:
    """The next of 1, 1.5, 2, 3, 5, 7 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    steps = (step * power for step in (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0))
    return next(step for step in steps if step >= value * (1 - 1e-9))
