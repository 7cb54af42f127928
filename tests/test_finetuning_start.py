"""What fine-tuning starts from, the loss it takes, and the parts that it trains."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import ResNetConfig, ResNetModel

from amd_hf import AMDConfig, AMDForSemanticSegmentation, AMDModel
from amd_hf.appearance_amd import AMDBackbone
from amd_hf.training.finetuning import finetune
from amd_hf.training.finetuning_start import (
    amd_config_of_resnet,
    build_semantic_model,
    convert_resnet_keys,
)

from .finetuning_cases import LABELS, Make, folder, make, weights  # noqa: F401 (fixtures)
from .pretraining_runs import assert_same


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
