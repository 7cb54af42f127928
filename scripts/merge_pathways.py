# /// script
# requires-python = ">=3.11"
# dependencies = ["amd-hf"]
# ///
"""Join the appearance pathway of one run with the motion pathway of another one.

python scripts/merge_pathways.py --appearance RUN_A/ema --motion RUN_M/ema --output_dir MERGED
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from amd_hf import AMDImageProcessor, AMDModel
from amd_hf.training.merging import merge_pathways


def _processor(folder: str, model: AMDModel) -> AMDImageProcessor:
    """Returns the image processor of a model folder; the checkpoints of a run have none."""
    if (Path(folder) / "preprocessor_config.json").is_file():
        return AMDImageProcessor.from_pretrained(folder)
    return AMDImageProcessor.from_model_config(model.config)


def main() -> int:
    """Writes the joined model and the image processor of the first; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--appearance", required=True, help="model whose segments are kept")
    parser.add_argument("--motion", required=True, help="model whose motion pathway is taken")
    parser.add_argument("--output_dir", required=True, help="folder of the joined model")
    arguments = parser.parse_args()
    try:
        model = merge_pathways(
            AMDModel.from_pretrained(arguments.appearance),
            AMDModel.from_pretrained(arguments.motion),
        )
        processor = _processor(arguments.appearance, model)
        model.save_pretrained(arguments.output_dir)
        processor.save_pretrained(arguments.output_dir)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {arguments.output_dir}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
