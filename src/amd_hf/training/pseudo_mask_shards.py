"""Writes a data set of clips with pseudo-masks beside their frames; resumable by shard."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from amd_hf.data.frame_arrays import open_frame
from amd_hf.data.object_masks import mask_member_name
from amd_hf.data.packing_clips import add_member
from amd_hf.data.sources import ClipSource
from amd_hf.image_io_amd import DECODE_ERRORS, open_image, to_rgb
from amd_hf.modeling_amd import AMDModel
from amd_hf.training.pseudo_masks import (
    background_saliency,
    is_plausible,
    motion_evidence,
    object_masks,
    pseudo_mask,
    refine_by_color,
)
from amd_hf.whole_files import write_atomically

INDEX_NAME = "index.json"
SETTINGS_NAME = "pseudo_masks.json"


@dataclass(frozen=True)
class PseudoMaskSettings:
    """What decides about the masks.

    Attributes:
        model_name_or_path: The model whose masks are added to motion; None uses motion alone.
        short_side: Short side at which the model looks at the frames, in pixels.
        use_saliency: Whether saliency of the single frame is added to motion.
        clips_per_shard: Clips of the source of every shard.
        key_prefix: Put before the names of the clips, so that the shards of sources whose clips
            have the same names can lie in one folder; without dots and slashes.

    Raises:
        ValueError: If the prefix has one.
    """

    model_name_or_path: str | None = None
    short_side: int = 160
    use_saliency: bool = False
    clips_per_shard: int = 250
    key_prefix: str = ""

    def __post_init__(self) -> None:
        if "." in self.key_prefix or "/" in self.key_prefix:
            raise ValueError(
                f"`key_prefix` must hold neither dots nor slashes, got {self.key_prefix!r}."
            )


@dataclass
class Counts:
    """What became of clips and frames."""

    clips: int = 0
    frames: int = 0
    masks: int = 0
    skipped: dict[str, int] = field(default_factory=dict)

    def skip(self, reason: str) -> None:
        """Counts a clip that gave nothing."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1


def write_pseudo_masks(
    source: ClipSource,
    output_dir: str | os.PathLike[str],
    settings: PseudoMaskSettings | None = None,
    *,
    num_workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Writes the clips that have a plausible object as tar shards with masks.

    Interrupted at any moment, a call with the same arguments goes on after the last whole shard.

    Args:
        source: Clips of short length (all frames of a clip are held in memory).
        output_dir: Folder of the shards; made where it is missing.
        settings: How the masks are made; None uses motion alone.
        num_workers: Processes that work on shards; 0 works in this one. The result is the same.
        progress: Called with the numbers of finished and of all clips.

    Returns:
        The content of `index.json`: settings and counts.

    Raises:
        ValueError: If the folder belongs to other settings, or no clip has a plausible object.
        OSError: If the folder cannot be written; finished shards stay.
    """
    settings = settings if settings is not None else PseudoMaskSettings()
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, settings, len(source))
    shards = _plan(folder, len(source), settings)
    total, num_done = Counts(), 0
    for number, counts in _run(source, shards, settings, num_workers):
        _add(total, counts)
        num_done += len(shards[number][1])
        if progress is not None:
            progress(num_done, len(source))
    if not total.masks:
        raise ValueError(
            f"`source` has {len(source)} clips, but none shows something that moves on its own."
        )
    index = {
        "description": "clips with pseudo-masks of moving objects; no labels were used",
        "settings": asdict(settings),
        **asdict(total),
    }
    write_atomically(folder / INDEX_NAME, json.dumps(index, indent=1).encode())
    return index


Shard = tuple[Path, range]


def _plan(folder: Path, num_clips: int, settings: PseudoMaskSettings) -> list[Shard]:
    """Returns path and clips of every shard."""
    size = settings.clips_per_shard
    return [
        (folder / f"shard-{number:05d}.tar", range(first, min(first + size, num_clips)))
        for number, first in enumerate(range(0, num_clips, size))
    ]


def _run(
    source: ClipSource, shards: list[Shard], settings: PseudoMaskSettings, num_workers: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields number and counts of every shard, in whatever order they are finished."""
    if num_workers == 0:
        _start_worker(source, settings)
        for number, shard in enumerate(shards):
            yield number, _finished_shard(shard)
        return
    # Spawned, not forked: a fork of a process with computing threads can hang.
    context = multiprocessing.get_context("spawn")
    arguments = (source, settings)
    with ProcessPoolExecutor(num_workers, context, _start_worker, arguments) as pool:
        jobs = {pool.submit(_finished_shard, shard): n for n, shard in enumerate(shards)}
        for job in as_completed(jobs):
            yield jobs[job], job.result()


_worker: list[tuple[ClipSource, PseudoMaskSettings, AMDModel | None]] = []


def _start_worker(source: ClipSource, settings: PseudoMaskSettings) -> None:
    """Keeps source and model in a worker process, so that they are sent and loaded once."""
    name = settings.model_name_or_path
    model = AMDModel.from_pretrained(name).eval() if name is not None else None
    _worker[:] = [(source, settings, model)]


def _finished_shard(shard: Shard) -> dict[str, Any]:
    """Writes a shard unless it is there already; returns its counts."""
    path, clips = shard
    report = path.with_suffix(".json")
    if not report.is_file():
        source, settings, model = _worker[0]
        counts = _write_shard(source, clips, path, model, settings)
        write_atomically(report, json.dumps(asdict(counts)).encode())
    return dict(json.loads(report.read_text(encoding="utf-8")))


def _claim(folder: Path, settings: PseudoMaskSettings, num_clips: int) -> None:
    """Writes the settings into a new folder; refuses a folder of other settings."""
    wanted = {**asdict(settings), "num_clips": num_clips}
    path = folder / SETTINGS_NAME
    if not path.is_file():
        write_atomically(path, json.dumps(wanted, indent=1).encode())
        return
    # Folders of earlier versions lack the settings that these did not have.
    found = asdict(PseudoMaskSettings()) | json.loads(path.read_text(encoding="utf-8"))
    if found != wanted:
        changed = ", ".join(name for name in wanted if found.get(name) != wanted[name])
        raise ValueError(
            f"`output_dir` {str(folder)!r} was begun with other {changed}; choose another folder "
            "or delete it."
        )


def _add(total: Counts, part: dict[str, Any]) -> None:
    total.clips += part["clips"]
    total.frames += part["frames"]
    total.masks += part["masks"]
    for reason, count in part["skipped"].items():
        total.skipped[reason] = total.skipped.get(reason, 0) + count


def _write_shard(
    source: ClipSource,
    clips: range,
    path: Path,
    model: AMDModel | None,
    settings: PseudoMaskSettings,
) -> Counts:
    """Writes one shard aside and moves it into place when it is whole."""
    counts = Counts()
    partial = path.with_suffix(".partial")
    with tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as archive:
        for index in clips:
            clip = source.clip(index)
            try:
                encoded = source.read(index, range(clip.num_frames))
                frames = _decode(encoded)
            except DECODE_ERRORS:
                counts.skip("unreadable")
                continue
            masks = list(_masks(frames, model, settings))
            if all(mask is None for mask in masks):
                counts.skip("no_plausible_object")
                continue
            key = settings.key_prefix + clip.key.replace("/", "__")
            for frame, (data, mask) in enumerate(zip(encoded, masks, strict=True)):
                add_member(archive, f"{key}.f{frame}.{_suffix(data)}", data)
                if mask is not None:
                    add_member(archive, mask_member_name(key, frame), _png(mask))
                    counts.masks += 1
            numbers = [clip.frame_number(frame) for frame in range(clip.num_frames)]
            meta = {"video": clip.video, "fps": clip.fps, "numbers": numbers}
            add_member(archive, f"{key}.json", json.dumps(meta).encode())
            counts.clips += 1
            counts.frames += clip.num_frames
    partial.replace(path)
    return counts


def _masks(
    frames: Tensor, model: AMDModel | None, settings: PseudoMaskSettings
) -> Iterator[Tensor | None]:
    """Yields the soft mask of each frame, or None where it shows no plausible object."""
    seen = object_masks(model, frames, settings.short_side) if model is not None else None
    for index, frame in enumerate(frames):
        # Both neighbors, or the two frames that follow at the clip's ends.
        near = sorted(range(len(frames)), key=lambda other: abs(other - index))[1:3]
        evidence = motion_evidence(frame, frames[near])
        saliency = background_saliency(frame) if settings.use_saliency else None
        mask = pseudo_mask(evidence, seen[index] if seen is not None else None, saliency)
        is_motion_alone = seen is None and saliency is None
        if not is_motion_alone and bool((mask > 0.5).any()):
            mask = refine_by_color(frame, mask)
        yield mask if is_plausible(mask, evidence) else None


def _decode(encoded: list[bytes]) -> Tensor:
    """Returns frames (T, 3, H, W) in [0, 1].

    Raises:
        ValueError: If the frames differ in size; on damaged ones others of `DECODE_ERRORS`.
    """
    images = [np.array(to_rgb(open_frame(data))) for data in encoded]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255.0


def _suffix(data: bytes) -> str:
    """Returns the file-name suffix of an encoded image."""
    kind = (open_image(io.BytesIO(data)).format or "JPEG").lower()
    return "jpg" if kind == "jpeg" else kind


def _png(mask: Tensor) -> bytes:
    """Returns a soft mask as an 8-bit PNG."""
    stream = io.BytesIO()
    pixels = (mask * 255.0).round().to(torch.uint8).numpy()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


__all__ = ["PseudoMaskSettings", "write_pseudo_masks"]
