# /// script
# requires-python = ">=3.11"
# dependencies = ["amd-hf[train]"]
# ///
"""Pre-train AMD from unlabelled video on Accelerate.

    accelerate launch scripts/pretrain.py --dataset DIR|HUB_ID|TARS --output_dir DIR
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 scripts/pretrain.py ...   # 2 CPU processes

`--recipe published` (the default) is the published recipe; `--help` lists all options. Exit code 0:
done; 1: the run could not go on, or not be pushed; 2: the options or the data cannot be used; 143
or 130: stopped by SIGTERM or Ctrl-C after writing a checkpoint.
"""

from __future__ import annotations

import sys
from typing import Any

from amd_hf.training.arguments import parse_arguments
from amd_hf.training.command_line import run_command


def main(argv: list[str] | None = None) -> int:
    """Runs pre-training with the options of the command line; returns the exit code."""
    args = parse_arguments(argv)

    def action() -> dict[str, Any]:
        from amd_hf.training.pretraining import pretrain

        return pretrain(args)

    return run_command(action)


if __name__ == "__main__":
    sys.exit(main())
