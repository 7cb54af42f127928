# /// script
# requires-python = ">=3.11"
# dependencies = ["amd-hf[train]"]
# ///
r"""Make a data set with pseudo-masks of moving objects for the `pseudo_mask` stage of pre-training.

    python scripts/make_pseudo_masks.py --dataset SHARDS --output_dir MASKS_1 --use_saliency
    python scripts/make_pseudo_masks.py --dataset SHARDS --output_dir MASKS_2 --use_saliency \
        --model_name_or_path RUN_1

No labels: classical motion, with `--use_saliency` a classical prior on single frames beside it, and
with `--model_name_or_path` what a trained model sees.
Run again after an interruption, it goes on after the last whole shard.
"""

from __future__ import annotations

import argparse
import sys

from amd_hf.data.frame_pairs import open_source
from amd_hf.data.sources import ClipSource
from amd_hf.training.data_stream import source_of
from amd_hf.training.pseudo_mask_shards import PseudoMaskSettings, write_pseudo_masks


def parse_arguments() -> argparse.Namespace:
    """Returns the arguments of the command line."""
    defaults = PseudoMaskSettings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dataset", required=True, help="clips: tar shards, a folder of frames or a zip")
    add("--output_dir", required=True, help="folder of the shards with masks")
    add("--model_name_or_path", default=None, help="model whose masks are added to motion")
    add("--short_side", type=int, default=defaults.short_side, help="input size of the model")
    add("--use_saliency", action="store_true", help="add saliency of the single frame to motion")
    add("--clips_per_shard", type=int, default=defaults.clips_per_shard)
    add("--key_prefix", default="", help="before names of clips, to join sets of equal names")
    add("--num_workers", type=int, default=0, help="processes; 0: none but this one")
    return parser.parse_args()


def show_progress(done: int, total: int) -> None:
    """Prints how many clips are finished."""
    print(f"\r{done} of {total} clips", end="\n" if done == total else "", file=sys.stderr)


def main() -> int:
    """Writes the data set; returns the exit code."""
    arguments = parse_arguments()
    try:
        settings = PseudoMaskSettings(
            arguments.model_name_or_path,
            arguments.short_side,
            arguments.use_saliency,
            arguments.clips_per_shard,
            arguments.key_prefix,
        )
        source = open_source(source_of(arguments.dataset))
        if not isinstance(source, ClipSource):
            raise ValueError(
                f"`dataset` must be local clips, got {arguments.dataset!r}; download a Hub data "
                "set first (`hf download --repo-type dataset`)."
            )
        index = write_pseudo_masks(
            source,
            arguments.output_dir,
            settings,
            num_workers=arguments.num_workers,
            progress=show_progress,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{index['masks']} masks of {index['frames']} frames in {index['clips']} clips; left out: "
        f"{index['skipped'] or 'none'}. Wrote {arguments.output_dir}."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
