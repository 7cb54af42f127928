"""Faults that training, packing, evaluation and export must survive, and the tools that make them.

Whole campaigns of kills are run by `scripts/fault_injection.py`; `docs/reliability.md` has figures.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scripts import pack_youtube_vos

from amd_hf.cli.main import main as amd_hf_main
from amd_hf.data import stream as pair_stream
from amd_hf.data.frame_pairs import open_source
from amd_hf.data.packing import pack_clips
from amd_hf.data.packing_clips import PackingSettings
from amd_hf.hub import export
from amd_hf.training.checkpointing import CheckpointError, list_checkpoints, verify_checkpoint
from amd_hf.training.finetuning import finetune
from amd_hf.training.finetuning_arguments import FinetuningArguments
from amd_hf.training.interrupts import DataStreamError
from amd_hf.training.pretraining import PretrainingRun, pretrain
from amd_hf.whole_files import folder_written_aside, written_aside

from .evaluation_data import write_davis
from .faults.killing import Campaign
from .faults.workloads import WORKLOADS, Packing, lines_of, write_checkpoint
from .pretraining_runs import (  # noqa: F401 (fixtures)
    Make,
    StopAfter,
    assert_same_weights,
    clips,
    fresh_accelerator,
    make,
    samples,
)
from .semantic_trees import write_pairs
from .video_trees import write_videos

RUNNER = Path(__file__).parent / "faults" / "runner.py"


@contextmanager
def small_disk(num_bytes: int) -> Iterator[None]:
    """No file of this process can grow beyond `num_bytes`, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    """A folder that cannot be written, even by root."""
    if os.geteuid() == 0:
        return Path("/sys/kernel/amd-hf")
    folder = tmp_path / "unwritable"
    folder.mkdir(mode=0o555)
    return folder / "out"


@pytest.fixture
def whole(make: Make) -> Path:  # noqa: F811
    """The output of a run of six steps that nothing disturbs."""
    args = make("whole", per_device_train_batch_size=3)
    pretrain(args)
    return Path(args.output_dir)


def resumed(make: Make, **options: Any) -> Any:  # noqa: F811
    return make(
        "disturbed", per_device_train_batch_size=3, resume_from_checkpoint="latest", **options
    )


def assert_same_run(args: Any, whole: Path) -> None:
    assert_same_weights(args.output_dir, whole)
    assert "\n".join(samples(args)) == (whole / "samples_rank_0.txt").read_text().strip()
    results = [
        json.loads((folder / "all_results.json").read_text())["metrics"]
        for folder in (Path(args.output_dir), whole)
    ]
    for result in results:
        result.pop("samples_per_second", None)
        result.pop("data_wait_share", None)
    assert results[0] == results[1]


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


def test_a_run_killed_before_its_first_checkpoint(make: Make, whole: Path) -> None:  # noqa: F811
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


# Data that ends.


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_ends_costs_no_step(
    make: Make,  # noqa: F811
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error comes in the middle of a batch; the run goes on exactly before that batch."""
    real, calls = pair_stream.PairExamples._example, []

    def failing(self: Any, *args: Any) -> Any:
        calls.append(1)
        if len(calls) > 10:
            raise ConnectionError("Server Disconnected")
        return real(self, *args)

    options = {"per_device_train_batch_size": 3, "dataloader_num_workers": workers}
    whole_args = make("whole", **options)
    pretrain(whole_args)
    monkeypatch.setattr(pair_stream.PairExamples, "_example", failing)
    args = make("disturbed", **options)
    with pytest.raises(DataStreamError) as caught:
        pretrain(args)
    assert str(caught.value) == (
        "The data cannot be read any further after step 3 (ConnectionError: Server Disconnected); "
        "step_3 is saved: go on with --resume_from_checkpoint latest when the source is back."
    )
    monkeypatch.setattr(pair_stream.PairExamples, "_example", real)
    args = resumed(make, dataloader_num_workers=workers)
    pretrain(args)
    assert_same_run(args, Path(whole_args.output_dir))


def test_a_source_that_vanishes_and_comes_back(make: Make, clips: Path, tmp_path: Path) -> None:  # noqa: F811
    folder, away = tmp_path / "videos", tmp_path / "away"
    shutil.copytree(clips, folder)
    options = {"dataset": str(folder), "per_device_train_batch_size": 3}
    whole_args = make("whole_2", **options)
    pretrain(whole_args)

    class Vanishing(PretrainingRun):
        def _next_batch(self) -> dict[str, Any]:
            if self.progress.step == 3 and folder.exists():
                folder.rename(away)
            return super()._next_batch()

    args = make("disturbed", **options)
    with pytest.raises(DataStreamError, match=r"No pair could be .*unreadable.*step_3 is saved"):
        Vanishing(args, StopAfter(10**6)).run()
    away.rename(folder)
    args = resumed(make, dataset=str(folder))
    pretrain(args)
    assert_same_run(args, Path(whole_args.output_dir))


def test_a_killed_data_worker(make: Make) -> None:  # noqa: F811
    options = {"dataloader_num_workers": 1, "per_device_train_batch_size": 3}
    whole_args = make("whole_3", **options)
    pretrain(whole_args)

    class Killing(PretrainingRun):
        def _next_batch(self) -> dict[str, Any]:
            batch = super()._next_batch()
            if self.progress.step == 2:
                (worker,) = self.stream.loader._iterator._workers
                worker.kill()
                worker.join()
            return batch

    handler = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(DataStreamError, match=r"worker.*exited unexpectedly.*is saved"):
        Killing(make("disturbed", **options), StopAfter(10**6)).run()
    assert signal.getsignal(signal.SIGCHLD) is handler
    args = resumed(make, dataloader_num_workers=1)
    pretrain(args)
    assert_same_run(args, Path(whole_args.output_dir))


# Disks.


def test_training_on_a_full_disk(
    make: Make,  # noqa: F811
    whole: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    args = make("disturbed", per_device_train_batch_size=3)
    PretrainingRun(args, StopAfter(3)).run()
    args = resumed(make)
    with (
        small_disk(20_000),
        pytest.raises(CheckpointError, match=r"The final weights could not be written.*free space"),
    ):
        pretrain(args)
    assert "No checkpoint at step 4; earlier ones are untouched. Free space" in caplog.text
    for folder in list_checkpoints(args.output_dir):
        verify_checkpoint(folder)
    assert not list(Path(args.output_dir).glob("*.safetensors"))
    pretrain(args)
    assert_same_run(args, whole)


def test_packing_on_a_full_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_videos(tmp_path / "vos", {"a": 9, "b": 9})

    def pack(name: str) -> int:
        words = ["--source", str(root), "--output_dir", str(tmp_path / name), "--num_workers", "0"]
        monkeypatch.setattr(sys, "argv", ["pack", *words, "--min_difference", "0"])
        return pack_youtube_vos.main()

    assert pack("whole") == 0
    for limit in (3000, 20_000):  # the first part does not fit; the parts fit, the shard does not
        with small_disk(limit):
            assert pack("full") == 2
        assert "File too large" in capsys.readouterr().err
        assert not list((tmp_path / "full").glob("*.tar"))
    assert pack("full") == 0
    workload = Packing.__new__(Packing)
    assert workload.differences(tmp_path / "whole", tmp_path / "full") == []


def evaluate(tmp_path: Path, output: Path) -> int:
    words = ["evaluate", "davis2016", "--data", str(tmp_path / "davis"), "--quiet"]
    words += ["--model", str(tmp_path / "model"), "--device", "cpu", "--bootstrap", "20"]
    return amd_hf_main([*words, "--output", str(output), "--rows", str(output.with_suffix(".csv"))])


def test_evaluation_on_a_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_davis(tmp_path / "davis", num_frames=2)
    write_checkpoint(tmp_path / "model")
    output = tmp_path / "out" / "result.json"
    with small_disk(1000):
        assert evaluate(tmp_path, output) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("amd-hf evaluate: ")
    assert "File too large" in error
    assert list(output.parent.iterdir()) == []
    assert evaluate(tmp_path, output) == 0
    assert sorted(path.name for path in output.parent.iterdir()) == ["result.csv", "result.json"]


def test_files_and_folders_are_whole_or_absent(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    (tmp_path / ".partial_folder").mkdir()
    (tmp_path / ".partial_folder" / "torn").write_text("of a killed process")

    def fail(path: Path, aside: Any) -> None:
        with aside(path) as partial:
            (partial if path is file else partial / "a").write_text("half")
            assert not path.exists()
            raise RuntimeError("the work failed")

    for path, aside in ((file, written_aside), (folder, folder_written_aside)):
        with pytest.raises(RuntimeError, match="the work failed"):
            fail(path, aside)
        assert not path.exists()
    assert list(tmp_path.iterdir()) == []
    folder.mkdir()  # an empty one may be there
    with written_aside(file) as partial, folder_written_aside(folder) as partial_folder:
        partial.write_text("whole")
        (partial_folder / "a").write_text("whole")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "file", "folder"]


def test_a_repository_is_whole_or_absent(
    tmp_path: Path, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise RuntimeError(f"The repository in {folder} lacks something.")

    monkeypatch.setattr(export, "check_repository", refuse)
    with pytest.raises(RuntimeError, match="lacks something"):
        export.export_repository(tiny_model, tmp_path / "repository")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    export.export_repository(tiny_model, tmp_path / "repository")
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


@pytest.mark.slow
def test_export_on_a_full_disk(tmp_path: Path) -> None:
    deployment = pytest.importorskip("amd_hf.hub.deployment")
    pytest.importorskip("onnxscript", reason="needs the extra `deploy`")
    from amd_hf import AMDModel

    model = AMDModel.from_pretrained(write_checkpoint(tmp_path / "model"))
    exports: list[tuple[Callable[..., Path], str]] = [
        (deployment.export_onnx, "amd.onnx"),
        (deployment.export_program, "amd.pt2"),
    ]
    for write, name in exports:
        with small_disk(10_000), pytest.raises((OSError, RuntimeError)):
            write(model, tmp_path / "out" / name)
        assert list((tmp_path / "out").iterdir()) == []


def test_outputs_that_cannot_be_written(
    make: Make,  # noqa: F811
    unwritable: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValueError, match=r"`output_dir` .* cannot be written \(.+\); choose"):
        pretrain(make(output_dir=str(unwritable)))
    root = write_videos(tmp_path / "vos", {"a": 6})
    words = ["pack", "--source", str(root), "--output_dir", str(unwritable), "--num_workers", "0"]
    monkeypatch.setattr(sys, "argv", words)
    assert pack_youtube_vos.main() == 2
    assert str(unwritable) in capsys.readouterr().err
    assert evaluate(tmp_path, unwritable / "result.json") == 2
    assert str(unwritable) in capsys.readouterr().err


# Clocks and languages.


def test_a_clock_that_jumps_changes_nothing(
    make: Make,  # noqa: F811
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
    clips: Path,  # noqa: F811
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
