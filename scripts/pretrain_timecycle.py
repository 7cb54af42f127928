# /// script
# requires-python = ">=3.11"
# dependencies = ["amd-hf[train]"]
# ///
"""Pre-train the backbone with TimeCycle on video frames: the tracking comparator of AMD.

    accelerate launch scripts/pretrain_timecycle.py --dataset DIR|HUB_ID|TARS --output_dir DIR

The result is a start for scripts/finetune_semantic.py (--model_name_or_path DIR).
Exit code 0: done; 1: the run could not go on, or not be pushed; 2: the options or the data cannot
be used; 143 or 130: stopped by SIGTERM or Ctrl-C. A run that has begun writes a checkpoint before
it ends (go on with --resume_from_checkpoint latest).
"""

from __future__ import annotations

import sys

from amd_hf.training.command_line import run_command
from amd_hf.training.timecycle_training import parse_timecycle_arguments, pretrain_timecycle


def main(argv: list[str] | None = None) -> int:
    """Runs TimeCycle pre-training with the options of the command line; returns the exit code."""
    args = parse_timecycle_arguments(argv)
    return run_command(lambda: pretrain_timecycle(args))


if __name__ == "__main__":
    sys.exit(main())
