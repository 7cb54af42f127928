"""Training data that ends, vanishes or loses its worker."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from amd_hf.data import stream as pair_stream
from amd_hf.training.interrupts import DataStreamError
from amd_hf.training.pretraining import PretrainingRun, pretrain

from .faults.disturbed_runs import assert_same_run, resumed
from .pretraining_runs import (  # noqa: F401 (fixtures)
    Make,
    StopAfter,
    clips,
    fresh_accelerator,
    make,
)


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_ends_costs_no_step(
    make: Make,
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


def test_a_source_that_vanishes_and_comes_back(make: Make, clips: Path, tmp_path: Path) -> None:
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


def test_a_killed_data_worker(make: Make) -> None:
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
