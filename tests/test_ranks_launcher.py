"""Work over the processes of `torchrun` gives what one process gives."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from amd_hf import AMDImageProcessor, AMDModel
from amd_hf.data.frame_pairs import open_source
from amd_hf.data.packing import pack_clips
from amd_hf.data.packing_clips import PackingSettings

from .evaluation_data import write_davis
from .rank_cases import model, processor, same  # noqa: F401 (fixtures)
from .video_trees import write_videos


def launched(tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a module or script in two processes of torchrun, on one thread each."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    process = subprocess.Popen(
        [*launcher, "--nproc_per_node", "2", *command],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        for child in children_of(process.pid):
            os.kill(child, signal.SIGKILL)
        process.kill()
        raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def children_of(parent: int) -> list[int]:
    """The processes that a launcher has started; each leads a group of its own."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False
    )
    return [int(pid) for pid in listed.stdout.split()]


@pytest.mark.slow
class TestLauncher:
    """The real transport."""

    def test_evaluate(self, model: AMDModel, processor: AMDImageProcessor, tmp_path: Path) -> None:
        write_davis(tmp_path / "davis")
        model.save_pretrained(tmp_path / "checkpoint")
        processor.save_pretrained(tmp_path / "checkpoint")
        arguments = ["evaluate", "davis2016", "--data", "davis", "--model", "checkpoint"]
        arguments += ["--quiet", "--bootstrap", "20", "--controls"]
        done = launched(tmp_path, "-m", "amd_hf.cli", *arguments, "--output", "two.json")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("DAVIS-2016") == 1  # one process tells
        one = subprocess.run(
            [sys.executable, "-m", "amd_hf.cli", *arguments, "--output", "one.json"],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert one.returncode == 0, one.stderr
        read = [json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json")]
        assert same(read[0]) == same(read[1])

    def test_pack(self, tmp_path: Path) -> None:
        write_videos(tmp_path / "videos", {f"v{number}": 4 for number in range(3)}, "")
        script = str(Path(__file__).parents[1] / "scripts" / "pack_youtube_vos.py")
        arguments = ["--source", "videos", "--num_workers", "0", "--keep_shot_cuts"]
        arguments += ["--frames_per_clip", "2", "--clips_per_shard", "2"]
        done = launched(tmp_path, script, *arguments, "--output_dir", "two")
        assert done.returncode == 0, done.stderr
        settings = PackingSettings(frames_per_clip=2, clips_per_shard=2, reject_shot_cuts=False)
        pack_clips(open_source(tmp_path / "videos"), tmp_path / "one", settings)
        names = sorted(path.name for path in (tmp_path / "one").glob("*.tar"))
        assert len(names) == 3
        for name in names:
            one, two = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
            assert one == two
