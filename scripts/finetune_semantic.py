# /// script
# requires-python = ">=3.11"
# dependencies = ["amd-hf[train]"]
# ///
"""Fine-tune the appearance pathway for semantic segmentation on Accelerate.

    accelerate launch scripts/finetune_semantic.py --dataset_name VOC2012 --output_dir DIR \
        --model_name_or_path org/amd-ytvos
    python scripts/finetune_semantic.py --dataset_name FOLDER --output_dir DIR   # images/, masks/

The defaults are the published schedule; `--help` lists all options.
Exit code 0: done; 1: the run could not go on, or not be pushed; 2: the options or the data cannot
be used; 143 or 130: stopped by SIGTERM or Ctrl-C. A run that has begun writes a checkpoint before
it ends (go on with --resume_from_checkpoint latest).
"""

from __future__ import annotations

import sys
from typing import Any

from amd_hf.training.command_line import run_command
from amd_hf.training.finetuning_arguments import parse_finetuning_arguments


def main(argv: list[str] | None = None) -> int:
    """Runs fine-tuning with the options of the command line; returns the exit code."""
    args = parse_finetuning_arguments(argv)

    def action() -> dict[str, Any]:
        from amd_hf.training.finetuning import finetune

        return finetune(args)

    return run_command(action)


if __name__ == "__main__":
    sys.exit(main())
