"""Packs videos into tar shards for fast streaming.

Sources: YouTube-VOS as downloaded (folder or zip), any folder of folders of frames, video files.

    python scripts/pack_youtube_vos.py --source YouTubeVOS --output_dir shards --short_side 400

    torchrun --nproc_per_node 4 scripts/pack_youtube_vos.py ...   # also on several machines that
                                                                  # share the output folder

Run again after an interruption, it goes on where it stopped, also with another number of processes.
The shards are the same in any case. The folder can be given to
`scripts/pretrain.py --dataset`, or uploaded with `--hub_dataset_id NAME`.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from amd_hf.data.frame_pairs import open_source
from amd_hf.data.packing import pack_clips
from amd_hf.data.packing_clips import PackingSettings
from amd_hf.data.ranks import Ranks
from amd_hf.data.sources import ClipSource
from amd_hf.hub.publish import publish_folder


def parse_arguments() -> argparse.Namespace:
    """Returns the arguments of the command line."""
    defaults = PackingSettings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--source", nargs="+", required=True, help="folders, zips, tars or video files")
    add("--output_dir", required=True, help="folder of the shards")
    add("--split", default="train", help="split of a YouTube-VOS folder or zip")
    add("--frames_per_clip", type=int, default=defaults.frames_per_clip)
    add("--frame_step", type=int, default=defaults.frame_step, help="take every n-th frame")
    add("--max_clips_per_video", type=int, default=None, help="evenly spread; default: all")
    add("--clips_per_shard", type=int, default=defaults.clips_per_shard)
    add("--short_side", type=int, default=None, help="shrink to this many pixels; default: keep")
    add("--quality", type=int, default=defaults.quality, help="JPEG quality where encoded anew")
    add("--min_difference", type=float, default=defaults.min_difference, help="gray levels")
    add("--keep_shot_cuts", action="store_true", help="do not leave out clips across a cut")
    add("--seed", type=int, default=defaults.seed, help="order of the clips")
    add("--num_workers", type=int, default=None, help="0: no worker processes; default: all cores")
    add("--hub_dataset_id", default=None, help="upload the finished folder to this data set")
    add("--private", action="store_true", help="make the uploaded data set private")
    return parser.parse_args()


def show_progress(done: int, total: int) -> None:
    """Prints the share of finished videos about a hundred times."""
    if done == total or done % max(total // 100, 1) == 0:
        print(f"\r{done} of {total} videos", end="\n" if done == total else "", file=sys.stderr)


def pack(arguments: argparse.Namespace, ranks: Ranks) -> dict[str, Any]:
    """Packs with the other processes and returns the index."""
    source = open_source(arguments.source, split=arguments.split)
    assert isinstance(source, ClipSource)
    settings = PackingSettings(
        frames_per_clip=arguments.frames_per_clip,
        frame_step=arguments.frame_step,
        max_clips_per_video=arguments.max_clips_per_video,
        clips_per_shard=arguments.clips_per_shard,
        short_side=arguments.short_side,
        quality=arguments.quality,
        min_difference=arguments.min_difference,
        reject_shot_cuts=not arguments.keep_shot_cuts,
        seed=arguments.seed,
    )
    num_workers = arguments.num_workers
    if num_workers is None:
        num_workers = max((os.cpu_count() or 1) // ranks.local_count, 1)
    progress = show_progress if ranks.is_main else None
    return pack_clips(
        source,
        arguments.output_dir,
        settings,
        num_workers=num_workers,
        progress=progress,
        ranks=ranks,
    )


def main() -> int:
    """Packs and, on request, uploads; returns the exit code."""
    arguments = parse_arguments()
    try:
        with Ranks.from_environment() as ranks:
            index = pack(arguments, ranks)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not ranks.is_main:
        return 0
    print(
        f"{index['clips']} clips of {index['videos']} videos in {len(index['shards'])} shards;"
        f" left out: {index['skipped'] or 'nothing'}"
    )
    if arguments.hub_dataset_id:
        private = True if arguments.private else None
        name = arguments.hub_dataset_id
        try:
            publish_folder(arguments.output_dir, name, repo_type="dataset", private=private)
        except (ValueError, OSError, RuntimeError) as error:
            again = "the shards are complete: the same command uploads them"
            print(f"error: not uploaded to {name}: {error}; {again}", file=sys.stderr)
            return 2
        print(f"uploaded to {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
