"""Encoding of single frames: raw for speed, JPEG for storage."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amd_hf.image_io_amd import to_rgb


def encode_ppm(frame: NDArray[np.uint8]) -> bytes:
    """Returns `frame` (H, W, 3) as a binary PPM: lossless, at the cost of a copy."""
    height, width, _ = frame.shape
    return b"P6\n%d %d\n255\n" % (width, height) + np.ascontiguousarray(frame).tobytes()


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """Returns `image` as a baseline JPEG with halved chroma, the fastest kind to decode."""
    buffer = io.BytesIO()
    to_rgb(image).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def shrink(image: Image.Image, short_side: int | None) -> Image.Image:
    """Returns `image` with its short side reduced to `short_side`; never enlarged."""
    if short_side is None or min(image.size) <= short_side:
        return image
    scale = short_side / min(image.size)
    width, height = (max(round(side * scale), 1) for side in image.size)
    image.draft("RGB", (width, height))
    return to_rgb(image).resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
