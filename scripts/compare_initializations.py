# /// script
# requires-python = ">=3.11"
# dependencies = ["amd-hf[train]"]
# ///
"""Fine-tune from several starts at an equal budget and print the table, as in AMD's last one.

    python scripts/compare_initializations.py --dataset_name camvid --ignore_index 11 \
        --output_dir DIR --start scratch=random --start amd-light=AMD_DIR \
        --start moco-light=MOCO_DIR --seeds 0,1,2 --max_train_steps 2000

Takes all flags of scripts/finetune_semantic.py. The same command again goes on where it was
interrupted. Writes comparison.json, comparison.md, curves.svg and predictions.png.
Exit code 0: done; 1: a run could not go on; 2: the options or the data cannot be used; 143 or 130:
stopped by SIGTERM or Ctrl-C. A run that has begun writes a checkpoint before it ends; the same
command goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from amd_hf.training.command_line import is_main_process, run_command
from amd_hf.training.comparison import compare, parse_comparison_arguments


def main(argv: list[str] | None = None) -> int:
    """Runs the comparison with the options of the command line; returns the exit code."""
    args = parse_comparison_arguments(argv)

    def action() -> dict[str, Any]:
        report = compare(args)
        table = Path(args.options.output_dir) / "comparison.md"
        if is_main_process() and table.is_file():
            print(table.read_text())
        return report

    return run_command(action)


if __name__ == "__main__":
    sys.exit(main())
