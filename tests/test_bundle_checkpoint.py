"""The script that makes a trained model the bundled checkpoint."""

import json
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch

from amd_hf import AMDConfig, AMDImageProcessor, AMDModel
from amd_hf.hub import read_provenance
from amd_hf.training.provenance import join_provenance


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


def _write_run(folder: Path, start: str = "none", **changes: object) -> str:
    """Writes what a run of scripts/pretrain.py leaves about itself."""
    training = {
        **{"recipe": "small", "configuration": "tiny", "stages": "segment_flow to step 5"},
        **{"pairs per step": "4", "crops": "64 pixels", "optimizer": "adamw", "seed": "0"},
        **{"precision": "no", "hardware": "1 x cpu", "versions": "torch 2"},
    }
    record = {
        **{"pretrained_inputs": start, "ground_truth": "none", "sources": []},
        **{"training": training, "weights_license": {"id": "mit"}},
        **{"reproduce": f"run {folder.name}", **changes},
    }
    folder.mkdir()
    (folder / "provenance.json").write_text(json.dumps(record))
    return str(folder)


def test_provenance_follows_the_runs(repository: Path, tmp_path: Path) -> None:
    first = _write_run(tmp_path / "first")
    (tmp_path / "joined").mkdir()
    second = _write_run(tmp_path / "second", str(tmp_path / "joined"))
    AMDModel(AMDConfig.tiny()).save_pretrained(tmp_path / "second" / "ema")
    done = _run(
        repository,
        *("--model_name_or_path", f"{second}/ema", "--dataset", "generated:16"),
        *("--output_dir", str(tmp_path / "out"), "--num_pairs", "8", "--significant_bits", "5"),
        *("--runs", first, str(tmp_path / "joined"), second, "--dataset_terms", "ours"),
    )
    assert done.returncode == 0, done.stderr
    provenance = read_provenance(tmp_path / "out")
    assert provenance["pretrained_inputs"] == "none"
    assert provenance["sources"] == [
        {"name": "generated:16", "videos": 16, "clips": 16, "terms": "ours"}
    ]
    stages = provenance["training"]["stages"].split("; ")
    assert [stage.split(":")[0] for stage in stages] == [
        "first (from scratch)",
        "second (from joined)",
    ]
    assert "5 significant bits" in provenance["training"]["weights"]
    assert provenance["weights_license"] == {"id": "mit"}
    assert provenance["reproduce"] == "run first\nrun second"


def test_weights_from_elsewhere_are_named(tmp_path: Path) -> None:
    """Only what lies in the given folders counts as made by these runs."""
    outside = str(tmp_path / "first_of_others" / "ema")
    runs = [
        _write_run(tmp_path / "first", outside),
        _write_run(tmp_path / "second", str(tmp_path / "first" / "step_2" / "ema")),
        _write_run(tmp_path / "third", "org/model", ground_truth="some masks"),
    ]
    joined = join_provenance(runs, [], "make all")
    assert joined["pretrained_inputs"] == f"{outside}, org/model"
    assert joined["ground_truth"] == "some masks"
    assert "second (from first/step_2/ema)" in joined["training"]["stages"]
    assert joined["reproduce"] == "make all"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "provenance.json is damaged"),
        ("[]", "provenance.json is damaged"),
        ('{"reproduce": "x"}', "is not of a run"),
        ('{"training": {}}', "is not of a run"),
        (None, "at least one run with a provenance.json"),
    ],
)
def test_runs_that_tell_nothing_are_refused(tmp_path: Path, text: str | None, reason: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    if text is not None:
        (run / "provenance.json").write_text(text)
    with pytest.raises(ValueError, match=reason):
        join_provenance([run], [])
