"""What ends a run from outside: a request to stop (SIGTERM of a cluster, Ctrl-C), or no more data.

A request is answered at the end of the step.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class RunError(RuntimeError):
    """A run has to end, or its result cannot be handed over; the message says what to do."""


class DataStreamError(RunError):
    """The data of a run cannot be read any further, such as when the network is gone."""

    @classmethod
    def caused_by(cls, error: Exception) -> DataStreamError:
        """One line about an error of a loader; that of a worker holds a traceback as text."""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        name = type(error).__name__
        if "Traceback" in str(error):
            return cls(lines[-1])
        return cls(f"{name}: {lines[0]}" if lines else name)


class StopRequest:
    """Remembers whether the process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait
        self.signal_name = signal.Signals(number).name


@contextmanager
def children_end_quietly() -> Iterator[None]:
    """Keeps a handler for dead child processes from outliving the block.

    PyTorch installs one with the first loader that has workers. It raises wherever the main process
    happens to be, even in the middle of an update of the weights. Without it, the loader finds out
    within seconds when it waits for the dead worker, where nothing is half done.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turns SIGTERM and SIGINT into a request while the block runs; restores them afterwards.

    Only the main thread of a process can set signal handlers; elsewhere no request ever comes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.signal(number, request._handle) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
