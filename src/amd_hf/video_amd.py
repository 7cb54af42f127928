"""Videos in and out: frames of files, folders, lists and iterators on demand; H.264 writing.

PyAV is needed for video files only; everything else works without it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from PIL import Image

from .image_io_amd import (
    IMAGE_SUFFIXES,
    MAX_IMAGE_PIXELS,
    check_pixels,
    describe,
    is_address,
    list_images,
    read_image,
)

try:
    import av
except ImportError:  # video files are optional, images and folders of frames are not
    av = None  # type: ignore[assignment]

VIDEO_SUFFIXES = frozenset(
    (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv")
)
VIDEO_FORMATS = (
    *("asf", "avi", "flv", "gif", "h264", "hevc", "ivf", "matroska", "mov", "mpeg", "mpegts"),
    *("mpegvideo", "mxf", "nut", "ogg", "yuv4mpegpipe"),
)
"""Containers (FFmpeg's names) that are opened: those that hold their frames themselves."""

NETWORK_PROTOCOLS = "http,https,httpproxy,tcp,tls"
NETWORK_SECONDS = 30.0
VIDEO_ERRORS: tuple[type[Exception], ...] = (OSError, ValueError, ArithmeticError, MemoryError)
if av is not None:
    VIDEO_ERRORS = (*VIDEO_ERRORS, av.error.FFmpegError)

LEAST_FPS, MOST_FPS = 0.05, 1000.0
"""A file that states another frame rate is damaged; its rate counts as unknown."""

DEFAULT_FPS = 24.0
"""Frame rate of a video written from a folder or list of frames."""


def is_video(source: Any) -> bool:
    """Whether `source` is a path or address of a video file, or a folder (of frames)."""
    if not isinstance(source, (str, os.PathLike)):
        return False
    text = os.fspath(source)
    path = urlparse(text).path if is_address(text) else text
    return Path(path).suffix.lower() in VIDEO_SUFFIXES or os.path.isdir(text)


class FrameStream:
    """The frames of one video, decoded on demand: iterating yields uint8 RGB arrays (H, W, 3).

    A stream of a file, folder, list or array can be iterated again; one of an iterator only once.
    Rotated videos come upright. Nothing but the current frame is kept in memory.

    Attributes:
        name: Name of the input for messages.
        fps: Frames per second of a video file, else None.
        num_frames: Number of frames where it is known without decoding, else None.
        paths: The files of a folder or list of paths, else None.
        is_single_pass: Whether the frames can be read only once.

    Args:
        source: Path of a video file or of a folder of images, a list of images (anything
            `read_image` takes), an array or tensor of shape (T, H, W, 3) or (T, 3, H, W), or an
            iterator of images.

    Raises:
        ValueError: If the file is missing or no video, or the folder holds no image.
        TypeError: If `source` is of another type.
    """

    def __init__(self, source: Any) -> None:
        self.name = describe(source)
        self.fps: float | None = None
        self.num_frames: int | None = None
        self.paths: list[Path] | None = None
        self.is_single_pass = False
        self._file: str | None = None
        self._frames: Iterable[Any] = ()
        if isinstance(source, (str, os.PathLike)):
            self._set_path(source)
        elif isinstance(source, (np.ndarray, torch.Tensor)):
            if source.ndim != 4:
                raise ValueError(
                    "A video array must have shape (T, H, W, 3) or (T, 3, H, W), got "
                    f"{tuple(source.shape)}."
                )
            self._frames, self.num_frames = source, len(source)
        elif isinstance(source, Iterable) and not isinstance(source, (dict, bytes, Image.Image)):
            self._frames = source
            self.is_single_pass = isinstance(source, Iterator)
            self.num_frames = len(source) if isinstance(source, (list, tuple)) else None
        else:
            raise TypeError(
                "A video must be a path, a folder, a list of images, a 4-D array or an iterator of "
                f"images, got {type(source).__name__}."
            )

    def _set_path(self, source: str | os.PathLike[str]) -> None:
        """Looks into a folder or the header of a video file."""
        text = os.fspath(source)
        if os.path.isdir(text):
            self.paths = list_images(text)
            self._frames, self.num_frames = self.paths, len(self.paths)
            if not self.paths:
                raise ValueError(
                    f"The folder {self.name} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})."
                )
            return
        if not is_address(text) and not os.path.exists(text):
            raise ValueError(f"There is no file {self.name}; check the path.")
        self._file = text
        with _open_video(text, self.name) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 0)
            self.fps = rate if LEAST_FPS <= rate <= MOST_FPS else None
            self.num_frames = stream.frames or None

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields the frames in order; a damaged video raises ValueError where it breaks off."""
        if self._file is None:
            return (read_image(frame) for frame in self._frames)
        return self._decode(self._file)

    def _decode(self, file: str) -> Iterator[np.ndarray]:
        """Decodes a video file frame by frame."""
        count = 0
        with _open_video(file, self.name) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            try:
                for frame in container.decode(stream):
                    # Phones turn by metadata: degrees counter-clockwise, as np.rot90.
                    quarter_turns = round(frame.rotation / 90) % 4
                    array = np.rot90(frame.to_ndarray(format="rgb24"), quarter_turns)
                    count += 1
                    yield np.ascontiguousarray(array)
            except VIDEO_ERRORS as error:
                reason = getattr(error, "strerror", None) or error
                raise ValueError(
                    f"{self.name} is damaged after frame {count} ({reason}); re-encode or "
                    "replace it."
                ) from error
        self._check_count(count)

    def _check_count(self, count: int) -> None:
        """Refuses an empty or cut-off video; headers may be a few frames off."""
        if count == 0:
            raise ValueError(f"{self.name} holds no frame; replace the file.")
        if self.num_frames and count < self.num_frames - max(2, self.num_frames // 50):
            raise ValueError(
                f"{self.name} is cut off: {count} of {self.num_frames} frames could be read; "
                "replace the file."
            )


def _open_video(file: str, name: str) -> Any:
    """An open PyAV container with at least one video stream."""
    if av is None:
        raise ValueError(f"Reading the video {name} needs PyAV: pip install av")
    try:
        return open_video(file)
    except VIDEO_ERRORS as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{name} is not a readable video ({reason}); replace or re-encode it."
        ) from error


def open_video(file: str | os.PathLike[str]) -> Any:
    """An open PyAV container of one of `VIDEO_FORMATS` with at least one video stream.

    Playlists and lists of files are no video here, whatever their name: FFmpeg would read other
    files for them. No frame above `MAX_IMAGE_PIXELS` is decoded.

    Args:
        file: Path or `http(s)://` address.

    Raises:
        ValueError: If there is no video stream, or its frames are too large.
        OSError: If the file is missing, damaged or of another format; FFmpeg also raises others of
            `VIDEO_ERRORS`.
    """
    text = os.fspath(file)
    protocols = NETWORK_PROTOCOLS if is_address(text) else "file"
    # A path that begins like "concat:" or "rtmp:" must not be taken for an address.
    target = text if is_address(text) else os.path.abspath(text)
    limits = {"format_whitelist": ",".join(VIDEO_FORMATS), "protocol_whitelist": protocols}
    container = av.open(
        target, options=limits, timeout=NETWORK_SECONDS if is_address(text) else None
    )
    try:
        if not container.streams.video:
            raise ValueError("no video stream")
        codec = container.streams.video[0].codec_context
        if codec is None:
            raise ValueError("unknown codec")
        check_pixels(codec.height, codec.width, MAX_IMAGE_PIXELS, "the video")
        codec.options = {"max_pixels": str(MAX_IMAGE_PIXELS)}
    except BaseException:
        container.close()
        raise
    return container


class VideoWriter:
    """Writes frames to an H.264 `.mp4` that plays in a browser; use it as a context manager.

    The file appears under its name only when the writer closes; where the block of the context
    manager is left by an exception, nothing is left. Frames of odd size gain one edge pixel.

    Args:
        path: The file to write; its folder must exist.
        fps: Frames per second.

    Raises:
        ValueError: If PyAV is missing, `fps` is not positive, or a frame differs in size from the
            first.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float | None = None) -> None:
        if av is None:
            raise ValueError("Writing a video needs PyAV: pip install av")
        fps = DEFAULT_FPS if fps is None else fps
        if not fps > 0:
            raise ValueError(f"`fps` must be positive, got {fps}.")
        self.path = Path(path)
        self.num_frames = 0
        self._partial = self.path.with_name(f".{self.path.stem}.partial.mp4")
        self._rate = Fraction(fps).limit_denominator(1001)
        self._container: Any = None
        self._stream: Any = None
        self._size: tuple[int, int] | None = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.discard()

    def write(self, frame: np.ndarray) -> None:
        """Appends one uint8 RGB frame of shape (H, W, 3)."""
        if self._container is None:
            self._open(frame.shape[0], frame.shape[1])
        if frame.shape[:2] != self._size:
            raise ValueError(f"All frames of a video must be {self._size}, got {frame.shape[:2]}.")
        height, width = frame.shape[:2]
        if height % 2 or width % 2:  # yuv420p has one color sample per 2 x 2 pixels
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        for packet in self._stream.encode(picture):
            self._container.mux(packet)
        self.num_frames += 1

    def _open(self, height: int, width: int) -> None:
        """Starts the file at the size of its first frame."""
        self._container = av.open(
            str(self._partial), "w", format="mp4", options={"movflags": "+faststart"}
        )
        self._stream = self._container.add_stream(
            "libx264", rate=self._rate, options={"crf": "20", "preset": "veryfast"}
        )
        self._stream.height, self._stream.width = height + height % 2, width + width % 2
        self._stream.pix_fmt = "yuv420p"
        self._size = (height, width)

    def close(self) -> None:
        """Finishes the file and gives it its name; without a frame no file is left."""
        if self._container is None:
            return
        try:
            for packet in self._stream.encode():
                self._container.mux(packet)
            self._container.close()
        except VIDEO_ERRORS:  # a full disk
            self.discard()
            raise
        self._container = None
        os.replace(self._partial, self.path)

    def discard(self) -> None:
        """Gives up: what was written so far is deleted, an older file of the name stays."""
        if self._container is None:
            return
        with suppress(*VIDEO_ERRORS):  # there may be no room for what is still in memory
            self._container.close()
        self._container = None
        self._partial.unlink(missing_ok=True)
