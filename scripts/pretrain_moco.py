# /// script
# requires-python = ">=3.11"
# dependencies = ["amd-hf[train]"]
# ///
"""Pre-train the backbone with MoCo v2 on video frames: the contrastive comparator of AMD.

    accelerate launch scripts/pretrain_moco.py --dataset DIR|HUB_ID|TARS --output_dir DIR

The result is a start for scripts/finetune_semantic.py (--model_name_or_path DIR). Exit code 0:
done; 2: the options or the data cannot be used; 143 or 130: stopped by SIGTERM or Ctrl-C after
writing a checkpoint (go on with --resume_from_checkpoint latest).
"""

from __future__ import annotations

import logging
import os
import signal
import sys

from amd_hf.training.moco_training import parse_moco_arguments


def main(argv: list[str] | None = None) -> int:
    """Runs MoCo pre-training with the options of the command line; returns the exit code."""
    args = parse_moco_arguments(argv)
    is_main = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        level=logging.INFO if is_main else logging.WARNING,
        stream=sys.stderr,
    )
    for name in ("httpx", "datasets", "accelerate"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from amd_hf.training.checkpointing import CheckpointError
    from amd_hf.training.moco_training import pretrain_moco

    try:
        results = pretrain_moco(args)
    except (ValueError, ImportError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    stopped_by = {signal.SIGTERM.name: 143, signal.SIGINT.name: 130}
    return stopped_by.get(results["end"], 0)


if __name__ == "__main__":
    sys.exit(main())
