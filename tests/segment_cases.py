"""`amd-hf segment` with a tiny model, and small inputs for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from amd_hf import AMDConfig, AMDImageProcessor, AMDModel
from amd_hf.cli.main import main
from amd_hf.video_amd import VideoWriter


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = AMDModel(AMDConfig.tiny())
    with torch.no_grad():
        model.segment_classifier.bias[0] += 2.0  # the object is found somewhere
    model.save_pretrained(folder)
    processor = AMDImageProcessor.from_model_config(model.config, size={"shortest_edge": 48})
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def segment(
    checkpoint: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> Any:
    """Runs the command in a folder; returns exit code, stdout lines and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, model: str = checkpoint) -> tuple[int, list[str], str]:
        command = ["segment", *map(str, arguments), "--model", model, "--device", "cpu"]
        if "--output" not in command:
            command += ["--output", "out"]
        capfd.readouterr()
        code = main(command)
        captured = capfd.readouterr()
        return code, captured.out.splitlines(), captured.err

    return run


def picture(seed: int = 0, width: int = 40, height: int = 30) -> Image.Image:
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def write_clip(path: Path, count: int = 5) -> Path:
    with VideoWriter(path, 10) as writer:
        for seed in range(count):
            writer.write(np.asarray(picture(seed)))
    return path


def write_frames(folder: Path, count: int = 4) -> Path:
    folder.mkdir()
    for index in range(count):
        picture(index).save(folder / f"shot{index + 8}.jpg")
    return folder


def files(folder: Path = Path("out")) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def read_mask(path: Path | str) -> np.ndarray:
    with Image.open(path) as mask:
        assert mask.mode == "L"
        values = np.array(mask)
    assert set(np.unique(values)) <= {0, 255}
    return values
