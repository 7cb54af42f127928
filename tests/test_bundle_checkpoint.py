"""The script that makes a trained model the bundled checkpoint."""

import json
import subprocess
import sys
import zlib
from pathlib import Path

import torch

from amd_hf import AMDConfig, AMDImageProcessor, AMDModel


def _run(repository: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(repository / "scripts" / "bundle_checkpoint.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_folder_is_complete_and_loads(repository: Path, tmp_path: Path) -> None:
    model = AMDModel(AMDConfig.tiny(num_segments=3)).eval()
    model.save_pretrained(tmp_path / "run")
    done = _run(
        repository,
        *("--model_name_or_path", str(tmp_path / "run"), "--dataset", "generated:16"),
        *("--output_dir", str(tmp_path / "out"), "--short_side", "96", "--num_pairs", "8"),
    )
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "preprocessor_config.json", "model.safetensors"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "auto_map" not in config
    assert 0 <= config["object_segment_confidence"] <= 1
    loaded = AMDModel.from_pretrained(tmp_path / "out").eval()
    assert loaded.dtype == torch.float32
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(pixel_values=pixels).segment_masks
        found = loaded(pixel_values=pixels).segment_masks
    assert torch.allclose(found, expected, atol=0.05)
    processor = AMDImageProcessor.from_pretrained(tmp_path / "out")
    assert dict(processor.size) == {"shortest_edge": 96}


def test_fewer_significant_bits_compress_better(repository: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AMDModel(AMDConfig.tiny()).eval()
    model.save_pretrained(tmp_path / "run")
    sizes = {}
    for bits in (5, 8):
        done = _run(
            repository,
            *("--model_name_or_path", str(tmp_path / "run"), "--dataset", "generated:16"),
            *("--output_dir", str(tmp_path / f"out_{bits}"), "--significant_bits", str(bits)),
            *("--num_pairs", "8"),
        )
        assert done.returncode == 0, done.stderr
        content = (tmp_path / f"out_{bits}" / "model.safetensors").read_bytes()
        sizes[bits] = len(zlib.compress(content))
    assert sizes[5] < 0.85 * sizes[8]
    rounded = AMDModel.from_pretrained(tmp_path / "out_5").state_dict()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            # Half a step of five bits, relative to the power of two below the value.
            limit = 2.0**-5 * parameter.detach().abs() + 1e-12
            assert bool(((rounded[name] - parameter.detach()).abs() <= limit).all())
            assert not torch.equal(rounded[name], parameter.detach().bfloat16().float())


def test_wrong_number_of_bits_is_refused(repository: Path, tmp_path: Path) -> None:
    AMDModel(AMDConfig.tiny()).save_pretrained(tmp_path / "run")
    done = _run(
        repository,
        *("--model_name_or_path", str(tmp_path / "run"), "--dataset", "generated:16"),
        *("--output_dir", str(tmp_path / "out"), "--significant_bits", "9"),
    )
    assert done.returncode == 2
    assert "from 2 to 8, got 9" in done.stderr


def test_missing_model_is_named(repository: Path, tmp_path: Path) -> None:
    done = _run(
        repository,
        *("--model_name_or_path", str(tmp_path / "none"), "--dataset", "generated:16"),
        *("--output_dir", str(tmp_path / "out")),
    )
    assert done.returncode == 2
    assert "none" in done.stderr
    assert not (tmp_path / "out").exists()
