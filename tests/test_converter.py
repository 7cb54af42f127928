"""Checkpoints of the published code convert completely, or are refused with one sentence."""

from __future__ import annotations

import ast
import json
import pickle
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel

from amd_hf import AMDConfig, AMDModel
from amd_hf.hub.convert_official import (
    KeyRow,
    convert_official_checkpoint,
    convert_state_dict,
    format_key_table,
    infer_config,
    official_key_table,
    read_official_state_dict,
)

NUM_OFFICIAL_TENSORS = 380
NUM_OFFICIAL_PARAMETERS = 30_540_471
# Widths of a model that has every part of the published one.
WIDTHS: dict[str, Any] = {
    "num_segments": 3,
    "stem_channels": 4,
    "base_channels": 2,
    "block_counts": [2, 1, 1, 1],
    "head_channels": 6,
    "num_head_convs": 1,
    "pyramid_channels": [2, 4, 6],
    "num_motion_levels": 2,
    "scale_weights": [1.0, 1.0],
    "search_range": 3,
    "context_channels": 5,
    "estimator_channels": [8, 7, 6, 5, 4],
    "readout_channels": 9,
}


def as_published(model: AMDModel) -> dict[str, Tensor]:
    """The state dict of `model` as the published code would have saved it."""
    ours = model.state_dict()
    official = {}
    for name, renamed in official_key_table(model.config).items():
        tensor = ours[renamed].clone()
        if "predict_flow" in name and name.endswith("weight"):
            tensor = tensor[:, :, None, None]
        official[name] = tensor
    return official


@pytest.fixture
def model() -> AMDModel:
    model = AMDModel(AMDConfig(**WIDTHS)).eval()
    for name, buffer in model.named_buffers():
        # Otherwise a mix-up of statistics would not be seen.
        if name.endswith("num_batches_tracked"):
            buffer.fill_(7)
        else:
            buffer.copy_(torch.rand(buffer.shape) + 0.5)
    return model


@pytest.fixture
def official(model: AMDModel) -> dict[str, Tensor]:
    return as_published(model)


def test_widths_are_read_from_the_shapes(official: dict[str, Tensor]) -> None:
    config = infer_config(official, object_segment=2)
    assert config.object_segment == 2
    for field, value in WIDTHS.items():
        assert getattr(config, field) == value, field


def test_published_model_has_380_tensors() -> None:
    with torch.device("meta"):
        model = AMDModel(AMDConfig.official())
        official = as_published(model)
    assert len(official) == NUM_OFFICIAL_TENSORS
    assert sum(p.numel() for p in model.parameters()) == NUM_OFFICIAL_PARAMETERS
    assert infer_config(official).to_dict() == AMDConfig.official().to_dict()
    assert set(official_key_table(model.config).values()) == set(model.state_dict())


@pytest.mark.parity
def test_names_and_shapes_of_the_published_code(shared_dir: Path) -> None:
    """The key table agrees with the one recorded from the published code at full width."""
    expected = {}
    for line in (shared_dir / "docs" / "METHOD.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 7 and cells[1].isdigit() and cells[2].startswith("`"):
            shape = () if cells[3] == "scalar" else ast.literal_eval(cells[3])
            expected[cells[2].strip("`")] = shape
    assert len(expected) == NUM_OFFICIAL_TENSORS
    with torch.device("meta"):
        official = as_published(AMDModel(AMDConfig.official()))
    assert {name: tuple(t.shape) for name, t in official.items()} == expected


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_conversion_keeps_every_value(
    tmp_path: Path, model: AMDModel, official: dict[str, Tensor], suffix: str
) -> None:
    source = tmp_path / f"checkpoint{suffix}"
    if suffix == ".safetensors":
        save_file(official, source)
    else:
        torch.save(official, source)
    report = convert_official_checkpoint(source, tmp_path / "out", object_segment=1)
    assert report.extra_keys == ()
    assert report.num_parameters == sum(p.numel() for p in model.parameters())
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(stored[name], tensor), name
    loaded = AutoModel.from_pretrained(tmp_path / "out")
    assert isinstance(loaded, AMDModel)
    assert loaded.config.object_segment == 1
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert processor.object_segment == 1
    image = torch.randn(1, 3, 32, 48)
    logits = model(pixel_values=image).segment_logits
    assert torch.equal(loaded(pixel_values=image).segment_logits, logits)


@pytest.mark.parametrize("legacy", [False, True])
def test_mmcv_checkpoint_with_prefix_and_extras(
    tmp_path: Path, official: dict[str, Tensor], legacy: bool
) -> None:
    content = {
        "meta": {"epoch": 1, "iter": 50, "mmcv_version": "1.1.2", "CLASSES": ("a", "b")},
        "state_dict": {f"module.{name}": tensor for name, tensor in official.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4, "params": [0, 1]}]},
    }
    content["state_dict"]["module.auxiliary_head.conv.weight"] = torch.ones(1)
    source = tmp_path / "checkpoint.pth"
    torch.save(content, source, _use_new_zipfile_serialization=not legacy)
    report = convert_official_checkpoint(source, tmp_path / "out")
    assert report.extra_keys == ("auxiliary_head.conv.weight",)
    assert len(report.rows) == len(official)


class TestRefusals:
    """Anything but a complete checkpoint of the published code."""

    def refuse(self, source: Path, text: str) -> None:
        with pytest.raises(ValueError, match=text) as caught:
            convert_official_checkpoint(source, source.parent / "out")
        assert "\n" not in str(caught.value)
        assert not (source.parent / "out").exists()

    def save(self, folder: Path, content: Any, name: str = "checkpoint.pth") -> Path:
        torch.save(content, folder / name)
        return folder / name

    def test_no_file(self, tmp_path: Path) -> None:
        self.refuse(tmp_path / "absent.pth", "is not a file")

    def test_unknown_suffix(self, tmp_path: Path) -> None:
        source = self.save(tmp_path, {}, "weights.bin")
        self.refuse(source, r"must end in \.pth, \.pt or \.safetensors, got '\.bin'")

    def test_code_in_the_pickle_is_not_run(self, tmp_path: Path) -> None:
        class Payload:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (tmp_path / "executed",)

        source = self.save(tmp_path, {"state_dict": Payload()})
        self.refuse(source, "more than tensors")
        (tmp_path / "plain.pth").write_bytes(pickle.dumps(Payload(), protocol=2))
        self.refuse(tmp_path / "plain.pth", "more than tensors")
        assert not (tmp_path / "executed").exists()

    @pytest.mark.parametrize("name", ["checkpoint.pth", "checkpoint.safetensors"])
    def test_truncated(self, tmp_path: Path, official: dict[str, Tensor], name: str) -> None:
        source = tmp_path / name
        if name.endswith("pth"):
            torch.save(official, source)
        else:
            save_file(official, source)
        source.write_bytes(source.read_bytes()[:3000])
        self.refuse(source, "truncated|not a readable safetensors|more than tensors")

    @pytest.mark.parametrize("name", ["checkpoint.pth", "checkpoint.safetensors"])
    def test_empty_file_and_text(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"")
        self.refuse(tmp_path / name, "damaged|not a readable|more than tensors")
        (tmp_path / name).write_bytes(b"<html>404: not found</html>")
        self.refuse(tmp_path / name, "damaged|not a readable|more than tensors")

    @pytest.mark.parametrize("content", [[1, 2], torch.ones(3), {}])
    def test_not_a_state_dict(self, tmp_path: Path, content: Any) -> None:
        self.refuse(self.save(tmp_path, content), "must hold a state dict")

    def test_values_that_are_no_tensors(self, tmp_path: Path) -> None:
        self.refuse(self.save(tmp_path, {"epoch": 3}), "must map names to tensors, got int")

    def test_checkpoint_of_another_model(self, tmp_path: Path) -> None:
        source = self.save(tmp_path, torch.nn.Linear(2, 2).state_dict())
        self.refuse(source, "not a checkpoint of the published AMD code")

    def test_missing_tensors(self, tmp_path: Path, official: dict[str, Tensor]) -> None:
        for name in ("backbone2.layer1.1.bn2.weight", "decode_head2.conv_seg.bias"):
            del official[name]
        text = "misses 2 of .* tensors .*layer1.1.bn2.weight.*conv_seg.bias"
        self.refuse(self.save(tmp_path, official), text)

    def test_missing_tensor_that_tells_a_width(
        self, tmp_path: Path, official: dict[str, Tensor]
    ) -> None:
        del official["decode_head2.conv_seg.weight"]
        text = "misses `decode_head2.conv_seg.weight`, which tells a width"
        self.refuse(self.save(tmp_path, official), text)

    def test_shape_of_another_model(self, tmp_path: Path, official: dict[str, Tensor]) -> None:
        official["backbone2.layer2.0.conv2.weight"] = torch.zeros(5, 5, 3, 3)
        self.refuse(self.save(tmp_path, official), r"conv2.weight` must have shape .* got \(5, 5")

    def test_wrong_rank(self, tmp_path: Path, official: dict[str, Tensor]) -> None:
        official["backbone2.conv1.weight"] = torch.zeros(4)
        self.refuse(self.save(tmp_path, official), "must have 4 axes")

    def test_impossible_cost_volume(self, tmp_path: Path, official: dict[str, Tensor]) -> None:
        official["decode_head.flownet.flow_estimators.conv1.0.weight"] = torch.zeros(8, 40, 3, 3)
        self.refuse(self.save(tmp_path, official), "33 channels for the cost volume")

    def test_values_that_are_not_finite(self, tmp_path: Path, official: dict[str, Tensor]) -> None:
        official["backbone2.bn1.bias"][0] = float("nan")
        self.refuse(self.save(tmp_path, official), "`backbone2.bn1.bias` holds values that are not")

    def test_object_segment_out_of_range(self, tmp_path: Path, official: dict[str, Tensor]) -> None:
        source = self.save(tmp_path, official)
        with pytest.raises(ValueError, match=r"`object_segment` must be an index in 0\.\.2"):
            convert_official_checkpoint(source, tmp_path / "out", object_segment=3)

    def test_output_is_a_file(self, tmp_path: Path, official: dict[str, Tensor]) -> None:
        source = self.save(tmp_path, official)
        with pytest.raises(ValueError, match="cannot be written"):
            convert_official_checkpoint(source, source)


def test_key_table_is_aligned() -> None:
    rows = [KeyRow("a.weight", "stem.weight", (2, 3)), KeyRow("longer.bias", "b", ())]
    lines = format_key_table(rows).splitlines()
    assert lines == [
        "a.weight     ->  stem.weight  2x3",
        "longer.bias  ->  b            scalar",
    ]


def test_read_removes_only_the_prefix(tmp_path: Path) -> None:
    torch.save({"module.a.module.b": torch.ones(1)}, tmp_path / "x.pt")
    assert list(read_official_state_dict(tmp_path / "x.pt")) == ["a.module.b"]


def test_convert_state_dict_leaves_its_input_alone(official: dict[str, Tensor]) -> None:
    before = {name: tensor.clone() for name, tensor in official.items()}
    convert_state_dict(official, infer_config(official))
    assert official.keys() == before.keys()
    assert all(torch.equal(official[name], before[name]) for name in before)


def test_script(
    repository: Path,
    tmp_path: Path,
    official: dict[str, Tensor],
    capsys: pytest.CaptureFixture[str],
) -> None:
    official["surplus"] = torch.ones(1)
    save_file(official, tmp_path / "in.safetensors")
    script = runpy.run_path(str(repository / "scripts" / "convert_official_checkpoint.py"))
    arguments = [str(tmp_path / "in.safetensors"), str(tmp_path / "out")]
    assert script["main"]([*arguments, "--object_segment", "1"]) == 0
    printed = capsys.readouterr().out
    assert "decode_head2.conv_seg.bias" in printed
    assert "left out, not part of the model: surplus" in printed
    assert f"{len(official) - 1} tensors" in printed
    assert json.loads((tmp_path / "out" / "config.json").read_text())["object_segment"] == 1
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()
    assert script["main"]([*arguments, "--object_segment", "9"]) == 2
    refusal = capsys.readouterr().err
    assert refusal.count("\n") == 1
    assert "`object_segment` must be an index in 0..2" in refusal
