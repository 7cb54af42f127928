"""Clips from video files, decoded by seeking (PyAV)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import av
import numpy as np

from amd_hf.data.encoding import encode_ppm
from amd_hf.data.sources import VIDEO_SUFFIXES, Clip, ClipSource

# Without a time stamp within half a frame of the wanted one, decoding gives up after this many.
MAX_DECODED_FRAMES = 1000
DEFAULT_RATE = 25.0


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
        self._clips: list[tuple[int, int, int]] = []  # number of the file, first frame, frames
        names: set[str] = set()
        found = video_files(paths)
        for path in found:
            try:
                rate, num_frames = probe_video(path)
            except (av.FFmpegError, OSError, ValueError) as error:
                self.leave_out("unreadable", f"{path} ({error})")
                continue
            if num_frames < 2:
                self.leave_out("too_short", f"{path} has one frame")
                continue
            name = path.stem if path.stem not in names else f"{path.parent.name}/{path.name}"
            names.add(name)
            self.files.append((path, name, rate))
            for start in range(0, num_frames - 1, frames_per_clip):
                # Clips share their border frame, so that no neighboring pair is lost.
                length = min(frames_per_clip + 1, num_frames - start)
                self._clips.append((len(self.files) - 1, start, length))
        if not self._clips:
            raise ValueError(
                f"`source` holds no readable video of at least two frames ({len(found)} video"
                " files found)."
            )

    def __len__(self) -> int:
        return len(self._clips)

    def clip(self, index: int) -> Clip:
        """Returns clip `index`."""
        number, start, length = self._clips[index]
        _, name, rate = self.files[number]
        key = f"{name.replace('.', '_')}__{start:06d}"
        return Clip(key, name, length, rate, tuple(range(start, start + length)))

    def read(self, index: int, frames: Sequence[int]) -> list[bytes]:
        """Returns lossless `frames` of clip `index`."""
        number, start, _ = self._clips[index]
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
        ValueError: If the file has no video stream.
    """
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("no video stream")
        stream = container.streams.video[0]
        rate = float(stream.average_rate or stream.guessed_rate or DEFAULT_RATE)
        if stream.frames:
            return rate, int(stream.frames)
        if stream.duration is not None and stream.time_base is not None:
            return rate, int(float(stream.duration * stream.time_base) * rate)
        if container.duration is not None:
            return rate, int(container.duration / av.time_base * rate)
        return rate, sum(1 for _ in container.decode(stream))


def decode_frames(path: Path, rate: float, numbers: Sequence[int]) -> list[np.ndarray]:
    """Returns the frames at `numbers` / `rate` seconds, each uint8 (H, W, 3).

    Args:
        path: The video file.
        rate: Frames per second that `numbers` count in.
        numbers: Ascending frame numbers.

    Raises:
        OSError: If the video ends before the last of them or cannot be decoded.
    """
    images: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            base = float(stream.time_base or 0) or 1.0 / rate
            origin = (stream.start_time or 0) * base
            container.seek(int((origin + numbers[0] / rate) / base), stream=stream)
            for count, frame in enumerate(container.decode(stream)):
                time = float(frame.pts or 0) * base - origin
                # One decoded frame serves one number, so a pair is never the same frame twice.
                if time >= (numbers[len(images)] - 0.5) / rate:
                    images.append(frame.to_ndarray(format="rgb24"))
                if len(images) == len(numbers):
                    return images
                if count > MAX_DECODED_FRAMES:
                    break
    except av.FFmpegError as error:
        raise OSError(f"{path}: {error}") from error
    raise OSError(f"{path} ends before frame {numbers[-1]}")
