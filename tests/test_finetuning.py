"""Fine-tuning runs: what they write, exact resume, best weights, bad options and data."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

from amd_hf import AMDConfig, AMDForSemanticSegmentation, AMDImageProcessor
from amd_hf.training.checkpointing import list_checkpoints
from amd_hf.training.finetuning import FinetuningRun, finetune
from amd_hf.training.finetuning_arguments import parse_finetuning_arguments
from amd_hf.training.finetuning_results import BestWeights

from .finetuning_cases import LABELS, Make, folder, make, weights  # noqa: F401 (fixtures)
from .pretraining_runs import StopAfter, assert_same, samples
from .semantic_trees import write_pairs


def test_the_defaults_are_the_published_schedule() -> None:
    args = parse_finetuning_arguments(["--dataset_name", "voc", "--output_dir", "out"])
    assert args.max_train_steps == 40_000
    assert args.per_device_train_batch_size == 16
    assert (args.optimizer, args.learning_rate, args.momentum) == ("sgd", 0.01, 0.9)
    assert (args.lr_scheduler_type, args.poly_power) == ("poly", 0.9)
    assert (args.weight_decay, args.min_learning_rate, args.head_lr_scale) == (5e-4, 1e-4, 1.0)
    assert (args.num_warmup_steps, args.max_grad_norm) == (0, 0.0)
    assert args.crop_height_width() == (512, 512)
    assert (args.short_side, args.min_scale, args.max_scale) == (512, 0.5, 2.0)
    assert (args.max_class_share, args.flip, args.color_jitter) == (0.75, 0.5, 1.0)
    assert args.mode == "full"


@pytest.mark.slow
def test_a_run_learns_colors_and_serves_the_pipeline(make: Make, folder: Path) -> None:
    args = make(
        max_train_steps=60,
        validation_steps=30,
        checkpointing_steps=0,
        per_device_train_batch_size=4,
        optimizer="adamw",
        learning_rate=0.01,
        color_jitter=0.0,
        max_class_share=1.0,
    )
    results = finetune(args)
    assert results["end"] == "max_train_steps"
    assert results["best_scores"]["mean_iou"] > 0.6  # a constant answer reaches about 0.2
    for name in ("", "best"):
        saved = Path(args.output_dir) / name
        segment = pipeline("image-segmentation", model=str(saved), trust_remote_code=False)
        path = next(iter((folder / "images" / "val").glob("*.png")))
        answer = segment(str(path))
        with Image.open(path) as image:
            assert all(entry["mask"].size == image.size for entry in answer)
        assert {entry["label"] for entry in answer} <= set(LABELS.split(","))
        covered = sum(np.asarray(entry["mask"], dtype=int) for entry in answer)
        assert (covered == 255).all()


def test_a_run_writes_what_it_promises(
    make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = make()
    results = finetune(args)
    output = Path(args.output_dir)
    assert results["end"] == "max_train_steps"
    assert [path.name for path in list_checkpoints(output)] == ["step_2", "step_4"]
    assert_same(weights(output), weights(output / "step_4"))
    model = AMDForSemanticSegmentation.from_pretrained(output)
    assert model.config.id2label == {0: "ground", 1: "red", 2: "blue"}
    assert model.config.label2id == {"ground": 0, "red": 1, "blue": 2}
    processor = AMDImageProcessor.from_pretrained(output / "best")
    assert dict(processor.size)["shortest_edge"] == 64
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    scored = {line["step"]: line["mean_iou"] for line in lines if line["split"] == "validation"}
    assert set(scored) == {2, 4}
    best = json.loads((output / "best" / "score.json").read_text())
    assert best["scores"]["mean_iou"] == max(scored.values())
    assert scored[best["step"]] == best["scores"]["mean_iou"]
    assert_same(weights(output / "best"), weights(output / f"step_{best['step']}"))
    assert (output / "pictures" / "predictions_0000004.png").is_file()
    saved = json.loads((output / "all_results.json").read_text())
    assert saved["scores"]["num_images"] == 4
    assert saved["labels"] == ["ground", "red", "blue"]

    def refuse(question: str) -> str:
        pytest.fail(f"The user was asked: {question}")

    # Without the argument, transformers asks whether it may run the code in the folder.
    monkeypatch.setattr("builtins.input", refuse)
    segment = pipeline("image-segmentation", model=str(output), trust_remote_code=False)
    answer = segment(str(next(iter((folder / "images" / "val").glob("*.png")))))
    assert {entry["label"] for entry in answer} <= set(LABELS.split(","))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_goes_on_exactly(make: Make, workers: int) -> None:
    options: dict[str, Any] = {
        "dataloader_num_workers": workers,
        "checkpointing_steps": 3,
        "max_train_steps": 7,
        "per_device_train_batch_size": 3,
        "validation_steps": 3,
    }
    whole = make("whole", **options)
    finished = finetune(whole)
    parts = make("parts", **options)
    for count in (4, 2):
        results = FinetuningRun(parts, StopAfter(count)).run()
        assert results["end"] == "SIGTERM"
        assert not (Path(parts.output_dir) / "model.safetensors").exists()
        parts = make("parts", **options, resume_from_checkpoint="latest")
    resumed = finetune(parts)
    assert samples(parts) == samples(whole)
    assert_same(weights(parts.output_dir), weights(whole.output_dir))
    assert_same(weights(Path(parts.output_dir) / "best"), weights(Path(whole.output_dir) / "best"))
    assert resumed["best_step"] == finished["best_step"]
    assert resumed["scores"]["iou"] == pytest.approx(finished["scores"]["iou"], nan_ok=True)


def test_resuming_with_other_data_is_refused(make: Make) -> None:
    FinetuningRun(make(), StopAfter(1)).run()
    with pytest.raises(ValueError, match=r"mode was 'full', is 'head'"):
        finetune(make(mode="head", resume_from_checkpoint="latest"))
    with pytest.raises(ValueError, match="already holds checkpoints"):
        finetune(make())


def test_best_weights_survive_a_worse_score(tmp_path: Path) -> None:
    model = AMDForSemanticSegmentation(AMDConfig.tiny())
    processor = AMDImageProcessor()
    best = BestWeights(tmp_path)
    assert best.offer(10, {"mean_iou": 0.5, "iou": [math.nan]}, model, processor)
    assert not best.offer(20, {"mean_iou": 0.4, "iou": [0.4]}, model, processor)
    again = BestWeights(tmp_path)
    assert (again.step, again.mean_iou) == (10, 0.5)
    assert again.offer(30, {"mean_iou": 0.6, "iou": [0.6]}, model, processor)
    assert [path.name for path in tmp_path.iterdir()] == ["best_step_30"]
    assert again.finish() == tmp_path / "best"
    assert BestWeights(tmp_path).step == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset_name": ""}, "`dataset_name` is required"),
        ({"mode": "backbone"}, "`mode` must be one of full, frozen, head"),
        ({"crop_size": "16"}, "`crop_size` must be N or HEIGHTxWIDTH"),
        ({"min_scale": 3.0}, "`min_scale` must not exceed"),
        ({"learning_rate": 0.0}, "`learning_rate` must be positive"),
        ({"min_learning_rate": 1.0}, "`min_learning_rate` must be smaller"),
        ({"max_train_steps": 0}, "`max_train_steps` must be at least 1"),
        ({"validation_fraction": 1.0}, "`validation_fraction` must lie between"),
        ({"config_name": "huge"}, "`config_name` must be one of"),
        ({"resume_from_checkpoint": "nowhere"}, "must be `latest` or an existing"),
    ],
)
def test_wrong_options_are_refused(make: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_bad_data_stop_a_run_before_it_begins(make: Make, tmp_path: Path) -> None:
    root = tmp_path / "bad"
    write_pairs(root, {"train": 3, "val": 2})
    mask = next(iter((root / "masks" / "val").glob("*.png")))
    Image.fromarray(np.full((48, 80), 7, dtype=np.uint8)).save(mask)
    args = make(dataset_name=str(root))
    with pytest.raises(ValueError, match=r"1 masks of bad val hold ids outside of the 3 classes"):
        finetune(args)
    assert not Path(args.output_dir).exists()
