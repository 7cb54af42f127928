"""What an interrupted `amd-hf segment` has finished, so that it can go on from there."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch

from amd_hf.cli.inputs import Job
from amd_hf.image_io_amd import is_address

STATE_NAME = "segment.unfinished"
# Arguments that change no mask.
WITHOUT_EFFECT = ("inputs", "output", "json", "quiet", "run", "command", "device", "batch_size")


class FinishedJobs:
    """Finished inputs of a command with their results, one JSON line each in the output folder.

    Every process writes a file of its own and reads those of all, so that a command can go on with
    another number of processes. A file of another model or of other options is not used.

    Args:
        folder: The output folder.
        identity: Text that is equal for equal masks; see `identity_of`.
        rank: Index of this process.
    """

    def __init__(self, folder: Path, identity: str, rank: int = 0) -> None:
        self.folder = folder
        self.path = folder / f"{STATE_NAME}-{rank}"
        self.identity = identity
        self.results: dict[str, dict[str, Any]] = {}
        for path in self._files():
            self._load(path)
        self.num_found = len(self.results)

    def get(self, job: Job) -> tuple[dict[str, Any], str] | None:
        """Record and sentence of a finished job whose files and masks are there, else None."""
        found = self.results.get(job.name)
        if found is None or found["input"] != _state_of(job):
            return None
        record = found["record"]
        written = Path(record.get("mask") or record["masks"])
        return (record, found["sentence"]) if written.exists() else None

    def add(self, job: Job, record: dict[str, Any], sentence: str) -> None:
        """Notes a finished job at once."""
        is_new = self.identity not in _first_line(self.path)
        line = {"name": job.name, "input": _state_of(job), "record": record, "sentence": sentence}
        with self.path.open("w" if is_new else "a", encoding="utf-8") as file:
            # The line break comes first: a line that a kill cut off spoils no other.
            file.write(f"{self.identity}\n" if is_new else "\n")
            file.write(json.dumps(line) + "\n")

    def clear(self) -> None:
        """Removes the files of all processes."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"{STATE_NAME}-*"))

    def _load(self, path: Path) -> None:
        if self.identity not in _first_line(path):
            return
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[1:]:
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # empty, or cut off by a kill: that input is done again
            self.results[entry["name"]] = entry


def identity_of(options: dict[str, Any], model: Any) -> str:
    """A text that is equal where the same inputs give the same masks.

    Args:
        options: The arguments of the command by name.
        model: The model that segments.
    """
    digest = hashlib.sha256()
    kept = {name: value for name, value in options.items() if name not in WITHOUT_EFFECT}
    digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _first_line(path: Path) -> str:
    """The first line of a file, empty where there is none."""
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline()


def _state_of(job: Job) -> list[list[Any]]:
    """Name, size and time of the files of a job; addresses count as unchanged."""
    if is_address(job.source):
        return [[job.source]]
    files = job.frames or [Path(job.source)]
    states = ((path, os.stat(path)) for path in files)
    return [[str(path), state.st_size, state.st_mtime_ns] for path, state in states]
