"""Work that is killed at any moment, and the tools that kill it.

Whole campaigns of kills are run by `scripts/fault_injection.py`; `docs/reliability.md` has figures.
"""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from amd_hf.data.frame_pairs import open_source
from amd_hf.data.packing import pack_clips
from amd_hf.data.packing_clips import PackingSettings
from amd_hf.training.finetuning import finetune
from amd_hf.training.finetuning_arguments import FinetuningArguments
from amd_hf.training.pretraining import pretrain

from .faults.disturbed_runs import assert_same_run, resumed, whole  # noqa: F401 (fixtures)
from .faults.killing import Campaign
from .faults.workloads import WORKLOADS, Packing, lines_of
from .pretraining_runs import Make, clips, fresh_accelerator, make  # noqa: F401 (fixtures)
from .semantic_trees import write_pairs
from .video_trees import write_videos

RUNNER = Path(__file__).parent / "faults" / "runner.py"


# The tools.


def test_the_runner_kills_at_the_wanted_change(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, shutil, sys\n"
        "out = sys.argv[1]\n"
        "os.mkdir(out)\n"
        "open(out + '/a', 'w').close()\n"
        "open(out + '/a').read()\n"
        "os.replace(out + '/a', out + '/b')\n"
        "os.mkdir(out + '/folder')\n"
        "open(out + '/folder/c', 'w').close()\n"
        "shutil.rmtree(out + '/folder')\n"
    )
    expected = ["mkdir out", "open a", "rename a b", "mkdir folder", "open c", "remove c"]
    expected += ["rmdir folder"]
    for kill_at in (0, 3):
        output, record = tmp_path / f"out{kill_at}", tmp_path / f"record{kill_at}"
        command = [sys.executable, str(RUNNER), str(output), str(record), str(kill_at), "0"]
        status = subprocess.run(
            [*command, "main", str(script), str(output)], check=False, timeout=60
        ).returncode
        assert status == (-signal.SIGKILL if kill_at else 0)
        found = []
        for line in record.read_text().splitlines():
            _, event, *paths = line.split(" ")
            names = [Path(path).name.replace(output.name, "out") for path in paths]
            found.append(" ".join([event.removeprefix("os."), *names]))
        assert found == expected[: kill_at or None]


def test_the_check_sees_half_written_shards(tmp_path: Path) -> None:
    workload = Packing.__new__(Packing)
    source = open_source(write_videos(tmp_path / "vos", {"a": 6, "b": 6}))
    settings = PackingSettings(clips_per_shard=2, min_difference=0.0)
    for name in ("whole", "killed"):
        pack_clips(source, tmp_path / name, settings)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert workload.half_written(whole, killed) == []
    assert workload.differences(whole, killed) == []
    shard = killed / "shard-00001.tar"
    shard.write_bytes(shard.read_bytes()[:1000])
    assert workload.half_written(whole, killed) == ["shard-00001.tar"]
    (killed / "packing.json").unlink()
    (killed / "index.json").unlink()
    assert "the unfinished folder opens as a data set" in workload.half_written(whole, killed)


def test_a_run_killed_before_its_first_checkpoint(make: Make, whole: Path) -> None:
    args = resumed(make)
    Path(args.output_dir).mkdir()
    for name in ("samples_rank_0.txt", "log.jsonl"):  # of a first run that saved nothing
        lines = (whole / name).read_text().splitlines(keepends=True)
        (Path(args.output_dir) / name).write_text("".join(lines[:1]) + lines[1][:9])
    pretrain(args)
    assert_same_run(args, whole)
    steps = [line["step"] for line in map(json.loads, lines_of(whole / "log.jsonl"))]
    log = lines_of(Path(args.output_dir) / "log.jsonl")
    assert [json.loads(line)["step"] for line in log] == steps


def test_a_finetuning_run_killed_in_its_last_moments(tmp_path: Path) -> None:
    """The scores after the last checkpoint are logged once, however often the end is repeated."""
    write_pairs(tmp_path / "data", {"train": 2, "val": 1})
    options: dict[str, Any] = {
        "dataset_name": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "run"),
        "config_name": "tiny",
        "crop_size": "64",
        "short_side": 64,
        "max_train_steps": 1,
        "per_device_train_batch_size": 2,
        "num_pictures": 0,
        "dataloader_num_workers": 0,
    }
    log = tmp_path / "run" / "log.jsonl"
    first = finetune(FinetuningArguments(**options))
    lines = log.read_text()
    assert lines.count("validation") == 1
    again = finetune(FinetuningArguments(**options, resume_from_checkpoint="latest"))
    assert log.read_text() == lines
    assert again["scores"]["mean_iou"] == first["scores"]["mean_iou"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_two_kills_change_nothing(name: str, tmp_path: Path) -> None:
    report = Campaign(WORKLOADS[name](tmp_path), tmp_path, seed=1).run(2)
    assert report.problems == []
    assert report.kills == 2
    assert report.finished >= 1
