# /// script
# requires-python = ">=3.11"
# dependencies = ["amd-hf[train]"]
# ///
"""Pre-train AMD from unlabelled video on Accelerate.

    accelerate launch scripts/pretrain.py --dataset DIR|HUB_ID|TARS --output_dir DIR
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 scripts/pretrain.py ...   # 2 CPU processes

`--recipe published` (the default) is the published recipe; `--help` lists all options. Exit code 0:
done; 1: the data cannot be read any further, the state is saved; 2: the options or the data cannot
be used; 143 or 130: stopped by SIGTERM or Ctrl-C after writing a checkpoint.
"""

from __future__ import annotations

import logging
import os
import signal
import sys

from amd_hf.training.arguments import parse_arguments


def main() -> int:
    """Runs pre-training with the options of the command line; returns the exit code."""
    args = parse_arguments()
    is_main = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        level=logging.INFO if is_main else logging.WARNING,
        stream=sys.stderr,
    )
    for name in ("httpx", "datasets", "accelerate"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from amd_hf.training.checkpointing import CheckpointError
    from amd_hf.training.interrupts import DataStreamError
    from amd_hf.training.pretraining import pretrain

    try:
        results = pretrain(args)
    except (ValueError, ImportError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except DataStreamError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    stopped_by = {signal.SIGTERM.name: 143, signal.SIGINT.name: 130}
    return stopped_by.get(results["end"], 0)


if __name__ == "__main__":
    sys.exit(main())
