# /// script
# requires-python = ">=3.11"
# dependencies = ["amd-hf[train]"]
# ///
"""Fine-tune from several starts at an equal budget and print the table, as in AMD's last one.

    python scripts/compare_initializations.py --dataset_name camvid --ignore_index 11 \
        --output_dir DIR --start scratch=random --start amd-light=AMD_DIR \
        --start moco-light=MOCO_DIR --seeds 0,1,2 --max_train_steps 2000

Takes all flags of scripts/finetune_semantic.py. The same command again goes on where it was
interrupted. Writes comparison.json, comparison.md, curves.svg and predictions.png. Exit code 0:
done; 2: the options or the data cannot be used; 143 or 130: stopped by SIGTERM or Ctrl-C.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

from amd_hf.training.comparison import parse_comparison_arguments


def main(argv: list[str] | None = None) -> int:
    """Runs the comparison with the options of the command line; returns the exit code."""
    args = parse_comparison_arguments(argv)
    is_main = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        level=logging.INFO if is_main else logging.WARNING,
        stream=sys.stderr,
    )
    for name in ("httpx", "datasets", "accelerate"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from amd_hf.training.checkpointing import CheckpointError
    from amd_hf.training.comparison import compare

    try:
        report = compare(args)
    except (ValueError, ImportError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table = Path(args.options.output_dir) / "comparison.md"
    if is_main and table.is_file():
        print(table.read_text())
    stopped_by = {signal.SIGTERM.name: 143, signal.SIGINT.name: 130}
    return stopped_by.get(report["end"], 0)


if __name__ == "__main__":
    sys.exit(main())
