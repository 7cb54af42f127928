"""The pre-training loop: stages, exact resume, skipped steps, bad input, results."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor, nn

from amd_hf import AMDImageProcessor, AMDModel
from amd_hf.training.arguments import PretrainingArguments, parse_arguments
from amd_hf.training.checkpointing import list_checkpoints
from amd_hf.training.interrupts import StopRequest, stop_requests
from amd_hf.training.objectives import OBJECTIVES, Stage, parse_stages, register_objective, stage_at
from amd_hf.training.pretraining import PretrainingRun, pretrain
from amd_hf.training.setup import build_config, build_optimizer, parse_overrides

from .loopback_hub import LoopbackHub, connect

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


@pytest.fixture
def make(clips: Path, tmp_path: Path) -> Make:
    """Makes the arguments of a tiny run."""

    def make_arguments(name: str = "run", **options: Any) -> PretrainingArguments:
        settings: dict[str, Any] = {
            "dataset": str(clips),
            "output_dir": str(tmp_path / name),
            "config_name": "tiny",
            "crop_size": "64",
            "learning_rate": 1e-3,
            "max_train_steps": 6,
            "checkpointing_steps": 2,
            "logging_steps": 2,
            "dataloader_num_workers": 0,
            "num_object_segment_pairs": 4,
            "speed_report_seconds": 0.0,
            "record_samples": True,
        }
        return PretrainingArguments(**{**settings, **options})

    return make_arguments


def weights(folder: str | Path) -> dict[str, Tensor]:
    return AMDModel.from_pretrained(folder).state_dict()


def assert_same_weights(first: str | Path, second: str | Path) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def log_lines(args: PretrainingArguments, split: str = "train") -> list[dict[str, Any]]:
    lines = (Path(args.output_dir) / "log.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["split"] == split]


def samples(args: PretrainingArguments, rank: int = 0) -> list[str]:
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


def test_a_run_writes_what_it_promises(make: Make, clips: Path) -> None:
    args = make(
        validation_dataset=str(clips),
        validation_steps=3,
        num_validation_batches=2,
        ema_decay=0.9,
        motion_warmup_steps=2,
        gradient_accumulation_steps=2,
        speed_report_seconds=0.01,
    )
    results = pretrain(args)
    folder = Path(args.output_dir)
    assert results["end"] == "max_train_steps"
    assert results["num_samples"] == 6 * 2 * 2
    assert [path.name for path in list_checkpoints(folder)] == ["step_2", "step_4", "step_6"]
    for name in ("", "ema"):
        model = AMDModel.from_pretrained(folder / name)
        assert model.config.object_segment_confidence is not None
        AMDImageProcessor.from_pretrained(folder / name)
    assert_same_weights(folder, folder / "step_6")
    assert_same_weights(folder / "ema", folder / "step_6" / "ema")
    train = log_lines(args)
    assert [line["step"] for line in train] == [2, 4, 6]
    assert "pixel_flow_loss" in train[0]
    assert "mask_entropy" not in train[0]
    assert {"photometric_loss", "mask_entropy", "segment_share/4", "gradient_norm"} <= set(train[1])
    for split in ("validation", "validation_ema"):
        assert [line["step"] for line in log_lines(args, split)] == [3, 6]
        assert 0 < log_lines(args, split)[-1]["photometric_loss"] < 5
    with Image.open(folder / "pictures" / "segments_0000006.png") as picture:
        assert picture.size[0] > picture.size[1]
    saved = json.loads((folder / "all_results.json").read_text())
    assert saved["decode_limit"] > 0
    assert saved["model_limit"] > 0
    assert saved["object_segment"]["model"]["num_pairs"] == 4
    assert len(samples(args)) == 12


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_goes_on_exactly(make: Make, workers: int) -> None:
    options: dict[str, Any] = {
        "dataloader_num_workers": workers,
        "ema_decay": 0.9,
        "checkpointing_steps": 3,
        "logging_steps": 4,
        "per_device_train_batch_size": 3,
        "max_train_steps": 8,
    }
    whole = make("whole", **options)
    pretrain(whole)
    parts = make("parts", **options)
    for count in (5, 2):  # each stop is between two checkpoints and leaves one of its own
        results = PretrainingRun(parts, StopAfter(count)).run()
        assert results["end"] == "SIGTERM"
        assert not (Path(parts.output_dir) / "model.safetensors").exists()
        parts = make("parts", **options, resume_from_checkpoint="latest")
    pretrain(parts)
    assert samples(parts) == samples(whole)
    assert_same_weights(parts.output_dir, whole.output_dir)
    assert_same_weights(Path(parts.output_dir) / "ema", Path(whole.output_dir) / "ema")
    values = ("step", "loss", "mask_entropy", "gradient_norm", "learning_rate")
    for line, expected in zip(log_lines(parts), log_lines(whole), strict=True):
        assert [line[name] for name in values] == [expected[name] for name in values]


def test_a_run_that_ended_can_be_finished_again(make: Make) -> None:
    args = make(max_train_steps=2)
    pretrain(args)
    (Path(args.output_dir) / "model.safetensors").unlink()
    results = pretrain(make(max_train_steps=2, resume_from_checkpoint="latest"))
    assert results["step"] == 2
    assert_same_weights(args.output_dir, Path(args.output_dir) / "step_2")


def test_latest_without_a_checkpoint_starts_fresh_and_says_so(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    results = pretrain(make(max_train_steps=1, resume_from_checkpoint="latest"))
    assert results["step"] == 1
    assert "No checkpoint to resume from" in caplog.text


def test_a_torn_checkpoint_is_passed_over(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    whole = make("whole")
    pretrain(whole)
    args = make("torn")
    PretrainingRun(args, StopAfter(5)).run()
    folder = Path(args.output_dir)
    (folder / "step_4" / "model.safetensors").write_bytes(b"cut")
    (folder / "step_5" / "rank_0.pt").unlink()
    pretrain(make("torn", resume_from_checkpoint="latest"))
    assert "step_5 is not a whole checkpoint" in caplog.text
    assert "step_4 is not a whole checkpoint" in caplog.text
    assert_same_weights(folder, whole.output_dir)
    assert samples(args) == samples(whole)


def test_a_full_disk_costs_one_checkpoint_only(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from amd_hf.training import run_state

    real = run_state.save_state

    def save_state(state: dict[str, Any], path: Path) -> None:
        if "step_4" in str(path):
            raise OSError(28, "No space left on device")
        real(state, path)

    monkeypatch.setattr(run_state, "save_state", save_state)
    args = make()
    assert pretrain(args)["step"] == 6
    assert [path.name for path in list_checkpoints(args.output_dir)] == ["step_2", "step_6"]
    assert "No checkpoint at step 4; earlier ones are untouched. Free space" in caplog.text


def spoiled_objective(bad_steps: set[int]) -> Any:
    def objective(model: nn.Module, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = batch["pixel_values"]
        if step in bad_steps:
            pixels = pixels * math.nan
        loss, logs = OBJECTIVES["segment_flow"](model, {**batch, "pixel_values": pixels}, step)
        return loss, logs

    return objective


def test_a_nonfinite_step_is_skipped_and_counted(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OBJECTIVES, "spoiled", spoiled_objective({1, 4}))
    args = make(stages="spoiled")
    results = pretrain(args)
    assert results["num_nonfinite_steps"] == 2
    assert all(torch.isfinite(value).all() for value in weights(args.output_dir).values())
    assert all(math.isfinite(line["loss"]) for line in log_lines(args))
    assert log_lines(args)[-1]["nonfinite_steps"] == 2


def test_too_many_nonfinite_steps_end_the_run(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "spoiled", spoiled_objective(set(range(2, 99))))
    args = make(stages="spoiled", max_nonfinite_steps=2)
    with pytest.raises(RuntimeError, match="2 steps in a row had a non-finite gradient; lower"):
        pretrain(args)
    assert [path.name for path in list_checkpoints(args.output_dir)] == ["step_2"]


def uniform_objective(model: nn.Module, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    loss, logs = OBJECTIVES["segment_flow"](model, batch, step)
    return loss, {**logs, "mask_entropy": torch.tensor(1.0)}


@pytest.mark.parametrize("stop", [False, True])
def test_a_collapsed_run_warns_or_ends(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stop: bool
) -> None:
    monkeypatch.setitem(OBJECTIVES, "uniform", uniform_objective)
    args = make(stages="uniform", logging_steps=1, collapse_patience=2, stop_on_collapse=stop)
    results = pretrain(args)
    assert "The run has collapsed since step 1: the masks are uniform" in caplog.text
    assert (results["end"], results["step"]) == (
        ("collapse", 3) if stop else ("max_train_steps", 6)
    )


def test_the_time_limit_ends_with_weights(make: Make) -> None:
    args = make(max_train_steps=10_000, max_train_minutes=0.01, checkpointing_steps=0)
    results = pretrain(args)
    assert results["end"] == "max_train_minutes"
    assert 0 < results["step"] < 10_000
    assert_same_weights(args.output_dir, Path(args.output_dir) / f"step_{results['step']}")


def test_mixed_precision_channels_last_and_trackers(make: Make) -> None:
    args = make(mixed_precision="bf16", channels_last=True, with_tracking=True, max_train_steps=2)
    results = pretrain(args)
    assert math.isfinite(results["metrics"]["loss"])
    assert list(Path(args.output_dir).rglob("events.out.tfevents.*"))


def test_the_motion_warmup_learns_the_motion(make: Make) -> None:
    args = make(
        config_overrides="motion_initialization=kaiming,normalize_cost_volume=true",
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        motion_warmup_steps=30,
        max_train_steps=30,
        per_device_train_batch_size=4,
        checkpointing_steps=0,
        num_object_segment_pairs=0,
        logging_steps=10,
    )
    pretrain(args)
    first, _, last = log_lines(args)
    assert last["loss"] < 0.4 * first["loss"]
    assert 3 < last["pixel_flow_length"] < 5  # the true one is 4


def test_residual_blocks_and_motion_pathway_get_their_initialization(make: Make) -> None:
    model = AMDModel(build_config(make(config_overrides="motion_initialization=kaiming")))
    parameters = dict(model.named_parameters())
    residual = [value for name, value in parameters.items() if "norm3.weight" in name]
    motion = [
        value
        for name, value in parameters.items()
        if name.startswith("segment_flow.") and name.endswith("bias")
    ]
    assert residual
    assert motion
    assert all(not value.any() for value in [*residual, *motion])
    # The published code has PyTorch's own initialization here in effect.
    published = dict(AMDModel(build_config(make())).named_parameters())
    assert published["segment_flow.readout.hidden.bias"].all()


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
        ({"max_train_minutes": 0.0}, "`max_train_minutes` must be positive, got 0.0"),
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


def test_the_two_pathways_have_their_learning_rates(make: Make) -> None:
    args = make(motion_lr_scale=0.1)
    model = AMDModel(build_config(args))
    groups = build_optimizer(args, model).param_groups
    assert [group["lr"] for group in groups] == pytest.approx([1e-3, 1e-4])
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


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
