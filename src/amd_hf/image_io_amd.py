"""Any image in: one upright RGB array out, and the one rule by which the package resizes images.

A photo, a frame of a folder and a tensor all arrive as `uint8` arrays of shape (H, W, 3), so that
nothing further on has to know about palettes, 16 bits, opacity or EXIF.
"""

from __future__ import annotations

import base64
import io
import os
import re
import struct
import zlib
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image, ImageOps

MAX_IMAGE_PIXELS = 89_478_485
"""Largest image that is decoded, in pixels: the size from which Pillow warns (256 MiB as RGB)."""

MAX_DOWNLOAD_BYTES = 256 * 1024 * 1024
"""Most bytes that are fetched for one image."""

MIN_SIDE = 32
"""Shortest side of a resized image in pixels: less is no input for the appearance pathway."""

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
"""Files of a folder that count as images, for segmenting, training and evaluation alike."""

IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What a file may hold, whatever its name: Pillow's other formats include some that start programs
(EPS) or that hardly anybody has tested on damaged files."""

EXIF_ORIENTATION = 274
TURNED_ORIENTATIONS = frozenset((5, 6, 7, 8))
"""Values of that EXIF field that swap height and width."""

DECODE_ERRORS: tuple[type[Exception], ...] = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, MemoryError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)
"""What Pillow raises on damaged files."""


def read_image(
    image: Any,
    *,
    max_pixels: int = MAX_IMAGE_PIXELS,
    channels_first: bool | None = None,
    timeout: float | None = 30.0,
) -> np.ndarray:
    """An upright RGB copy of any kind of image, uint8 of shape (H, W, 3).

    Grey, palette, CMYK, 1-bit, transparent (put on white) and 16-bit images (their upper 8 bits)
    are converted; the EXIF orientation is applied to files and PIL images.

    Args:
        image: Path, `http(s)://` address, `data:image/...` text, PIL image, or an array or tensor
            of shape (H, W), (H, W, C) or (C, H, W) with 1 to 4 channels. Floats lie in [0, 1], or
            in [0, 255] when any exceeds 1; `uint16` covers [0, 65535], other integers [0, 255].
        max_pixels: Largest H * W that is decoded.
        channels_first: Whether an array is (C, H, W). None reads it from the shape; where both
            ends could be channels, a tensor is (C, H, W) and an array (H, W, C).
        timeout: Seconds to wait for an address.

    Raises:
        ValueError: If the image is missing, damaged, larger than `max_pixels`, or out of range.
        TypeError: If `image` is of another type.
    """
    if isinstance(image, (str, os.PathLike)):
        name = describe(image)
        with _open_image(image, max_pixels, timeout) as opened:
            return _pil_to_rgb(opened, max_pixels, name)
    if isinstance(image, Image.Image):
        return _pil_to_rgb(image, max_pixels, "the PIL image")
    if isinstance(image, torch.Tensor):
        tensor = image.detach().cpu()
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        return _array_to_rgb(tensor.numpy(), max_pixels, channels_first, is_tensor=True)
    if isinstance(image, np.ndarray):
        return _array_to_rgb(image, max_pixels, channels_first, is_tensor=False)
    raise TypeError(
        "`image` must be a path, PIL image, numpy array or torch tensor, got "
        f"{type(image).__name__}."
    )


def open_image(file: Any, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """A lazily opened image of one of `IMAGE_FORMATS`; nothing is decoded yet.

    Args:
        file: Path or binary file.
        max_pixels: Largest H * W that is opened.

    Raises:
        ValueError: If the image is larger. The messages name the reason and not the file.
        OSError: If the file is missing, damaged or of another format; on damaged files Pillow
            also raises others of `DECODE_ERRORS`.
    """
    try:
        image = Image.open(file, formats=_known_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"more pixels than the limit of {max_pixels}") from error
    if image.height * image.width > max_pixels:
        image.close()
        raise ValueError(
            f"{image.width} x {image.height} pixels, more than the limit of {max_pixels}"
        )
    return image


def _known_formats() -> list[str]:
    """Those of `IMAGE_FORMATS` that this version of Pillow reads."""
    Image.init()
    return [name for name in IMAGE_FORMATS if name in Image.OPEN]


def _open_image(
    source: str | os.PathLike[str], max_pixels: int, timeout: float | None
) -> Image.Image:
    """A lazily opened PIL image of a path, address or data text."""
    text, name = os.fspath(source), describe(source)
    is_text = text.startswith("data:image/") or is_address(text)
    if not is_text and not os.path.exists(text):
        raise ValueError(f"There is no file {name}; check the path.")
    if not is_text and os.path.isdir(text):
        raise ValueError(f"{name} is a folder, expected an image file.")
    try:
        content = _downloaded(text, timeout) if is_text else text
        return Image.open(content, formats=_known_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{name} has more pixels than the limit of {max_pixels}; make it smaller first."
        ) from error
    except (URLError, HTTPException) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise ValueError(f"{name} could not be fetched ({reason}).") from error
    except DECODE_ERRORS as error:
        reason = getattr(error, "strerror", None) or "unknown format or damaged"
        raise ValueError(f"{name} is not a readable image ({reason}); replace the file.") from error


def _downloaded(text: str, timeout: float | None) -> io.BytesIO:
    """The bytes of an address or of a data text; no more than `MAX_DOWNLOAD_BYTES`."""
    if not is_address(text):
        return io.BytesIO(base64.b64decode(text.split(",", 1)[-1]))
    request = Request(text, headers={"User-Agent": "amd_hf"})
    with urlopen(request, timeout=timeout) as response:
        data = response.read(MAX_DOWNLOAD_BYTES + 1)
    if len(data) > MAX_DOWNLOAD_BYTES:
        raise URLError(f"more than {MAX_DOWNLOAD_BYTES >> 20} MiB")
    return io.BytesIO(data)


def _pil_to_rgb(image: Image.Image, max_pixels: int, name: str) -> np.ndarray:
    """Decodes and converts a PIL image to uint8 (H, W, 3)."""
    check_pixels(image.height, image.width, max_pixels, name)
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        is_wide = image.mode.startswith(("I", "F"))
        if not is_wide and image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image)
        levels = np.array(image if is_wide else image.convert("RGB"))
    except DECODE_ERRORS as error:
        raise ValueError(f"{name} is damaged or cut off ({error}); replace the file.") from error
    if not is_wide:
        return levels
    try:
        return _array_to_rgb(levels, max_pixels, None, is_tensor=False)
    except ValueError as error:  # whole, but with values that are no gray levels
        raise ValueError(f"{name}: {error}") from error


def _array_to_rgb(
    array: np.ndarray, max_pixels: int, channels_first: bool | None, *, is_tensor: bool
) -> np.ndarray:
    """Converts an array of any layout and dtype to uint8 (H, W, 3)."""
    shape = array.shape
    if array.ndim == 2:
        array = array[:, :, None]
    elif array.ndim == 3 and _is_channels_first(shape, channels_first, is_tensor):
        array = np.moveaxis(array, 0, -1)
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4) or 0 in shape:
        raise ValueError(
            "An image array must have shape (H, W), (H, W, C) or (C, H, W) with 1 to 4 channels "
            f"and no empty side, got {shape}."
        )
    height, width, num_channels = array.shape
    check_pixels(height, width, max_pixels, "the image array")
    array = _to_uint8(array)
    if num_channels in (2, 4):  # the last channel is opacity: put the image on white, as for files
        opacity = array[:, :, -1:].astype(np.float32) / 255
        color = array[:, :, :-1] * opacity + 255 * (1 - opacity)
        array = np.rint(color).astype(np.uint8)
    return np.array(np.broadcast_to(array, (height, width, 3)))


def _is_channels_first(
    shape: tuple[int, ...], channels_first: bool | None, is_tensor: bool
) -> bool:
    """Whether a 3-D shape is (C, H, W)."""
    if channels_first is not None:
        return channels_first
    first, last = shape[0] in (1, 2, 3, 4), shape[2] in (1, 2, 3, 4)
    return first and (is_tensor or not last)


def _to_uint8(array: np.ndarray) -> np.ndarray:
    """Grey levels 0..255 of an array of any numeric dtype."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind not in "uif":
        raise ValueError(f"An image array must hold numbers, got dtype {array.dtype}.")
    low, high = float(array.min()), float(array.max())
    is_float = array.dtype.kind == "f"
    limit = 255.0 if is_float or array.dtype.itemsize == 1 else 65535.0
    if not (low >= 0 and high <= limit):  # also refuses NaN
        raise ValueError(
            f"Image values must lie in 0..{limit:.0f}, got {low:g}..{high:g}; pass the image as it "
            "is before normalization."
        )
    if is_float:
        return np.rint(array * (255.0 if high <= 1 else 1.0)).astype(np.uint8)
    is_16_bit = (array.dtype.kind, array.dtype.itemsize) == ("u", 2) or high > 255
    return (array >> 8 if is_16_bit else array).astype(np.uint8)


def to_rgb(image: Image.Image) -> Image.Image:
    """A copy of a frame in RGB: of 16 bits the upper 8; neither turned nor put on white.

    Args:
        image: An opened image; those of 16 or 32 bits as in `read_image`.

    Raises:
        ValueError: If its values are no gray levels; on damaged files others of `DECODE_ERRORS`.
    """
    if not image.mode.startswith(("I", "F")):  # Pillow cuts off what is above 255
        return image.convert("RGB")
    return Image.fromarray(
        _array_to_rgb(np.array(image), MAX_IMAGE_PIXELS, channels_first=None, is_tensor=False)
    )


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width after the turn that the EXIF data ask for, without decoding."""
    # Of a TIFF Pillow states the turned size, and turns it on loading.
    is_turned = image.getexif().get(EXIF_ORIENTATION) in TURNED_ORIENTATIONS
    return image.size if is_turned and image.format != "TIFF" else (image.height, image.width)


def check_pixels(height: int, width: int, max_pixels: int, name: str) -> None:
    """Raises ValueError for an image of more than `max_pixels`, which would fill the memory."""
    if height * width > max_pixels:
        raise ValueError(
            f"{name} has {width} x {height} pixels, more than the limit of {max_pixels}; make it "
            "smaller first."
        )


def describe(source: Any) -> str:
    """A short name of an input for messages: the path itself, the start of a text, or the type."""
    if not isinstance(source, (str, os.PathLike)):
        return f"the {type(source).__name__}"
    text = os.fspath(source)
    return repr(text if len(text) <= 200 else f"{text[:40]}...")


def is_address(source: Any) -> bool:
    """Whether `source` is an `http(s)://` address."""
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The image files directly in `folder` in natural order (2 before 10), without hidden files."""

    def natural(path: Path) -> list[tuple[int, str]]:
        parts = re.split(r"(\d+)", path.name.casefold())
        return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]

    images = [
        path
        for path in Path(folder).iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]
    return sorted((path for path in images if path.is_file()), key=natural)


def resized_size(
    height: int, width: int, shortest_edge: int, longest_edge: int | None = None
) -> tuple[int, int]:
    """The size (H, W) of an image whose short side becomes `shortest_edge`.

    scale = shortest_edge / min(height, width), lowered where the long side would pass
    `longest_edge`; each side becomes int(side * scale + 0.5), at least `MIN_SIDE` pixels.

    Source: the published resize rule (mmcv's `imrescale`); the caps are ours and touch extreme
    shapes only.
    """
    scale = shortest_edge / min(height, width)
    if longest_edge is not None:
        scale = min(scale, longest_edge / max(height, width))
    return max(int(height * scale + 0.5), MIN_SIDE), max(int(width * scale + 0.5), MIN_SIDE)


def _bilinear_taps(source: int, target: int, stop_at_edges: bool) -> tuple[torch.Tensor, ...]:
    """Left index, right index and their weights in 1/2048 for every one of `target` pixels."""
    position = (torch.arange(target, dtype=torch.float64) + 0.5) * (1.0 / (target / source)) - 0.5
    position = position.float()
    left = position.floor()
    fraction = position - left
    if stop_at_edges:
        fraction = torch.where((left < 0) | (left >= source - 1), 0.0, fraction)
    index = left.long()
    return (
        index.clamp(0, source - 1),
        (index + 1).clamp(0, source - 1),
        ((1.0 - fraction) * 2048.0).round().to(torch.int32),
        (fraction * 2048.0).round().to(torch.int32),
    )


def resize_image(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear copies of `images` of size `size`, in whole grey levels.

    Convention: align_corners=False, no antialiasing. Reproduces OpenCV's fixed-point INTER_LINEAR
    to the last bit, so that frames reach the model exactly as in the published pipeline; float
    interpolation differs from it by one grey level in one pixel out of eight, always upwards.

    Args:
        images: Tensor of shape (B, C, H, W) with whole values 0..255, any dtype.
        size: Height and width of the result.

    Returns:
        Float32 tensor of shape (B, C, *size) of whole numbers in 0..255.

    Source: the published pipelines resize 8-bit images with OpenCV's INTER_LINEAR.
    """
    if tuple(images.shape[-2:]) == tuple(size):
        return images.float()
    # Indices and weights are made on the CPU: float64 is missing on some accelerators.
    across = _bilinear_taps(images.shape[-1], size[1], stop_at_edges=True)
    down = _bilinear_taps(images.shape[-2], size[0], stop_at_edges=False)
    left, right, left_weight, right_weight = (tap.to(images.device) for tap in across)
    above, below, above_weight, below_weight = (tap.to(images.device) for tap in down)
    levels = images.to(torch.int32)
    rows = levels.index_select(-1, left).mul_(left_weight)
    rows = rows.add_(levels.index_select(-1, right).mul_(right_weight)) >> 4
    upper = rows.index_select(-2, above).mul_(above_weight.view(-1, 1)) >> 16
    lower = rows.index_select(-2, below).mul_(below_weight.view(-1, 1)) >> 16
    return ((upper + lower + 2) >> 2).clamp_(0, 255).float()
