"""Counts of what a stream left out, shared by all worker processes of a loader."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# unreadable: a frame or video that cannot be read or decoded. too_short: a clip without two frames
# at the wanted distance. static, shot_cut: pairs that were screened out. sizes_differ: two frames
# of one video differ in size. incomplete: an archive ends too early, so its last clip is lost.
SKIP_REASONS = ("unreadable", "too_short", "static", "shot_cut", "sizes_differ", "incomplete")
NUM_ROWS = 256
MAX_REPORTS = 5


class SkippedPairError(Exception):
    """A pair that a stream leaves out; `reason` is one of `SKIP_REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[SkippedPairError], tuple[str, str]]:
        return type(self), (self.reason, self.detail)


class SkipCounter:
    """Counts per reason that worker processes write and the main process reads at any time.

    The counts lie in shared memory, one row per worker, so no lock is needed. They count this
    process's loaders only; sum over ranks where a total is wanted.

    Attributes:
        latest: What this process left out last, and why; empty at first.
    """

    def __init__(self) -> None:
        self._counts: Tensor = torch.zeros(NUM_ROWS, len(SKIP_REASONS), dtype=torch.int64)
        self._counts.share_memory_()
        self._num_reports = 0
        self.latest = ""

    def add(self, reason: str, what: str, count: int = 1) -> None:
        """Counts `what` under `reason` and logs the first few cases of this process."""
        worker = torch.utils.data.get_worker_info()
        self.latest = f"{what}: {reason}"
        row = 0 if worker is None else 1 + worker.id % (NUM_ROWS - 1)
        self._counts[row, SKIP_REASONS.index(reason)] += count
        # Static pairs and cuts are expected; damaged files are worth a line.
        level = logging.DEBUG if reason in ("static", "shot_cut") else logging.WARNING
        if level == logging.DEBUG or self._num_reports < MAX_REPORTS:
            logger.log(level, "Skipped (%s): %s.", reason, what)
            self._num_reports += level == logging.WARNING

    def as_dict(self) -> dict[str, int]:
        """Returns the number of skipped clips and pairs by reason."""
        totals = self._counts.sum(dim=0).tolist()
        return dict(zip(SKIP_REASONS, totals, strict=True))

    @property
    def total(self) -> int:
        """Number of skipped clips and pairs over all reasons."""
        return int(self._counts.sum())

    def __repr__(self) -> str:
        found = ", ".join(f"{name}={count}" for name, count in self.as_dict().items() if count)
        return f"SkipCounter({found or 'nothing skipped'})"
