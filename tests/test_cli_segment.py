"""`amd-hf segment`: files in, files out."""

# ruff: noqa: F811 (fixtures)

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

from amd_hf import AMDModel
from amd_hf.cli.inputs import Job, name_outputs, plan_jobs
from amd_hf.cli.main import build_parser, main
from amd_hf.cli.progress import Console

from .segment_cases import (  # noqa: F401 (fixtures)
    checkpoint,
    files,
    picture,
    read_mask,
    segment,
    write_clip,
    write_frames,
)


def test_image(segment: Any, tmp_path: Path) -> None:
    picture().save(tmp_path / "photo.jpg")
    code, lines, _ = segment("photo.jpg", "--threshold", "0.2")
    assert code == 0
    assert files() == ["photo_mask.png", "photo_overlay.png"]
    assert read_mask("out/photo_mask.png").shape == (30, 40)
    with Image.open("out/photo_overlay.png") as overlay:
        assert (overlay.mode, overlay.size) == ("RGB", (40, 30))
    assert len(lines) == 1
    assert "photo.jpg -> out/photo_mask.png" in lines[0]


def test_size_of_the_models_input(
    segment: Any, tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[torch.Size] = []
    forward = AMDModel.forward

    def watched(self: AMDModel, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        sizes.append(pixel_values.shape[-2:])
        return forward(self, pixel_values, **kwargs)

    monkeypatch.setattr(AMDModel, "forward", watched)
    picture().save(tmp_path / "photo.png")
    assert segment("photo.png", "--short-side", "96")[0] == 0
    assert sizes.pop() == (96, 128)
    write_clip(tmp_path / "clip.mp4", 3)
    options = ("--short-side", "96", "--adapt-steps", "1", "--adapt-objective", "segment_flow")
    assert segment("clip.mp4", *options)[0] == 0
    assert {min(size) for size in sizes} == {94, 96}  # crops of the adaptation, then whole frames
    code, _, errors = segment("photo.png", "--short-side", "8")
    assert code == 2
    assert "`--short-side` must be at least 32 pixels, got 8." in errors


@pytest.mark.parametrize("refine", [None, "guided-filter"])
def test_mask_is_that_of_the_pipeline(
    segment: Any, tmp_path: Path, checkpoint: str, refine: str | None
) -> None:
    from transformers import pipeline

    from amd_hf.pipeline_amd import TASK

    picture().save(tmp_path / "photo.png")
    options = [] if refine is None else ["--refine", refine]
    segment("photo.png", "--threshold", "0.15", "--object-segment", "1", *options)
    task: Any = TASK
    pipe = pipeline(task, model=checkpoint, device="cpu")
    expected = pipe(picture(), threshold=0.15, object_segment=1, refine=refine)[0]["mask"]
    assert np.array_equal(read_mask("out/photo_mask.png"), expected)


def test_video(segment: Any, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4")
    code, lines, _ = segment("clip.mp4")
    assert code == 0
    masks = [f"clip/masks/{number:05d}.png" for number in range(5)]
    assert files() == [*masks, "clip/overlay.mp4"]
    assert read_mask("out/clip/masks/00004.png").shape == (30, 40)
    with av.open("out/clip/overlay.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.frames) == ("h264", 5)
        assert (stream.width, stream.height, float(stream.average_rate)) == (40, 30, 10.0)
    assert lines == ["clip.mp4 -> out/clip (5 frames)"]


def test_folder_of_frames_is_a_video_that_keeps_names(segment: Any, tmp_path: Path) -> None:
    write_frames(tmp_path / "walk")
    code, _, _ = segment("walk/", "--fps", "5")
    assert code == 0
    masks = [f"walk/masks/shot{number}.png" for number in (10, 11, 8, 9)]
    assert files() == [*masks, "walk/overlay.mp4"]
    with av.open("out/walk/overlay.mp4") as container:
        assert float(container.streams.video[0].average_rate) == 5


def test_folder_of_mixed_sizes_is_many_images(segment: Any, tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "trip", 2)
    picture(5, 20, 50).save(folder / "tall.png")
    code, lines, errors = segment("trip")
    assert code == 0
    assert len(lines) == 3
    assert "mixed sizes" in errors
    names = [f"{name}_{kind}.png" for name in ("shot8", "shot9", "tall") for kind in ("mask",)]
    assert [name for name in files() if name.endswith("_mask.png")] == sorted(names)
    assert read_mask("out/tall_mask.png").shape == (50, 20)


def test_frames_that_differ_in_exif_rotation_only_are_of_mixed_size(
    segment: Any, tmp_path: Path
) -> None:
    folder = write_frames(tmp_path / "phone", 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(1).save(folder / "turned.jpg", exif=exif)
    segment("phone")
    assert read_mask("out/turned_mask.png").shape == (40, 30)


def test_names_that_clash_keep_their_extension(segment: Any, tmp_path: Path) -> None:
    for name in ("photo.jpg", "photo.png", "other.png"):
        picture().save(tmp_path / name)
    code, _, _ = segment("photo.jpg", "photo.png", "other.png", "photo.jpg")
    assert code == 0
    assert [name for name in files() if "mask" in name] == [
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
    folder = write_frames(tmp_path / "here")
    monkeypatch.chdir(folder)
    jobs = plan_jobs(["."], Console())
    assert [(job.name, job.is_video) for job in jobs] == [("here", True)]


def test_json_lines(segment: Any, tmp_path: Path) -> None:
    picture().save(tmp_path / "photo.jpg")
    write_clip(tmp_path / "clip.mp4", 2)
    code, lines, _ = segment("photo.jpg", "clip.mp4", "nothing.jpg", "--json")
    assert code == 2
    records = {record["input"]: record for record in map(json.loads, lines)}
    assert len(records) == len(lines) == 3
    image = records["photo.jpg"]
    assert Path(image["mask"]).is_file()
    assert Path(image["overlay"]).is_file()
    mask = read_mask(image["mask"])
    assert image["object_share"] == pytest.approx(mask.mean() / 255, abs=1e-3)
    assert len(image["box"]) == 4
    assert records["clip.mp4"]["num_frames"] == 2
    assert records["clip.mp4"]["kind"] == "video"
    assert "There is no file" in records["nothing.jpg"]["error"]


def test_adaptation(segment: Any, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", 3)
    write_frames(tmp_path / "walk", 3)
    picture().save(tmp_path / "photo.jpg")
    arguments = ("--adapt-steps", "2", "--json")
    code, lines, errors = segment("clip.mp4", "walk", "photo.jpg", *arguments)
    assert code == 0
    records = {record["input"]: record for record in map(json.loads, lines)}
    assert records["clip.mp4"]["adapt_steps"] == records["walk"]["adapt_steps"] == 2
    assert "Images are segmented without adaptation" in errors


def test_adaptation_to_the_masks_of_the_video(segment: Any, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    write_clip(tmp_path / "clip.mp4", 3)
    pytest.importorskip("skimage")
    for arguments, objective in (
        ((), "video_mask"),
        (("--adapt-objective", "segment_flow"), "segment_flow"),
    ):
        code, lines, errors = segment("clip.mp4", "--adapt-steps", "2", "--json", *arguments)
        assert code == 0, errors
        [record] = map(json.loads, lines)
        assert (record["adapt_steps"], record["adapt_objective"]) == (2, objective)


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
    picture().save(tmp_path / "photo.png")
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
