"""The colors of the package: one for the object, calm ones for the other segments."""

from __future__ import annotations

import colorsys

Color = tuple[int, int, int]

OBJECT_COLOR: Color = (255, 45, 120)
"""Pink, which is rare in footage and stands out for color-blind readers next to the others."""

SEGMENT_COLORS: tuple[Color, ...] = (
    (68, 119, 170),
    (102, 204, 238),
    (34, 136, 51),
    (204, 187, 68),
    (170, 51, 119),
    (187, 187, 187),
    (238, 119, 51),
)
"""Colors of segments that are not the object, after Paul Tol's "bright" scheme."""

INK: Color = (32, 33, 36)
PAPER: Color = (255, 255, 255)


def segment_colors(num_segments: int, object_segment: int | None = None) -> list[Color]:
    """One color per segment; the object segment always has `OBJECT_COLOR`.

    Args:
        num_segments: Number K of segments; beyond the named colors, hues are spread evenly.
        object_segment: Index of the object segment, or None where none is known.

    Raises:
        ValueError: If `num_segments` is not positive or `object_segment` is no index.
    """
    if num_segments < 1:
        raise ValueError(f"`num_segments` must be positive, got {num_segments}.")
    if object_segment is not None and not 0 <= object_segment < num_segments:
        raise ValueError(
            f"`object_segment` must lie in 0..{num_segments - 1}, got {object_segment}."
        )
    colors = list(SEGMENT_COLORS)
    num_more = max(num_segments - len(colors), 0)
    for index in range(num_more):
        red, green, blue = colorsys.hls_to_rgb(index / num_more, 0.55, 0.5)
        colors.append((round(red * 255), round(green * 255), round(blue * 255)))
    colors = colors[:num_segments]
    if object_segment is not None:
        colors.insert(object_segment, OBJECT_COLOR)
    return colors[:num_segments]
