"""Flow fields as colors."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Steps between red, yellow, green, cyan, blue, magenta and red, chosen by Baker et al. so that
# equal angles look equally different.
_WHEEL_STEPS = (15, 6, 4, 11, 13, 6)
_WHEEL_CORNERS = (
    (255, 0, 0),
    (255, 255, 0),
    (0, 255, 0),
    (0, 255, 255),
    (0, 0, 255),
    (255, 0, 255),
)

MIN_MOTION_SCALE = 1.0
"""Length in pixels that gets the full color at least: less is noise, and must look like it."""


def flow_to_rgb(flow: ArrayLike, max_magnitude: float | None = None) -> NDArray[np.uint8]:
    """A flow field in the usual color wheel: hue is the direction, saturation the length.

    Args:
        flow: Offsets (u right, v down) of shape (2, H, W) in pixels.
        max_magnitude: Length in pixels that gets the full color; None takes the 99th percentile of
            the field. Give it to compare several fields.

    Returns:
        uint8 array of shape (H, W, 3); white where nothing moves.

    Raises:
        ValueError: If the shape is another one.

    Source: Baker et al., "A Database and Evaluation Methodology for Optical Flow", IJCV 2011.
    """
    field = np.asarray(flow, dtype=np.float32)
    if field.ndim != 3 or field.shape[0] != 2:
        raise ValueError(f"`flow` must have shape (2, H, W), got {field.shape}.")
    # Both axes share one scale; the published code divides x by half the height and y by half the
    # width, which turns the directions.
    length = np.hypot(field[0], field[1])
    if max_magnitude is None:
        max_magnitude = float(np.percentile(length, 99)) if length.size else 0.0
    saturation = np.clip(length / max(max_magnitude, 1e-6), 0, 1)[:, :, None]
    wheel = color_wheel()
    position = (np.arctan2(-field[1], -field[0]) / np.pi + 1) / 2 * len(wheel)
    lower = np.floor(position).astype(np.int64)
    share = (position - lower)[:, :, None]
    first, second = wheel[lower % len(wheel)], wheel[(lower + 1) % len(wheel)]
    hue = first + (second - first) * share
    return np.rint(255 + (hue - 255) * saturation).astype(np.uint8)


def relative_motion_to_rgb(
    flow: NDArray[np.float32], scale: float = MIN_MOTION_SCALE
) -> tuple[NDArray[np.uint8], float]:
    """The colors of what moves against the rest, and the scale for the next frame of a video.

    The median motion is left out: it is mostly the camera's, and would color everything.

    Args:
        flow: Offsets (u right, v down) of shape (2, H, W) in pixels.
        scale: Length in pixels that got the full color so far; it only grows, so that a video
            does not flicker.

    Returns:
        uint8 array of shape (H, W, 3), white where nothing moves on its own, and the scale.
    """
    relative = flow - np.median(flow, axis=(1, 2), keepdims=True)
    scale = max(scale, float(np.percentile(np.hypot(relative[0], relative[1]), 99)))
    return flow_to_rgb(relative, max_magnitude=scale), scale


def color_wheel() -> NDArray[np.float32]:
    """The 55 colors of the wheel, float32 of shape (55, 3) on the 0..255 scale."""
    corners = np.asarray(_WHEEL_CORNERS, dtype=np.float32)
    arcs = [
        start + (end - start) * np.arange(steps, dtype=np.float32)[:, None] / steps
        for start, end, steps in zip(
            corners, np.roll(corners, -1, axis=0), _WHEEL_STEPS, strict=True
        )
    ]
    return np.concatenate(arcs)
