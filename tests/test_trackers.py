"""Pictures of a run arrive at the trackers that show pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from amd_hf.training.trackers import RunLog

PICTURE = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


class Tracker:
    """Keeps what it is given, with the methods of Accelerate's trackers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pictures: list[tuple[str, np.ndarray, int]] = []

    def log_images(self, values: dict[str, Any], step: int, **_: Any) -> None:
        self.pictures += [(name, np.asarray(found)[0], step) for name, found in values.items()]

    def log(self, values: dict[str, Any], step: int) -> None:
        self.pictures += [(name, image.value, step) for name, image in values.items()]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_pictures_are_tracked(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trackio = ModuleType("trackio")  # not among the extras
    trackio.Image = lambda value: SimpleNamespace(value=value)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    tracker = Tracker(name)
    log = RunLog(tmp_path, SimpleNamespace(trackers=[tracker, Tracker("mlflow")]))
    path = log.picture(3, PICTURE)
    assert path is not None
    np.testing.assert_array_equal(np.asarray(Image.open(path)), PICTURE)
    ((title, shown, step),) = tracker.pictures
    assert (title, step) == ("segments", 3)
    np.testing.assert_array_equal(shown, PICTURE)
