"""What `amd-hf segment` has to do: inputs sorted into images and videos, with names for outputs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlparse

from amd_hf.cli.progress import Console
from amd_hf.image_io_amd import (
    DECODE_ERRORS,
    MAX_IMAGE_PIXELS,
    is_address,
    list_images,
    open_image,
    upright_size,
)
from amd_hf.video_amd import is_video


@dataclass
class Job:
    """One image, or one video.

    Attributes:
        source: Path or address as it was given.
        is_video: Whether it gives many masks.
        frames: Files of the frames where the source is a folder.
        name: Name of its outputs, set by `name_outputs`.
    """

    source: str
    is_video: bool
    frames: list[Path] = field(default_factory=list)
    name: str = ""


def plan_jobs(inputs: Iterable[str], console: Console) -> list[Job]:
    """One job per image or video; inputs that cannot be one are reported to `console`.

    A folder of same-size images is one video, a folder of mixed sizes is many images. An input that
    is named twice is done once.
    """
    jobs: list[Job] = []
    for source in dict.fromkeys(inputs):
        if not is_address(source) and not os.path.exists(source):
            console.fail(source, f"There is no file or folder {source!r}; check the path.")
        elif os.path.isdir(source):
            jobs.extend(_plan_folder(source, console))
        else:
            jobs.append(Job(source, is_video(source)))
    name_outputs(jobs)
    return jobs


def _plan_folder(folder: str, console: Console) -> list[Job]:
    """The jobs of a folder."""
    try:
        paths = list_images(folder)
    except OSError as error:
        console.fail(folder, f"The folder {folder!r} cannot be read ({error.strerror}).")
        return []
    if not paths:
        console.fail(folder, f"The folder {folder!r} holds no image; check the path.")
        return []
    sizes: dict[Path, tuple[int, int]] = {}
    for path in paths:
        try:
            with open_image(path) as image:
                sizes[path] = upright_size(image)
        except DECODE_ERRORS as error:
            reason = f"{str(path)!r} is not a readable image of at most {MAX_IMAGE_PIXELS} pixels"
            console.fail(str(path), f"{reason} ({error}); replace the file.")
    if len(set(sizes.values())) == 1 and len(sizes) > 1:
        return [Job(folder, True, list(sizes))]
    if len(sizes) > 1:
        console.note(f"{folder}: images of mixed sizes, segmented one by one.")
    return [Job(str(path), False) for path in sizes]


def name_outputs(jobs: list[Job]) -> None:
    """Sets the names: the stem; with the extension, the folder or a number where names clash.

    Capital letters make no difference, as on the file systems of macOS and Windows.
    """
    paths = [_as_path(job.source) for job in jobs]
    candidates = [
        [path.name if job.frames else path.stem, path.name, f"{path.parent.name}_{path.name}"]
        for job, path in zip(jobs, paths, strict=True)
    ]
    waiting = list(range(len(jobs)))
    taken: set[str] = set()
    for level in range(3):
        wanted = {index: candidates[index][level] for index in waiting}
        counts = Counter(name.casefold() for name in wanted.values())
        for index, name in wanted.items():
            if counts[name.casefold()] == 1 and name.casefold() not in taken:
                jobs[index].name = name
                waiting.remove(index)
        taken.update(job.name.casefold() for job in jobs if job.name)
    for index in waiting:
        number = 2
        while f"{candidates[index][1]}-{number}".casefold() in taken:
            number += 1
        jobs[index].name = f"{candidates[index][1]}-{number}"
        taken.add(jobs[index].name.casefold())


def _as_path(source: str) -> Path:
    """A path with a usable name: "." and "clips/.." become the folder they stand for."""
    path = Path(urlparse(source).path) if is_address(source) else Path(source).absolute()
    path = path if is_address(source) else Path(os.path.normpath(path))
    return path if path.stem else path / "input"
