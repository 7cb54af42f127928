"""What `amd-hf segment` says about input and options that are bad, and its exit codes."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from amd_hf import AMDImageProcessor
from amd_hf.cli.main import main
from amd_hf.video_amd import VideoWriter
from amd_hf.whole_files import PARTIAL_PREFIX

from .segment_cases import (  # noqa: F401 (fixtures)
    checkpoint,
    files,
    picture,
    segment,
    write_clip,
    write_frames,
)


def test_objective_that_needs_an_extra_names_it(
    segment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clip(tmp_path / "clip.mp4", 3)
    picture().save(tmp_path / "photo.jpg")
    monkeypatch.setitem(sys.modules, "cv2", None)
    arguments = ("--adapt-steps", "2", "--adapt-objective", "video_mask", "--json")
    code, lines, _ = segment("clip.mp4", "photo.jpg", *arguments)
    assert code == 2
    records = {record["input"]: record for record in map(json.loads, lines)}
    assert "comes with the extras eval, train and demo" in records["clip.mp4"]["error"]
    assert Path(records["photo.jpg"]["mask"]).is_file()


def test_without_opencv_the_published_loss_is_used_and_named(
    segment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clip(tmp_path / "clip.mp4", 3)
    monkeypatch.setitem(sys.modules, "cv2", None)
    code, lines, errors = segment("clip.mp4", "--adapt-steps", "1", "--json")
    assert code == 0, errors
    [record] = map(json.loads, lines)
    assert record["adapt_objective"] == "segment_flow"
    assert "needs OpenCV and scikit-image" in errors
    assert "The published loss is used in its place." in errors


def test_a_segment_that_the_model_lacks_is_named(segment: Any, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", 3)
    options = ("--adapt-steps", "1", "--object-segment", "9", "--json")
    code, lines, _ = segment("clip.mp4", *options)
    assert code == 2
    [record] = map(json.loads, lines)
    assert "`object_segment` must lie in 0.." in record["error"]


def test_a_mask_is_whole_or_absent(
    segment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk in the middle of a PNG, and what a killed run left behind."""
    save = Image.Image.save

    def torn(self: Image.Image, place: Any, *args: Any, **options: Any) -> None:
        save(self, place, *args, **options)
        if Path(place).name.endswith("00001.png"):
            Path(place).write_bytes(Path(place).read_bytes()[:20])
            raise OSError(28, "No space left on device")

    write_clip(tmp_path / "clip.mp4", 3)
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", torn)
        code, _, errors = segment("clip.mp4")
    assert code == 2
    assert "No space left on device" in errors
    masks = tmp_path / "out" / "clip" / "masks"
    assert [path.name for path in masks.iterdir()] == ["00000.png"]
    (masks / f"{PARTIAL_PREFIX}00001.png").write_bytes(b"half")
    assert segment("clip.mp4")[0] == 0
    assert sorted(path.name for path in masks.iterdir()) == [f"{n:05d}.png" for n in range(3)]
    for path in masks.iterdir():
        with Image.open(path) as mask:
            mask.load()


def test_bad_inputs_do_not_stop_the_others(segment: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise.jpg").write_bytes(b"noise")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "notes.txt").write_text("text")
    picture().save(tmp_path / "good.png")
    inputs = ["noise.jpg", "missing.png", "empty", "empty.mp4", "notes.txt", "good.png"]
    code, lines, errors = segment(*inputs)
    assert code == 2
    assert len(lines) == 1
    assert "good.png" in lines[0]
    sentences = [line for line in errors.splitlines() if line.startswith("error:")]
    assert len(sentences) == 5
    for name in inputs[:-1]:
        assert any(f"{name!r}" in sentence for sentence in sentences), name
    assert "5 failed: " in errors
    assert "Traceback" not in errors
    assert files() == ["good_mask.png", "good_overlay.png"]


def test_damaged_frame_of_a_folder_is_left_out(segment: Any, tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "walk")
    whole = (folder / "shot9.jpg").read_bytes()
    (folder / "shot9.jpg").write_bytes(whole[: len(whole) - 60])
    (folder / "shot99.jpg").touch()
    code, lines, errors = segment("walk", "--adapt-steps", "1")
    assert code == 2
    assert "3 frames, after 1 steps" in lines[0]
    assert "shot9.jpg" in errors
    assert "shot99.jpg" in errors
    assert [name for name in files() if "masks" in name] == [
        f"walk/masks/shot{number}.png" for number in (10, 11, 8)
    ]


def test_cut_off_video_keeps_what_could_be_read(segment: Any, tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    generator = np.random.default_rng(0)
    with VideoWriter(path, 10) as writer:
        for _ in range(30):
            writer.write(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    data = path.read_bytes()
    start = data.index(b"mdat")
    path.write_bytes(data[: start + (len(data) - start) // 2])
    code, lines, errors = segment("long.mp4", "--json")
    assert code == 2
    done, failed = (json.loads(line) for line in lines)
    assert 0 < done["num_frames"] < 30
    assert len(files()) == done["num_frames"] + 1
    assert f"The {done['num_frames']} frames before it are written" in failed["error"]
    with av.open("out/long/overlay.mp4") as container:
        assert container.streams.video[0].frames == done["num_frames"]
    assert "Traceback" not in errors


def test_older_masks_are_mentioned(segment: Any, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", 4)
    segment("clip.mp4")
    write_clip(tmp_path / "clip.mp4", 2)
    code, _, errors = segment("clip.mp4")
    assert code == 0
    assert "also holds 2 masks of an earlier run" in errors


def test_unwritable_output(segment: Any, tmp_path: Path) -> None:
    picture().save(tmp_path / "photo.png")
    code, lines, errors = segment("photo.png", "--output", "photo.png/out")
    assert code == 2
    assert lines == []
    assert "output folder 'photo.png/out' is not writable" in errors


@pytest.mark.parametrize("kind", ["missing", "foreign"])
def test_wrong_checkpoint(segment: Any, tmp_path: Path, kind: str) -> None:
    picture().save(tmp_path / "photo.png")
    model = tmp_path / kind
    if kind == "foreign":
        from transformers import ResNetConfig, ResNetModel

        config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
        ResNetModel(config).save_pretrained(model)
        AMDImageProcessor().save_pretrained(model)
    code, lines, errors = segment("photo.png", model=str(model))
    assert code == 2
    assert lines == []
    assert "Traceback" not in errors
    sentences = [line for line in errors.splitlines() if line.startswith("error:")]
    expected = {
        "missing": "There is no checkpoint",
        "foreign": "needs an AMDModel, got ResNetModel",
    }
    assert len(sentences) == 1
    assert expected[kind] in sentences[0]


def test_wrong_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    picture().save("photo.png")
    assert main(["segment", "photo.png", "--output", "out", "--device", "abacus"]) == 2
    assert "There is no device 'abacus' here" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["photo.png"],
        ["photo.png", "--output", "out", "--threshold", "1.5"],
        ["photo.png", "--output", "out", "--adapt-steps", "-1"],
        ["photo.png", "--output", "out", "--fps", "0"],
        ["photo.png", "--output", "out", "--unknown"],
    ],
)
def test_wrong_arguments_exit_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["segment", *arguments])
    assert caught.value.code == 2
    assert "usage: amd-hf" in capsys.readouterr().err


def test_interruption_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("amd_hf.cli.segment.run", interrupted)
    assert main(["segment", "photo.png", "--output", "out"]) == 130
    assert "Interrupted" in capsys.readouterr().err
