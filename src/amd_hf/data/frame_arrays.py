"""Frames as arrays: fast decoding, a cheap bound on how much a pair differs, and color planes.

OpenCV (of the extra `train`) decodes JPEGs to the same pixels as Pillow without Pillow's copies.
Only its functions that start no threads are used, so that worker processes may fork at any time.
Where it is missing, Pillow and PyTorch do the same work.
"""

from __future__ import annotations

import io
import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from amd_hf.image_io_amd import open_image, to_rgb

END_OF_JPEG = b"\xff\xd9"
# Bits of OpenCV's read modes by the factor at which a JPEG is decoded.
REDUCTIONS = {1: 0, 2: 16, 4: 32, 8: 64}


@lru_cache(maxsize=1)
def opencv() -> Any:
    """Returns the module `cv2`, or None where it is missing or cannot decode into RGB."""
    try:
        import cv2
    except ImportError:
        return None
    return cv2 if hasattr(cv2, "IMREAD_COLOR_RGB") else None


def open_frame(data: bytes) -> Image.Image:
    """Returns an encoded frame, opened and not loaded yet.

    Raises:
        ValueError: If it is an animation, whose first picture would pass for a frame of a video,
            or too large.
        OSError: If it is damaged or of an unknown format (as others of `DECODE_ERRORS`).
    """
    image = open_image(io.BytesIO(data))
    if image.format == "GIF" and getattr(image, "is_animated", False):
        raise ValueError("a GIF of several pictures, not one frame")
    return image


def read_pixels(image: Image.Image, data: bytes, scale: float) -> NDArray[np.uint8]:
    """Returns an opened frame in RGB, decoded no larger than needed, uint8 of shape (H, W, 3).

    Args:
        image: The frame, opened and not loaded yet.
        data: The bytes that `image` was opened from.
        scale: Share of the frame's size that is wanted; JPEGs are decoded at the smallest of 1/8,
            1/4, 1/2 and 1 that is not below.

    Raises:
        OSError: If the frame is damaged or cut off (as other errors of Pillow's decoders).
    """
    full = image.size
    if scale < 1.0:
        image.draft("RGB", (math.ceil(full[0] * scale), math.ceil(full[1] * scale)))
    pixels = _decode_jpeg(image, data, full)
    if pixels is not None:
        return pixels
    image.load()
    return np.array(image if image.mode == "RGB" else to_rgb(image))


def _decode_jpeg(
    image: Image.Image, data: bytes, full: tuple[int, int]
) -> NDArray[np.uint8] | None:
    """Returns the pixels by OpenCV, or None for what Pillow has to decode or to refuse.

    OpenCV fills up a JPEG that was cut off; Pillow says so. Whole files end with a mark.
    """
    cv2 = opencv()
    if cv2 is None or (image.format, image.mode) != ("JPEG", "RGB"):
        return None
    if not data.endswith(END_OF_JPEG):
        return None
    for factor, reduction in REDUCTIONS.items():
        if tuple(-(-side // factor) for side in full) == image.size:
            # Not turned by EXIF: neither does Pillow on loading.
            mode = reduction | cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
            is_right = pixels is not None and pixels.shape == (*image.size[::-1], 3)
            return pixels if is_right else None
    return None


def greatest_reduced_difference(
    first: NDArray[np.uint8], second: NDArray[np.uint8], factor: int
) -> float:
    """Returns an upper bound of the mean difference of two frames after `Image.reduce(factor)`.

    By the triangle inequality a mean of boxes differs no more than its pixels do; boxes that the
    border cuts count in full, and rounding adds at most one gray level.

    Args:
        first: A frame of shape (H, W, 3).
        second: Another of the same shape.
        factor: Side of the boxes in pixels.

    Returns:
        The bound in gray levels; infinity without OpenCV, where it would cost more than it saves.
    """
    cv2 = opencv()
    if cv2 is None:
        return math.inf
    H, W, C = first.shape
    rows, columns = H % factor, W % factor

    def total(top: int, left: int) -> float:
        return float(cv2.norm(first[top:, left:], second[top:, left:], cv2.NORM_L1))

    # How much more a pixel of a cut box weighs, less the once that the whole sum counts it.
    below = factor / rows - 1.0 if rows else 0.0
    beside = factor / columns - 1.0 if columns else 0.0
    weighted = total(0, 0)
    weighted += below * total(H - rows, 0) if rows else 0.0
    weighted += beside * total(0, W - columns) if columns else 0.0
    weighted += below * beside * total(H - rows, W - columns) if rows and columns else 0.0
    boxes = math.ceil(H / factor) * math.ceil(W / factor)
    return weighted / (boxes * factor * factor * C) + 1.0


def write_planes(crop: NDArray[np.uint8], planes: torch.Tensor) -> None:
    """Writes a crop of shape (h, w, 3) into a contiguous tensor of shape (3, h, w)."""
    cv2 = opencv()
    crop = np.ascontiguousarray(crop)
    if cv2 is None:
        planes.copy_(torch.from_numpy(crop).permute(2, 0, 1))
    else:
        cv2.split(crop, list(planes.numpy()))
