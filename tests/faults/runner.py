"""Runs a script of the repository and kills it at a chosen change of a folder, or counts these.

    python tests/faults/runner.py FOLDER RECORD KILL_AT DELAY WHOM SCRIPT [WORDS...]

Python's audit events tell of every file that is opened for writing, renamed, deleted or made below
FOLDER. At number KILL_AT (0: never) the process gets SIGKILL, DELAY seconds later: alone, or with
its workers where WHOM is `group`. RECORD receives one line per change.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
NUM_PATHS = {"open": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 1}


class ChangeCounter:
    """Counts the changes of a folder by the main process and kills at the wanted one."""

    def __init__(self, folder: str, record: str, kill_at: int, delay: float, whom: str) -> None:
        self.folder = os.path.abspath(folder)
        self.record = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.kill_at, self.delay, self.whom = kill_at, delay, whom
        self.process, self.count = os.getpid(), 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in NUM_PATHS or os.getpid() != self.process:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        paths = [self._place(path, arguments) for path in arguments[: NUM_PATHS[event]]]
        if not any(path.startswith(self.folder) for path in paths):
            return
        self.count += 1
        os.write(self.record, f"{self.count} {event} {' '.join(paths)}\n".encode())
        if self.count == self.kill_at:
            if self.delay:
                threading.Thread(target=self._kill, daemon=True).start()
            else:
                self._kill()

    @staticmethod
    def _place(path: Any, arguments: tuple[Any, ...]) -> str:
        """The absolute path; deletions of whole trees name entries relative to a descriptor."""
        if not isinstance(path, str | bytes | os.PathLike):
            return ""
        name, last = os.fsdecode(path), arguments[-1]
        if not os.path.isabs(name) and isinstance(last, int) and last > 2:
            try:
                return os.path.join(os.readlink(f"/proc/self/fd/{last}"), name)
            except OSError:
                return ""
        return os.path.abspath(name)

    def _kill(self) -> None:
        time.sleep(self.delay)
        if self.whom == "group":
            os.killpg(os.getpgid(0), signal.SIGKILL)
        os.kill(self.process, signal.SIGKILL)


def main() -> None:
    """Runs the script with the counter installed."""
    folder, record, kill_at, delay, whom, script, *words = sys.argv[1:]
    sys.addaudithook(ChangeCounter(folder, record, int(kill_at), float(delay), whom))
    sys.argv = [script, *words]
    sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
