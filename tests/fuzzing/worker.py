"""The child process: makes and judges cases, and says on stdout which one it is at.

Lines on stdout, one JSON value each: a number before the case of that number, and dicts with
`failures`, `counts`, `usage` and, at the end, `end`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import gc
import json
import logging
import os
import resource
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from tests.fuzzing.families import Case, Family, case_random, judge, open_family

USAGE_EVERY = 100
COUNTS_EVERY = 200


def main(argv: list[str] | None = None) -> int:
    """Runs the cases FIRST to LAST - 1 of a family; FIRST of -1 runs the valid samples."""
    parser = argparse.ArgumentParser()
    parser.add_argument("family")
    parser.add_argument("seed", type=int)
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args(argv)
    # What the package prints must not get among the reports.
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    faulthandler.enable()
    # Temporary files lie where the parent looks for what is left behind.
    tempfile.tempdir = str(args.folder / "temporary")
    Path(tempfile.tempdir).mkdir(parents=True, exist_ok=True)
    args.folder = args.folder.resolve()
    family = open_family(args.family, args.folder / "samples")
    quiet()
    Runner(family, args.seed, args.folder, reports).run(args.first, args.last)
    return 0


def quiet() -> None:
    """One thread, and no warnings or logs: only what comes out of the readers counts."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if "transformers" in sys.modules:
        transformers = sys.modules["transformers"]
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


class Runner:
    """Runs cases one after the other and reports.

    Args:
        family: What makes the cases.
        seed: Seed of the run.
        folder: Holds `case`, the input of the case at hand, and `failures`.
        reports: Where the lines go.
    """

    def __init__(self, family: Family, seed: int, folder: Path, reports: Any) -> None:
        self.family = family
        self.seed = seed
        self.case_folder = folder / "case"
        self.failures = folder / "failures"
        self.reports = reports
        self.counts: Counter[str] = Counter()

    def run(self, first: int, last: int) -> None:
        """Runs the valid samples if `first` is negative, and then the cases up to `last` - 1."""
        if first < 0:
            self.report(-1)
            for case in self.family.valid(self.fresh()):
                self.judge_all(case, -1)
        for number in range(max(first, 0), last):
            self.report(number)
            random = case_random(self.family.name, self.seed, number)
            self.judge_all(self.family.case(random, self.fresh()), number)
            if number % USAGE_EVERY == USAGE_EVERY - 1:
                self.report({"usage": [number + 1, *usage()]})
            if number % COUNTS_EVERY == COUNTS_EVERY - 1:
                self.flush_counts(number + 1)
        self.flush_counts(last)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.report({"end": last, "peak_mb": round(peak)})

    def fresh(self) -> Path:
        """The empty folder of the next case."""
        shutil.rmtree(self.case_folder, ignore_errors=True)
        self.case_folder.mkdir(parents=True)
        return self.case_folder

    def judge_all(self, case: Case, number: int) -> None:
        """Calls every reader of a case."""
        failures = []
        for reader in case.readers:
            verdict = judge(reader)
            kind = verdict.kind
            if number < 0 and kind == "refused":
                kind = "failed"
                failures.append([reader.name, f"{case.what}: a valid sample was refused"])
            elif kind == "failed":
                failures.append([reader.name, verdict.detail])
            prefix = "valid " if number < 0 else ""
            self.counts[f"{prefix}{reader.name}/{kind}"] += 1
        if failures:
            kept = self.failures / f"{self.family.name}_{number}"
            shutil.copytree(self.case_folder, kept, symlinks=True, dirs_exist_ok=True)
            self.report({"failures": failures, "case": number, "what": case.what})

    def flush_counts(self, done: int) -> None:
        """Reports the counts since the last report."""
        self.report({"counts": dict(self.counts), "done": done})
        self.counts.clear()

    def report(self, value: Any) -> None:
        """Writes one line at once: the next case may end the process."""
        self.reports.write(json.dumps(value) + "\n")
        self.reports.flush()


def usage() -> tuple[float, int, int]:
    """Resident memory in MB, open files and threads of this process, after a collection."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory must not look like a leak
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    resident = int(fields["VmRSS"].split()[0]) / 1024
    return round(resident, 1), len(os.listdir("/proc/self/fd")), int(fields["Threads"])


if __name__ == "__main__":
    sys.exit(main())
