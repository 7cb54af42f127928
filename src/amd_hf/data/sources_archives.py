"""Clips from tar shards and from zip files, read by seeking; a shard is never held in memory."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from amd_hf.data.archives import (
    CutArchiveError,
    Member,
    read_tar_member,
    read_zip_member,
    tar_members,
    zip_members,
)
from amd_hf.data.object_masks import MASK_SUFFIX
from amd_hf.data.sources import (
    FRAME_NAME,
    YOUTUBE_VOS_FPS,
    Clip,
    ClipSource,
    FrameTable,
    TableSource,
    frame_numbers,
    group_frames,
    is_image,
    is_youtube_vos,
    stored_numbers,
    stored_rate,
    stored_video,
)

INDEX_NAME = "index.json"


class TarShardSource(ClipSource):
    """Clips of tar shards in WebDataset style: `<key>.f0.jpg`, `<key>.f1.jpg`, ..., `<key>.json`.

    Clips may have any number of frames from two on, and shards any number of clips. The JSON may
    hold `video`, `start`, `fps`, `frame_step` and `numbers`; where it has no `fps`, an `index.json`
    beside the shard is asked (`videos_detail`). A tar of plain folders of frames works too. Only
    headers and JSON members are read while indexing: some tens of thousands of members a second.

    Args:
        paths: The shards.
        split: Split to take from a tar of plain folders.

    Raises:
        ValueError: If a shard is no plain tar or holds links or unsafe paths, or if there is no
            clip of two frames in any of them.
    """

    def __init__(self, paths: Iterable[str | os.PathLike[str]], split: str = "train") -> None:
        super().__init__()
        self.paths = [Path(path) for path in paths]
        self._keys: list[str] = []
        self._videos: list[str] = []
        self._meta: list[tuple[float | None, tuple[int, ...] | None]] = []
        # Frames of clip i are entries first[i] to first[i + 1] of the flat tables below.
        self._first = array("q", [0])
        self._shard = array("i")
        self._offset = array("q")
        self._size = array("q")
        details: dict[Path, Mapping[str, Any]] = {}
        for number, path in enumerate(self.paths):
            if path.parent not in details:
                details[path.parent] = _video_details(path.parent)
            self._index_shard(number, path, details[path.parent], split)
        if not self._keys:
            names = ", ".join(path.name for path in self.paths[:3])
            raise ValueError(
                f"`source` holds no clip of at least two frames in its {len(self.paths)} shards"
                f" ({names}); expected members named <key>.f0.jpg, <key>.f1.jpg, <key>.json"
                f"{self._examples()}."
            )

    def _examples(self) -> str:
        """Returns what was left out and why, one of each reason, for a message."""
        examples = [f"{what}: {reason}" for reason, (_, what) in self.left_out.items()]
        return f", left out were {'; '.join(examples)}" if examples else ""

    def __len__(self) -> int:
        return len(self._keys)

    def clip(self, index: int) -> Clip:
        """Returns clip `index`."""
        fps, numbers = self._meta[index]
        num_frames = self._first[index + 1] - self._first[index]
        return Clip(self._keys[index], self._videos[index], num_frames, fps, numbers)

    def video(self, index: int) -> str:
        """Returns the name of the video of clip `index`."""
        return self._videos[index]

    def read(self, index: int, frames: Sequence[int]) -> list[bytes]:
        """Returns the encoded `frames` of clip `index`."""
        entries = [self._first[index] + frame for frame in frames]
        return [
            read_tar_member(self.paths[self._shard[entry]], self._offset[entry], self._size[entry])
            for entry in entries
        ]

    def _index_shard(self, number: int, path: Path, details: Mapping[str, Any], split: str) -> None:
        """Adds the clips of one shard."""
        samples, plain = self._collect(path)
        for key, (frames, member) in samples.items():
            name = PurePosixPath(key).name
            if len(frames) < 2:
                self.leave_out("too_short", f"clip {key!r} of {path.name} has one frame")
                continue
            try:
                order = sorted(frames)
                meta = _read_meta(path, member)
                video = stored_video(meta, key)
                fps = stored_rate(meta, details.get(video))
                numbers = stored_numbers(meta.get("numbers"), len(order)) or _own_numbers(order)
            except (OSError, ValueError, RecursionError) as error:
                self.leave_out("unreadable", f"clip {key!r} of {path.name} ({error})")
                continue
            self._add(number, name, video, (fps, numbers), [frames[frame] for frame in order])
        self._add_plain(number, plain, split)

    def _collect(
        self, path: Path
    ) -> tuple[dict[str, tuple[dict[int, Member], Member | None]], dict[str, Member]]:
        """Returns the members by clip and frame number, and images that follow no clip naming."""
        samples: dict[str, tuple[dict[int, Member], Member | None]] = {}
        plain: dict[str, Member] = {}
        last = ""
        try:
            for member in tar_members(path):
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                stem, _, suffix = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                match = FRAME_NAME.match(suffix)
                if match is not None or suffix == "json":
                    frames, meta = samples.setdefault(key, ({}, None))
                    is_double = meta is not None if match is None else int(match[1]) in frames
                    if is_double:
                        self.leave_out("unreadable", f"{member.name} is in {path.name} twice")
                    elif match is not None:
                        frames[int(match[1])] = member
                    else:
                        samples[key] = (frames, member)
                    last = key
                elif is_image(member.name) and not MASK_SUFFIX.match(suffix):
                    plain[member.name.removeprefix("./")] = member
        except CutArchiveError as error:
            # The last clip may lack members, and which ones cannot be known.
            samples.pop(last, None)
            self.leave_out("incomplete", str(error))
        samples = {key: value for key, value in samples.items() if value[0]}
        return samples, plain

    def _add_plain(self, number: int, plain: Mapping[str, Member], split: str) -> None:
        """Adds the videos of a tar of plain folders."""
        prefix, videos = group_frames(plain, split)
        fps = YOUTUBE_VOS_FPS if is_youtube_vos(prefix) else None
        for name, frames in videos.items():
            if len(frames) < 2:
                self.leave_out("too_short", f"{name!r} of {self.paths[number].name} has one frame")
                continue
            members = [plain[prefix + frame] for frame in frames]
            key = name.replace(".", "_") or self.paths[number].stem
            self._add(number, key, name or key, (fps, frame_numbers(frames)), members)

    def _add(
        self,
        number: int,
        key: str,
        video: str,
        meta: tuple[float | None, tuple[int, ...] | None],
        members: Sequence[Member],
    ) -> None:
        """Adds one clip to the tables."""
        self._keys.append(key)
        self._videos.append(video)
        self._meta.append(meta)
        for member in members:
            self._shard.append(number)
            self._offset.append(member.offset)
            self._size.append(member.size)
        self._first.append(len(self._offset))


def _video_details(folder: Path) -> Mapping[str, Any]:
    """Returns `videos_detail` of the folder's index, or nothing where there is none."""
    path = folder / INDEX_NAME
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"`source` has an unreadable index {str(path)!r} ({error}).") from error
    details = content.get("videos_detail", {}) if isinstance(content, dict) else {}
    return details if isinstance(details, dict) else {}


def _read_meta(path: Path, member: Member | None) -> dict[str, Any]:
    """Returns the JSON of a clip, empty where it has none."""
    if member is None:
        return {}
    content = json.loads(read_tar_member(path, member.offset, member.size))
    if not isinstance(content, dict):
        raise ValueError(f"{member.name} holds no JSON object")
    return content


def _own_numbers(order: Sequence[int]) -> tuple[int, ...] | None:
    """Returns the numbers of the members where they have gaps."""
    is_adjacent = order[-1] - order[0] == len(order) - 1
    return None if is_adjacent else tuple(order)


class ZipSource(TableSource):
    """One clip per folder of frames of a zip, such as YouTube-VOS as downloaded.

    Args:
        path: The zip.
        split: Name of the split in front of `JPEGImages`.

    Raises:
        ValueError: If the zip is damaged, encrypted, holds links or unsafe paths, or has no video
            of at least two frames.
    """

    def __init__(self, path: str | os.PathLike[str], split: str = "train") -> None:
        super().__init__()
        self.path = Path(path)
        members = {member.name: member for member in zip_members(self.path)}
        prefix, videos = group_frames(members, split)
        self._first = array("q", [0])
        self._offset = array("q")
        self._size = array("q")
        self._checksum = array("q")
        self._is_deflated = array("b")
        usable = list(self._add(members, prefix, videos))
        if not usable:
            raise ValueError(
                f"`source` {str(path)!r} holds no video of at least two frames; expected"
                " JPEGImages/<video>/<frame>.jpg."
            )
        self.table = FrameTable(usable, YOUTUBE_VOS_FPS if is_youtube_vos(prefix) else None)

    def read(self, index: int, frames: Sequence[int]) -> list[bytes]:
        """Returns the encoded `frames` of video `index`."""
        return [self._read(self._first[index] + frame) for frame in frames]

    def _read(self, entry: int) -> bytes:
        """Returns the bytes of one entry of the flat tables."""
        return read_zip_member(
            self.path,
            self._offset[entry],
            self._size[entry],
            is_deflated=bool(self._is_deflated[entry]),
            checksum=self._checksum[entry],
        )

    def _add(
        self, members: Mapping[str, Member], prefix: str, videos: Mapping[str, Sequence[str]]
    ) -> Iterator[tuple[str, Sequence[str]]]:
        """Fills the tables and yields name and frames of each usable video."""
        for name, frames in videos.items():
            if len(frames) < 2:
                self.leave_out("too_short", f"{name!r} of {self.path.name} has one frame")
                continue
            for frame in frames:
                member = members[prefix + frame]
                self._offset.append(member.offset)
                self._size.append(member.size)
                self._checksum.append(member.checksum)
                self._is_deflated.append(member.is_deflated)
            self._first.append(len(self._offset))
            yield name or self.path.stem, frames
