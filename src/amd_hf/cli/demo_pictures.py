"""How the demo and the figures show segments and motion, so that a glance tells them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from amd_hf.visualization import flow_to_rgb

MIN_FLOW_SCALE = 1.0
"""Length in pixels that gets the full color at least: less is noise, and must look like it."""


def most_likely(soft: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns masks of shape (K, H, W) with 1 where a segment is the most likely one, else 0."""
    segments = np.arange(len(soft))[:, None, None]
    return (soft.argmax(axis=0)[None] == segments).astype(np.float32)


def relative_motion(flow: NDArray[np.float32], scale: float) -> tuple[NDArray[np.uint8], float]:
    """Returns the colors of what moves against the rest, and the scale for the next frame.

    The median motion is left out: it is mostly the camera's, and would color everything.

    Args:
        flow: Offsets (u, v) of shape (2, H, W) in pixels.
        scale: Length in pixels that got the full color so far; it only grows, so that a video
            does not flicker.
    """
    relative = flow - np.median(flow, axis=(1, 2), keepdims=True)
    scale = max(scale, float(np.percentile(np.hypot(relative[0], relative[1]), 99)))
    return flow_to_rgb(relative, max_magnitude=scale), scale
