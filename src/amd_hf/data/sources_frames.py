"""Clips from folders of images, in the layout of YouTube-VOS, of DAVIS, or one folder per video."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from amd_hf.data.sources import (
    YOUTUBE_VOS_FPS,
    FrameTable,
    TableSource,
    group_frames,
    is_image,
    is_youtube_vos,
)


class FrameFolderSource(TableSource):
    """One clip per folder of frames.

    Args:
        root: `.../YouTubeVOS` with `train_all_frames/JPEGImages/<video>/<frame>.jpg` or
            `train/JPEGImages/...`, the `JPEGImages` folder itself, any folder of folders of
            images, or one folder of images (one video).
        split: Name of the split in front of `JPEGImages`.

    Raises:
        ValueError: If no video of at least two frames is found.
    """

    def __init__(self, root: str | os.PathLike[str], split: str = "train") -> None:
        super().__init__()
        self.root = Path(root)
        start = _start(self.root, split)
        below = start.relative_to(self.root).as_posix()
        base = "" if below == "." else f"{below}/"
        prefix, videos = group_frames((base + path for path in _walk(start)), split)
        self.prefix = prefix
        usable = []
        for name, frames in videos.items():
            if len(frames) < 2:
                self.leave_out("too_short", f"{self.root / prefix / name} has one frame")
            else:
                usable.append((name or self.root.name, frames))
        if not usable:
            raise ValueError(
                f"`source` {str(self.root)!r} holds no video of at least two frames; expected"
                " JPEGImages/<video>/<frame>.jpg, tar shards or video files."
            )
        is_numbered = is_youtube_vos(f"{self.root.resolve().as_posix()}/{prefix}")
        is_numbered = is_numbered or is_youtube_vos(f"{self.root.resolve().as_posix()}/")
        self.table = FrameTable(usable, YOUTUBE_VOS_FPS if is_numbered else None)

    def read(self, index: int, frames: Sequence[int]) -> list[bytes]:
        """Returns the files of `frames` of video `index`."""
        names = self.table.frames(index)
        folder = self.root / self.prefix
        return [(folder / names[frame]).read_bytes() for frame in frames]


def _start(root: Path, split: str) -> Path:
    """Returns the folder to walk, so that masks and other splits are not even listed."""
    for name in (f"{split}_all_frames", split, "."):
        folder = root / name / "JPEGImages"
        if folder.is_dir():
            return folder
    return root


def _walk(start: Path) -> Iterator[str]:
    """Yields the relative paths of all images below `start`, following links to folders."""
    for folder, subfolders, files in os.walk(start, followlinks=True):
        subfolders[:] = sorted(
            name for name in subfolders if not name.startswith(".") and not _is_loop(folder, name)
        )
        relative = Path(folder).relative_to(start).as_posix()
        base = "" if relative == "." else f"{relative}/"
        yield from (base + name for name in files if is_image(name))


def _is_loop(folder: str, name: str) -> bool:
    """Says whether a subfolder is a link to a folder that holds it; walking it would never end."""
    path = os.path.join(folder, name)
    if not os.path.islink(path):
        return False
    target, here = os.path.realpath(path), os.path.realpath(folder)
    return os.path.commonpath([target, here]) == target
