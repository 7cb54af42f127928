"""Objectives of the adaptation to a video that the commands and the app offer."""

from __future__ import annotations

SEGMENT_FLOW, VIDEO_MASK = "segment_flow", "video_mask"
WITHOUT_OPENCV = (
    "Adapting to the masks of the whole video needs OpenCV and scikit-image, which are not "
    "installed here (pip install opencv-python-headless scikit-image)."
)


def offered_objectives() -> list[str]:
    """Returns the names of the objectives that work on this machine, the default first.

    The default is "video_mask": from the bundled checkpoint, the published loss lowers J
    (docs/evaluation.md).
    """
    try:
        import cv2  # noqa: F401 - classical flow and color evidence need it
        import skimage  # noqa: F401 - saliency needs it
    except ImportError:
        return [SEGMENT_FLOW]
    return [VIDEO_MASK, SEGMENT_FLOW]
