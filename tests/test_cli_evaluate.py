"""`amd-hf evaluate` and `amd-hf report` from the command line's side."""

import csv
import json
import sys

import pytest
import torch
from PIL import Image

from amd_hf import AMDImageProcessor
from amd_hf.cli.main import main
from tests.evaluation_data import write_davis, write_images


@pytest.fixture
def checkpoint(tmp_path, tiny_model, tiny_config):
    folder = tmp_path / "tiny-amd"
    tiny_model.save_pretrained(folder)
    processor = AMDImageProcessor.from_model_config(tiny_config, size={"shortest_edge": 48})
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def davis(tmp_path):
    return write_davis(tmp_path / "davis")


@pytest.fixture
def run(checkpoint):
    def call(benchmark, data, *options):
        arguments = ["evaluate", benchmark, "--data", str(data), "--model", str(checkpoint)]
        return main([*arguments, "--quiet", "--device", "cpu", "--bootstrap", "20", *options])

    return call


def test_files(run, davis, tmp_path, capsys):
    output, rows, sheet = (tmp_path / "out" / name for name in ("r.json", "r.csv", "r.png"))
    options = ("--output", output, "--rows", rows, "--contact-sheet", sheet)
    assert run("davis2016", davis, *map(str, options), "--controls") == 0
    result = json.loads(output.read_text())
    assert result["command"] == (
        "amd-hf evaluate davis2016 --data DIR --model tiny-amd --controls --bootstrap 20"
    )
    assert set(result["controls"]) == {"center_ellipse", "random_init"}
    with rows.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["name"] for row in table] == ["blackswan", "dog"]
    assert float(table[0]["J"]) == result["rows"][0]["J"]
    with Image.open(sheet) as picture:
        assert picture.width > 300
    assert sorted(path.name for path in output.parent.iterdir()) == ["r.csv", "r.json", "r.png"]
    text = capsys.readouterr().out
    assert "center_ellipse" in text
    assert "DAVIS-2016 val (subset): 8 scored, 8 of 1376 found" in text


def test_json_on_stdout_and_subset(run, davis, capsys):
    options = ("--json", "--sequences", "dog", "--stride", "2", "--refine", "flips")
    assert run("davis2016", davis, *options) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["num_scored"], result["is_subset"]) == (2, True)
    assert result["settings"]["refinements"] == ["flips"]


def test_adaptation_settings(run, davis, capsys):
    options = ("--adapt-steps", "1", "--adapt-set", "crop_size=32", "--adapt-set", "short_side=48")
    only = ("--sequences", "dog", "--limit-frames", "1", "--json")
    options = (*options, *only, "--adapt-set", "parameters=appearance")
    given = {"crop_size": 32, "short_side": 48, "parameters": "appearance"}
    assert run("davis2016", davis, *options) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["protocol"] == "per-video, 1 steps, video_mask"
    assert result["settings"]["adapt_settings"] == given | {"objective": "video_mask"}
    assert "--adapt-objective video_mask" in result["command"]
    assert run("davis2016", davis, *options, "--adapt-objective", "segment_flow") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["protocol"] == "per-video, 1 steps"
    assert result["settings"]["adapt_settings"] == given
    assert "--adapt-objective segment_flow" in result["command"]


def test_without_opencv_the_published_loss_is_the_default(run, davis, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    options = ("--adapt-steps", "1", "--adapt-set", "crop_size=32", "--adapt-set", "short_side=48")
    only = ("--sequences", "dog", "--limit-frames", "1", "--json")
    assert run("davis2016", davis, *options, *only) == 0
    assert json.loads(capsys.readouterr().out)["protocol"] == "per-video, 1 steps"


@pytest.mark.parametrize(
    ("benchmark", "options", "text"),
    [
        ("davis16", (), "Unknown benchmark 'davis16'; did you mean 'davis2016'?"),
        ("davis2016", ("--sequences", "dogg"), "did you mean 'dog'?"),
        ("davis2016", ("--strict",), "is incomplete"),
        ("davis2016", ("--threshold", "1.5"), "`threshold` must lie in [0, 1)"),
        ("davis2016", ("--adapt-set", "fast"), "`--adapt-set` takes NAME=VALUE, got 'fast'"),
        (
            "davis2016",
            ("--adapt-set", "objective=video_mask", "--adapt-objective", "video_mask"),
            "Give the objective once",
        ),
        (
            "davis2016",
            ("--adapt-steps", "1", "--adapt-objective", "magic"),
            "`objective` must be one of",
        ),
        ("davis2016", ("--device", "abacus"), "`--device` must name a torch device"),
        ("davis2016", ("--baseline", "crf"), "Unknown baseline 'crf'"),
        ("davis2016", ("--contact-sheet", "sheet.txt"), "`--contact-sheet` must end in .png or"),
        ("davis2016", ("--model", "/nowhere/at/all"), "/nowhere/at/all"),
        ("ecssd", (), "is not a ECSSD folder"),
    ],
)
def test_one_clear_sentence(run, davis, capsys, benchmark, options, text):
    assert run(benchmark, davis, *options) == 2
    error = capsys.readouterr().err
    assert text in error
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("amd-hf evaluate: ")


def test_unwritable_output_is_found_before_scoring(run, davis, tmp_path, capsys):
    (tmp_path / "folder.json").mkdir()
    assert run("davis2016", davis, "--output", str(tmp_path / "folder.json")) == 2
    assert "is a folder; name a file to write" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run("davis2016", davis, "--output", str(tmp_path / "file" / "r.json")) == 2
    assert "amd-hf evaluate: " in capsys.readouterr().err


def test_interrupted_run_goes_on(run, davis, tmp_path, capsys, monkeypatch):
    from amd_hf.evaluation.predictors import ModelPredictor

    output = tmp_path / "r.json"
    original, calls = ModelPredictor.predict, []

    def breaks_once(self, sequence, frames):
        calls.append(sequence.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, sequence, frames)

    monkeypatch.setattr(ModelPredictor, "predict", breaks_once)
    assert run("davis2016", davis, "--output", str(output)) == 130
    assert "Run the same command again to go on." in capsys.readouterr().err
    assert not output.exists()
    assert run("davis2016", davis, "--output", str(output)) == 0
    assert calls == ["blackswan", "dog", "dog"]
    assert len(json.loads(output.read_text())["rows"]) == 2


def test_another_model_is_refused(davis, tmp_path, capsys):
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    torch.save({}, folder / "pytorch_model.bin")
    assert main(["evaluate", "davis2016", "--data", str(davis), "--model", str(folder)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_class_segmentation_needs_a_fine_tuned_model(run, tmp_path, capsys):
    root = write_images(tmp_path / "voc", 1)
    (root / "images").rename(root / "JPEGImages")
    (root / "masks").rename(root / "SegmentationClass")
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("0\n")
    assert run("voc2012", root) == 2
    assert "fine-tune one first" in capsys.readouterr().err
