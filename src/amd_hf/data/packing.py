"""Packing of videos into tar shards that stream fast, locally and from the Hugging Face Hub.

Two stages, each resumable. First every video becomes one part, in parallel. Then the clips of all
parts are permuted and copied into shards. The result does not depend on the number of workers, of
processes of a launcher, or on interruptions.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tarfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from amd_hf.data.archives import read_tar_member, tar_members
from amd_hf.data.packing_clips import (
    PackingSettings,
    add_member,
    make_part,
    plan_windows,
    report_path,
)
from amd_hf.data.ranks import Ranks
from amd_hf.data.sources import ClipSource
from amd_hf.whole_files import PARTIAL_PREFIX, sync_path, write_atomically

INDEX_NAME = "index.json"
SETTINGS_NAME = "packing.json"
PARTS_FOLDER = "parts"
PARTIAL_SUFFIX = ".partial"
CARD = """---
pretty_name: {title}
configs:
- config_name: default
  data_files:
  - split: train
    path: shard-*.tar
---

# {title}

{clips} unlabelled clips of {frames_per_clip} frames from {videos} videos in {shards} shards, in
WebDataset style: `<key>.f0.jpg`, `<key>.f1.jpg`, ..., `<key>.json`. `index.json` holds the counts.

```python
from amd_hf.data import frame_pairs

pairs = frame_pairs("{title}")  # this folder, or the id of this data set on the Hub
```
"""


def pack_clips(
    source: ClipSource,
    output_dir: str | os.PathLike[str],
    settings: PackingSettings | None = None,
    *,
    num_workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Writes the clips of `source` as tar shards and returns the content of their `index.json`.

    Interrupted at any moment, even by SIGKILL, a call with the same arguments goes on after the
    last finished video, whatever the number of processes. A finished folder is left as it is.

    Args:
        source: What `open_source` gives for a folder, zip, tar or for video files.
        output_dir: Folder of the shards; made where it is missing.
        settings: What to pack; None takes the defaults.
        num_workers: Processes that read and encode; 0 works in this one.
        progress: Called with the numbers of finished and of all videos of this process.
        ranks: The processes that pack together into one folder that all of them see; None is this
            one alone.

    Returns:
        The index: settings, numbers of clips, frames, videos and skipped clips, the shards with
        their clips and bytes, and for every video its clips and frame rate.

    Raises:
        ValueError: If the folder holds shards of other settings or of another source, or if no
            clip could be packed.
        OSError: If the disk is full or not writable; what is finished stays.
        RuntimeError: If another of the processes ended early.
    """
    settings = settings if settings is not None else PackingSettings()
    ranks = ranks if ranks is not None else Ranks()
    folder = Path(output_dir)
    videos = plan_windows(source, settings)
    index = ranks.spread(_begin(folder, settings, videos) if ranks.is_main else None)
    if index is not None:
        return dict(index)
    parts = folder / PARTS_FOLDER
    _make_parts(source, videos, parts, settings, num_workers, progress, ranks)
    ranks.wait()  # a shard holds clips of all parts
    index = _make_shards(folder, parts, len(videos), settings, ranks)
    ranks.wait()
    if ranks.is_main:
        for shard in index["shards"]:
            shard["bytes"] = (folder / shard["name"]).stat().st_size
        for reason, (count, _) in source.left_out.items():
            index["skipped"][reason] = index["skipped"].get(reason, 0) + count
        write_atomically(folder / "README.md", _card(folder, index).encode())
        write_atomically(folder / INDEX_NAME, json.dumps(index, indent=1).encode())
        shutil.rmtree(parts)
    return dict(ranks.spread(index))


def _begin(
    folder: Path,
    settings: PackingSettings,
    videos: Sequence[tuple[str, list[tuple[int, int]]]],
) -> dict[str, Any] | None:
    """Makes the folder ready; returns its index where it is finished."""
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, settings, videos)
    _remove_leftovers(folder)
    if (folder / INDEX_NAME).is_file():
        return dict(json.loads((folder / INDEX_NAME).read_text(encoding="utf-8")))
    (folder / PARTS_FOLDER).mkdir(exist_ok=True)
    return None


def _claim(
    folder: Path, settings: PackingSettings, videos: Sequence[tuple[str, list[tuple[int, int]]]]
) -> None:
    """Writes the settings into a new folder; refuses a folder of other settings."""
    wanted = {
        "settings": asdict(settings),
        "num_videos": len(videos),
        "num_windows": sum(len(windows) for _, windows in videos),
    }
    path = folder / SETTINGS_NAME
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != wanted:
            changed = sorted(key for key in wanted if found.get(key) != wanted[key])
            raise ValueError(
                f"`output_dir` {str(folder)!r} was begun with other {', '.join(changed)}; choose"
                " another folder or delete it."
            )
        return
    if any(folder.glob("*.tar")):
        raise ValueError(f"`output_dir` {str(folder)!r} holds other tars; choose an empty folder.")
    write_atomically(path, json.dumps(wanted, indent=1).encode())


def _remove_leftovers(folder: Path) -> None:
    """Deletes what a killed run left half written, and the parts of a finished one."""
    for pattern in (f"*{PARTIAL_SUFFIX}", f"{PARTIAL_PREFIX}*"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    if (folder / INDEX_NAME).is_file():
        shutil.rmtree(folder / PARTS_FOLDER, ignore_errors=True)


def _make_parts(
    source: ClipSource,
    videos: Sequence[tuple[str, list[tuple[int, int]]]],
    parts: Path,
    settings: PackingSettings,
    num_workers: int,
    progress: Callable[[int, int], None] | None,
    ranks: Ranks,
) -> None:
    """Makes the part of every video of this process that has none yet."""
    mine = ranks.share(range(len(videos)))
    missing = [n for n in mine if not report_path(parts, n).is_file()]
    num_done = len(mine) - len(missing)
    if num_workers == 0:
        for number in missing:
            make_part(source, *videos[number], parts, number, settings)
            num_done += 1
            if progress is not None:
                progress(num_done, len(mine))
        return
    with ProcessPoolExecutor(num_workers, initializer=_set_source, initargs=(source,)) as pool:
        jobs = [
            pool.submit(_make_part_of_source, *videos[number], parts, number, settings)
            for number in missing
        ]
        for job in as_completed(jobs):
            job.result()
            num_done += 1
            if progress is not None:
                progress(num_done, len(mine))


_worker_source: list[ClipSource] = []


def _set_source(source: ClipSource) -> None:
    """Keeps the source in a worker process, so that it is sent once only."""
    _worker_source[:] = [source]
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends a worker whose parent was killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _make_part_of_source(
    video: str,
    windows: Sequence[tuple[int, int]],
    parts: Path,
    number: int,
    settings: PackingSettings,
) -> None:
    """Makes one part in a worker process."""
    make_part(_worker_source[0], video, windows, parts, number, settings)


def _make_shards(
    folder: Path, parts: Path, num_parts: int, settings: PackingSettings, ranks: Ranks
) -> dict[str, Any]:
    """Copies the permuted clips of all parts into the shards of this process; returns the index.

    The index lacks the sizes of the shards, which others may still be writing.
    """
    reports = [
        json.loads(report_path(parts, number).read_text(encoding="utf-8"))
        for number in range(num_parts)
    ]
    clips = [(n, i) for n, report in enumerate(reports) for i in range(report["clips"])]
    skipped: dict[str, int] = {}
    for report in reports:
        for reason, count in report["skipped"].items():
            skipped[reason] = skipped.get(reason, 0) + count
    if not clips:
        raise ValueError(
            f"`source` gave no clip of {settings.frames_per_clip} frames; left out: {skipped}."
        )
    order = np.random.default_rng(settings.seed).permutation(len(clips))
    shards: list[dict[str, Any]] = []
    members = [_clip_members(parts / f"{number:06d}.tar") for number in range(num_parts)]
    for first in range(0, len(clips), settings.clips_per_shard):
        chosen = [clips[int(place)] for place in order[first : first + settings.clips_per_shard]]
        path = folder / f"shard-{len(shards):05d}.tar"
        if len(shards) % ranks.count == ranks.rank and not path.is_file():
            _write_shard(path, parts, [(number, members[number][at]) for number, at in chosen])
        shards.append({"name": path.name, "clips": len(chosen)})
    return {
        "description": f"clips of {settings.frames_per_clip} frames, unlabelled",
        "settings": asdict(settings),
        "clips": len(clips),
        "frames": len(clips) * settings.frames_per_clip,
        "videos": sum(report["clips"] > 0 for report in reports),
        "skipped": skipped,
        "shards": shards,
        "videos_detail": {
            report["video"]: {
                name: report[name] for name in ("clips", "fps", "height", "width") if name in report
            }
            for report in reports
            if report["clips"]
        },
    }


def _write_shard(
    path: Path, parts: Path, clips: Sequence[tuple[int, list[tuple[str, int, int]]]]
) -> None:
    """Writes one shard from clips given by part and members; by rename, when all is on the disk."""
    partial = path.with_name(f"{path.name}{PARTIAL_SUFFIX}")
    with tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as archive:
        for number, members in clips:
            for name, offset, size in members:
                data = read_tar_member(parts / f"{number:06d}.tar", offset, size)
                add_member(archive, name, data)
    sync_path(partial)
    partial.replace(path)


def _clip_members(path: Path) -> list[list[tuple[str, int, int]]]:
    """Returns name, offset and size of the members of each clip of a part."""
    clips: list[list[tuple[str, int, int]]] = [[]]
    for member in tar_members(path):
        clips[-1].append((member.name, member.offset, member.size))
        if member.name.endswith(".json"):
            clips.append([])
    return clips[:-1]


def _card(folder: Path, index: Mapping[str, Any]) -> str:
    """Returns the data set card, whose header tells the Hub which files are data."""
    return CARD.format(
        title=folder.resolve().name,
        clips=index["clips"],
        frames_per_clip=index["settings"]["frames_per_clip"],
        videos=index["videos"],
        shards=len(index["shards"]),
    )
