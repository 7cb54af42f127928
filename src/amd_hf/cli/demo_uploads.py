"""What a visitor of the demo may upload, checked before anything is decoded.

Every refusal is a `ValueError` with one sentence for the visitor; it names the file, never the
folder on the server in which the file lies.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amd_hf.image_io_amd import read_image
from amd_hf.video_amd import FrameStream

MAX_UPLOAD_MEGABYTES = 50
KEEP_MINUTES = 60
CLEANING_MINUTES = 10
"""How often old files are looked for: one just too young is found the next time."""
DELETE_CACHE = (60 * CLEANING_MINUTES, 60 * (KEEP_MINUTES - CLEANING_MINUTES))
"""Gradio's `delete_cache`, in seconds, such that nothing is kept for longer than promised."""
MAX_IMAGE_MEGAPIXELS = 25
MAX_RESULT_SIDE = 1600
MAX_VIDEO_SECONDS = 60
MAX_VIDEO_FRAMES = 96
MAX_VIDEO_MEGAPIXELS = 9
VIDEO_SHORT_SIDE = 360

# Pillow also opens formats that start other programs (EPS) or refer to other files.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
# Playlists and lists of files ("#EXTM3U", "ffconcat") could make the decoder read other files of
# the server, so only real containers reach it: (offset, signature).
VIDEO_SIGNATURES = (
    (4, b"ftyp"),
    (4, b"moov"),
    (4, b"mdat"),
    (4, b"wide"),
    (4, b"free"),
    (0, b"\x1aE\xdf\xa3"),
    (8, b"AVI "),
)

LIMITS = (
    f"Images: JPEG, PNG, WebP, GIF, BMP or TIFF, up to {MAX_IMAGE_MEGAPIXELS} megapixels. "
    f"Videos: MP4, MOV, WebM, MKV or AVI, up to {MAX_VIDEO_SECONDS} s; the first "
    f"{MAX_VIDEO_FRAMES} frames are used, at {VIDEO_SHORT_SIDE} px on the short side. "
    f"Files: up to {MAX_UPLOAD_MEGABYTES} MB. Uploads and results are deleted within "
    f"{KEEP_MINUTES} minutes."
)


def read_uploaded_image(path: str | None) -> NDArray[np.uint8]:
    """Returns the upright image of an upload, scaled down to `MAX_RESULT_SIDE` if it is larger.

    Args:
        path: The uploaded file, or None where the visitor chose none.

    Returns:
        RGB image of shape (H, W, 3), uint8.

    Raises:
        ValueError: If there is no file, or it is too large, damaged or of another kind.
    """
    file = _uploaded_file(path, "an image")
    try:
        image = Image.open(file, formats=IMAGE_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(_too_many_pixels(file)) from error
    except (OSError, SyntaxError, ValueError) as error:
        hint = "a video; use the Video tab" if _is_video_file(file) else "no image this demo reads"
        raise ValueError(f"{file.name} is {hint}.") from error
    with image:
        if image.width * image.height > MAX_IMAGE_MEGAPIXELS * 1e6:
            raise ValueError(_too_many_pixels(file))
        try:
            rgb = read_image(image)
        except ValueError as error:
            raise ValueError(f"{file.name} is damaged; save it again and retry.") from error
    return fit_long_side(rgb, MAX_RESULT_SIDE)


def read_uploaded_video(path: str | None) -> tuple[list[NDArray[np.uint8]], float]:
    """Returns the first `MAX_VIDEO_FRAMES` frames of an upload and their rate.

    Args:
        path: The uploaded file, or None where the visitor chose none.

    Returns:
        Upright RGB frames of shape (H, W, 3), uint8, at most `VIDEO_SHORT_SIDE` on the short side,
        and the frames per second.

    Raises:
        ValueError: If there is no file, it is too long, too large, damaged, of another kind, or
            has fewer than two frames.
    """
    file = _uploaded_file(path, "a video")
    if not _is_video_file(file):
        raise ValueError(f"{file.name} is not an MP4, MOV, WebM, MKV or AVI video.")
    try:
        stream = FrameStream(file)
        fps = stream.fps or 24.0
        _check_length(file, stream.num_frames, fps)
        frames = [_fit_frame(file, frame) for frame in islice(stream, MAX_VIDEO_FRAMES)]
    except ValueError as error:
        raise ValueError(str(error).replace(repr(str(file)), file.name)) from error
    if len(frames) < 2:
        raise ValueError(f"{file.name} has a single frame; use the Image tab for it.")
    return frames, min(max(fps, 1.0), 60.0)


def fit_long_side(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Returns `image` scaled down so that its longer side is at most `side` pixels.

    Args:
        image: Image of shape (H, W, 3), uint8.
        side: Longest side in pixels.
    """
    return _scale(image, side / max(image.shape[:2]))


def _fit_frame(file: Path, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = frame.shape[:2]
    if height * width > MAX_VIDEO_MEGAPIXELS * 1e6:
        raise ValueError(
            f"{file.name} has frames of {width} x {height} pixels, more than "
            f"{MAX_VIDEO_MEGAPIXELS} megapixels; make it smaller."
        )
    return _scale(frame, VIDEO_SHORT_SIDE / min(height, width))


def _scale(image: NDArray[np.uint8], ratio: float) -> NDArray[np.uint8]:
    if ratio >= 1:
        return image
    height, width = image.shape[:2]
    size = max(1, round(width * ratio)), max(1, round(height * ratio))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def _uploaded_file(path: str | None, kind: str) -> Path:
    if not path:
        raise ValueError(f"Choose {kind} first.")
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{file.name} is no longer there; upload it again.")
    if file.stat().st_size > MAX_UPLOAD_MEGABYTES * 2**20:
        raise ValueError(f"{file.name} is larger than {MAX_UPLOAD_MEGABYTES} MB.")
    return file


def _is_video_file(file: Path) -> bool:
    with file.open("rb") as stream:
        head = stream.read(16)
    return any(head[at : at + len(mark)] == mark for at, mark in VIDEO_SIGNATURES)


def _check_length(file: Path, num_frames: int | None, fps: float) -> None:
    if num_frames and num_frames / fps > MAX_VIDEO_SECONDS:
        raise ValueError(
            f"{file.name} lasts {num_frames / fps:.0f} s, more than {MAX_VIDEO_SECONDS} s; cut it."
        )


def _too_many_pixels(file: Path) -> str:
    return f"{file.name} has more than {MAX_IMAGE_MEGAPIXELS} megapixels; make it smaller."
