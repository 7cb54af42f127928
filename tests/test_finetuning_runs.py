"""Fine-tuning as users run it: the scripts, the Hub, two processes, an interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from amd_hf import AMDForSemanticSegmentation, AMDImageProcessor
from amd_hf.hub.publish import publish_folder

from .loopback_hub import LoopbackHub
from .semantic_trees import write_pairs
from .test_semantic_folders import table

# huggingface_hub 2.4 passes `data=` to its HTTP client for single-part LFS uploads.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes")

TINY = {
    "config_name": "tiny",
    "crop_size": "64",
    "short_side": "64",
    "per_device_train_batch_size": "2",
    "max_train_steps": "2",
    "validation_steps": "1",
    "num_pictures": "0",
    "dataloader_num_workers": "0",
}


def words(repository: Path, **options: str) -> list[str]:
    script = repository / "scripts" / "finetune_semantic.py"
    settings = {**TINY, **options}
    return [str(script), *(f"--{name}={value}" for name, value in settings.items())]


def run(
    command: list[str], cwd: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_from_a_hub_data_set_to_a_hub_model(
    hub: LoopbackHub, repository: Path, tmp_path: Path
) -> None:
    folder = table(tmp_path / "table", {"train": 4, "validation": 2})
    (folder / "id2label.json").write_text(json.dumps({0: "ground", 1: "red", 2: "blue"}))
    publish_folder(folder, "org/colors", repo_type="dataset")
    options = {
        "dataset_name": "org/colors",
        "output_dir": "out",
        "push_to_hub": "true",
        "hub_model_id": "org/colors-model",
    }
    environment = hub.environment(tmp_path / "child")
    result = run([sys.executable, *words(repository, **options)], tmp_path, environment)
    assert result.returncode == 0, result.stderr
    files = hub.repository("models", "org/colors-model").files()
    assert {"README.md", "config.json", "model.safetensors", "modeling_amd.py"} <= set(files)
    card = files["README.md"].data.decode()
    assert "pipeline_tag: image-segmentation" in card
    assert "| red |" in card
    model = AMDForSemanticSegmentation.from_pretrained("org/colors-model")
    assert model.config.id2label == {0: "ground", 1: "red", 2: "blue"}
    AMDImageProcessor.from_pretrained("org/colors-model")


@pytest.mark.slow
def test_a_hub_that_refuses_costs_no_training(
    hub: LoopbackHub, repository: Path, tmp_path: Path
) -> None:
    write_pairs(tmp_path / "data", {"train": 3, "val": 1})
    hub.fail("POST /api/repos/create", status=403, times=10)
    options = {"dataset_name": "data", "output_dir": "out", "push_to_hub": "true"}
    environment = hub.environment(tmp_path / "child")
    result = run([sys.executable, *words(repository, **options)], tmp_path, environment)
    assert result.returncode == 2
    assert "error: `hub_model_id` 'out' cannot be used" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_hub_that_fails_at_the_end_leaves_the_result(
    hub: LoopbackHub, repository: Path, tmp_path: Path
) -> None:
    write_pairs(tmp_path / "data", {"train": 3, "val": 1})
    hub.fail("POST .*/commit/", status=403, times=10)
    options = {"dataset_name": "data", "output_dir": "out", "push_to_hub": "true"}
    environment = hub.environment(tmp_path / "child")
    result = run([sys.executable, *words(repository, **options)], tmp_path, environment)
    assert result.returncode == 1
    assert "error: The run is complete in" in result.stderr
    assert "--resume_from_checkpoint latest" in result.stderr
    assert "Traceback" not in result.stderr
    AMDForSemanticSegmentation.from_pretrained(tmp_path / "out" / "best")


@pytest.mark.slow
def test_two_processes_share_the_samples_and_the_evaluation(
    repository: Path, tmp_path: Path
) -> None:
    write_pairs(tmp_path / "data", {"train": 6, "val": 3})
    options = {"dataset_name": "data", "output_dir": "out", "record_samples": "true"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    result = run([*launcher, *words(repository, **options)], tmp_path)
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["num_processes"] == 2
    assert results["images_per_step"] == 4
    assert results["scores"]["num_images"] == 3
    lines = [
        (tmp_path / "out" / f"samples_rank_{rank}.txt").read_text().split("\n")[0].split("\t")[1]
        for rank in range(2)
    ]
    assert not set(lines[0].split()) & set(lines[1].split())
    # The counts of both processes make up the score that one process gives the same weights.
    again = {**options, "resume_from_checkpoint": "latest"}
    refused = run([sys.executable, *words(repository, **again)], tmp_path)
    assert refused.returncode == 2
    assert "number of processes was 2, is 1" in refused.stderr
    again["restart_data_stream"] = "true"
    result = run([sys.executable, *words(repository, **again)], tmp_path)
    assert result.returncode == 0, result.stderr
    alone = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert alone["scores"]["mean_iou"] == pytest.approx(results["scores"]["mean_iou"], abs=1e-6)


@pytest.mark.slow
def test_a_terminated_run_leaves_a_checkpoint_and_goes_on(repository: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "data", {"train": 4, "val": 1})
    options = {
        "dataset_name": "data",
        "output_dir": "out",
        "max_train_steps": "100000",
        "logging_steps": "1",
        "validation_steps": "0",
    }
    process = subprocess.Popen(
        [sys.executable, *words(repository, **options)],
        cwd=tmp_path,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
        stderr=subprocess.DEVNULL,
    )
    log = tmp_path / "out" / "log.jsonl"
    deadline = time.monotonic() + 200
    while not log.is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(100) == 143
    (checkpoint,) = (tmp_path / "out").glob("step_*")
    step = int(checkpoint.name.removeprefix("step_"))
    again = {**options, "resume_from_checkpoint": "latest", "max_train_steps": str(step + 2)}
    result = run([sys.executable, *words(repository, **again)], tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"step {step} to {step + 2}" in result.stderr
    assert (tmp_path / "out" / "best" / "model.safetensors").is_file()


def test_bad_data_end_with_one_sentence(repository: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "data", {"train": 3, "val": 1}, ignore=9)
    options = {"dataset_name": "data", "output_dir": "out", "class_names": "a,b,c"}
    result = run([sys.executable, *words(repository, **options)], tmp_path)
    assert result.returncode == 2
    assert "hold ids outside of the 3 classes 0..2 (ids 9; in p00, p01, p02)" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
