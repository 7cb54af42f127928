"""What a stream of frame pairs reads from: clips with random access, whatever holds them."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

from amd_hf.image_io_amd import IMAGE_SUFFIXES

# Name of frame N of a clip, behind the clip's key: `f0.jpg`.
FRAME_NAME = re.compile(
    rf"^f(\d{{1,18}})(?:{'|'.join(map(re.escape, sorted(IMAGE_SUFFIXES)))})$", re.IGNORECASE
)
# YouTube-VOS numbers its frames by their position in a video of 30 frames/s; `train` holds every
# fifth of them, `train_all_frames` all.
YOUTUBE_VOS_FPS = 30.0
MASK_FOLDERS = ("Annotations", "GroundTruth")
MOST_DIGITS = 1000
MOST_RATE = 1e6
# Frame numbers fit into int64.
MOST_NUMBER_DIGITS = 18


@dataclass(frozen=True)
class Clip:
    """Frames of one video, in order of time.

    Attributes:
        key: Name that is unique in its source and contains no dot after its last slash.
        video: Name of the video; several clips may share it.
        num_frames: Number of frames T.
        fps: Frames per second that `numbers` count in; None where unknown.
        numbers: Frame numbers in the video, ascending, or None for adjacent frames.
    """

    key: str
    video: str
    num_frames: int
    fps: float | None = None
    numbers: tuple[int, ...] | None = None

    def frame_number(self, index: int) -> int:
        """Returns the number of frame `index` in units of 1 / `fps` seconds."""
        return index if self.numbers is None else self.numbers[index]


class ClipSource(ABC):
    """A finite set of clips with random access; safe to fork and to pickle."""

    def __init__(self) -> None:
        # Clips or videos that had to be left out while indexing, by reason, with one example each.
        self.left_out: dict[str, tuple[int, str]] = {}

    def leave_out(self, reason: str, what: str, count: int = 1) -> None:
        """Notes something that the index cannot hold, for the stream's counter."""
        total, example = self.left_out.get(reason, (0, what))
        self.left_out[reason] = (total + count, example)

    @abstractmethod
    def __len__(self) -> int:
        """Returns the number of clips."""

    @abstractmethod
    def clip(self, index: int) -> Clip:
        """Returns what is known about clip `index` without reading frames."""

    @abstractmethod
    def read(self, index: int, frames: Sequence[int]) -> list[bytes]:
        """Returns the encoded `frames` (ascending) of clip `index`.

        Raises:
            OSError: If a frame cannot be read.
            ValueError: If the container of a frame is damaged.
        """

    def video(self, index: int) -> str:
        """Returns the name of the video of clip `index`."""
        return self.clip(index).video


class ConcatenatedSource(ClipSource):
    """Several sources one after the other."""

    def __init__(self, sources: Sequence[ClipSource]) -> None:
        super().__init__()
        self.sources = list(sources)
        for source in self.sources:
            for reason, (count, example) in source.left_out.items():
                self.leave_out(reason, example, count)

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def clip(self, index: int) -> Clip:
        """Returns what is known about clip `index`."""
        source, index = self._locate(index)
        return source.clip(index)

    def read(self, index: int, frames: Sequence[int]) -> list[bytes]:
        """Returns the encoded `frames` of clip `index`."""
        source, index = self._locate(index)
        return source.read(index, frames)

    def _locate(self, index: int) -> tuple[ClipSource, int]:
        """Returns the source of clip `index` and the index in it."""
        for source in self.sources:
            if index < len(source):
                return source, index
            index -= len(source)
        raise IndexError("clip index out of range")


class FrameTable:
    """The frames of many videos as compact text, so that forked workers share the memory."""

    def __init__(self, videos: Iterable[tuple[str, Sequence[str]]], fps: float | None) -> None:
        self.fps = fps
        self.names: list[str] = []
        self._frames: list[str] = []
        for name, frames in videos:
            self.names.append(name)
            self._frames.append("\n".join(frames))

    def __len__(self) -> int:
        return len(self.names)

    def frames(self, index: int) -> list[str]:
        """Returns the file names of video `index` in order."""
        return self._frames[index].split("\n")

    def clip(self, index: int) -> Clip:
        """Returns video `index` as one clip, numbered by its file names where that works."""
        frames = self.frames(index)
        name = self.names[index]
        key = name.replace(".", "_")
        return Clip(key, name, len(frames), self.fps, frame_numbers(frames))


class TableSource(ClipSource):
    """A source with one clip per video of a `FrameTable`; subclasses fill `table` and read."""

    table: FrameTable

    def __len__(self) -> int:
        return len(self.table)

    def clip(self, index: int) -> Clip:
        """Returns video `index`."""
        return self.table.clip(index)

    def video(self, index: int) -> str:
        """Returns the name of video `index`."""
        return self.table.names[index]


def frame_numbers(names: Sequence[str]) -> tuple[int, ...] | None:
    """Returns the numbers that end the stems of `names`, or None unless all rise strictly."""
    numbers: list[int] = []
    for name in names:
        match = re.search(r"(\d+)$", PurePosixPath(name).stem)
        if match is None or len(match[1]) > MOST_NUMBER_DIGITS:
            return None
        number = int(match[1])
        if numbers and number <= numbers[-1]:
            return None
        numbers.append(number)
    return tuple(numbers)


def stored_rate(*places: Any) -> float | None:
    """Returns the rate of stored frames: that of the video over the step between stored frames.

    Args:
        places: Objects of JSON that may hold `fps` and `frame_step`; the first that does counts.

    Raises:
        ValueError: If the step is no positive number. A rate that makes no sense is unknown.
    """
    for place in places:
        fps = _positive(place.get("fps")) if isinstance(place, Mapping) else None
        if fps is not None:
            step = place.get("frame_step")
            divisor = 1.0 if step is None else _positive(step)
            if divisor is None:
                raise ValueError(f"`frame_step` must be a positive number, got {str(step)[:40]}")
            return fps / divisor
    return None


def stored_video(meta: Mapping[str, Any], default: str) -> str:
    """Returns the name of the video that a clip was cut from.

    Args:
        meta: What is stored beside the clip; its `video` is the name.
        default: The name where none is stored.

    Raises:
        ValueError: If the name is no text that can be written.
    """
    name = str(meta.get("video") or default)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"its video is named {name!a}, which is no Unicode text") from error
    return name


def stored_numbers(value: Any, num_frames: int) -> tuple[int, ...] | None:
    """Returns the frame numbers that some JSON holds; None where it holds none for these frames.

    Raises:
        ValueError: If they are no ascending whole numbers.
    """
    if not isinstance(value, list | tuple) or len(value) != num_frames:
        return None
    is_whole = all(type(number) is int and abs(number) < 2**62 for number in value)
    if not is_whole or any(late <= early for early, late in pairwise(value)):
        raise ValueError(f"`numbers` must be ascending whole numbers, got {str(value)[:40]}")
    return tuple(value)


def _positive(value: Any) -> float | None:
    """Returns a positive number of sensible size as a float, None for any other JSON value."""
    is_number = type(value) in (int, float) and 0 < value < MOST_RATE
    return float(value) if is_number else None


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Returns a sort key under which `frame2` comes before `frame10`."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, _number(part), part) if part.isdecimal() else (1, 0, part) for part in parts)


def _number(digits: str) -> int:
    """Returns the number that some digits stand for; Python refuses to read thousands of them."""
    return int(digits[:MOST_DIGITS])


def is_image(name: str) -> bool:
    """Says whether `name` looks like an image; hidden files do not count."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def group_frames(paths: Iterable[str], split: str) -> tuple[str, dict[str, list[str]]]:
    """Groups image paths of a YouTube-VOS or DAVIS tree into videos.

    Only frames below `JPEGImages` count where there are any, else all but those below `Annotations`
    and `GroundTruth`, so that masks do not pose as frames.
    Of `<split>_all_frames` and `<split>` the first that exists is taken.

    Args:
        paths: Relative paths with forward slashes.
        split: Name of the split, such as "train".

    Returns:
        The common prefix ("" or ending in a slash) and, for each video, its sorted paths below the
        prefix; a video is named by its folder below the prefix.
    """
    images = [path for path in paths if is_image(path)]
    frames = [path for path in images if "JPEGImages/" in path]
    images = frames or [path for path in images if not _is_mask(path)]
    prefixes = {path[: path.rfind("JPEGImages/") + 11] for path in images if "JPEGImages/" in path}
    prefix = _choose_prefix(prefixes, split)
    # DAVIS keeps the same frames at two resolutions.
    if any(path.startswith(f"{prefix}480p/") for path in images):
        prefix = f"{prefix}480p/"
    videos: dict[str, list[str]] = {}
    for path in images:
        if path.startswith(prefix):
            relative = path[len(prefix) :]
            folder = relative.rpartition("/")[0]
            videos.setdefault(folder, []).append(relative)
    for names in videos.values():
        names.sort(key=natural_key)
    return prefix, dict(sorted(videos.items()))


def _is_mask(path: str) -> bool:
    """Says whether an image lies where benchmarks keep their masks."""
    return any(f"{folder}/" in path for folder in MASK_FOLDERS)


def _choose_prefix(prefixes: set[str], split: str) -> str:
    """Returns the prefix of the wanted split: all frames, then the split, then the only one."""
    for folder in (f"{split}_all_frames/JPEGImages/", f"{split}/JPEGImages/"):
        found = sorted(prefix for prefix in prefixes if f"/{prefix}".endswith(f"/{folder}"))
        if found:
            return found[0]
    return min(prefixes) if len(prefixes) == 1 else ""


def is_youtube_vos(prefix: str) -> bool:
    """Says whether the prefix is that of a YouTube-VOS split, which fixes the frame rate."""
    return bool(re.search(r"(^|/)(train|valid|test)(_all_frames)?/JPEGImages/$", prefix))
