"""The parent process: runs a worker, counts what it reports, and survives whatever ends it."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
STARTUP_SECONDS = 1200.0
# On a busy machine a case waits for its turn: the limit of a case counts the seconds it computes.
MOST_WAITING = 10.0
LOOK_SECONDS = 2.0
MOST_KEPT_FAILURES = 50
# Resident memory jumps by some megabytes as allocators and caches fill up; a leak goes on.
MOST_GROWTH_MB = 48.0
MOST_GROWN_FILES = 2
LEAST_USAGES = 8


@dataclass
class Result:
    """What a run of one family has found so far; saved after every part, so a run can go on.

    Attributes:
        family: Name of the family.
        seed: Seed of the cases.
        count: Number of cases of the whole run.
        done: Number of cases that were judged.
        counts: Number of verdicts by `reader/kind`.
        failures: Cases with an undocumented exception or a message that does not say enough.
        num_failures: Number of these, of which the first are kept in `failures`.
        crashes: Cases that ended the process.
        hangs: Cases that passed the time limit.
        usages: Cases done, resident memory in MB, open files and threads, by process.
        peak_mb: Largest resident memory in MB.
        seconds: Time of all parts of the run.
        slowest: Seconds and number of the case that took longest.
    """

    family: str
    seed: int
    count: int
    done: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    num_failures: int = 0
    crashes: list[dict[str, Any]] = field(default_factory=list)
    hangs: list[int] = field(default_factory=list)
    usages: list[list[list[float]]] = field(default_factory=list)
    peak_mb: float = 0.0
    seconds: float = 0.0
    slowest: tuple[float, int] = (0.0, -1)

    @property
    def growth_mb(self) -> float:
        """Growth of the memory in MB over the second half of the longest-lived process."""
        return self._grown(1)

    @property
    def grown_files(self) -> float:
        """Growth of the number of open files over the second half of that process."""
        return self._grown(2)

    def _grown(self, column: int) -> float:
        """Least level of the last quarter less that of the quarter after the first half."""
        longest = max(self.usages, key=len, default=[])
        if len(longest) < LEAST_USAGES:
            return 0.0
        quarter = len(longest) // 4
        middle, end = longest[2 * quarter : 3 * quarter], longest[3 * quarter :]
        return min(row[column] for row in end) - min(row[column] for row in middle)

    @property
    def has_passed(self) -> bool:
        """Whether nothing was found."""
        is_clean = not (self.num_failures or self.crashes or self.hangs)
        is_flat = self.growth_mb <= MOST_GROWTH_MB and self.grown_files <= MOST_GROWN_FILES
        return is_clean and is_flat and self.done >= self.count

    def verdicts(self, kind: str) -> int:
        """Number of verdicts of one kind on damaged input."""
        return sum(
            count
            for name, count in self.counts.items()
            if name.endswith(f"/{kind}") and not name.startswith("valid ")
        )


def run_family(
    family: str,
    count: int,
    seed: int,
    output_dir: Path,
    *,
    seconds_per_case: float = 20.0,
    first: int | None = None,
) -> Result:
    """Runs the cases of a family in child processes, one at a time.

    Args:
        family: Name of the family.
        count: Number of cases.
        seed: Seed of the cases.
        output_dir: Gets `FAMILY.json`, and the failing input in `FAMILY/failures`. An unfinished
            run of the same seed and count goes on where it was.
        seconds_per_case: A case that takes longer is a hang.
        first: Number of the first case, to look at some again; nothing is saved then.

    Returns:
        What was found.
    """
    path = output_dir / f"{family}.json"
    result = Result(family, seed, count)
    if first is None:
        result = load_result(path, result)
    else:
        result.done = first
        result.count = first + count
    folder = output_dir / family
    folder.mkdir(parents=True, exist_ok=True)
    next_case = result.done if result.done or first is not None else -1
    while next_case < result.count:
        watch = Watch(result, folder, seconds_per_case, path if first is None else None)
        next_case = watch.run(next_case)
    for name in ("case", "samples", "temporary"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return result


def load_result(path: Path, fresh: Result) -> Result:
    """The unfinished result in a file if it is of the same run, else the fresh one."""
    saved = read_result(path)
    if saved is None or saved.done >= saved.count:
        return fresh
    is_same = (saved.family, saved.seed, saved.count) == (fresh.family, fresh.seed, fresh.count)
    return saved if is_same else fresh


def read_result(path: Path) -> Result | None:
    """The result in a file, finished or not; None where there is no file."""
    if not path.is_file():
        return None
    saved = json.loads(path.read_text())
    saved["slowest"] = tuple(saved["slowest"])
    return Result(**{item.name: saved[item.name] for item in fields(Result)})


def save_result(path: Path, result: Result) -> None:
    """Writes a result with what follows from it."""
    derived = {
        "growth_mb": round(result.growth_mb, 1),
        "grown_files": result.grown_files,
        "has_passed": result.has_passed,
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({**asdict(result), **derived}, indent=1))
    partial.replace(path)


class Watch:
    """One child process from its start to its end.

    Args:
        result: Gets everything that is found.
        folder: Folder of the family.
        seconds_per_case: Time limit of a case.
        path: The result is saved here as it grows; None saves nothing.
    """

    def __init__(
        self, result: Result, folder: Path, seconds_per_case: float, path: Path | None = None
    ) -> None:
        self.result = result
        self.folder = folder
        self.limit = seconds_per_case
        self.path = path
        self.begin = time.monotonic()
        self.current: int | None = None
        self.since = time.monotonic()
        self.computed_before = 0.0
        self.usages: list[list[float]] = []
        self.result.usages.append(self.usages)
        self.has_ended = False

    def run(self, first: int) -> int:
        """Runs a worker from case `first` on; returns the number of the case to go on with."""
        errors = self.folder / "stderr.txt"
        command = [sys.executable, "-m", "tests.fuzzing.worker", self.result.family]
        command += [str(self.result.seed), str(first), str(self.result.count), str(self.folder)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=stderr, cwd=ROOT, env=environment
            )
            try:
                is_hung = self._listen(process)
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()
                assert process.stdout is not None
                process.stdout.close()
        next_case = self._next_case(process.returncode, is_hung, errors)
        self._save()
        return next_case

    def _save(self) -> None:
        """Saves the result so far."""
        now = time.monotonic()
        self.result.seconds += now - self.begin
        self.begin = now
        if self.path is not None:
            save_result(self.path, self.result)

    def _listen(self, process: subprocess.Popen[bytes]) -> bool:
        """Takes reports until the worker ends; True if it had to be given up."""
        assert process.stdout is not None
        descriptor, buffer = process.stdout.fileno(), b""
        while True:
            ready, _, _ = select.select([descriptor], [], [], min(LOOK_SECONDS, self.limit))
            if not ready:
                if self._is_hung(computing_seconds(process.pid)):
                    return not self.has_ended
                continue
            self.computed_before = computing_seconds(process.pid)
            data = os.read(descriptor, 1 << 16)
            if not data:
                return False
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                self._take(json.loads(line))

    def _is_hung(self, computed: float) -> bool:
        """Whether the case at hand has computed for too long, or has waited for far too long."""
        waited = time.monotonic() - self.since
        if self.current is None or self.current < 0:
            return waited > STARTUP_SECONDS
        is_busy = computed - self.computed_before > self.limit
        return is_busy or waited > MOST_WAITING * self.limit

    def _take(self, report: Any) -> None:
        """Adds one report to the result."""
        result = self.result
        if isinstance(report, int):
            now = time.monotonic()
            if self.current is not None and self.current >= 0:
                slowest = (now - self.since, self.current)
                result.slowest = max(result.slowest, slowest)
            self.current, self.since = report, now
        elif "failures" in report:
            result.num_failures += 1
            if len(result.failures) < MOST_KEPT_FAILURES:
                result.failures.append(report)
        elif "usage" in report:
            self.usages.append(report["usage"])
        elif "counts" in report:
            result.counts = dict(Counter(result.counts) + Counter(report["counts"]))
            result.done = report["done"]
            self._save()
        elif "end" in report:
            self.has_ended = True
            result.peak_mb = max(result.peak_mb, report["peak_mb"])

    def _next_case(self, code: int, is_hung: bool, errors: Path) -> int:
        """Notes how the process ended; returns the number of the next case."""
        if self.has_ended and not is_hung:
            return self.result.count
        number = -1 if self.current is None else self.current
        if self.current is None or number < 0:
            tail = errors.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"The worker ended with code {code} before its first case:\n{tail}")
        kept = self.folder / "failures" / f"{self.result.family}_{number}"
        if (self.folder / "case").is_dir():
            shutil.copytree(self.folder / "case", kept, symlinks=True, dirs_exist_ok=True)
        if is_hung:
            self.result.hangs.append(number)
        else:
            tail = errors.read_text(errors="replace")[-1500:]
            self.result.crashes.append({"case": number, "code": code, "stderr": tail})
        self.result.done = number + 1
        return number + 1


def computing_seconds(pid: int) -> float:
    """Processor time of a process in seconds; 0 where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
