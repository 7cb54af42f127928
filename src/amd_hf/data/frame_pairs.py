"""Streams of frame pairs from any video source, with an order that can be resumed exactly."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from amd_hf.data.counting import SkipCounter
from amd_hf.data.decoding import PairTransform
from amd_hf.data.sources import ClipSource, ConcatenatedSource
from amd_hf.data.sources_archives import TarShardSource, ZipSource
from amd_hf.data.sources_frames import FrameFolderSource
from amd_hf.data.sources_generated import GeneratedSource
from amd_hf.data.sources_video import VideoFileSource, video_files
from amd_hf.video_amd import VIDEO_SUFFIXES

if TYPE_CHECKING:
    from datasets import IterableDataset

Source = str | os.PathLike[str] | ClipSource | Sequence[str | os.PathLike[str] | ClipSource]
GENERATED = "generated"


def frame_pairs(
    source: Source | Any,
    *,
    transform: PairTransform | None = None,
    frame_gap: int | tuple[int, int] = 1,
    target_dt: float | tuple[float, float] | None = None,
    temporal_order: Literal["both", "forward", "backward"] = "both",
    assumed_fps: float = 24.0,
    pairs_per_clip: int = 1,
    weights: Mapping[str, float] | None = None,
    min_difference: float = 0.0,
    reject_shot_cuts: bool | None = None,
    shuffle: bool = True,
    repeat: bool = False,
    seed: int = 0,
    num_shards: int | None = None,
    split: str = "train",
    block_clips: int = 256,
    counter: SkipCounter | None = None,
) -> IterableDataset:
    """Returns a streamed `datasets.IterableDataset` of frame pairs.

    One pass visits every clip `pairs_per_clip` times (see `weights`) and draws a new pair of frames
    each time; the two frames are never the same one. Clips are shared out over shards, shards over
    processes (`accelerate`, `split_dataset_by_node`) and loader workers, so all of them read
    disjoint clips. The order follows from `seed` and the epoch (`set_epoch`) by permutation, not
    from a shuffle buffer: `state_dict` and `load_state_dict`, on their own, through torchdata's
    `StatefulDataLoader` or through `accelerate` with `use_stateful_dataloader`, continue at exactly
    the next pair, given the same numbers of processes and workers.

    For training use `repeat=True`: the stream never ends, every round is a new permutation, no
    process runs dry before another, and resuming needs no `set_epoch`.

    Items without a `transform` are cheap: `frame_1` and `frame_2` (encoded images), `key` (clip and
    frames), `video`, `fps` (float or None), `gap` (frames from frame 1 to frame 2, negative where
    time runs backwards) and `seed` (int64, from which augmentation follows). With a `transform` the
    two images give way to `pixel_values`, uint8 of shape (2, 3, h, w); `PairCollator` makes batches
    of them. Whatever cannot be read is left out and counted, and the next pair takes its place.

    Args:
        source: One of: the YouTube-VOS folder (`train/JPEGImages/<video>/<frame>.jpg`;
            `train_all_frames` is preferred where it exists), its zip, any folder of folders of
            frames; a tar shard, a folder or list of them; a video file or a folder of them;
            "generated" or "generated:N" (N clips of moving objects); the id of a Hub data set; a
            `ClipSource`; or a list of any of these but Hub ids. An existing path wins over a Hub
            id.
        transform: Decodes, crops and augments in the process that iterates, that is, in the
            loader's workers.
        frame_gap: Distance of the two frames in stored frames, or a range from which each pair
            draws; a range is cut to what a clip holds. Ignored with `target_dt`.
        target_dt: Distance in seconds, or a range; the nearest stored frame is taken.
        temporal_order: "both" swaps the frames in half of the pairs.
        assumed_fps: Frames per second for clips that do not state theirs; used with `target_dt`.
        pairs_per_clip: Pairs drawn from a clip in one pass.
        weights: Multiplies `pairs_per_clip` for videos whose name starts with a key; the longest
            key wins. A fraction is met on average; 0 leaves a video out. Not for Hub data sets.
        min_difference: Leaves out pairs whose mean difference in gray levels (0..255, at a short
            side of about 96 pixels) is below; 0 keeps all. Needs a `transform`.
        reject_shot_cuts: Whether to leave out pairs across a cut. None: where frames are decoded.
        shuffle: False keeps the order of the source and still draws gaps, orders and crops.
        repeat: Whether to start again, endlessly.
        seed: Non-negative seed of order, pairs and augmentation.
        num_shards: Number of shards; at least processes times workers. None: 256, or the number of
            clips where it is smaller. Hub data sets have as many shards as files.
        split: Split of a folder, zip or Hub data set.
        block_clips: Clips of a Hub shard that are permuted among each other.
        counter: Counts what was left out, over all workers of this process. None makes one; see
            `skip_counter`.

    Returns:
        The stream. It can be mapped, filtered, taken from, sharded and put into a `DataLoader`
        (with `shuffle` at False there).

    Raises:
        ValueError: If the source is empty, missing or unsafe, or an argument is out of range.
        ImportError: If `datasets` is not installed.

    Source: AMD released data pipeline (one random adjacent pair per video and epoch); released code
        differs: at the last frame it pairs the frame with itself.
    """
    try:
        from amd_hf.data.stream import make_stream
    except ImportError as error:
        raise ImportError(
            'Streaming frame pairs needs `datasets`; run pip install "amd-hf[train]".'
        ) from error
    from amd_hf.data.sampling import PairSampler

    is_screening = transform is not None if reject_shot_cuts is None else reject_shot_cuts
    if transform is None and (is_screening or min_difference > 0.0):
        raise ValueError(
            "`min_difference` and `reject_shot_cuts` look at decoded frames; give a `transform`."
        )
    if seed < 0:
        raise ValueError(f"`seed` must not be negative, got {seed}.")
    sampler = PairSampler(
        frame_gap=frame_gap,
        target_dt=target_dt,
        temporal_order=temporal_order,
        assumed_fps=assumed_fps,
        pairs_per_clip=pairs_per_clip,
        weights=dict(weights or {}),
        shuffle=shuffle,
        seed=seed,
    )
    return make_stream(
        open_source(source, split=split, block_clips=block_clips),
        sampler=sampler,
        transform=transform,
        min_difference=min_difference,
        reject_shot_cuts=is_screening,
        repeat=repeat,
        num_shards=num_shards,
        counter=counter if counter is not None else SkipCounter(),
    )


def skip_counter(dataset: IterableDataset) -> SkipCounter:
    """Returns the counter of a stream of `frame_pairs`, also after `map`, `shard` and the like.

    Raises:
        ValueError: If the data set is no stream of `frame_pairs`.
    """
    from amd_hf.data.stream import find_counter

    return find_counter(dataset)


def open_source(source: Source | Any, *, split: str = "train", block_clips: int = 256) -> Any:
    """Returns the `ClipSource` (or `HubClips`) that `source` stands for; see `frame_pairs`.

    Raises:
        ValueError: If nothing usable is found.
    """
    if isinstance(source, ClipSource):
        return source
    if isinstance(source, list | tuple):
        return _open_all(source, split)
    if not isinstance(source, str | os.PathLike):
        from amd_hf.data.sources_hub import HubClips

        if not hasattr(source, "num_shards"):
            raise ValueError(
                "`source` must be a path, a Hub id, a clip source or a list of these, got"
                f" {type(source).__name__}."
            )
        return HubClips(source, split, block_clips)
    name = os.fspath(source)
    path = Path(name).expanduser()
    if os.path.exists(path):  # false, not an error, for names that no file can have
        return _open_path(path, split)
    if name == GENERATED or name.startswith(f"{GENERATED}:"):
        return _open_generated(name)
    # Ids may end in a version ("org/clips-1.5"), names of files in letters.
    is_file_name = path.suffix.strip(".0123456789") != ""
    is_hub_id = isinstance(source, str) and name.count("/") <= 1 and not is_file_name
    if not is_hub_id or name.startswith((".", "/", "~")):
        raise ValueError(f"`source` {name!r} does not exist; check the path.")
    from amd_hf.data.sources_hub import HubClips

    return HubClips(name, split, block_clips)


def _open_all(sources: Sequence[Any], split: str) -> ClipSource:
    """Returns one source for a list; neighboring tars share an index."""
    if not sources:
        raise ValueError("`source` is an empty list; give at least one path.")
    tars = [Path(entry).expanduser() for entry in sources if _is_tar(entry)]
    opened: list[ClipSource] = []
    if tars:
        missing = [str(path) for path in tars if not os.path.isfile(path)]
        if missing:
            raise ValueError(f"`source` {missing[0]!r} does not exist; check the path.")
        opened.append(TarShardSource(tars, split))
    for entry in sources:
        if not _is_tar(entry):
            part = open_source(entry, split=split)
            if not isinstance(part, ClipSource):
                raise ValueError(f"`source` {entry!r} is streamed; it cannot be part of a list.")
            opened.append(part)
    return opened[0] if len(opened) == 1 else ConcatenatedSource(opened)


def _is_tar(entry: Any) -> bool:
    """Says whether a list entry is the path of a tar."""
    return isinstance(entry, str | os.PathLike) and os.fspath(entry).lower().endswith(".tar")


def _open_path(path: Path, split: str) -> ClipSource:
    """Returns the source for an existing path, told by suffix or by what a folder holds."""
    suffix = path.suffix.lower()
    if path.is_dir():
        if (path / "packing.json").is_file() and not (path / "index.json").is_file():
            raise ValueError(
                f"`source` {str(path)!r} was not packed to the end; run the same packing command"
                " again."
            )
        shards = sorted(path.glob("*.tar")) or sorted(path.glob("*/*.tar"))
        if shards:
            return TarShardSource(shards, split)
        if not (path / "JPEGImages").is_dir() and video_files([path]):
            return VideoFileSource([path])
        return FrameFolderSource(path, split)
    if suffix == ".tar":
        return TarShardSource([path], split)
    if suffix == ".zip":
        return ZipSource(path, split)
    if suffix in VIDEO_SUFFIXES:
        return VideoFileSource([path])
    raise ValueError(
        f"`source` {str(path)!r} must be a folder, .tar, .zip or video file; compressed tars must"
        " be decompressed first."
    )


def _open_generated(name: str) -> GeneratedSource:
    """Returns the source for "generated" or "generated:N"."""
    _, _, count = name.partition(":")
    if not count:
        return GeneratedSource()
    if not count.isdecimal() or int(count) < 1:
        raise ValueError(f"`source` {name!r} must be 'generated' or 'generated:N' with N >= 1.")
    return GeneratedSource(num_clips=int(count))
