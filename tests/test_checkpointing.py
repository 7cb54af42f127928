"""Checkpoints are whole or absent: torn, full and killed writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from amd_hf.training.checkpointing import (
    MANIFEST,
    PARTIAL_PREFIX,
    CheckpointError,
    begin_checkpoint,
    checkpoint_path,
    commit_checkpoint,
    latest_checkpoint,
    list_checkpoints,
    load_state,
    prune_checkpoints,
    remove_leftovers,
    save_state,
    verify_checkpoint,
    write_checkpoint,
    write_text_atomically,
)


def write(folder: Path, step: int, text: str = "weights", **options: object) -> Path | None:
    def write_shared(partial: Path) -> None:
        (partial / "model.bin").write_text(f"{text} {step}")
        (partial / "ema").mkdir()
        (partial / "ema" / "model.bin").write_text("average")

    return write_checkpoint(
        folder,
        step,
        write_shared=write_shared,
        write_rank=lambda partial: save_state({"step": step}, partial / "rank_0.pt"),
        **options,  # type: ignore[arg-type]
    )


def test_a_written_checkpoint_is_whole(tmp_path: Path) -> None:
    folder = write(tmp_path, 3)
    assert folder == tmp_path / "step_3"
    verify_checkpoint(folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert set(manifest) == {"model.bin", "ema/model.bin", "rank_0.pt"}
    assert load_state(folder / "rank_0.pt") == {"step": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["step_3"]


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        write(tmp_path, step)
    (tmp_path / "step_x").mkdir()
    (tmp_path / "step_7").write_text("a file")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_9", "step_10", "step_100"]
    assert list_checkpoints(tmp_path / "absent") == []
    assert latest_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize("damage", ["cut", "altered", "missing", "manifest", "torn manifest"])
def test_a_damaged_checkpoint_is_never_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 1)
    folder = write(tmp_path, 2)
    assert folder is not None
    weights = folder / "ema" / "model.bin"
    if damage == "cut":
        weights.write_text("aver")
    elif damage == "altered":
        weights.write_text("AVERAGE")
    elif damage == "missing":
        weights.unlink()
    elif damage == "manifest":
        (folder / MANIFEST).unlink()
    else:
        (folder / MANIFEST).write_text('{"model.bin": {"si')
    with pytest.raises(CheckpointError, match="is not a whole checkpoint"):
        verify_checkpoint(folder)
    assert latest_checkpoint(tmp_path) == tmp_path / "step_1"
    assert "step_2 is not a whole checkpoint" in caplog.text


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step, limit=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_2", "step_3"]
    assert prune_checkpoints(tmp_path, None) == []
    assert prune_checkpoints(tmp_path, 1) == ["step_2"]


def test_the_same_step_is_written_anew(tmp_path: Path) -> None:
    write(tmp_path, 1, "old")
    folder = write(tmp_path, 1, "new")
    assert folder is not None
    assert (folder / "model.bin").read_text() == "new 1"
    verify_checkpoint(folder)


def test_a_failed_write_leaves_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 1)

    def fill_disk(partial: Path) -> None:
        (partial / "model.bin").write_text("half")
        raise OSError(28, "No space left on device")

    result = write_checkpoint(
        tmp_path, 2, write_shared=fill_disk, write_rank=lambda partial: None, limit=1
    )
    assert result is None
    assert "No space left on device" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]
    verify_checkpoint(checkpoint_path(tmp_path, 1))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_torch_on_a_full_disk_is_noticed(tmp_path: Path) -> None:
    def write_rank(partial: Path) -> None:
        (partial / "rank_0.pt").symlink_to("/dev/full")
        save_state({"tensor": torch.zeros(1 << 18)}, partial / "rank_0.pt")

    result = write_checkpoint(tmp_path, 1, write_shared=lambda partial: None, write_rank=write_rank)
    assert result is None
    assert list(tmp_path.iterdir()) == []


def test_another_process_failed(tmp_path: Path) -> None:
    answers = iter([True, False])
    assert write(tmp_path, 1, all_succeeded=lambda mine: mine and next(answers)) is None
    assert list(tmp_path.iterdir()) == []


def test_leftovers_are_removed(tmp_path: Path) -> None:
    write(tmp_path, 1)
    partial = begin_checkpoint(tmp_path, 2)
    (partial / "model.bin").write_text("half")
    (tmp_path / f"{PARTIAL_PREFIX}log.jsonl").write_text("half")
    assert latest_checkpoint(tmp_path) == tmp_path / "step_1"
    assert len(remove_leftovers(tmp_path)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]


def test_begin_and_commit_by_hand(tmp_path: Path) -> None:
    partial = begin_checkpoint(tmp_path, 5)
    (partial / "a").write_text("1")
    assert list_checkpoints(tmp_path) == []
    assert commit_checkpoint(partial) == tmp_path / "step_5"
    verify_checkpoint(tmp_path / "step_5")


def test_states_hold_no_code(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("touch pwned",)

    torch.save({"x": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="Weights only load failed"):
        load_state(tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"has no absent\.pt"):
        load_state(tmp_path / "absent.pt")


def test_atomic_text(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write_text_atomically(path, "old")
    write_text_atomically(path, "new")
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.jsonl"]


KILLED_WRITER = """
import sys, torch
from pathlib import Path
from amd_hf.training.checkpointing import save_state, write_checkpoint
folder = Path(sys.argv[1])
for step in range(1, 10_000):
    write_checkpoint(
        folder, step, limit=2,
        write_shared=lambda partial: save_state({"step": step, "w": torch.zeros(1 << 16)},
                                                partial / "model.pt"),
        write_rank=lambda partial: save_state({"step": step}, partial / "rank_0.pt"),
    )
    print(step, flush=True)
"""


@pytest.mark.slow
def test_sigkill_while_writing_never_tears_a_checkpoint(tmp_path: Path) -> None:
    for attempt in range(5):
        command = [sys.executable, "-c", KILLED_WRITER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.037 * (attempt + 1))
            process.send_signal(signal.SIGKILL)
            done = [int(line) for line in process.stdout.read().split()]
        latest = latest_checkpoint(tmp_path)
        assert latest is not None
        step = int(latest.name.removeprefix("step_"))
        assert step >= max(done, default=1)
        assert load_state(latest / "model.pt")["step"] == step
        for folder in list_checkpoints(tmp_path):
            verify_checkpoint(folder)
        remove_leftovers(tmp_path)
