"""A saved folder loads where the package is not installed, and computes the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from amd_hf import (
    AMDForSemanticSegmentation,
    AMDImageProcessor,
    AMDModel,
    ZeroShotObjectSegmentationPipeline,
)

# The block is essential: with an editable installation an absolute import would pass unseen.
PRELUDE = """
import sys
sys.modules["amd_hf"] = None
import torch
from safetensors.torch import save_file
folder, results = sys.argv[1:]
"""
LOAD_MODEL = """
from transformers import AutoConfig, AutoImageProcessor, AutoModel
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules"), type(model)
assert type(processor).__module__.startswith("transformers_modules"), type(processor)
torch.manual_seed(3)
image = torch.randint(0, 256, (1, 3, 40, 56), dtype=torch.uint8)
inputs = processor(image[0], return_tensors="pt")
pair = torch.randn(1, 2, 3, 48, 48)
with torch.no_grad():
    of_image, of_pair = model(**inputs), model(pixel_values=pair)
save_file(
    {
        "pixel_values": inputs["pixel_values"],
        "logits": of_image.segment_logits,
        "motion": of_pair.segment_motion_12,
        "loss": of_pair.loss,
    },
    results,
)
"""
LOAD_SEMANTIC = """
from transformers import AutoModelForSemanticSegmentation
model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True)
torch.manual_seed(3)
with torch.no_grad():
    save_file({"logits": model(pixel_values=torch.randn(1, 3, 48, 48)).logits}, results)
"""
LOAD_PIPELINE = """
import numpy as np
from PIL import Image
from transformers import pipeline
pipe = pipeline("zero-shot-object-segmentation", model=folder, trust_remote_code=True)
assert type(pipe).__module__.startswith("transformers_modules"), type(pipe)
image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (40, 56, 3), dtype=np.uint8))
(entry,) = pipe(image)
save_file(
    {
        "mask": torch.from_numpy(np.array(entry["mask"])),
        "score": torch.tensor(entry["score"], dtype=torch.float64),
    },
    results,
)
"""


def run_without_the_package(program: str, folder: Path, tmp_path: Path) -> dict[str, torch.Tensor]:
    """Runs `program` from another folder, with its own module cache and without network."""
    results = tmp_path / "results.safetensors"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + program, str(folder), str(results)],
        cwd=elsewhere,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return load_file(results)


@pytest.fixture
def folder(tmp_path: Path, tiny_model: AMDModel) -> Path:
    """A saved model with its processor."""
    folder = tmp_path / "saved"
    tiny_model.save_pretrained(folder)
    AMDImageProcessor(size={"shortest_edge": 32}).save_pretrained(folder)
    return folder


def test_folder_is_complete(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= names
    needed = ("configuration", "modeling", "appearance", "motion", "segment_flow", "warping")
    needed = (*needed, "view_synthesis", "loss", "image_processing", "image_io")
    assert {f"{name}_amd.py" for name in needed} <= names
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModel"] == "modeling_amd.AMDModel"
    assert auto_map["AutoConfig"] == "configuration_amd.AMDConfig"


def test_model_and_processor(folder: Path, tmp_path: Path, tiny_model: AMDModel) -> None:
    results = run_without_the_package(LOAD_MODEL, folder, tmp_path)
    torch.manual_seed(3)
    image = torch.randint(0, 256, (1, 3, 40, 56), dtype=torch.uint8)
    inputs = AMDImageProcessor(size={"shortest_edge": 32})(image[0], return_tensors="pt")
    pair = torch.randn(1, 2, 3, 48, 48)
    assert torch.equal(results["pixel_values"], inputs["pixel_values"])
    with torch.no_grad():
        of_image, of_pair = tiny_model(**inputs), tiny_model(pixel_values=pair)
    torch.testing.assert_close(results["logits"], of_image.segment_logits)
    torch.testing.assert_close(results["motion"], of_pair.segment_motion_12)
    torch.testing.assert_close(results["loss"], of_pair.loss)


def test_semantic_segmentation(tmp_path: Path, tiny_model: AMDModel) -> None:
    tiny_model.config.num_labels = 4
    model = AMDForSemanticSegmentation(tiny_model.config).eval()
    model.save_pretrained(tmp_path / "saved")
    results = run_without_the_package(LOAD_SEMANTIC, tmp_path / "saved", tmp_path)
    torch.manual_seed(3)
    with torch.no_grad():
        logits = model(pixel_values=torch.randn(1, 3, 48, 48)).logits
    torch.testing.assert_close(results["logits"], logits)


def test_pipeline(tmp_path: Path, tiny_model: AMDModel) -> None:
    pipe = ZeroShotObjectSegmentationPipeline(
        model=tiny_model, image_processor=AMDImageProcessor(size={"shortest_edge": 32})
    )
    pipe.save_pretrained(tmp_path / "saved")
    results = run_without_the_package(LOAD_PIPELINE, tmp_path / "saved", tmp_path)
    pixels = np.random.default_rng(3).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    (entry,) = pipe(Image.fromarray(pixels))
    assert results["mask"].tolist() == np.array(entry["mask"]).tolist()
    assert float(results["score"]) == pytest.approx(entry["score"], abs=1e-5)
