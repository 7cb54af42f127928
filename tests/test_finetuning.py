"""Fine-tuning for semantic segmentation: starts, modes, exact resume, best weights, bad input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import ResNetConfig, ResNetModel, pipeline

from amd_hf import AMDConfig, AMDForSemanticSegmentation, AMDImageProcessor, AMDModel
from amd_hf.appearance_amd import AMDBackbone
from amd_hf.training.checkpointing import list_checkpoints
from amd_hf.training.finetuning import FinetuningRun, finetune
from amd_hf.training.finetuning_arguments import FinetuningArguments, parse_finetuning_arguments
from amd_hf.training.finetuning_data import (
    CropTransform,
    SemanticBatches,
    draw_color_changes,
    open_semantic_data,
)
from amd_hf.training.finetuning_results import BestWeights, spread_indices
from amd_hf.training.finetuning_start import (
    amd_config_of_resnet,
    build_semantic_model,
    convert_resnet_keys,
)
from amd_hf.training.interrupts import StopRequest
from tests.semantic_trees import COLORS, write_pairs

Make = Callable[..., FinetuningArguments]
LABELS = "ground,red,blue"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve training and four validation pictures whose classes are plain colors."""
    root = tmp_path_factory.mktemp("pairs") / "colors"
    write_pairs(root, {"train": 12, "val": 4})
    return root


@pytest.fixture
def make(folder: Path, tmp_path: Path) -> Make:
    """Makes the arguments of a tiny run."""

    def make_arguments(name: str = "run", **options: Any) -> FinetuningArguments:
        settings: dict[str, Any] = {
            "dataset_name": str(folder),
            "output_dir": str(tmp_path / name),
            "config_name": "tiny",
            "class_names": LABELS,
            "crop_size": "64",
            "short_side": 64,
            "max_train_steps": 4,
            "per_device_train_batch_size": 2,
            "checkpointing_steps": 2,
            "logging_steps": 2,
            "validation_steps": 2,
            "num_pictures": 1,
            "dataloader_num_workers": 0,
            "record_samples": True,
        }
        return FinetuningArguments(**{**settings, **options})

    return make_arguments


def weights(folder: str | Path) -> dict[str, Tensor]:
    return AMDForSemanticSegmentation.from_pretrained(folder).state_dict()


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def samples(args: FinetuningArguments) -> list[str]:
    return (Path(args.output_dir) / "samples_rank_0.txt").read_text().splitlines()


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


def test_the_loss_is_the_plain_cross_entropy(make: Make) -> None:
    """No auxiliary head and no class weights: every labelled pixel of the batch counts alike."""
    model = build_semantic_model(make(), LABELS.split(",")).eval()
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert names == {"appearance", "classifier"}
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    labels = torch.randint(0, 3, (2, 64, 64), generator=generator)
    labels[0, :50] = 255
    with torch.no_grad():
        outputs = model(pixel_values=images, labels=labels)
    scores = torch.nn.functional.interpolate(outputs.logits, size=(64, 64), mode="bilinear")
    is_labelled = labels != 255
    chosen = scores.log_softmax(dim=1).permute(0, 2, 3, 1)[is_labelled]
    expected = -chosen[torch.arange(len(chosen)), labels[is_labelled]].mean()
    torch.testing.assert_close(outputs.loss, expected)


def test_the_color_changes_are_in_their_range() -> None:
    seeds = torch.arange(4000).unsqueeze(1)
    changes = draw_color_changes(seeds, 1.0)
    lowest = torch.tensor([0.875, 0.5, 0.5, -0.1, 0.0])
    highest = torch.tensor([1.125, 1.5, 1.5, 0.1, 0.0])
    assert (changes >= lowest).all()
    assert (changes <= highest).all()
    unchanged = changes == torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
    assert ((unchanged.float().mean(dim=0)[:4] - 0.5).abs() < 0.03).all()
    assert unchanged[:, 4].all()
    half = draw_color_changes(seeds, 0.5)
    torch.testing.assert_close(half[:, :3] - 1, (changes[:, :3] - 1) / 2)


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


@pytest.mark.parametrize(
    ("mode", "moving"),
    [
        ("full", {"backbone", "head", "classifier"}),
        ("frozen", {"head", "classifier"}),
        ("head", {"classifier"}),
    ],
)
def test_a_mode_trains_its_parts_only(
    make: Make, mode: str, moving: set[str], tmp_path: Path
) -> None:
    start = tmp_path / "start"
    AMDModel(AMDConfig.tiny()).save_pretrained(start)
    args = make(mode=mode, model_name_or_path=str(start), max_train_steps=2)
    before = build_semantic_model(args, LABELS.split(",")).state_dict()
    finetune(args)
    after = weights(args.output_dir)
    for part, prefix in (
        ("backbone", "appearance.backbone."),
        ("head", "appearance.head."),
        ("classifier", "classifier."),
    ):
        names = [name for name in before if name.startswith(prefix)]
        changed = [name for name in names if not torch.equal(before[name], after[name])]
        assert names
        # Batch statistics of fixed parts are fixed too.
        assert (len(changed) > len(names) / 2) if part in moving else not changed, part


def test_a_start_brings_backbone_and_head(make: Make, tmp_path: Path) -> None:
    pretrained = AMDModel(AMDConfig.tiny())
    pretrained.save_pretrained(tmp_path / "start")
    labels = LABELS.split(",")
    args = make(model_name_or_path=str(tmp_path / "start"))
    model = build_semantic_model(args, labels)
    assert_same(model.appearance.state_dict(), pretrained.appearance.state_dict())
    assert model.classifier.weight.shape[0] == 3
    reset = build_semantic_model(
        make(model_name_or_path=str(tmp_path / "start"), reset_head=True), labels
    )
    assert_same(reset.appearance.backbone.state_dict(), pretrained.appearance.backbone.state_dict())
    assert not torch.equal(
        reset.appearance.head[0].conv.weight, pretrained.appearance.head[0].conv.weight
    )
    again = build_semantic_model(
        make(model_name_or_path=str(tmp_path / "start"), reset_head=True), labels
    )
    assert_same(reset.state_dict(), again.state_dict())


def test_a_start_with_other_classes_is_refused(make: Make, tmp_path: Path) -> None:
    config = AMDConfig.tiny()
    config.id2label = dict(enumerate("abcde"))
    AMDForSemanticSegmentation(config).save_pretrained(tmp_path / "five")
    args = make(model_name_or_path=str(tmp_path / "five"))
    with pytest.raises(ValueError, match="was fine-tuned for 5 classes, the data set has 3"):
        finetune(args)
    assert not Path(args.output_dir).exists()
    model = build_semantic_model(
        make(model_name_or_path=str(tmp_path / "five"), ignore_mismatched_sizes=True),
        LABELS.split(","),
    )
    assert model.config.num_labels == 3
    assert model.classifier.weight.shape[0] == 3


def test_a_resnet_start_computes_what_the_resnet_computes(make: Make, tmp_path: Path) -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[16, 32, 64, 128], depths=[1, 2, 1, 1])
    resnet = ResNetModel(config).eval()
    for module in resnet.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    resnet.save_pretrained(tmp_path / "resnet")
    converted = amd_config_of_resnet(config)
    converted.block_strides, converted.block_dilations = [1, 2, 2, 2], [1, 1, 1, 1]
    backbone = AMDBackbone(converted).eval()
    backbone.load_state_dict(convert_resnet_keys(resnet.state_dict()))
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = resnet(image).last_hidden_state
        torch.testing.assert_close(backbone(image)[-1], expected)
    model = build_semantic_model(
        make(model_name_or_path=str(tmp_path / "resnet")), LABELS.split(",")
    )
    assert model.config.block_strides == [1, 2, 1, 1]
    assert_same(model.appearance.backbone.state_dict(), backbone.state_dict())
    with pytest.raises(ValueError, match="must have bottlenecks"):
        amd_config_of_resnet(ResNetConfig(layer_type="basic", hidden_sizes=[8, 16, 32, 64]))


def test_another_kind_of_checkpoint_is_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match=r"must be an AMD or a ResNet checkpoint.*`vit`"):
        build_semantic_model(make(model_name_or_path=str(tmp_path / "vit")), ["a", "b"])
    with pytest.raises(ValueError, match="cannot be loaded"):
        build_semantic_model(make(model_name_or_path=str(tmp_path / "absent")), ["a", "b"])


def test_crops_carry_their_mask_along(make: Make) -> None:
    data = open_semantic_data(make())
    transform = CropTransform(make(), AMDConfig.tiny().image_mean)
    image, mask = data.train.load_image(0), data.train.load_mask(0)
    num_checked, columns = 0, set()
    for seed in range(20):
        pixels, labels = transform(image, mask, [seed])
        assert pixels.shape == (3, 64, 64)
        assert labels.shape == (64, 64)
        for class_id, color in enumerate(COLORS):
            # Bilinear sampling mixes colors at borders only: look three pixels away from them.
            other = (labels != class_id).float()[None, None]
            inside = torch.nn.functional.max_pool2d(other, 7, stride=1, padding=3)[0, 0] == 0
            distance = (pixels.float() - torch.tensor(color).view(3, 1, 1)).abs().amax(dim=0)
            assert (distance[inside] <= 1).all()
            num_checked += int(inside.sum())
        columns.add(tuple(labels[:, 0].tolist()))
        again = transform(image, mask, [seed])
        assert torch.equal(pixels, again[0])
        assert torch.equal(labels, again[1])
    assert num_checked > 10_000
    assert len(columns) > 5


def test_what_lies_outside_of_the_image_is_ignored(make: Make) -> None:
    args = make(min_scale=0.5, max_scale=0.5, flip=0.0)
    transform = CropTransform(args, (124.0, 116.0, 104.0))
    image = Image.new("RGB", (64, 64), (200, 10, 10))
    pixels, labels = transform(image, np.ones((64, 64), dtype=np.int64), [0])
    assert (labels[:32, :32] == 1).all()
    assert (labels[32:] == 255).all()
    assert (labels[:, 32:] == 255).all()
    assert pixels[:, 40, 40].tolist() == [124, 116, 104]


def test_two_processes_read_what_one_reads(make: Make) -> None:
    data = open_semantic_data(make())
    config = AMDConfig.tiny()

    def keys(size: int, rank: int, count: int, batches: int) -> list[list[str]]:
        stream = SemanticBatches(
            make(per_device_train_batch_size=size),
            data.train,
            config.image_mean,
            config.image_std,
            rank,
            count,
        )
        return [next(stream)["key"] for _ in range(batches)]

    alone = keys(4, 0, 1, 6)
    first, second = keys(2, 0, 2, 6), keys(2, 1, 2, 6)
    assert [a + b for a, b in zip(first, second, strict=True)] == alone
    # Every image once per epoch (12 images, 4 a step).
    assert sorted(key for batch in alone[:3] for key in batch) == sorted(
        data.train.key(i) for i in range(12)
    )
    assert alone[:3] != alone[3:]


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


def test_a_part_of_the_images_is_spread_over_all() -> None:
    assert spread_indices(10, 4) == [0, 3, 6, 9]
    assert spread_indices(3, 8) == [0, 1, 2]
    assert spread_indices(5, 0) == []
