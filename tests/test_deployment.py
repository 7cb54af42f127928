"""Exports compute the same segments as the model, at sizes that the export never saw."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scripts import export_model

from amd_hf import AMDConfig, AMDImageProcessor, AMDModel, AMDModelOutput
from amd_hf.hub import deployment
from amd_hf.hub.deployment_measures import score_segmenters
from amd_hf.metrics.region import region_similarity

from .evaluation_data import square, write_davis

pytest.importorskip("onnxruntime", reason="needs the extra `deploy`")
pytest.importorskip("onnxscript", reason="needs the extra `deploy`")

SIZE = (2, 3, 72, 104)
# Of int8 against float32, random weights: mean difference of a segment's probability.
INT8_MEAN_DIFFERENCE = 0.02


@pytest.fixture(scope="module")
def model() -> AMDModel:
    torch.manual_seed(0)
    model = AMDModel(AMDConfig.tiny(zero_init_residual=False))
    with torch.no_grad():  # batch statistics as after training, and logits that are not flat
        model.train()
        for _ in range(10):
            model(pixel_values=torch.randn(4, 3, 64, 64))
        model.segment_classifier.weight.mul_(5)
    return model.eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def onnx_file(model: AMDModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deployment.export_onnx(model, tmp_path_factory.mktemp("onnx") / "amd.onnx")


def expected_masks(model: AMDModel, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(pixel_values=images).segment_masks


def test_onnx_has_the_masks_of_the_model(
    model: AMDModel, images: torch.Tensor, onnx_file: Path
) -> None:
    output = deployment.OnnxSegmenter(onnx_file, num_threads=1)(images)
    expected = expected_masks(model, images)
    assert expected.std() > 0.05  # the comparison is not one of flat masks
    torch.testing.assert_close(output.segment_masks, expected, rtol=0, atol=1e-5)
    masks = AMDImageProcessor().post_process_object_segmentation(output, [(30, 40)] * 2)
    assert [tuple(mask.shape) for mask in masks] == [(30, 40)] * 2


def test_onnx_is_one_file(onnx_file: Path) -> None:
    assert [path.name for path in onnx_file.parent.iterdir()] == ["amd.onnx"]


def test_program_needs_torch_only(model: AMDModel, images: torch.Tensor, tmp_path: Path) -> None:
    model.train()
    model.appearance.dropout.eval()
    path = deployment.export_program(model, tmp_path / "amd.pt2")
    modes = (model.training, model.appearance.backbone.training, model.appearance.dropout.training)
    model.eval()
    assert modes == (True, True, False)  # as before the export
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys; sys.modules['amd_hf'] = sys.modules['transformers'] = None\n"
        "import torch\n"
        f"images = torch.load({str(tmp_path / 'images.pt')!r})\n"
        f"masks = torch.export.load({str(path)!r}).module()(images)[1]\n"
        f"torch.save(masks.detach(), {str(tmp_path / 'masks.pt')!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    masks = torch.load(tmp_path / "masks.pt")
    torch.testing.assert_close(masks, expected_masks(model, images), rtol=0, atol=1e-5)


def test_parity_check_refuses_another_model(onnx_file: Path) -> None:
    torch.manual_seed(5)
    other = AMDModel(AMDConfig.tiny()).eval()
    with pytest.raises(RuntimeError, match="differs from the model by"):
        deployment.check_parity(other, deployment.OnnxSegmenter(onnx_file, num_threads=1))


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_int8_is_smaller_and_close(
    model: AMDModel, images: torch.Tensor, onnx_file: Path, tmp_path: Path, mode: str
) -> None:
    path = tmp_path / f"{mode}.onnx"
    if mode == "static":
        deployment.quantize_static(onnx_file, path, [images, torch.randn(4, 3, 64, 64)])
    else:
        deployment.quantize_dynamic(onnx_file, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    operators = {node.op_type for node in __import__("onnx").load(str(path)).graph.node}
    assert operators & {"QuantizeLinear", "ConvInteger", "DynamicQuantizeLinear"}
    output = deployment.OnnxSegmenter(path, num_threads=1)(images)
    difference = (output.segment_masks - expected_masks(model, images)).abs()
    assert 0 < difference.mean() < INT8_MEAN_DIFFERENCE


def test_calibration_needs_images(onnx_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one image to calibrate"):
        deployment.quantize_static(onnx_file, tmp_path / "static.onnx", [])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"existing \.onnx file"):
        deployment.OnnxSegmenter(tmp_path / "absent.onnx")


class PerfectSegmenter:
    """Finds the bright square of the generated benchmark, or nothing."""

    def __init__(self, finds: bool) -> None:
        self.finds = finds

    def __call__(self, pixel_values: torch.Tensor) -> AMDModelOutput:
        bright = (pixel_values.mean(dim=1, keepdim=True) > 0.7).float()
        masks = torch.cat([bright, 1 - bright] if self.finds else [0 * bright, bright], dim=1)
        return AMDModelOutput(segment_masks=masks)


def test_score_is_the_region_similarity(tmp_path: Path) -> None:
    data = write_davis(tmp_path, num_frames=2)
    processor = AMDImageProcessor(size={"shortest_edge": 48})
    found = {"all": PerfectSegmenter(finds=True), "none": PerfectSegmenter(finds=False)}
    scores = score_segmenters(found, processor, "davis2016", data)
    assert scores["all"] > 0.9
    assert scores["none"] == region_similarity(square(8) & False, square(8)) == 0.0


def test_command_exports_times_and_scores(
    model: AMDModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_davis(tmp_path / "davis", num_frames=2)
    model.save_pretrained(tmp_path / "amd-tiny")
    AMDImageProcessor(size={"shortest_edge": 48}).save_pretrained(tmp_path / "amd-tiny")
    arguments = ["--model", str(tmp_path / "amd-tiny"), "--output", str(tmp_path / "out")]
    arguments += ["--formats", "onnx", "int8", "--calibration", str(data), "--rounds", "1"]
    arguments += ["--num_calibration_images", "3", "--image_size", "48", "64"]
    arguments += ["--benchmark", "davis2016", "--data", str(data)]
    capsys.readouterr()
    assert export_model.main(arguments) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["onnx"]["largest_difference"] < 1e-5 < results["int8"]["largest_difference"]
    assert results["onnx"]["J"] == pytest.approx(results["pytorch"]["J"], abs=1e-3)
    assert Path(results["int8"]["file"]).stat().st_size / 1e6 == results["int8"]["megabytes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--formats", "int8"], "needs `--calibration`"),
        (["--benchmark", "davis2016"], "`--benchmark` and `--data` go together"),
    ],
)
def test_command_names_what_is_missing(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export_model.main(arguments) == 2
    assert message in capsys.readouterr().err
