"""Clips from video files, decoded by seeking (PyAV)."""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from amd_hf.data.encoding import encode_ppm
from amd_hf.data.sources import Clip, ClipSource
from amd_hf.video_amd import LEAST_FPS, MOST_FPS, VIDEO_ERRORS, VIDEO_SUFFIXES, open_video

# Without a time stamp within half a frame of the wanted one, decoding gives up after this many.
MAX_DECODED_FRAMES = 1000
DEFAULT_RATE = 25.0
# Where a seek does not end at a key frame, decoding starts this much earlier, then at the start.
SECONDS_BACK = (0.0, 1.0, 5.0)


class VideoFileSource(ClipSource):
    """Clips of plain video files; every file is cut into clips of a few seconds.

    Each pair costs a seek and the decoding from the key frame before it. `scripts/
    pack_youtube_vos.py` turns video files into shards, which stream many times faster.

    Args:
        paths: Video files, or folders that are searched for them.
        frames_per_clip: Frames per clip; longer clips mean fewer pairs of one video per epoch.

    Raises:
        ValueError: If no file can be opened as a video of at least two frames.
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]], frames_per_clip: int = 24) -> None:
        super().__init__()
        self.files: list[tuple[Path, str, float]] = []
        self.frames_per_clip = frames_per_clip
        # Number of clips before each file, and frames of each file: nothing grows with the clips.
        self._first: list[int] = [0]
        self._num_frames: list[int] = []
        names: set[str] = set()
        found = video_files(paths)
        for path in found:
            try:
                rate, num_frames = probe_video(path)
            except VIDEO_ERRORS as error:
                self.leave_out("unreadable", f"{path} ({error})")
                continue
            if num_frames < 2:
                self.leave_out("too_short", f"{path} has one frame")
                continue
            name = path.stem if path.stem not in names else f"{path.parent.name}/{path.name}"
            names.add(name)
            self.files.append((path, name, rate))
            self._num_frames.append(num_frames)
            self._first.append(self._first[-1] + -(-(num_frames - 1) // frames_per_clip))
        if not self.files:
            _, example = self.left_out.get("unreadable", (0, ""))
            reason = f"; such as {example}" if example else ""
            raise ValueError(
                f"`source` holds no readable video of at least two frames ({len(found)} video"
                f" files found){reason}."
            )

    def __len__(self) -> int:
        return self._first[-1]

    def _place(self, index: int) -> tuple[int, int, int]:
        """Returns the number of the file, the first frame and the length of clip `index`."""
        number = bisect_right(self._first, index) - 1
        start = (index - self._first[number]) * self.frames_per_clip
        # Clips share their border frame, so that no neighboring pair is lost.
        return number, start, min(self.frames_per_clip + 1, self._num_frames[number] - start)

    def clip(self, index: int) -> Clip:
        """Returns clip `index`."""
        number, start, length = self._place(index)
        _, name, rate = self.files[number]
        key = f"{name.replace('.', '_')}__{start:06d}"
        return Clip(key, name, length, rate, tuple(range(start, start + length)))

    def read(self, index: int, frames: Sequence[int]) -> list[bytes]:
        """Returns lossless `frames` of clip `index`."""
        number, start, _ = self._place(index)
        path, _, rate = self.files[number]
        images = decode_frames(path, rate, [start + frame for frame in frames])
        return [encode_ppm(image) for image in images]


def video_files(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Returns the video files among and below `paths`, sorted within each folder."""
    found: list[Path] = []
    for entry in map(Path, paths):
        candidates = sorted(entry.rglob("*")) if entry.is_dir() else [entry]
        found.extend(
            path for path in candidates if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()
        )
    return found


def probe_video(path: Path) -> tuple[float, int]:
    """Returns the frame rate and the number of frames, from the header where it states them.

    Raises:
        ValueError: If the file has no video stream, or states more frames than it has bytes.
        OSError: If the file cannot be read; FFmpeg also raises others of `VIDEO_ERRORS`.
    """
    with open_video(path) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or stream.guessed_rate or DEFAULT_RATE)
        if not LEAST_FPS <= rate <= MOST_FPS:
            raise ValueError(f"a frame rate of {rate:g} is not that of a video")
        if stream.frames:
            num_frames = int(stream.frames)
        elif stream.duration is not None and stream.time_base is not None:
            num_frames = int(float(stream.duration * stream.time_base) * rate)
        elif container.duration is not None:
            num_frames = int(container.duration / av.time_base * rate)
        else:
            num_frames = sum(1 for _ in container.decode(stream))
    # A damaged header can promise billions of frames.
    if num_frames > path.stat().st_size:
        raise ValueError(f"its header states {num_frames} frames, more than the file has bytes")
    return rate, num_frames


def decode_frames(path: Path, rate: float, numbers: Sequence[int]) -> list[np.ndarray]:
    """Returns the frames at `numbers` / `rate` seconds, each uint8 (H, W, 3).

    Args:
        path: The video file.
        rate: Frames per second that `numbers` count in.
        numbers: Ascending frame numbers.

    Raises:
        OSError: If the video ends before the last of them or cannot be decoded.
    """
    try:
        with open_video(path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            for seconds_back in (*SECONDS_BACK, math.inf):
                images = _decode_from(container, stream, rate, numbers, seconds_back)
                if images is not None:
                    return images
    except VIDEO_ERRORS as error:
        raise OSError(f"{path}: {error}") from error
    raise OSError(f"{path} ends before frame {numbers[-1]}")


def _decode_from(
    container: Any, stream: Any, rate: float, numbers: Sequence[int], seconds_back: float
) -> list[np.ndarray] | None:
    """Returns the frames, decoded from some seconds before the first of them.

    None: decoding began behind the first frame or not at a key frame, as it does in containers
    without an index; the frames before it are needed.

    Raises:
        ValueError: If the video ends before the last of the frames.
    """
    images: list[np.ndarray] = []
    base = float(stream.time_base or 0) or 1.0 / rate
    origin = (stream.start_time or 0) * base
    start = max(numbers[0] / rate - seconds_back, 0.0)
    container.seek(int((origin + start) / base), stream=stream)
    for count, frame in enumerate(container.decode(stream)):
        time = float(frame.pts or 0) * base - origin
        is_late = not frame.key_frame or time > (numbers[0] + 0.5) / rate
        if count == 0 and is_late and start > 0:
            return None
        # One decoded frame serves one number, so a pair is never the same frame twice.
        if time >= (numbers[len(images)] - 0.5) / rate:
            images.append(frame.to_ndarray(format="rgb24"))
        if len(images) == len(numbers):
            return images
        if count > MAX_DECODED_FRAMES:
            break
    raise ValueError(f"it ends before frame {numbers[-1]}")
