"""`make demo`: what the first command of a newcomer prints and writes."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from amd_hf import AMDConfig, AMDImageProcessor, AMDModel
from amd_hf.data.synthetic_objects import generate_clip
from amd_hf.video_amd import FrameStream


@pytest.fixture
def demo(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(repository / "scripts"))
    monkeypatch.delitem(sys.modules, "make_demo", raising=False)
    import make_demo

    monkeypatch.setattr(make_demo, "VIDEO_FRAMES", 3)
    monkeypatch.setattr(make_demo, "ADAPT_STEPS", 2)
    return make_demo


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    config = AMDConfig.tiny()
    AMDModel(config).save_pretrained(folder)
    processor = AMDImageProcessor.from_model_config(config, size={"shortest_edge": 48})
    processor.save_pretrained(folder)
    return str(folder)


def test_newcomers_run(
    demo: ModuleType, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "demo_output"
    code = demo.main(["--output", str(output), "--model", checkpoint, "--device", "cpu"])
    printed = capsys.readouterr().out
    assert code == 0
    for name in demo.IMAGES:
        assert f"{name}: object at [" in printed
        stem = Path(name).stem
        with Image.open(output / f"{stem}_overlay.png") as overlay:
            size = overlay.size
        with Image.open(output / f"{stem}_mask.png") as mask:
            assert mask.size == size
    assert "world.mp4: 3 frames" in printed
    assert len(list(FrameStream(output / "world_overlay.mp4"))) == 3
    found = re.search(r"J (\d+\.\d) before, (\d+\.\d) after 2 steps.*budget 30 s", printed)
    assert found, printed
    assert all(0 <= float(value) <= 100 for value in found.groups())
    for name in ("before", "after", "true"):
        frames = list(FrameStream(output / f"clip_{name}.mp4"))
        assert len(frames) == demo.CLIP_FRAMES
    assert {"images.png", "clip.png"} <= {path.name for path in output.iterdir()}
    assert re.search(rf"\d+ s in all\. Results are in {re.escape(str(output))}", printed)


def test_true_masks_score_one_hundred(demo: ModuleType) -> None:
    _, masks = generate_clip(3, 32, 48, 0)
    pictures = [Image.fromarray(mask.astype(np.uint8) * np.uint8(255)) for mask in masks]
    assert demo.mean_similarity(pictures, masks) == 100.0
    assert demo.mean_similarity(list(~masks), masks) == 0.0


def test_own_input_is_segmented(
    demo: ModuleType, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames, _ = generate_clip(3, 32, 48, 0)
    (tmp_path / "walk").mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "walk" / f"{number}.png")
    arguments = ["--output", str(tmp_path / "out"), "--model", checkpoint, "--device", "cpu"]
    assert demo.main(["--input", str(tmp_path / "walk"), *arguments]) == 0
    assert (tmp_path / "out" / "walk" / "overlay.mp4").is_file()
    assert "3 frames, after 2 steps of adaptation" in capsys.readouterr().out
    assert demo.main(["--input", str(tmp_path / "nothing.jpg"), *arguments]) == 2


def test_without_gradio_the_generated_clip_remains(
    demo: ModuleType,
    checkpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    missing: Any = None
    monkeypatch.setitem(sys.modules, "gradio", missing)
    code = demo.main(["--output", str(tmp_path), "--model", checkpoint, "--device", "cpu"])
    printed = capsys.readouterr().out
    assert code == 0
    assert 'pip install "amd-hf[demo]"' in printed
    assert "generated clip: J" in printed
