"""Classical optical flow by dense inverse search: the one place that calls OpenCV's.

A leaf of the package: it imports nothing of ours, so that training and evaluation both may use it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEEDS_OPENCV = (
    "Classical optical flow needs OpenCV, which comes with the extras eval, train and demo: "
    'pip install "amd-hf[eval]".'
)


def import_opencv() -> Any:
    """The module `cv2`.

    Raises:
        ImportError: If OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError(NEEDS_OPENCV) from error
    return cv2


def dis_flow(
    firsts: Iterable[NDArray[np.uint8]], seconds: Iterable[NDArray[np.uint8]]
) -> list[NDArray[np.float32]]:
    """Dense inverse search (DIS) flow of pairs of frames, medium preset.

    Args:
        firsts: Gray frames of shape (H, W), at least 16 pixels high and wide.
        seconds: As many frames of the same shapes.

    Returns:
        For each pair offsets of shape (2, H, W) in pixels on the grid of its first frame.

    Raises:
        ImportError: If OpenCV is not installed.

    Source: Kroeger et al., Fast Optical Flow using Dense Inverse Search, ECCV 2016 (OpenCV).
    """
    cv2 = import_opencv()
    solver = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flows = [
        solver.calc(first, second, np.zeros((*first.shape, 2), dtype=np.float32))
        for first, second in zip(firsts, seconds, strict=True)
    ]
    return [np.moveaxis(flow, -1, 0) for flow in flows]
