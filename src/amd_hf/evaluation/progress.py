"""What has been scored so far, on disk, so that an interrupted evaluation goes on where it was."""

import glob
import hashlib
import json
import logging
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amd_hf.evaluation.scoring import ScoredRows
from amd_hf.whole_files import written_aside

logger = logging.getLogger(__name__)

# What NumPy raises for damaged archives; its headers are parsed as Python literals.
UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


class EvaluationProgress:
    """Rows of every pass of one evaluation; saved by rename, so a crash leaves the last state.

    Args:
        path: File of the state; None keeps it in memory only. Other processes than the first add
            their index to its name. Rows of all of them are loaded, so that an interrupted run can
            go on with another number of processes.
        identity: Everything that must be equal for old rows to be used again.
        rank: Index of this process.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any], rank: int = 0) -> None:
        """Loads the state of an interrupted run with the same identity."""
        self.main_path = path
        self.path = path if path is None or not rank else path.with_name(f"{path.name}-{rank}")
        self.identity = json.dumps(identity, sort_keys=True)
        self.passes: dict[str, ScoredRows] = {}
        for found in self._files():
            self._load(found)

    def _files(self) -> list[Path]:
        """The state files of all processes."""
        main = self.main_path
        if main is None:
            return []
        others = (path for path in main.parent.glob(f"{glob.escape(main.name)}-*"))
        numbered = [path for path in others if path.name[len(main.name) + 1 :].isdigit()]
        return [path for path in (main, *sorted(numbered)) if path.is_file()]

    def _load(self, path: Path) -> None:
        """Takes over the rows of `path` if they belong to this evaluation."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as state:
                header = json.loads(str(state["header"]))
                curves = {name: list(state[f"curves/{name}"]) for name in header["has_curves"]}
                thumbnails = {
                    name: _split(state[f"thumbnails/{name}"], sizes)
                    for name, sizes in header["thumbnail_sizes"].items()
                }
        except UNREADABLE as error:
            logger.warning("Cannot use the unfinished state %s (%s); starting afresh.", path, error)
            return
        if header["identity"] != self.identity:
            logger.warning("%s belongs to other settings or weights; starting afresh.", path)
            return
        for name, rows in header["rows"].items():
            self.of(name).add(
                ScoredRows(rows, curves.get(name, []), dict(thumbnails.get(name, {})))
            )
        num_rows = sum(len(rows) for rows in header["rows"].values())
        logger.warning("Resuming from %s: %d rows are done.", path, num_rows)

    def of(self, name: str) -> ScoredRows:
        """The rows of one pass so far."""
        return self.passes.setdefault(name, ScoredRows())

    def save(self) -> None:
        """Writes the state beside its place and renames it."""
        if self.path is None:
            return
        header = {
            "identity": self.identity,
            "rows": {name: scored.rows for name, scored in self.passes.items()},
            "has_curves": [name for name, scored in self.passes.items() if scored.curves],
            "thumbnail_sizes": {
                name: {key: len(data) for key, data in scored.thumbnails.items()}
                for name, scored in self.passes.items()
            },
        }
        arrays: dict[str, Any] = {"header": np.array(json.dumps(header))}
        for name, scored in self.passes.items():
            if scored.curves:
                arrays[f"curves/{name}"] = np.stack(scored.curves)
            joined = b"".join(scored.thumbnails.values())
            arrays[f"thumbnails/{name}"] = np.frombuffer(joined, dtype=np.uint8)
        with written_aside(self.path) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)

    def finish(self) -> None:
        """Removes the state files of all processes."""
        for path in self._files():
            path.unlink(missing_ok=True)


def _split(joined: np.ndarray, sizes: dict[str, int]) -> dict[str, bytes]:
    """Byte strings by name from their concatenation."""
    data, start, result = joined.tobytes(), 0, {}
    for name, size in sizes.items():
        result[name] = data[start : start + size]
        start += size
    return result


def fingerprint(named_tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """First 16 hex digits of a SHA-256 over names and values: equal weights, equal text."""
    digest = hashlib.sha256()
    for name, tensor in named_tensors:
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
