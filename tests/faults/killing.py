"""SIGKILL at random moments of a workload, and the comparison with a run that nothing disturbed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.workloads import REPOSITORY, Workload

RUNNER = Path(__file__).with_name("runner.py")
TIMEOUT = 600.0
MAX_DELAY = 0.03


@dataclass(frozen=True)
class Moment:
    """When to kill, and whom.

    Attributes:
        change: Number of the change of the output folder at which to kill; 0 with `seconds`.
        seconds: Time after the first change instead.
        delay: Seconds from the change to the kill.
        whom: "main" (its workers live on) or "group".
    """

    change: int = 0
    seconds: float | None = None
    delay: float = 0.0
    whom: str = "group"


@dataclass
class Report:
    """What a campaign of kills found.

    Attributes:
        kills: Number of runs that were killed.
        finished: Number of runs that came to their end, each after some kills.
        problems: What was not the same, or half written and taken for whole.
        moments: How many kills came at which kind of change, or by the clock.
        seconds: Duration of the whole campaign.
    """

    kills: int = 0
    finished: int = 0
    problems: list[str] = field(default_factory=list)
    moments: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "kills": self.kills,
            "finished": self.finished,
            "problems": self.problems,
            "moments": dict(self.moments.most_common()),
            "seconds": round(self.seconds, 1),
        }


class Campaign:
    """Kills a workload again and again, always into the same output, and compares the end.

    Args:
        workload: What is run.
        folder: Where outputs and records lie; emptied first.
        seed: Seed of the moments.
    """

    def __init__(self, workload: Workload, folder: Path, seed: int) -> None:
        self.workload = workload
        self.whole, self.killed = folder / "whole", folder / "killed"
        self.record = folder / "changes.txt"
        self.log = folder / "log.txt"
        self.random = random.Random(f"{workload.name} {seed}")
        self.report = Report()
        self._num_changes, self._span = 0, 0.0
        for path in (self.whole, self.killed):
            shutil.rmtree(path, ignore_errors=True)

    def run(self, num_kills: int) -> Report:
        """Runs the workload once whole, kills it `num_kills` times, and lets it end.

        Raises:
            RuntimeError: If a run fails by itself.
        """
        begin = time.monotonic()
        first = self._start(self.whole, Moment())
        self._num_changes = len(lines_of_record(self.record))
        self._span = first
        while self.report.kills < num_kills:
            self._one(self._moment())
        if self.killed.exists():
            self._one(Moment())
        self.report.seconds = time.monotonic() - begin
        return self.report

    def _moment(self) -> Moment:
        whom = self.random.choice(["main", "group"])
        # Far enough to come on, near enough to be killed several times on the way.
        share = self.random.uniform(0.0, 0.6)
        if self.random.random() < 0.35:
            return Moment(seconds=share * self._span, whom=whom)
        delay = self.random.choice([0.0, self.random.uniform(0.0, MAX_DELAY)])
        return Moment(max(round(share * self._num_changes), 1), delay=delay, whom=whom)

    def _one(self, moment: Moment) -> None:
        """One run into the killed output: ends by the kill, or by itself and is compared."""
        report = self.report
        if self._start(self.killed, moment) < 0:
            report.kills += 1
            changes = lines_of_record(self.record)
            by_clock = moment.seconds is not None or not changes
            report.moments["by the clock" if by_clock else kind_of(changes[-1])] += 1
            found = self.workload.half_written(self.whole, self.killed)
            report.problems += [f"half written after kill {report.kills}: {x}" for x in found]
            return
        report.finished += 1
        found = self.workload.differences(self.whole, self.killed)
        report.problems += [f"differs after {report.kills} kills: {x}" for x in found]
        shutil.rmtree(self.killed)

    def _start(self, output: Path, moment: Moment) -> float:
        """Runs once; returns the seconds from the first change to the end, -1 if killed."""
        self.record.unlink(missing_ok=True)
        command = [sys.executable, str(RUNNER), str(output), str(self.record)]
        command += [str(moment.change), str(moment.delay), moment.whom]
        command += self.workload.command(output)
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = str(REPOSITORY)
        with (
            self.log.open("ab") as log,
            subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            ) as process,
        ):
            first = self._wait(process, moment)
            status = process.wait(TIMEOUT)
        seconds = time.monotonic() - first
        if status == -signal.SIGKILL:
            return -1.0
        if status:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise RuntimeError(f"{self.workload.name} ended with status {status}:\n{tail}")
        return seconds

    def _wait(self, process: subprocess.Popen[bytes], moment: Moment) -> float:
        """Waits for the first change and, where the clock decides, for the moment to kill."""
        deadline = time.monotonic() + TIMEOUT
        while process.poll() is None and time.monotonic() < deadline:
            if self.record.exists() and self.record.stat().st_size:
                break
            time.sleep(0.02)
        first = time.monotonic()
        if moment.seconds is not None:
            try:
                process.wait(moment.seconds)
            except subprocess.TimeoutExpired:
                kill = os.killpg if moment.whom == "group" else os.kill
                kill(process.pid, signal.SIGKILL)
        return first


def lines_of_record(record: Path) -> list[str]:
    """The changes that the runner wrote down."""
    return record.read_text().splitlines() if record.is_file() else []


def kind_of(change: str) -> str:
    """What a change was, in words: the operation and whether it belongs to something unfinished."""
    _, event, *paths = change.split(" ")
    marks = (".partial", ".trash", ".tmp", ".unfinished", "/parts/")
    place = "aside" if any(mark in path for path in paths for mark in marks) else "in place"
    return f"{event.removeprefix('os.')} {place}"
