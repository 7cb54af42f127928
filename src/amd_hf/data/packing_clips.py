"""Packing, first stage: the clips of one video, chosen, screened, encoded and written as a part."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from amd_hf.data.counting import SkippedPairError
from amd_hf.data.decoding import screen_pair
from amd_hf.data.encoding import encode_jpeg, shrink
from amd_hf.data.frame_arrays import open_frame
from amd_hf.data.sources import Clip, ClipSource
from amd_hf.image_io_amd import DECODE_ERRORS, to_rgb
from amd_hf.whole_files import sync_path, write_atomically

# Frames of this many windows are held in memory at once.
WINDOWS_PER_READ = 8


@dataclass(frozen=True)
class PackingSettings:
    """What decides about the content of the shards.

    Attributes:
        frames_per_clip: Frames of every clip, at least 2.
        frame_step: Distance of a clip's frames in frames of the source.
        max_clips_per_video: Clips of one video at most, evenly spread; None takes all.
        clips_per_shard: Clips of every shard but the last.
        short_side: Frames are shrunk to this short side in pixels; None keeps their size and, for
            JPEGs, their bytes.
        quality: JPEG quality from 1 to 95 where frames are encoded anew.
        min_difference: Clips with neighboring frames that differ less are left out (gray levels).
        reject_shot_cuts: Whether clips across a shot cut are left out.
        seed: Seed of the order of the clips.
    """

    frames_per_clip: int = 3
    frame_step: int = 1
    max_clips_per_video: int | None = None
    clips_per_shard: int = 1000
    short_side: int | None = None
    quality: int = 90
    min_difference: float = 1.0
    reject_shot_cuts: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        least = {
            "frames_per_clip": 2,
            "frame_step": 1,
            "max_clips_per_video": 1,
            "clips_per_shard": 1,
            "short_side": 16,
            "quality": 1,
            "min_difference": 0,
            "seed": 0,
        }
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"`{name}` must be at least {low}, got {value}.")
        if self.quality > 95:
            raise ValueError(f"`quality` must be at most 95, got {self.quality}.")


def plan_windows(
    source: ClipSource, settings: PackingSettings
) -> list[tuple[str, list[tuple[int, int]]]]:
    """Returns for every video its name and its windows (clip of the source, first frame)."""
    windows: dict[str, list[tuple[int, int]]] = {}
    span = (settings.frames_per_clip - 1) * settings.frame_step + 1
    for index in range(len(source)):
        clip = source.clip(index)
        starts = range(
            0, clip.num_frames - span + 1, settings.frames_per_clip * settings.frame_step
        )
        windows.setdefault(clip.video, []).extend((index, start) for start in starts)
    plan = []
    for video, found in sorted(windows.items()):
        limit = settings.max_clips_per_video
        if limit is not None and len(found) > limit:
            chosen = np.linspace(0, len(found) - 1, limit).round().astype(int)
            found = [found[int(position)] for position in chosen]
        plan.append((video, found))
    return plan


def report_path(parts: Path, number: int) -> Path:
    """Returns the path of the report that marks part `number` as finished."""
    return parts / f"{number:06d}.json"


def make_part(
    source: ClipSource,
    video: str,
    windows: Sequence[tuple[int, int]],
    parts: Path,
    number: int,
    settings: PackingSettings,
) -> None:
    """Writes the clips of one video as a tar and, when it is complete, a report of counts."""
    report: dict[str, Any] = {"video": video, "clips": 0, "skipped": {}}
    if not windows:
        report["skipped"]["too_short"] = 1
    # By rename: the worker of a killed run may still be writing the same part.
    path = parts / f"{number:06d}.tar"
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    uses: Counter[str] = Counter()
    with tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as archive:
        for index, start, encoded in _read_windows(source, windows, settings):
            try:
                frames, meta = _pack_window(source.clip(index), start, encoded, settings)
            except SkippedPairError as error:
                skipped = report["skipped"]
                skipped[error.reason] = skipped.get(error.reason, 0) + 1
                continue
            key = f"{_flat_name(video)}__{meta['start']:06d}"
            uses[key] += 1
            if uses[key] > 1:  # clips of shards without frame numbers all start at frame 0
                key = f"{key}-{uses[key]}"
            _add_clip(archive, key, frames, meta)
            report["clips"] += 1
            report.update(fps=meta.get("fps"), height=meta["height"], width=meta["width"])
    sync_path(partial)
    partial.replace(path)
    write_atomically(report_path(parts, number), json.dumps(report).encode())


def _flat_name(video: str) -> str:
    """Returns a video's name without dots and slashes, for keys."""
    return video.replace("/", "__").replace(".", "_")


def _window_frames(start: int, settings: PackingSettings) -> list[int]:
    """Returns the frames of the window that begins at `start`."""
    return [start + step * settings.frame_step for step in range(settings.frames_per_clip)]


def _read_windows(
    source: ClipSource, windows: Sequence[tuple[int, int]], settings: PackingSettings
) -> Iterator[tuple[int, int, list[bytes] | None]]:
    """Yields clip, first frame and encoded frames (None: unreadable) of every window.

    Several windows of a clip are read at once, which saves video files most of their seeks.
    """
    for index, group in groupby(windows, key=lambda window: window[0]):
        starts = [start for _, start in group]
        for first in range(0, len(starts), WINDOWS_PER_READ):
            chunk = starts[first : first + WINDOWS_PER_READ]
            frames = [frame for start in chunk for frame in _window_frames(start, settings)]
            data = _try_read(source, index, frames)
            size = settings.frames_per_clip
            for place, start in enumerate(chunk):
                if data is not None:
                    yield index, start, data[place * size : (place + 1) * size]
                else:
                    yield index, start, _try_read(source, index, _window_frames(start, settings))


def _try_read(source: ClipSource, index: int, frames: Sequence[int]) -> list[bytes] | None:
    """Returns the encoded frames, or None where one of them cannot be read."""
    try:
        return source.read(index, frames)
    except (OSError, ValueError):
        return None


def _pack_window(
    clip: Clip, start: int, encoded: list[bytes] | None, settings: PackingSettings
) -> tuple[list[bytes], dict[str, Any]]:
    """Returns the encoded frames and the JSON of one clip.

    Raises:
        SkippedPairError: If a frame is unreadable, sizes differ, or a pair is static or a cut.
    """
    wanted = _window_frames(start, settings)
    if encoded is None:
        raise SkippedPairError("unreadable", clip.key)
    try:
        images = [open_frame(data) for data in encoded]
        is_jpeg = all(image.format == "JPEG" for image in images)
        small = [shrink(image, settings.short_side) for image in images]
        decoded = [to_rgb(image) for image in small]
    except DECODE_ERRORS as error:
        raise SkippedPairError("unreadable", f"{clip.key} ({error})") from error
    if len({image.size for image in decoded}) > 1:
        raise SkippedPairError("sizes_differ", clip.key)
    for first, second in pairwise(decoded):
        screen_pair(
            first,
            second,
            min_difference=settings.min_difference,
            reject_shot_cuts=settings.reject_shot_cuts,
        )
    is_kept = is_jpeg and all(a is b for a, b in zip(images, small, strict=True))
    frames = encoded if is_kept else [encode_jpeg(image, settings.quality) for image in decoded]
    numbers = [clip.frame_number(frame) for frame in wanted]
    width, height = decoded[0].size
    meta: dict[str, Any] = {"video": clip.video, "start": numbers[0]}
    meta.update(height=height, width=width)
    if clip.fps is not None:
        meta.update(fps=clip.fps, numbers=numbers)
    return frames, meta


def _add_clip(
    archive: tarfile.TarFile, key: str, frames: Sequence[bytes], meta: Mapping[str, Any]
) -> None:
    """Adds the members of one clip."""
    for number, frame in enumerate(frames):
        add_member(archive, f"{key}.f{number}.jpg", frame)
    add_member(archive, f"{key}.json", json.dumps(meta).encode())


def add_member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds one file without owner or time, so that equal content gives equal shards."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))
