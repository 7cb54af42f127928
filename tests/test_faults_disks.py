"""Disks that are full and outputs that cannot be written leave nothing half done."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scripts import pack_youtube_vos

from amd_hf.cli.main import main as amd_hf_main
from amd_hf.hub import export
from amd_hf.training.checkpointing import (
    CheckpointError,
    list_checkpoints,
    verify_checkpoint,
    write_text_atomically,
)
from amd_hf.training.pretraining import PretrainingRun, pretrain
from amd_hf.whole_files import folder_written_aside, write_atomically, written_aside

from .evaluation_data import write_davis
from .faults.disturbed_runs import assert_same_run, resumed, whole  # noqa: F401 (fixtures)
from .faults.workloads import Packing, write_checkpoint
from .pretraining_runs import (  # noqa: F401 (fixtures)
    Make,
    StopAfter,
    clips,
    fresh_accelerator,
    make,
)
from .video_trees import write_videos


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


def test_training_on_a_full_disk(
    make: Make,
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


# Of numpy before 2.1, which leaves its zip file open when it cannot write.
@pytest.mark.filterwarnings("ignore:.*ZipFile.__del__:pytest.PytestUnraisableExceptionWarning")
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


def test_a_rewritten_file_keeps_its_content_on_a_full_disk(tmp_path: Path) -> None:
    file = tmp_path / "index.json"
    write_atomically(file, b"old")
    with small_disk(1000), pytest.raises(OSError, match="File too large"):
        write_atomically(file, bytes(2000))
    with small_disk(1000), pytest.raises(CheckpointError, match=r"index\.json cannot be written"):
        write_text_atomically(file, "new" * 1000)
    assert file.read_bytes() == b"old"
    write_text_atomically(file, "\udcff grün")  # a name of a file that is no UTF-8
    assert file.read_bytes() == b"\xff gr\xc3\xbcn"
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]


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
    make: Make,
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
