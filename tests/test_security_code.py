"""Code in weights, repositories and data folders is never run (SECURITY.md)."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModel, pipeline

from amd_hf import AMDConfig, AMDImageProcessor, AMDModel
from amd_hf.cli.main import main
from amd_hf.data.frame_pairs import open_source
from amd_hf.hub.convert_official import convert_official_checkpoint
from amd_hf.training.checkpointing import CheckpointError, load_state

# Weights.


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A folder that appears if the code of a file has run."""
    path = tmp_path / "code-has-run"
    yield path
    assert not path.exists(), "code from a file was run"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny checkpoint."""
    torch.manual_seed(0)
    path = tmp_path / "model"
    AMDModel(AMDConfig.tiny()).save_pretrained(path)
    AMDImageProcessor.from_model_config(AMDConfig.tiny()).save_pretrained(path)
    return path


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_a_pickle_with_code_is_not_run(tmp_path: Path, canary: Path, is_zip: bool) -> None:
    path = tmp_path / "weights.pth"
    content = {"state_dict": {"backbone2.conv1.weight": Payload(canary)}}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match=r"weights\.pth` holds more than tensors"):
        convert_official_checkpoint(path, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"weights\.pth cannot be read"):
        load_state(path)


def test_a_plain_pickle_is_not_run(tmp_path: Path, canary: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps(Payload(canary), protocol=2))
    with pytest.raises(ValueError, match=r"weights\.pt`"):
        convert_official_checkpoint(path, tmp_path / "out")


def test_pickled_weights_of_a_model_folder_are_not_run(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"appearance": Payload(canary)}, folder / "pytorch_model.bin")
    with pytest.raises((OSError, ValueError, RuntimeError, pickle.UnpicklingError)):
        AMDModel.from_pretrained(folder)


def test_weights_are_written_as_safetensors_only(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert "model.safetensors" in names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt"))}


# Code of repositories and data sets.


def plant_code(folder: Path, canary: Path) -> None:
    """Makes a checkpoint name classes of a Python file beside it, which leaves a trace."""
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    for name in ("config.json", "preprocessor_config.json"):
        content = json.loads((folder / name).read_text())
        content["auto_map"] = {
            **dict.fromkeys(("AutoConfig", "AutoModel", "AutoImageProcessor"), "evil.Evil"),
            "AutoModelForSemanticSegmentation": "evil.Evil",
        }
        content["custom_pipelines"] = {
            "zero-shot-object-segmentation": {"impl": "evil.Evil", "pt": ["AutoModel"]}
        }
        (folder / name).write_text(json.dumps(content))


def test_code_of_a_repository_is_not_run_without_the_flag(
    folder: Path, tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant_code(folder, canary)
    photo = tmp_path / "photo.png"
    Image.new("RGB", (48, 32), (200, 30, 30)).save(photo)
    AMDConfig.from_pretrained(folder)
    AMDModel.from_pretrained(folder)
    AMDImageProcessor.from_pretrained(folder)
    assert isinstance(AutoModel.from_pretrained(folder), AMDModel)
    task: Any = "zero-shot-object-segmentation"
    pipeline(task, model=str(folder))(photo)
    argv = ["segment", str(photo), "--model", str(folder), "--output", str(tmp_path / "out")]
    assert main([*argv, "--device", "cpu", "--quiet"]) == 0
    capsys.readouterr()


def test_a_foreign_model_type_with_code_is_refused(
    folder: Path, tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant_code(folder, canary)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "model_type": "evil"}))
    photo = tmp_path / "photo.png"
    Image.new("RGB", (48, 32)).save(photo)
    argv = ["segment", str(photo), "--model", str(folder), "--output", str(tmp_path / "out")]
    assert main([*argv, "--device", "cpu", "--quiet"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_script_in_a_data_folder_is_not_run(tmp_path: Path, canary: Path) -> None:
    data = tmp_path / "clips"
    data.mkdir()
    for name in ("clips.py", "__init__.py", "conftest.py"):
        (data / name).write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    with pytest.raises(ValueError, match="holds no video of at least two frames"):
        open_source(data)
