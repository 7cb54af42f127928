"""Files that are whole or absent: written aside, synced, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

PARTIAL_PREFIX = ".partial_"


def sync_path(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a small file so that readers see the old or the new content, never a part.

    Several processes may write the same file at once, unlike with `written_aside`.

    Args:
        path: The file, in a folder that exists.
        data: Its new content.

    Raises:
        OSError: If it cannot be written; the old content stays.
    """
    partial = path.with_name(f"{PARTIAL_PREFIX}{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        sync_path(partial)
        partial.replace(path)
        sync_path(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Saves a picture so that a killed process leaves the whole file or none.

    Not synced, unlike the other writers here: one of many files that are quickly made again.

    Args:
        picture: The picture.
        path: The file, in a folder that exists; its suffix decides the format.

    Raises:
        OSError: If it cannot be written; an old file stays.
    """
    partial = path.with_name(f"{PARTIAL_PREFIX}{path.name}")
    try:
        picture.save(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A place to write a file at that gets its own name only when it is whole and on the disk.

    The place has the same file name, in a hidden folder beside it, since some writers put the name
    into the file and others want to keep files of their own beside it. What a killed process left
    there is deleted by the next one.

    Args:
        path: Where the file shall be when the block is through; an old one stays until then.

    Yields:
        Where to write it.

    Raises:
        OSError: If the folder cannot be written or the disk is full.
    """
    folder = path.parent / f"{PARTIAL_PREFIX}{path.name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder / path.name
        sync_path(folder / path.name)
        (folder / path.name).replace(path)
        sync_path(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def folder_written_aside(folder: Path) -> Iterator[Path]:
    """A place to fill a folder at that gets its own name only when it is whole and on the disk.

    Args:
        folder: Where the folder shall be when the block is through; absent or empty until then.

    Yields:
        Where to fill it.

    Raises:
        OSError: If the disk is full or cannot be written, or the folder holds something meanwhile.
    """
    partial = folder.parent / f"{PARTIAL_PREFIX}{folder.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in [*partial.rglob("*"), partial]:
            sync_path(path)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
        sync_path(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
