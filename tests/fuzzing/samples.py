"""Small valid files of every format that the package reads; a few kilobytes each."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from amd_hf.data.synthetic_objects import generate_clip

HEIGHT, WIDTH = 32, 48
NUM_FRAMES = 5
EXIF_ORIENTATION = 0x0112

# Container and codec of the video samples, by the name of the file.
VIDEO_KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "clip.mp4": ("libx264", {"crf": "30", "g": "3"}),
    "flat.mkv": ("libx264", {"crf": "30", "bf": "0"}),
    "clip.mov": ("mpeg4", {}),
    "clip.avi": ("mjpeg", {}),
    "clip.webm": ("libvpx", {"deadline": "realtime", "cpu-used": "8"}),
    "clip.mpg": ("mpeg1video", {}),
    "clip.ts": ("mpeg2video", {}),
    "clip.wmv": ("wmv2", {}),
    "clip.ogv": ("libvpx", {"deadline": "realtime", "cpu-used": "8"}),
    "raw.avi": ("rawvideo", {}),
}


@cache
def clip() -> np.ndarray:
    """A few frames of two moving objects, uint8 of shape (T, H, W, 3)."""
    return generate_clip(NUM_FRAMES, HEIGHT, WIDTH, seed=5)[0]


def encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    """An image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


@cache
def images() -> dict[str, bytes]:
    """Image files by name: every format, and the modes that need a conversion."""
    frame = Image.fromarray(clip()[0])
    gray = frame.convert("L")
    turned = Image.Exif()
    turned[EXIF_ORIENTATION] = 6
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    opaque = frame.convert("RGBA")
    opaque.putalpha(gray)
    return {
        "photo.jpg": encoded(frame, "JPEG", quality=80),
        "progressive.jpg": encoded(frame, "JPEG", progressive=True),
        "turned.jpg": encoded(frame, "JPEG", exif=turned),
        "cmyk.jpeg": encoded(frame.convert("CMYK"), "JPEG"),
        "photo.png": encoded(frame, "PNG"),
        "gray16.png": encoded(deep, "PNG"),
        "palette.png": encoded(frame.quantize(8), "PNG", transparency=0),
        "bits.png": encoded(frame.convert("1"), "PNG"),
        "opacity.png": encoded(opaque, "PNG"),
        "photo.webp": encoded(frame, "WEBP"),
        "lossless.webp": encoded(opaque, "WEBP", lossless=True),
        "photo.gif": encoded(frame.quantize(16), "GIF"),
        "photo.bmp": encoded(frame, "BMP"),
        "palette.bmp": encoded(frame.quantize(16), "BMP"),
        "photo.tiff": encoded(frame, "TIFF"),
        "deflated.tif": encoded(frame, "TIFF", compression="tiff_adobe_deflate"),
        "lzw.tif": encoded(deep, "TIFF", compression="tiff_lzw"),
        "photo.ppm": encoded(frame, "PPM"),
        "photo.pgm": encoded(gray, "PPM"),
        "photo.pbm": encoded(frame.convert("1"), "PPM"),
    }


@cache
def masks() -> dict[str, bytes]:
    """Mask files by name: the codings of the benchmarks."""
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[8:20, 10:30] = 1
    ids[20:28, 10:30] = 2
    palette = Image.fromarray(ids).convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759)
    colors = np.stack([ids * 100, ids * 50, ids * 0], axis=-1)
    binary = Image.fromarray((ids > 0).astype(np.uint8) * 255)
    return {
        "palette.png": encoded(palette, "PNG"),
        "binary.png": encoded(binary, "PNG"),
        "ones.png": encoded(Image.fromarray((ids > 0).astype(np.uint8)), "PNG"),
        "bits.png": encoded(binary.convert("1"), "PNG"),
        "deep.png": encoded(Image.fromarray((ids > 0).astype(np.uint16) * 65535), "PNG"),
        "colors.ppm": encoded(Image.fromarray(colors), "PPM"),
        "gray.pgm": encoded(binary, "PPM"),
        "gray.bmp": encoded(binary, "BMP"),
        "gray.jpg": encoded(binary, "JPEG"),
    }


def _write_video(path: Path, codec: str, options: dict[str, str]) -> None:
    """Writes `clip()` with a codec."""
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = HEIGHT, WIDTH
        stream.pix_fmt = {"mjpeg": "yuvj420p", "rawvideo": "bgr24"}.get(codec, "yuv420p")
        for frame in clip():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def videos(folder: Path) -> dict[str, bytes]:
    """Video files by name, as far as this build of FFmpeg can write them.

    Args:
        folder: Where they are written on the way.
    """
    import av

    found: dict[str, bytes] = {}
    for name, (codec, options) in VIDEO_KINDS.items():
        path = folder / name
        try:
            _write_video(path, codec, options)
        except (av.error.FFmpegError, ValueError):
            continue  # a build without this encoder; the others remain
        found[name] = path.read_bytes()
    return found
