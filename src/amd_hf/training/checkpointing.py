"""Checkpoints that are whole or absent: written aside, synced, then renamed.

A checkpoint `OUTPUT_DIR/step_N` is written into a hidden folder next to it. Its manifest holds the
size and the SHA-256 of every file, all files and folders are synced to disk, and one rename makes
it visible. Whatever moment the process is killed at, a folder named `step_N` is complete; should
the disk lose part of it later, the manifest shows it and the checkpoint before is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from amd_hf.whole_files import PARTIAL_PREFIX, sync_path, write_atomically

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STEP_FOLDER = re.compile(r"step_(\d+)")
TRASH_PREFIX = ".trash_"
READ_SIZE = 1 << 20
# What `torch.load(weights_only=True)` raises on damaged files, apart from what it refuses.
TORCH_LOAD_ERRORS: tuple[type[Exception], ...] = (
    *(RuntimeError, OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
    *(EOFError, ArithmeticError, MemoryError, pickle.UnpicklingError, struct.error),
)
# What a full or vanished disk raises: torch and safetensors have their own ways to say it.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or is not whole."""


def checkpoint_path(output_dir: str | Path, step: int) -> Path:
    """The folder of the checkpoint after `step` optimizer steps."""
    return Path(output_dir) / f"step_{step}"


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(READ_SIZE):
            digest.update(block)
    return digest.hexdigest()


def write_text_atomically(path: Path, text: str) -> None:
    """Writes a text file of a run by `write_atomically`.

    Raises:
        CheckpointError: If it cannot be written; the old content stays.
    """
    try:
        write_atomically(path, text.encode(errors="surrogateescape"))
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written: {error}; free space and run again with "
            "--resume_from_checkpoint latest."
        ) from error


def begin_checkpoint(output_dir: str | Path, step: int) -> Path:
    """An empty hidden folder to write a checkpoint into; called by one process only."""
    partial = Path(output_dir) / f"{PARTIAL_PREFIX}step_{step}"
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    return partial


def commit_checkpoint(partial: Path) -> Path:
    """Makes a written folder visible as a checkpoint; called by one process when all have written.

    Args:
        partial: The folder of `begin_checkpoint`, with all its files.

    Returns:
        The folder under its final name.

    Raises:
        OSError: If the disk is full or fails; the folder stays hidden.
    """
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    entries = {
        str(path.relative_to(partial)): {"size": path.stat().st_size, "sha256": file_digest(path)}
        for path in files
    }
    manifest = partial / MANIFEST
    manifest.write_text(json.dumps(entries, indent=1, sort_keys=True))
    for path in [*files, manifest, *(p for p in partial.rglob("*") if p.is_dir()), partial]:
        sync_path(path)
    final = partial.with_name(partial.name.removeprefix(PARTIAL_PREFIX))
    if final.exists():
        _discard(final)
    partial.rename(final)
    sync_path(final.parent)
    return final


def _discard(folder: Path) -> None:
    # Renamed first: a kill in the middle of the deletion must not leave a torn `step_N`.
    trash = folder.with_name(f"{TRASH_PREFIX}{folder.name}")
    if trash.exists():
        shutil.rmtree(trash)
    folder.rename(trash)
    shutil.rmtree(trash)


def remove_leftovers(output_dir: str | Path) -> list[str]:
    """Deletes what killed processes left half written; called by one process only.

    Returns:
        The names of the deleted files and folders.
    """
    removed = []
    for prefix in (PARTIAL_PREFIX, TRASH_PREFIX):
        for path in sorted(Path(output_dir).glob(f"{prefix}*")):
            removed.append(path.name)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    return removed


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The `step_N` folders of a run, oldest first, whole or not."""
    folder = Path(output_dir)
    if not folder.is_dir():
        return []
    found = [(STEP_FOLDER.fullmatch(path.name), path) for path in folder.iterdir()]
    steps = [(int(match[1]), path) for match, path in found if match and path.is_dir()]
    return [path for _, path in sorted(steps)]


def verify_checkpoint(folder: Path) -> None:
    """Checks every file of a checkpoint against its manifest.

    Raises:
        CheckpointError: If the manifest or a file is missing, or a file is not what was written.
    """
    for name, size, digest in _manifest_entries(folder):
        path = folder / name
        try:
            is_there = path.is_file() and path.stat().st_size == size
        except (OSError, ValueError):  # no name that a file can have
            is_there = False
        if not is_there:
            raise CheckpointError(f"{folder} is not a whole checkpoint: {name} is missing or cut.")
        if file_digest(path) != digest:
            raise CheckpointError(f"{folder} is not a whole checkpoint: {name} was altered.")


def _manifest_entries(folder: Path) -> list[tuple[str, int, str]]:
    """Name, size and SHA-256 of every file that the manifest of a checkpoint lists.

    Raises:
        CheckpointError: If the manifest is missing, or is not one that `commit_checkpoint` wrote.
    """
    try:
        entries = json.loads((folder / MANIFEST).read_text())
        found = [(name, entry["size"], entry["sha256"]) for name, entry in entries.items()]
        is_inside = all("\0" not in name and _is_below(folder, name) for name, _, _ in found)
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder} is not a whole checkpoint: its {MANIFEST} is missing or torn."
        ) from error
    if not found or not is_inside:
        raise CheckpointError(
            f"{folder} is not a whole checkpoint: its {MANIFEST} lists no file of it."
        )
    return found


def _is_below(folder: Path, name: str) -> bool:
    """Whether a relative name stays in a folder."""
    return (folder / name).resolve().is_relative_to(folder.resolve())


def latest_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest whole checkpoint of a run; None if there is none. Torn ones are named in a log."""
    for folder in reversed(list_checkpoints(output_dir)):
        try:
            verify_checkpoint(folder)
        except CheckpointError as error:
            logger.warning("%s Trying the checkpoint before it.", error)
            continue
        return folder
    return None


def prune_checkpoints(output_dir: str | Path, limit: int | None) -> list[str]:
    """Deletes the oldest checkpoints beyond `limit`; None keeps all.

    Returns:
        The names of the deleted folders.
    """
    if limit is None:
        return []
    surplus = list_checkpoints(output_dir)[:-limit]
    for folder in surplus:
        _discard(folder)
    return [folder.name for folder in surplus]


def write_checkpoint(
    output_dir: str | Path,
    step: int,
    *,
    write_shared: Callable[[Path], None],
    write_rank: Callable[[Path], None],
    is_main: bool = True,
    all_succeeded: Callable[[bool], bool] = bool,
    limit: int | None = None,
) -> Path | None:
    """Writes a checkpoint together with the other processes; all call it at the same step.

    Args:
        output_dir: Folder of the run, on storage that all processes see.
        step: Number of optimizer steps done.
        write_shared: Writes what is the same for all processes; called in the main one.
        write_rank: Writes what belongs to this process.
        is_main: Whether this is the process that makes and renames the folder.
        all_succeeded: Tells every process whether all of them succeeded; a barrier.
        limit: Number of checkpoints to keep; None keeps all.

    Returns:
        The folder; None if some process could not write (for example: disk full). The checkpoints
        before it are untouched then.
    """
    partial = Path(output_dir) / f"{PARTIAL_PREFIX}step_{step}"
    final = checkpoint_path(output_dir, step)
    phases: list[tuple[bool, Callable[[], Any]]] = [
        (is_main, lambda: begin_checkpoint(output_dir, step)),
        (True, lambda: write_rank(partial)),
        (is_main, lambda: write_shared(partial)),
        (is_main, lambda: commit_checkpoint(partial)),
    ]
    for is_mine, action in phases:
        if not all_succeeded(_attempt(action) if is_mine else True):
            if is_main:
                shutil.rmtree(partial, ignore_errors=True)
            return None
    if is_main:
        prune_checkpoints(output_dir, limit)
    return final


def _attempt(action: Callable[[], Any]) -> bool:
    try:
        action()
    except WRITE_ERRORS as error:
        logger.error("The checkpoint could not be written: %s", error)
        return False
    return True


def save_final(model: Any, processor: Any, folder: Path) -> None:
    """Writes a complete model folder aside and moves its files into place one by one.

    Args:
        model: What is saved by `save_pretrained`.
        processor: Its image processor, saved likewise.
        folder: Where to; made if it is missing.

    Raises:
        CheckpointError: If it cannot be written; the last checkpoint holds the weights.
    """
    partial = folder / f"{PARTIAL_PREFIX}final"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        for path in sorted(partial.iterdir()):
            sync_path(path)
            path.replace(folder / path.name)
        sync_path(folder)
    except WRITE_ERRORS as error:
        raise CheckpointError(
            f"The final weights could not be written to {folder}: {error}; free space and run "
            "again with --resume_from_checkpoint latest."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def save_state(state: dict[str, Any], path: Path) -> None:
    """Saves a state of tensors and plain values.

    Raises:
        OSError: If the file cannot be written.
        RuntimeError: If torch cannot write it, for example onto a full disk.
    """
    with path.open("wb") as stream:
        torch.save(state, stream)


def load_state(path: Path) -> dict[str, Any]:
    """Loads what `save_state` wrote, on the CPU, without running any pickled code.

    Raises:
        CheckpointError: If the file is missing or cannot be read.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent} has no {path.name}; it is not a checkpoint of this run."
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except TORCH_LOAD_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise CheckpointError(f"{path} cannot be read: {reason}.") from error
