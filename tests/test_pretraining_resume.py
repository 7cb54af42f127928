"""Whole runs of `scripts/pretrain.py` in their own processes: SIGKILL, two ranks, exit codes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from amd_hf.training.checkpointing import latest_checkpoint, list_checkpoints, verify_checkpoint

from .faults.workloads import write_clips

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "pretrain.py"
NUM_KILLS = 6
NUM_STEPS = 45
TIMEOUT = 300


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("clips"))


def command(clips: Path, output_dir: Path, *flags: str, num_processes: int = 1) -> list[str]:
    options = {
        "dataset": clips,
        "output_dir": output_dir,
        "config_name": "tiny",
        "crop_size": 64,
        "augmentation": "heavy",
        "max_train_steps": NUM_STEPS,
        "motion_warmup_steps": 10,
        "per_device_train_batch_size": 3,
        "dataloader_num_workers": 2,
        "checkpointing_steps": 3,
        "logging_steps": 4,
        "ema_decay": 0.9,
        "num_object_segment_pairs": 4,
        "speed_report_seconds": 0,
        "record_samples": True,
    }
    start = [sys.executable]
    if num_processes > 1:
        start += [
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={num_processes}",
        ]
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [*start, str(SCRIPT), *words, *flags]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def finish(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, env=environment(), capture_output=True, text=True, timeout=TIMEOUT, check=False
    )


def num_lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.is_file() else 0


def kill_after(words: list[str], samples: Path, num_steps: int, delay: float) -> bool:
    """Runs until `num_steps` more steps were begun and kills it; False if it ended before."""
    goal = min(num_lines(samples) + num_steps, NUM_STEPS - 1)
    with subprocess.Popen(
        words,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        begin, seen_before = time.monotonic(), samples.stat().st_mtime if samples.exists() else 0.0
        while process.poll() is None and time.monotonic() - begin < TIMEOUT:
            is_running = samples.exists() and samples.stat().st_mtime > seen_before
            if is_running and num_lines(samples) >= goal:
                break
            time.sleep(0.01)
        time.sleep(delay)
        was_running = process.poll() is None
        if was_running:
            os.killpg(process.pid, signal.SIGKILL)
    return was_running


def assert_same_run(one: Path, other: Path, num_ranks: int = 1) -> None:
    for rank in range(num_ranks):
        name = f"samples_rank_{rank}.txt"
        assert (one / name).read_text() == (other / name).read_text()
        assert num_lines(one / name) == NUM_STEPS
    for folder in ("", "ema", f"step_{NUM_STEPS}"):
        first = load_file(one / folder / "model.safetensors")
        second = load_file(other / folder / "model.safetensors")
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert torch.equal(value, second[key]), key


@pytest.mark.slow
def test_sigkill_at_random_moments_changes_nothing(clips: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = finish(command(clips, whole))
    assert result.returncode == 0, result.stderr
    moments = random.Random(0)
    samples = killed / "samples_rank_0.txt"
    resume = command(clips, killed, "--resume_from_checkpoint", "latest")
    num_kills = 0
    for _ in range(NUM_KILLS):
        num_kills += kill_after(resume, samples, moments.randint(1, 6), moments.uniform(0, 0.3))
        for folder in list_checkpoints(killed):
            verify_checkpoint(folder)
    assert num_kills >= 5
    assert latest_checkpoint(killed) is not None
    result = finish(resume)
    assert result.returncode == 0, result.stderr
    assert_same_run(whole, killed)


@pytest.mark.slow
def test_two_processes_on_cpu_resume_exactly(clips: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = finish(command(clips, whole, num_processes=2))
    assert result.returncode == 0, result.stderr
    assert "SyncBatchNorm exists on CUDA only" in result.stderr
    keys = [
        {key for line in path.read_text().splitlines()[:3] for key in line.split("\t")[1].split()}
        for path in sorted(whole.glob("samples_rank_*.txt"))
    ]
    assert len(keys) == 2
    videos = [{key.split("/")[0] for key in part} for part in keys]
    assert not videos[0] & videos[1]
    resume = command(clips, killed, "--resume_from_checkpoint", "latest", num_processes=2)
    assert kill_after(resume, killed / "samples_rank_0.txt", 20, 0.1)
    result = finish(resume)
    assert result.returncode == 0, result.stderr
    assert_same_run(whole, killed, num_ranks=2)
    result = finish(command(clips, killed, "--resume_from_checkpoint", "latest"))
    assert result.returncode == 2
    assert "number of processes was 2, is 1" in result.stderr
    assert "--restart_data_stream" in result.stderr


@pytest.mark.slow
def test_sigterm_writes_a_checkpoint(clips: Path, tmp_path: Path) -> None:
    output_dir = tmp_path / "run"
    words = command(clips, output_dir, "--checkpointing_steps", "0")
    with subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        samples = output_dir / "samples_rank_0.txt"
        while num_lines(samples) < 3 and process.poll() is None:
            time.sleep(0.01)
        process.terminate()
        _, stderr = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 143, stderr
    assert "Stopped by SIGTERM" in stderr
    assert latest_checkpoint(output_dir) is not None


@pytest.mark.slow
def test_a_users_mistake_is_one_sentence(clips: Path, tmp_path: Path) -> None:
    result = finish(command(tmp_path / "absent", tmp_path / "run"))
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "does not exist; check the path" in result.stderr
