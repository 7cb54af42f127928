"""Processes of one run as threads, and what several processes must give as one does."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from amd_hf import AMDConfig, AMDImageProcessor, AMDModel
from amd_hf.data.ranks import Ranks

# Differ from run to run of one process, too.
OF_THE_RUN = ("created", "seconds", "versions")


class ThreadRanks(Ranks):
    """Ranks whose processes are threads: the shares and merges are real, the transport is not."""

    def __init__(self, rank: int, count: int, meeting: threading.Barrier, board: dict[int, Any]):
        super().__init__(rank, count)
        self.meeting, self.board = meeting, board

    def gather(self, value: Any) -> list[Any] | None:
        self.board[self.rank] = value
        self._meet()
        values = [self.board[rank] for rank in range(self.count)]
        self._meet()
        return values if self.is_main else None

    def spread(self, value: Any) -> Any:
        self.gather(value)
        self._meet()
        result = self.board[0]
        self._meet()
        return result

    def _meet(self) -> None:
        try:
            self.meeting.wait(120)
        except threading.BrokenBarrierError as error:
            raise RuntimeError("another process ended") from error


def together(work: Callable[[Ranks], Any], count: int = 2) -> tuple[list[Any], list[Exception]]:
    """Runs `work` once per rank; returns results by rank and what went wrong."""
    meeting, board = threading.Barrier(count), {}
    results: list[Any] = [None] * count
    errors: list[Exception] = []

    def one(rank: int) -> None:
        try:
            results[rank] = work(ThreadRanks(rank, count, meeting, board))
        except Exception as error:  # noqa: BLE001 (told to the test)
            errors.append(error)
            meeting.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, errors


def same(result: dict[str, Any]) -> str:
    """A result as text, without what differs between any two runs."""
    return json.dumps({key: value for key, value in result.items() if key not in OF_THE_RUN})


@pytest.fixture(scope="module")
def model() -> AMDModel:
    torch.manual_seed(0)
    return AMDModel(AMDConfig.tiny()).eval()


@pytest.fixture(scope="module")
def processor(model: AMDModel) -> AMDImageProcessor:
    return AMDImageProcessor.from_model_config(model.config, size={"shortest_edge": 48})
