"""The pre-training loop: stages, exact resume, skipped steps, collapse, results."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor, nn

from amd_hf import AMDImageProcessor, AMDModel
from amd_hf.training.checkpointing import list_checkpoints
from amd_hf.training.objectives import OBJECTIVES
from amd_hf.training.pretraining import PretrainingRun, pretrain
from amd_hf.training.setup import build_config

from .pretraining_runs import (  # noqa: F401 (fixtures)
    Make,
    StopAfter,
    assert_same_weights,
    clips,
    fresh_accelerator,
    log_lines,
    make,
    samples,
    weights,
)


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


@pytest.mark.slow
# Of torch itself, which traces autograd functions and imports its own scripted ones.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_a_compiled_run_learns_the_same(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch --dynamo_backend ...`: same weights and names, also after a resume."""
    options = {"stages": "pixel_flow:2,segment_flow", "max_train_steps": 4, "ema_decay": 0.9}
    pretrain(make("plain", **options))
    AcceleratorState._reset_state(True)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "AOT_EAGER")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    pretrain(make("compiled", **options, max_train_minutes=1e-9))
    AcceleratorState._reset_state(True)
    pretrain(make("compiled", **options, resume_from_checkpoint="latest"))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    for folder in ("", "ema"):
        plain = weights(Path(make("plain").output_dir) / folder)
        compiled = weights(Path(make("compiled").output_dir) / folder)
        assert plain.keys() == compiled.keys()
        for name, value in plain.items():
            torch.testing.assert_close(compiled[name], value, atol=1e-4, rtol=1e-3, msg=name)
