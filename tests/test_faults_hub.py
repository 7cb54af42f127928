"""Pre-training that streams from a Hub data set while the network fails (a loopback server)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from amd_hf.data.frame_pairs import open_source
from amd_hf.data.packing import pack_clips
from amd_hf.data.packing_clips import PackingSettings
from amd_hf.hub.publish import publish_folder
from amd_hf.training.checkpointing import list_checkpoints

from .loopback_hub import LoopbackHub
from .pretraining_runs import assert_same_weights
from .video_trees import write_videos

NUM_STEPS = 16
# The script as it is, with less patience than the minutes that `datasets` waits by default.
IMPATIENT = """
import runpy, sys
import datasets.config as settings
from huggingface_hub.utils import _http
settings.STREAMING_READ_RETRY_INTERVAL = settings.STREAMING_OPEN_RETRY_INTERVAL = 0.1
settings.STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL = 0.1
settings.STREAMING_READ_MAX_RETRIES = settings.STREAMING_OPEN_MAX_RETRIES = 2
_http.time.sleep = lambda seconds: None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def hub(hub: LoopbackHub, tmp_path: Path) -> LoopbackHub:
    """A Hub with the data set org/clips: 18 clips in three shards."""
    source = open_source(write_videos(tmp_path / "vos", {f"video{n}": 9 for n in range(6)}))
    settings = PackingSettings(clips_per_shard=6, min_difference=0.0)
    pack_clips(source, tmp_path / "clips", settings)
    publish_folder(tmp_path / "clips", "org/clips", repo_type="dataset")
    return hub


def train(
    hub: LoopbackHub, repository: Path, output: Path, workers: int
) -> subprocess.CompletedProcess[str]:
    options = {
        "dataset": "org/clips",
        "output_dir": output,
        "config_name": "tiny",
        "crop_size": 32,
        "max_train_steps": NUM_STEPS,
        "per_device_train_batch_size": 3,
        "dataloader_num_workers": workers,
        "checkpointing_steps": 0,
        "num_object_segment_pairs": 0,
        "speed_report_seconds": 0,
        "record_samples": True,
        "resume_from_checkpoint": "latest",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, **hub.environment(output.parent / "child")}
    return subprocess.run(
        [sys.executable, "-c", IMPATIENT, str(repository / "scripts" / "pretrain.py"), *words],
        env={**environment, "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes")
@pytest.mark.parametrize("workers", [0, 2])
def test_network_cut_while_training_from_the_hub(
    hub: LoopbackHub, repository: Path, tmp_path: Path, workers: int
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    result = train(hub, repository, whole, workers)
    assert result.returncode == 0, result.stderr
    assert len((whole / "samples_rank_0.txt").read_text().splitlines()) == NUM_STEPS

    # The connection breaks once: read again, nothing lost, nothing twice. Then it stays away.
    num_reads = hub.count("GET .*shard-.*tar")
    hub.fail("GET .*shard-.*tar", cut_after=3000)
    hub.fail("GET .*shard-.*tar", after=num_reads // 2, cut_after=0, times=10**6)
    result = train(hub, repository, cut, workers)
    assert result.returncode == 1, result.stderr
    error = result.stderr.strip().splitlines()[-1]
    assert error.startswith("error: The data cannot be read any further after step ")
    assert error.endswith("go on with --resume_from_checkpoint latest when the source is back.")
    assert "Traceback (most recent call last)" not in result.stderr
    (saved,) = list_checkpoints(cut)
    assert 0 < int(saved.name.removeprefix("step_")) < NUM_STEPS

    hub.troubles.clear()
    result = train(hub, repository, cut, workers)
    assert result.returncode == 0, result.stderr
    assert_same_weights(cut, whole)
    assert (cut / "samples_rank_0.txt").read_text() == (whole / "samples_rank_0.txt").read_text()
