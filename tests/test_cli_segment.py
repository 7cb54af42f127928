"""`amd-hf segment`: files in, files out, exit codes and sentences."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from amd_hf import AMDConfig, AMDImageProcessor, AMDModel
from amd_hf.cli.inputs import Job, name_outputs, plan_jobs
from amd_hf.cli.main import build_parser, main
from amd_hf.cli.progress import Console
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


def _picture(seed: int = 0, width: int = 40, height: int = 30) -> Image.Image:
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def _video(path: Path, count: int = 5) -> Path:
    with VideoWriter(path, 10) as writer:
        for seed in range(count):
            writer.write(np.asarray(_picture(seed)))
    return path


def _frames(folder: Path, count: int = 4) -> Path:
    folder.mkdir()
    for index in range(count):
        _picture(index).save(folder / f"shot{index + 8}.jpg")
    return folder


def _files(folder: Path = Path("out")) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _read_mask(path: Path | str) -> np.ndarray:
    with Image.open(path) as mask:
        assert mask.mode == "L"
        values = np.array(mask)
    assert set(np.unique(values)) <= {0, 255}
    return values


def test_image(segment: Any, tmp_path: Path) -> None:
    _picture().save(tmp_path / "photo.jpg")
    code, lines, _ = segment("photo.jpg", "--threshold", "0.2")
    assert code == 0
    assert _files() == ["photo_mask.png", "photo_overlay.png"]
    assert _read_mask("out/photo_mask.png").shape == (30, 40)
    with Image.open("out/photo_overlay.png") as overlay:
        assert (overlay.mode, overlay.size) == ("RGB", (40, 30))
    assert len(lines) == 1
    assert "photo.jpg -> out/photo_mask.png" in lines[0]


def test_mask_is_that_of_the_pipeline(segment: Any, tmp_path: Path, checkpoint: str) -> None:
    from transformers import pipeline

    from amd_hf.pipeline_amd import TASK

    _picture().save(tmp_path / "photo.png")
    segment("photo.png", "--threshold", "0.15", "--object-segment", "1")
    task: Any = TASK
    pipe = pipeline(task, model=checkpoint, device="cpu")
    expected = pipe(_picture(), threshold=0.15, object_segment=1)[0]["mask"]
    assert np.array_equal(_read_mask("out/photo_mask.png"), expected)


def test_video(segment: Any, tmp_path: Path) -> None:
    _video(tmp_path / "clip.mp4")
    code, lines, _ = segment("clip.mp4")
    assert code == 0
    masks = [f"clip/masks/{number:05d}.png" for number in range(5)]
    assert _files() == [*masks, "clip/overlay.mp4"]
    assert _read_mask("out/clip/masks/00004.png").shape == (30, 40)
    with av.open("out/clip/overlay.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.frames) == ("h264", 5)
        assert (stream.width, stream.height, float(stream.average_rate)) == (40, 30, 10.0)
    assert lines == ["clip.mp4 -> out/clip (5 frames)"]


def test_folder_of_frames_is_a_video_that_keeps_names(segment: Any, tmp_path: Path) -> None:
    _frames(tmp_path / "walk")
    code, _, _ = segment("walk/", "--fps", "5")
    assert code == 0
    masks = [f"walk/masks/shot{number}.png" for number in (10, 11, 8, 9)]
    assert _files() == [*masks, "walk/overlay.mp4"]
    with av.open("out/walk/overlay.mp4") as container:
        assert float(container.streams.video[0].average_rate) == 5


def test_folder_of_mixed_sizes_is_many_images(segment: Any, tmp_path: Path) -> None:
    folder = _frames(tmp_path / "trip", 2)
    _picture(5, 20, 50).save(folder / "tall.png")
    code, lines, errors = segment("trip")
    assert code == 0
    assert len(lines) == 3
    assert "mixed sizes" in errors
    names = [f"{name}_{kind}.png" for name in ("shot8", "shot9", "tall") for kind in ("mask",)]
    assert [name for name in _files() if name.endswith("_mask.png")] == sorted(names)
    assert _read_mask("out/tall_mask.png").shape == (50, 20)


def test_frames_that_differ_in_exif_rotation_only_are_of_mixed_size(
    segment: Any, tmp_path: Path
) -> None:
    folder = _frames(tmp_path / "phone", 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    _picture(1).save(folder / "turned.jpg", exif=exif)
    segment("phone")
    assert _read_mask("out/turned_mask.png").shape == (40, 30)


def test_names_that_clash_keep_their_extension(segment: Any, tmp_path: Path) -> None:
    for name in ("photo.jpg", "photo.png", "other.png"):
        _picture().save(tmp_path / name)
    code, _, _ = segment("photo.jpg", "photo.png", "other.png", "photo.jpg")
    assert code == 0
    assert [name for name in _files() if "mask" in name] == [
        "other_mask.png",
        "photo.jpg_mask.png",
        "photo.png_mask.png",
    ]


def test_all_names_are_different() -> None:
    sources = ["a/x.jpg", "b/x.jpg", "X.png", "x.mp4", "c/x.jpg", "a/y.jpg", "./a/../a/x.jpg"]
    jobs = [Job(source, source.endswith("mp4")) for source in sources]
    name_outputs(jobs)
    names = [job.name.casefold() for job in jobs]
    assert len(set(names)) == len(names)
    assert jobs[5].name == "y"
    assert jobs[3].name == "x.mp4"
    assert all("x" in name for index, name in enumerate(names) if index != 5)


def test_current_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _frames(tmp_path / "here")
    monkeypatch.chdir(folder)
    jobs = plan_jobs(["."], Console())
    assert [(job.name, job.is_video) for job in jobs] == [("here", True)]


def test_json_lines(segment: Any, tmp_path: Path) -> None:
    _picture().save(tmp_path / "photo.jpg")
    _video(tmp_path / "clip.mp4", 2)
    code, lines, _ = segment("photo.jpg", "clip.mp4", "nothing.jpg", "--json")
    assert code == 2
    records = {record["input"]: record for record in map(json.loads, lines)}
    assert len(records) == len(lines) == 3
    image = records["photo.jpg"]
    assert Path(image["mask"]).is_file()
    assert Path(image["overlay"]).is_file()
    mask = _read_mask(image["mask"])
    assert image["object_share"] == pytest.approx(mask.mean() / 255, abs=1e-3)
    assert len(image["box"]) == 4
    assert records["clip.mp4"]["num_frames"] == 2
    assert records["clip.mp4"]["kind"] == "video"
    assert "There is no file" in records["nothing.jpg"]["error"]


def test_adaptation(segment: Any, tmp_path: Path) -> None:
    _video(tmp_path / "clip.mp4", 3)
    _frames(tmp_path / "walk", 3)
    _picture().save(tmp_path / "photo.jpg")
    arguments = ("--adapt-steps", "2", "--json")
    code, lines, errors = segment("clip.mp4", "walk", "photo.jpg", *arguments)
    assert code == 0
    records = {record["input"]: record for record in map(json.loads, lines)}
    assert records["clip.mp4"]["adapt_steps"] == records["walk"]["adapt_steps"] == 2
    assert "Images are segmented without adaptation" in errors


def test_adaptation_to_the_masks_of_the_video(segment: Any, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    _video(tmp_path / "clip.mp4", 3)
    arguments = ("--adapt-steps", "2", "--adapt-objective", "video_mask", "--json")
    code, lines, errors = segment("clip.mp4", *arguments)
    assert code == 0, errors
    [record] = map(json.loads, lines)
    assert record["adapt_steps"] == 2


def test_objective_that_needs_an_extra_names_it(
    segment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _video(tmp_path / "clip.mp4", 3)
    _picture().save(tmp_path / "photo.jpg")
    monkeypatch.setitem(sys.modules, "cv2", None)
    arguments = ("--adapt-steps", "2", "--adapt-objective", "video_mask", "--json")
    code, lines, _ = segment("clip.mp4", "photo.jpg", *arguments)
    assert code == 2
    records = {record["input"]: record for record in map(json.loads, lines)}
    assert "amd-hf[train]" in records["clip.mp4"]["error"]
    assert Path(records["photo.jpg"]["mask"]).is_file()


def test_bad_inputs_do_not_stop_the_others(segment: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise.jpg").write_bytes(b"noise")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "notes.txt").write_text("text")
    _picture().save(tmp_path / "good.png")
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
    assert _files() == ["good_mask.png", "good_overlay.png"]


def test_damaged_frame_of_a_folder_is_left_out(segment: Any, tmp_path: Path) -> None:
    folder = _frames(tmp_path / "walk")
    whole = (folder / "shot9.jpg").read_bytes()
    (folder / "shot9.jpg").write_bytes(whole[: len(whole) - 60])
    (folder / "shot99.jpg").touch()
    code, lines, errors = segment("walk", "--adapt-steps", "1")
    assert code == 2
    assert "3 frames, after 1 steps" in lines[0]
    assert "shot9.jpg" in errors
    assert "shot99.jpg" in errors
    assert [name for name in _files() if "masks" in name] == [
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
    assert len(_files()) == done["num_frames"] + 1
    assert f"The {done['num_frames']} frames before it are written" in failed["error"]
    with av.open("out/long/overlay.mp4") as container:
        assert container.streams.video[0].frames == done["num_frames"]
    assert "Traceback" not in errors


def test_older_masks_are_mentioned(segment: Any, tmp_path: Path) -> None:
    _video(tmp_path / "clip.mp4", 4)
    segment("clip.mp4")
    _video(tmp_path / "clip.mp4", 2)
    code, _, errors = segment("clip.mp4")
    assert code == 0
    assert "also holds 2 masks of an earlier run" in errors


def test_unwritable_output(segment: Any, tmp_path: Path) -> None:
    _picture().save(tmp_path / "photo.png")
    code, lines, errors = segment("photo.png", "--output", "photo.png/out")
    assert code == 2
    assert lines == []
    assert "output folder 'photo.png/out' is not writable" in errors


@pytest.mark.parametrize("kind", ["missing", "foreign"])
def test_wrong_checkpoint(segment: Any, tmp_path: Path, kind: str) -> None:
    _picture().save(tmp_path / "photo.png")
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
    _picture().save("photo.png")
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


def test_all_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("segment", "evaluate", "report", "demo"))
    for command in ("segment", "evaluate", "report", "demo"):
        parser = build_parser([command])
        with pytest.raises(SystemExit) as caught:
            parser.parse_args([command, "--help"])
        assert caught.value.code == 0


NO_EXTRAS = """
import sys
for extra in ("datasets", "accelerate", "evaluate", "gradio", "cv2", "skimage", "torchdata"):
    sys.modules[extra] = None
from amd_hf.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_segment_needs_no_extra(checkpoint: str, tmp_path: Path) -> None:
    _picture().save(tmp_path / "photo.png")
    arguments = ["segment", "photo.png", "--output", "out", "--model", checkpoint]
    result = subprocess.run(
        [sys.executable, "-c", NO_EXTRAS, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "photo_mask.png").is_file()
    assert result.stderr == ""
