# /// script
# requires-python = ">=3.11"
# dependencies = ["amd-hf[train]"]
# ///
"""Pre-train the backbone with MoCo v2 on video frames: the contrastive comparator of AMD.

    accelerate launch scripts/pretrain_moco.py --dataset DIR|HUB_ID|TARS --output_dir DIR

The result is a start for scripts/finetune_semantic.py (--model_name_or_path DIR).
Exit code 0: done; 1: the run could not go on, or not be pushed; 2: the options or the data cannot
be used; 143 or 130: stopped by SIGTERM or Ctrl-C. A run that has begun writes a checkpoint before
it ends (go on with --resume_from_checkpoint latest).
"""

from __future__ import annotations

import sys

from amd_hf.training.command_line import run_command
from amd_hf.training.moco_training import parse_moco_arguments, pretrain_moco


def main(argv: list[str] | None = None) -> int:
    """Runs MoCo pre-training with the options of the command line; returns the exit code."""
    args = parse_moco_arguments(argv)
    return run_command(lambda: pretrain_moco(args))


if __name__ == "__main__":
    sys.exit(main())
