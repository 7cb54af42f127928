"""Where a run reports: a log of JSON lines, pictures on disk, and the trackers of Accelerate."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from amd_hf.training.checkpointing import write_text_atomically

logger = logging.getLogger(__name__)

LOG_FILE = "log.jsonl"
PICTURE_FOLDER = "pictures"


class RunLog:
    """Reports of the main process; the other processes get one that stays silent.

    Args:
        output_dir: Folder of the run; `log.jsonl` and `pictures/` lie in it.
        accelerator: The Accelerator whose trackers get the same values, or None.
        is_active: False for all processes but the main one.
    """

    def __init__(
        self, output_dir: str | Path, accelerator: Any = None, is_active: bool = True
    ) -> None:
        self.folder = Path(output_dir)
        self.path = self.folder / LOG_FILE
        self.accelerator = accelerator
        self.is_active = is_active

    def rewind(self, step: int) -> None:
        """Drops the lines after `step`: a resumed run writes them again."""
        self._keep(lambda line: _step_of(line) <= step)

    def forget(self, step: int, split: str) -> None:
        """Drops the lines of one split at `step`, which are about to be written again."""
        self._keep(lambda line: _step_of(line) != step or json.loads(line).get("split") != split)

    def _keep(self, is_kept: Callable[[str], bool]) -> None:
        if not self.is_active or not self.path.is_file():
            return
        kept = [
            line for line in self.path.read_text(encoding="utf-8").splitlines() if is_kept(line)
        ]
        write_text_atomically(self.path, "".join(f"{line}\n" for line in kept))

    def metrics(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        """Reports values after `step` optimizer steps, to all places and the console."""
        if not self.is_active:
            return
        self._append(json.dumps({"step": step, "split": split, **values}))
        shown = ", ".join(
            f"{name} {value:.4g}" for name, value in values.items() if "/" not in name
        )
        logger.info("%s step %d: %s", split, step, shown)
        if self.accelerator is not None:
            named = {f"{split}/{name}": value for name, value in values.items()}
            self.accelerator.log(named, step=step)

    def _append(self, line: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError as error:  # a full disk ends no run: its next checkpoint tries again
            logger.error("%s cannot be written: %s.", self.path, error)

    def picture(self, step: int, picture: np.ndarray, name: str = "segments") -> Path | None:
        """Saves an RGB picture of shape (H, W, 3), uint8, and sends it to the trackers.

        Returns:
            Its path; None in a silent log, or if it could not be written.
        """
        if not self.is_active:
            return None
        folder = self.folder / PICTURE_FOLDER
        path = folder / f"{name}_{step:07d}.png"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
        except OSError as error:
            logger.error("%s cannot be written: %s.", path, error)
            return None
        for tracker in self.accelerator.trackers if self.accelerator is not None else []:
            _track_picture(tracker, step, picture, name)
        return path


def _track_picture(tracker: Any, step: int, picture: np.ndarray, name: str) -> None:
    """Sends an RGB picture (H, W, 3), uint8, to the trackers that show pictures."""
    if tracker.name == "tensorboard":
        tracker.log_images({name: picture[None]}, step=step, dataformats="NHWC")
    elif tracker.name == "wandb":
        tracker.log_images({name: [picture]}, step=step)
    elif tracker.name == "trackio":  # Accelerate's tracker has no pictures of its own
        import trackio  # type: ignore[import-not-found]

        tracker.log({name: trackio.Image(picture)}, step=step)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the last line of a killed run may be torn
        return float("inf")
