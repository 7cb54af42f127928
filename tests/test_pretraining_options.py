"""Options, stages and results of pre-training that a user gets wrong, or sends to the Hub."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import json
import math
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from amd_hf import AMDConfig, AMDImageProcessor, AMDModel
from amd_hf.hub import publish_folder
from amd_hf.training.arguments import PretrainingArguments, parse_arguments
from amd_hf.training.data_stream import EndlessBatches, with_known_steps
from amd_hf.training.interrupts import StopRequest, stop_requests
from amd_hf.training.objectives import Stage, parse_stages, register_objective, stage_at
from amd_hf.training.pretraining import PretrainingRun, pretrain
from amd_hf.training.setup import build_config, parse_overrides

from .loopback_hub import LoopbackHub, connect
from .pretraining_runs import (  # noqa: F401 (fixtures)
    Make,
    assert_same_weights,
    clips,
    fresh_accelerator,
    make,
    samples,
    weights,
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"config_overrides": "head_channels=16"},
            r"is of another configuration: head_channels was 8, is 16",
        ),
        ({"seed": 1}, r"cannot be continued exactly: seed was 42, is 1"),
        ({"dataloader_num_workers": 1}, r"dataloader_num_workers was 0, is 1"),
        ({"optimizer": "adamw"}, r"optimizer was 'adam', is 'adamw'"),
        ({"ema_decay": 0.9}, r"has no moving average of the weights; resume with --ema_decay 0"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    make: Make, options: dict[str, Any], message: str
) -> None:
    pretrain(make(max_train_steps=2))
    with pytest.raises(ValueError, match=message):
        pretrain(make(**options, resume_from_checkpoint="latest"))


def test_restart_of_the_data_and_changed_options(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    pretrain(make(max_train_steps=2))
    args = make(
        max_train_steps=4,
        seed=7,
        resume_from_checkpoint="latest",
        restart_data_stream=True,
        weight_decay=0.0,
    )
    assert pretrain(args)["step"] == 4
    assert "Fresh order of the data from step 2 on" in caplog.text
    assert "weight_decay was 1e-06, is 0.0; " not in caplog.text.split("max_train_steps was 2")[1]
    assert "Options differ from those of the checkpoint" in caplog.text


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_restarted_stream_goes_on_where_it_was(make: Make, num_workers: int) -> None:
    """The position of a fresh order of the data belongs to that order, not to the first one."""
    args = make(dataset="generated:24", dataloader_num_workers=num_workers, pairs_per_clip=2)

    def stream() -> EndlessBatches:
        return EndlessBatches(args, AMDConfig.tiny())

    def keys(batches: EndlessBatches, count: int) -> list[list[str]]:
        return [next(batches)["key"] for _ in range(count)]

    whole, begun, resumed, first_order = (stream() for _ in range(4))
    whole.restart(epoch=5)
    wanted = keys(whole, 4)
    begun.restart(epoch=5)
    assert keys(begun, 2) == wanted[:2]
    resumed.load_state_dict(begun.state_dict())
    assert keys(resumed, 2) == wanted[2:]
    assert resumed.state_dict()["epoch_of_the_stream"] == 5
    assert keys(first_order, 4) != wanted
    for batches in (whole, begun, resumed, first_order):
        batches.close()


def test_going_back_leaves_no_later_checkpoints_behind(make: Make) -> None:
    args = make(max_train_steps=4)
    pretrain(args)
    first, later = (Path(args.output_dir) / f"step_{step}" for step in (2, 4))
    with pytest.raises(ValueError, match=r"also holds the later step_4.*move or delete them"):
        pretrain(make(max_train_steps=4, resume_from_checkpoint=str(first)))
    later.rename(later.with_name("left_behind"))
    pretrain(make(max_train_steps=4, resume_from_checkpoint=str(first)))
    assert_same_weights(later, later.with_name("left_behind"))


def test_an_earlier_run_is_not_overwritten(make: Make) -> None:
    pretrain(make(max_train_steps=2))
    with pytest.raises(ValueError, match="already holds checkpoints of a run; go on with"):
        pretrain(make())


def test_unusable_sources(make: Make, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        pretrain(make("a", dataset=str(tmp_path / "empty")))
    with pytest.raises(ValueError, match="does not exist; check the path"):
        pretrain(make("b", dataset=str(tmp_path / "absent")))
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="`output_dir` must be a folder, got the file"):
        pretrain(make("file"))


def test_damaged_clips_are_skipped_and_counted(make: Make, tmp_path: Path, clips: Path) -> None:
    source = tmp_path / "damaged" / "train" / "JPEGImages"
    for video in sorted((clips / "train" / "JPEGImages").iterdir())[:4]:
        (source / video.name).mkdir(parents=True)
        for frame in video.iterdir():
            (source / video.name / frame.name).write_bytes(frame.read_bytes())
    for frame in (source / "video0").iterdir():
        frame.write_bytes(b"not a picture")
    for frame in sorted((source / "video1").iterdir())[1:]:
        frame.unlink()
    results = pretrain(make(dataset=str(tmp_path / "damaged"), shuffle=False))
    assert results["step"] == 6
    assert set(results["skipped"]) == {"unreadable", "too_short"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "x"}, "`recipe` must be one of .*published, small, got 'x'"),
        ({"dataset": ""}, "`dataset` is required; pass --dataset"),
        ({"config_name": "huge"}, "`config_name` must be one of official, small, tiny or a folder"),
        ({"frame_gap": "3-1"}, "`frame_gap` must be N or MIN-MAX"),
        ({"frame_gap": "2", "target_dt": "0.1"}, "`target_dt` and `frame_gap` exclude each other"),
        ({"target_dt": "soon"}, "`target_dt` must be S or MIN-MAX"),
        ({"crop_size": "8"}, "`crop_size` must be N or HEIGHTxWIDTH of at least 32"),
        ({"dataset_weights": "a"}, "`dataset_weights` must be name=factor"),
        ({"ema_decay": 1.0}, r"`ema_decay` must be in \[0, 1\), got 1.0"),
        ({"max_train_steps": 0}, "`max_train_steps` must be at least 1, got 0"),
        ({"weight_decay": -1.0}, "`weight_decay` must be at least 0, got -1.0"),
        ({"max_train_minutes": 0.0}, "`max_train_minutes` must be positive and finite, got 0.0"),
        ({"num_warmup_steps": 6}, "`num_warmup_steps` must be smaller than `max_train_steps`"),
        ({"min_learning_rate": 1.0}, "`min_learning_rate` must be smaller than `learning_rate`"),
        ({"restart_data_stream": True}, "`restart_data_stream` needs `resume_from_checkpoint`"),
        ({"resume_from_checkpoint": "/no"}, "`resume_from_checkpoint` must be `latest` or an"),
        (
            {"model_name_or_path": "x", "config_overrides": "num_segments=3"},
            "`config_overrides` and `model_name_or_path` exclude each other",
        ),
    ],
)
def test_wrong_options(make: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_flags_and_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    needed = ["--dataset", "generated:4", "--output_dir", "x"]
    published = parse_arguments(needed)
    assert (published.learning_rate, published.optimizer) == (1e-4, "adam")
    assert (published.lr_scheduler_type, published.max_train_steps) == ("poly", 100_000)
    assert published.motion_warmup_steps == 0
    small = parse_arguments([*needed, "--recipe", "small", "--learning_rate", "1e-3"])
    assert small.config_name == "small"
    assert small.learning_rate == 1e-3
    assert small.motion_warmup_steps > 0
    assert small == PretrainingArguments.from_recipe(
        "small", dataset="generated:4", output_dir="x", learning_rate=1e-3
    )
    assert parse_arguments([*needed, "--shuffle", "false", "--push_to_hub"]).shuffle is False
    for wrong in (["--recipe", "x"], ["--frame_gap", "0"], ["--no_such_flag"], ["--shuffle", "?"]):
        with pytest.raises(SystemExit, match="2"):
            parse_arguments([*needed, *wrong])
    assert "`recipe` must be one of" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes")
def test_the_result_is_pushed_with_a_filled_card(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    with LoopbackHub() as hub:
        connect(hub, monkeypatch, tmp_path / "cache")
        args = make(
            max_train_steps=1,
            ema_decay=0.5,
            push_to_hub=True,
            hub_model_id="org/pushed",
            model_card_template=str(repository / "model_card.md"),
            dataset_terms="made for a test",
        )
        pretrain(args)
        published = hub.repository("models", "org/pushed").files()
    assert {"README.md", "model.safetensors", "config.json", "modeling_amd.py"} <= set(published)
    provenance = json.loads((Path(args.output_dir) / "provenance.json").read_text())
    assert provenance["ground_truth"] == "none"
    assert provenance["sources"][0] == {
        "name": Path(args.dataset).name,
        "videos": 10,
        "clips": 10,
        "terms": "made for a test",
    }
    assert "--crop_size 64" in provenance["reproduce"]
    assert args.output_dir not in json.dumps(provenance["training"])


def test_a_failed_push_loses_nothing(make: Make, repository: Path) -> None:
    args = make(
        max_train_steps=1,
        push_to_hub=True,
        hub_model_id="not an id",
        model_card_template=str(repository / "model_card.md"),
    )
    with pytest.raises(RuntimeError, match=r"The run is complete in .* but could not be pushed"):
        pretrain(args)
    assert_same_weights(args.output_dir, Path(args.output_dir) / "step_1")
    with pytest.raises(ValueError, match="`push_to_hub` needs `model_card_template`"):
        make(push_to_hub=True, model_card_template="absent.md")


def test_the_token_is_not_recorded(make: Make) -> None:
    assert "hf_secret" not in json.dumps(make(hub_token="hf_secret").to_dict())


def test_overrides() -> None:
    text = "num_segments=3,motion_size=[64,128],motion_initialization=kaiming"
    assert parse_overrides(text) == {
        "num_segments": 3,
        "motion_size": [64, 128],
        "motion_initialization": "kaiming",
    }
    for wrong in ("num_segment=3", "num_segments"):
        with pytest.raises(ValueError, match="`config_overrides` must be name=value pairs"):
            parse_overrides(wrong)


def test_starting_weights_and_config_folder(make: Make, tmp_path: Path) -> None:
    first = make("first", max_train_steps=2)
    pretrain(first)
    second = make("second", model_name_or_path=first.output_dir, max_train_steps=1)
    run = PretrainingRun(second, StopRequest())
    for name, value in run.unwrapped_model.state_dict().items():
        assert torch.equal(value, weights(first.output_dir)[name])
    run.stream.close()
    assert build_config(make("third", config_name=first.output_dir)).head_channels == 8


def test_epochs_are_passes_over_the_clips(make: Make, tmp_path: Path) -> None:
    """Ten clips of one pair, two per step: every clip is seen once before one is seen again."""
    args = make(num_train_epochs=1.5, max_train_steps=100_000)
    results = pretrain(args)
    assert (results["step"], results["options"]["max_train_steps"]) == (8, 8)
    seen = [line.split("\t")[1] for line in samples(args)]
    keys = [key.split("/")[0] for line in seen for key in line.split()]
    assert len(set(keys[:10])) == 10
    assert len(keys) == 16
    finished = pretrain(make(num_train_epochs=1.5, resume_from_checkpoint="latest"))
    assert finished["step"] == 8


@pytest.mark.parametrize(
    ("options", "num_processes", "num_steps"),
    [
        ({"num_train_epochs": 1}, 1, 5),
        ({"num_train_epochs": 3, "gradient_accumulation_steps": 2}, 1, 8),
        ({"num_train_epochs": 3, "pairs_per_clip": 4}, 2, 30),
        ({"num_train_epochs": 1, "dataset_weights": "video=0,video3=2.5"}, 1, 2),
        ({"num_train_epochs": 0.1}, 4, 1),
        ({}, 1, 6),
    ],
)
def test_steps_of_epochs(
    make: Make, options: dict[str, Any], num_processes: int, num_steps: int
) -> None:
    assert with_known_steps(make(**options), num_processes).max_train_steps == num_steps


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes")
def test_epochs_need_a_length_and_exclude_steps(
    make: Make,
    clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with LoopbackHub() as hub:
        connect(hub, monkeypatch, tmp_path / "cache")
        (tmp_path / "shards").mkdir()
        with tarfile.open(tmp_path / "shards" / "train-0.tar", "w") as shard:
            for number, frame in enumerate(sorted((clips / "train/JPEGImages/video0").iterdir())):
                shard.add(frame, arcname=f"clip0.f{number}.jpg")
        publish_folder(tmp_path / "shards", "org/clips", repo_type="dataset")
        with pytest.raises(ValueError, match="needs a data set of known length; 'org/clips'"):
            pretrain(make(dataset="org/clips", num_train_epochs=1))
    with pytest.raises(ValueError, match="`num_warmup_steps` must be smaller"):
        pretrain(make(num_train_epochs=1, num_warmup_steps=5))
    for value in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="`num_train_epochs` must be"):
            make(num_train_epochs=value)
    flags = ["--dataset", "x", "--output_dir", "y", "--num_train_epochs", "2"]
    assert parse_arguments(flags).num_train_epochs == 2
    with pytest.raises(SystemExit):
        parse_arguments([*flags, "--max_train_steps", "9"])
    assert "exclude each other" in capsys.readouterr().err


def short_side(folder: str) -> int:
    return int(AMDImageProcessor.from_pretrained(folder).size["shortest_edge"])


def test_the_image_processor_has_the_size_of_the_training_crops(make: Make) -> None:
    args = make(crop_size="64x96", augmentation="heavy", ema_decay=0.9, max_train_steps=1)
    pretrain(args)
    for name in ("", "ema"):
        folder = Path(args.output_dir) / name
        assert short_side(str(folder)) == 88
        processor = AMDImageProcessor.from_pretrained(folder)
        assert processor.object_segment == AMDModel.from_pretrained(folder).config.object_segment


def test_the_image_processor_of_the_starting_weights_is_kept(make: Make, tmp_path: Path) -> None:
    start = str(tmp_path / "start")
    model = AMDModel(AMDConfig.tiny(object_segment=4))
    model.save_pretrained(start)
    bare = make("bare", model_name_or_path=start, max_train_steps=1)
    pretrain(bare)
    assert short_side(bare.output_dir) == 64, "a start without one: that of the crops"
    size = {"shortest_edge": 40}
    AMDImageProcessor.from_model_config(model.config, size=size, max_size=200).save_pretrained(
        start
    )
    args = make("run", model_name_or_path=start, max_train_steps=1)
    pretrain(args)
    processor = AMDImageProcessor.from_pretrained(args.output_dir)
    assert (short_side(args.output_dir), processor.max_size) == (40, 200)
    chosen = AMDModel.from_pretrained(args.output_dir).config.object_segment
    assert processor.object_segment == chosen


def test_stages() -> None:
    stages = parse_stages("pixel_flow:10,segment_flow", motion_warmup_steps=5)
    assert stages == [Stage("pixel_flow", 5), Stage("pixel_flow", 15), Stage("segment_flow", None)]
    assert [stage_at(stages, step).name for step in (0, 14, 15, 999)] == [
        "pixel_flow",
        "pixel_flow",
        "segment_flow",
        "segment_flow",
    ]
    for text in ("pixel_flow,segment_flow", "segment_flow:5", "pixel_flow:0,segment_flow"):
        with pytest.raises(ValueError, match="a positive number of steps for every stage but"):
            parse_stages(text)
    with pytest.raises(ValueError, match="`stages` must name objectives"):
        parse_stages("flow")
    with pytest.raises(ValueError, match="`name` must be new"):
        register_objective("pixel_flow")


def test_sigterm_becomes_a_request_and_a_second_ctrl_c_does_not_wait() -> None:
    import os
    import signal

    before = signal.getsignal(signal.SIGTERM)
    with stop_requests() as request:
        assert not request
        os.kill(os.getpid(), signal.SIGTERM)
        assert request
        assert request.signal_name == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before
