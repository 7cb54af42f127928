"""Tiny training runs for tests: clips, options, stopping, and what a run has written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor

from amd_hf import AMDModel
from amd_hf.training.arguments import PretrainingArguments
from amd_hf.training.interrupts import StopRequest

Make = Callable[..., PretrainingArguments]


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten videos of four frames in the YouTube-VOS layout: a smooth texture, panned by 4 pixels."""
    folder = tmp_path_factory.mktemp("clips") / "train" / "JPEGImages"
    generator = np.random.default_rng(0)
    for video in range(10):
        (folder / f"video{video}").mkdir(parents=True)
        noise = generator.integers(0, 255, (12, 20, 3), dtype=np.uint8)
        texture = Image.fromarray(noise).resize((140, 84), Image.Resampling.BICUBIC)
        for frame in range(4):
            view = texture.crop((4 * frame, 6, 4 * frame + 84, 78))
            view.save(folder / f"video{video}" / f"{frame:05d}.jpg")
    return folder.parent.parent


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps its precision for the life of a process; each test starts anew."""
    yield
    AcceleratorState._reset_state(True)


def arguments_maker(
    kind: Callable[..., Any], tmp_path: Path, **settings: Any
) -> Callable[..., Any]:
    """Returns a function that makes the arguments of a tiny run: `make("name", option=value)`."""
    common: dict[str, Any] = {
        "config_name": "tiny",
        "crop_size": "64",
        "checkpointing_steps": 2,
        "logging_steps": 2,
        "dataloader_num_workers": 0,
        "record_samples": True,
    }

    def make_arguments(name: str = "run", **options: Any) -> Any:
        return kind(**{**common, **settings, "output_dir": str(tmp_path / name), **options})

    return make_arguments


@pytest.fixture
def make(clips: Path, tmp_path: Path) -> Make:
    """Makes the arguments of a tiny run."""
    return arguments_maker(
        PretrainingArguments,
        tmp_path,
        dataset=str(clips),
        learning_rate=1e-3,
        max_train_steps=6,
        num_object_segment_pairs=4,
        speed_report_seconds=0.0,
    )


def weights(folder: str | Path) -> dict[str, Tensor]:
    return AMDModel.from_pretrained(folder).state_dict()


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Two sets of named tensors are equal bit by bit."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def assert_same_weights(first: str | Path, second: str | Path) -> None:
    assert_same(weights(first), weights(second))


def log_lines(args: PretrainingArguments, split: str = "train") -> list[dict[str, Any]]:
    lines = (Path(args.output_dir) / "log.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["split"] == split]


def samples(args: Any, rank: int = 0) -> list[str]:
    return (Path(args.output_dir) / f"samples_rank_{rank}.txt").read_text().splitlines()


class StopAfter(StopRequest):
    """Asks to stop when it has been looked at `count` times."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count

    def __bool__(self) -> bool:
        self.left -= 1
        if self.left < 0:
            self.signal_name = "SIGTERM"
        return self.left < 0
