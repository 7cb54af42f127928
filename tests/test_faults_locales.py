"""Clocks that jump, other time zones, and names that the machine's language lacks."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from amd_hf.training.pretraining import PretrainingRun, pretrain

from .evaluation_data import write_davis
from .faults.disturbed_runs import assert_same_run, resumed, whole  # noqa: F401 (fixtures)
from .faults.workloads import write_checkpoint
from .pretraining_runs import (  # noqa: F401 (fixtures)
    Make,
    StopAfter,
    assert_same_weights,
    clips,
    fresh_accelerator,
    make,
)


def test_a_clock_that_jumps_changes_nothing(
    make: Make,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: 1e9 * (1 - 2 * (next(jumps) % 2)) + 1e9)
    args = make("disturbed", per_device_train_batch_size=3)
    PretrainingRun(args, StopAfter(4)).run()
    args = resumed(make)
    pretrain(args)
    assert_same_run(args, whole)


LANGUAGES = {
    "plain": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "far": {"LC_ALL": "C.UTF-8", "TZ": "Pacific/Kiritimati"},
}


@pytest.mark.slow
def test_language_and_time_zone_change_nothing(
    clips: Path,
    repository: Path,
    tmp_path: Path,
) -> None:
    """Names with letters of other alphabets, on machines that only know ASCII."""
    folder = tmp_path / "Vidéos 影片"
    shutil.copytree(clips, folder)
    videos = folder / "train" / "JPEGImages"
    (videos / "video0").rename(videos / "größe")
    outputs = []
    for name, environment in LANGUAGES.items():
        outputs.append(tmp_path / name)
        words = [str(repository / "scripts" / "pretrain.py"), "--dataset", str(folder)]
        words += ["--output_dir", str(outputs[-1]), "--config_name", "tiny", "--crop_size", "64"]
        words += ["--max_train_steps", "6", "--num_object_segment_pairs", "4"]
        words += ["--speed_report_seconds", "0", "--record_samples", "--checkpointing_steps", "3"]
        result = subprocess.run(
            [sys.executable, *words],
            env={**os.environ, **environment, "ACCELERATE_USE_CPU": "true"},
            capture_output=True,
            timeout=300,
            check=False,
        )
        assert result.returncode == 0, result.stderr.decode(errors="replace")
    assert_same_weights(*outputs)
    texts = [(output / "samples_rank_0.txt").read_bytes() for output in outputs]
    assert texts[0] == texts[1]
    assert "größe".encode() in texts[0]


@pytest.mark.slow
def test_segment_with_letters_that_the_terminal_lacks(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model")
    davis = write_davis(tmp_path / "davis", num_frames=1)
    image = tmp_path / "größe 影.jpg"
    shutil.copy(davis / "JPEGImages/480p/dog/00000.jpg", image)
    words = ["-m", "amd_hf.cli.main", "segment", str(image), "--output", str(tmp_path / "out")]
    result = subprocess.run(
        [sys.executable, *words, "--model", str(tmp_path / "model"), "--device", "cpu"],
        env={**os.environ, **LANGUAGES["plain"]},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode(errors="replace")
    assert b"_mask.png" in result.stdout
    assert len(list((tmp_path / "out").iterdir())) == 2
