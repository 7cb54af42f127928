"""What the training scripts share: log lines, one sentence for an error, and the exit code."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

QUIET_LOGGERS = ("httpx", "datasets", "accelerate")
RUN_ENDED, INPUT_ERROR = 1, 2
# As a shell reports a process that a signal has ended.
SIGNAL_CODES = {signal.SIGTERM.name: 143, signal.SIGINT.name: 130}


def is_main_process() -> bool:
    """Whether this is the first process of a launch; true without a launcher."""
    return os.environ.get("RANK", "0") == "0"


def run_command(action: Callable[[], Mapping[str, Any]]) -> int:
    """The exit code of a training command.

    Args:
        action: Imports what it needs, trains, and returns results whose `end` says why the run
            ended.

    Returns:
        0: done; 1: the run could not go on (no more data, no finite gradients) or its result could
        not be pushed; 2: options, data or a checkpoint cannot be used, or an extra is missing; both
        said in one sentence on stderr; 143 or 130: stopped by SIGTERM or Ctrl-C after a checkpoint.
    """
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        level=logging.INFO if is_main_process() else logging.WARNING,
        stream=sys.stderr,
    )
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    from amd_hf.training.checkpointing import CheckpointError
    from amd_hf.training.interrupts import RunError

    try:
        results = action()
    except (ValueError, ImportError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return INPUT_ERROR
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return RUN_ENDED
    return SIGNAL_CODES.get(results["end"], 0)
