"""The comparison of starts: the plan, the table, resuming, and what it refuses."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from amd_hf import AMDConfig, AMDForSemanticSegmentation, AMDModel
from amd_hf.training.comparison import (
    ComparisonArguments,
    common_config,
    compare,
    parse_comparison_arguments,
    parse_start,
    run_options,
    summarize,
)
from amd_hf.training.comparison_report import draw_curves, format_table
from tests.semantic_trees import write_pairs

Make = Callable[..., ComparisonArguments]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes the arguments of a tiny comparison from the words of a command line."""
    write_pairs(tmp_path / "data", {"train": 4, "val": 2})
    torch.manual_seed(1)
    AMDModel(AMDConfig.tiny()).save_pretrained(tmp_path / "amd")

    def make_arguments(*words: str) -> ComparisonArguments:
        settings = {
            "dataset_name": tmp_path / "data",
            "output_dir": tmp_path / "out",
            "crop_size": 64,
            "short_side": 64,
            "per_device_train_batch_size": 2,
            "max_train_steps": 2,
            "validation_steps": 1,
            "checkpointing_steps": 0,
            "num_pictures": 0,
            "dataloader_num_workers": 0,
            "seeds": "0,1",
        }
        flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        starts = ["--start", "scratch=random", "--start", f"amd-light={tmp_path / 'amd'}"]
        return parse_comparison_arguments([*flags, *starts, *words])

    return make_arguments


def results(score: float, best: float) -> dict[str, Any]:
    return {"scores": {"mean_iou": score, "num_images": 2}, "best_scores": {"mean_iou": best}}


def test_the_summary_is_over_the_seeds(make: Make) -> None:
    finished = {
        ("scratch", 0): results(0.10, 0.12),
        ("scratch", 1): results(0.14, 0.14),
        ("amd-light", 0): results(0.30, 0.31),
        ("amd-light", 1): results(0.32, 0.33),
    }
    report = summarize(make(), finished)
    scratch, amd = report["starts"]
    assert scratch["mean"] == pytest.approx(0.12)
    assert scratch["standard_deviation"] == pytest.approx(0.0282843, rel=1e-4)
    assert scratch["gain"] == 0
    assert amd["gain"] == pytest.approx(0.19)
    assert amd["best_mean"] == pytest.approx(0.32)
    table = format_table(report)
    assert "| scratch | 2 | 12.00 ± 2.83 | 13.00 | - | - | 48.0 |" in table
    assert "| amd-light | 2 | 31.00 ± 1.41 | 32.00 | +19.00 | 6.7 | 62.0 |" in table
    assert "scored on 2 images" in table
    assert "missing" not in table


def test_a_part_of_the_runs_is_said_to_be_one(make: Make) -> None:
    report = summarize(make(), {("scratch", 0): results(0.1, 0.1)})
    assert report["num_missing"] == 3
    table = format_table(report)
    assert "| scratch | 1 | 10.00 | 10.00 | - | - | 48.0 |" in table
    assert "| amd-light | 0 | - |" in table
    assert "3 runs are missing" in table


def test_only_the_start_and_the_seed_differ(make: Make, tmp_path: Path) -> None:
    args = make()
    options = {
        (start.name, seed): run_options(args, start, seed, tmp_path / "amd").to_dict()
        for start in args.starts
        for seed in args.seeds
    }
    allowed = {"output_dir", "seed", "model_name_or_path", "reset_head", "config_name"}
    first = options["scratch", 0]
    for other in options.values():
        assert {name for name in first if first[name] != other[name]} <= allowed
    # By default all starts bring the backbone only; a random one has nothing to reset.
    assert options["amd-light", 1]["reset_head"] is True
    assert options["amd-light", 1]["seed"] == 1
    kept = make("--transfer", "appearance")
    assert run_options(kept, kept.starts[1], 0, None).reset_head is False


def test_a_comparison_runs_resumes_and_reports(make: Make, tmp_path: Path) -> None:
    report = compare(make("--seeds", "0"))
    assert report["end"] == "complete"
    output = tmp_path / "out"
    # Random weights get the architecture of the checkpoint, not the default one.
    scratch = AMDForSemanticSegmentation.from_pretrained(output / "runs" / "scratch" / "seed_0")
    assert scratch.config.base_channels == AMDConfig.tiny().base_channels
    for name in ("scratch", "amd-light"):
        assert (output / "runs" / name / "seed_0" / "all_results.json").is_file()
    before = (output / "runs" / "scratch" / "seed_0" / "model.safetensors").stat().st_mtime_ns
    report = compare(make())
    after = (output / "runs" / "scratch" / "seed_0" / "model.safetensors").stat().st_mtime_ns
    assert before == after  # finished runs are read, not repeated
    assert [len(row["mean_iou"]) for row in report["starts"]] == [2, 2]
    assert all(row["standard_deviation"] is not None for row in report["starts"])
    saved = json.loads((output / "comparison.json").read_text())
    assert saved["starts"][1]["mean"] == report["starts"][1]["mean"]
    assert "| amd-light | 2 |" in (output / "comparison.md").read_text()
    curves = ElementTree.parse(output / "curves.svg").getroot()
    assert len(list(curves.iter("{http://www.w3.org/2000/svg}polyline"))) == 2
    with Image.open(output / "predictions.png") as sheet:
        assert sheet.width > 2 * sheet.height / 3
    with pytest.raises(ValueError, match="holds a run with other options: max_train_steps was 2"):
        compare(make("--max_train_steps", "3"))


def test_starts_of_two_architectures_are_refused(make: Make, tmp_path: Path) -> None:
    AMDModel(AMDConfig.tiny(base_channels=8)).save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match=r"amd-light and wide .* base_channels 4 and 8"):
        compare(make("--start", f"wide={tmp_path / 'wide'}"))
    assert not (tmp_path / "out" / "runs").exists()
    with pytest.raises(ValueError, match="cannot be loaded"):
        common_config(make("--start", f"gone={tmp_path / 'gone'}"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--start", "scratch=random"], "`starts` must be different"),
        (["--start", "../x=random"], "`start` must be NAME=CHECKPOINT"),
        (["--start", "scratch"], "`start` must be NAME=CHECKPOINT"),
        (["--seeds", "1,1"], "`seeds` must be different"),
        (["--seeds", "a"], "`seeds` must be N,N"),
        (["--model_name_or_path", "x"], "use --start and --transfer"),
        (["--max_train_minutes", "5"], "use --max_train_steps"),
    ],
)
def test_wrong_options_end_with_a_sentence(
    make: Make, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        make(*words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_start_has_a_name_and_a_source() -> None:
    assert parse_start("moco-heavy=org/x").source == "org/x"
    assert parse_start("scratch=random").is_random


def test_curves_are_a_picture_of_the_scores() -> None:
    picture = draw_curves({"a<b": {0: [0.0], 100: [0.5, 0.3]}, "none": {}})
    root = ElementTree.fromstring(picture)
    lines = list(root.iter("{http://www.w3.org/2000/svg}polyline"))
    points = [tuple(map(float, pair.split(","))) for pair in lines[0].attrib["points"].split()]
    assert points[0][0] < points[1][0]  # to the right with the steps
    assert points[0][1] > points[1][1]  # upwards with the score
    assert lines[1].attrib["points"] == ""
    assert "a&lt;b" in picture
