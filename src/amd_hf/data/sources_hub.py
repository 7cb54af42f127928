"""Clips streamed from a data set on the Hugging Face Hub, in blocks that are permuted."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from amd_hf.data.counting import SkipCounter
from amd_hf.data.sources import FRAME_NAME, Clip, stored_numbers, stored_rate, stored_video

DEFAULT_BLOCK_CLIPS = 256


class HubClips:
    """The shards of a Hub data set as sequences of clips in raw bytes.

    Rows may be WebDataset samples (`f0.jpg`, `f1.jpg`, ..., `json`) as `scripts/
    pack_youtube_vos.py` writes them, or rows with a column `frames` (a list of images) and
    optionally `video`, `fps` and `numbers`. Images are never decoded here.

    Args:
        name: Data set id, as `datasets.load_dataset` takes it, or a streamed data set.
        split: Name of the split.
        block_clips: Clips that are read before they are handed out in permuted order. Memory grows
            with it, mixing too.

    Raises:
        ValueError: If the data set cannot be opened or has no frames that can be recognized.
    """

    def __init__(
        self, name: Any, split: str = "train", block_clips: int = DEFAULT_BLOCK_CLIPS
    ) -> None:
        if block_clips < 1:
            raise ValueError(f"`block_clips` must be at least 1, got {block_clips}.")
        self.name = str(name) if isinstance(name, str) else "a streamed data set"
        self.block_clips = block_clips
        self.counter: SkipCounter | None = None
        dataset = _load(name, split) if isinstance(name, str) else name
        self.dataset = dataset.decode(False) if _has_decodable(dataset) else dataset
        names = self.dataset.column_names
        if names is not None and not _is_clip_row(names):
            raise ValueError(
                f"`source` {self.name!r} must have columns f0.jpg, f1.jpg, ... or `frames`, got"
                f" {', '.join(names)}; pack the videos with scripts/pack_youtube_vos.py."
            )

    @property
    def num_shards(self) -> int:
        """Number of files of the data set."""
        return int(self.dataset.num_shards)

    def blocks(
        self, shard: int, inner_state: dict[str, Any] | None
    ) -> Iterator[tuple[dict[str, Any], list[tuple[Clip, list[bytes]]]]]:
        """Yields blocks of one shard, each with the reader's state before it.

        Args:
            shard: Number of the shard.
            inner_state: State before the first block to yield, or None for the start.
        """
        part = self.dataset.shard(num_shards=self.num_shards, index=shard)
        # Iterating over `part` itself would share out its only shard among the loader's workers.
        rows = part._prepare_ex_iterable_for_iteration()
        if inner_state is not None:
            rows.load_state_dict(inner_state)
        before = rows.state_dict()
        block: list[tuple[Clip, list[bytes]]] = []
        try:
            for key, row in rows:
                parsed = self._parse(str(row.get("__key__", key)), row)
                if parsed is not None:
                    block.append(parsed)
                if len(block) == self.block_clips:
                    yield before, block
                    before, block = rows.state_dict(), []
        except tarfile.TarError as error:
            # A failed connection is no TarError: it is tried again and then ends the run.
            self._report("incomplete", f"shard {shard} of {self.name} is cut or damaged ({error})")
        if block:
            yield before, block

    def _parse(self, key: str, row: Mapping[str, Any]) -> tuple[Clip, list[bytes]] | None:
        """Returns the clip of a row, or None (and reports) where its fields make no sense."""
        try:
            return _parse_row(key, row)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            self._report("unreadable", f"row {key} of {self.name} ({error})")
            return None

    def _report(self, reason: str, what: str) -> None:
        """Counts what is left out."""
        if self.counter is not None:
            self.counter.add(reason, what)


def permuted(block: list[Any], seed: list[int]) -> list[Any]:
    """Returns the block in the order that follows from the seed."""
    order = np.random.default_rng(seed).permutation(len(block))
    return [block[int(index)] for index in order]


def _load(name: str, split: str) -> Any:
    """Returns the streamed data set, or raises one clear sentence."""
    from datasets import load_dataset

    try:
        return load_dataset(name, split=split, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"`source` {name!r} is no folder, archive or video here, and as a Hub data set it could"
            f" not be opened ({reason})."
        ) from error


def _has_decodable(dataset: Any) -> bool:
    """Says whether the data set has features whose decoding must be switched off."""
    return dataset.features is not None


def _is_clip_row(names: list[str]) -> bool:
    """Says whether a row with these columns holds a clip."""
    return "frames" in names or sum(FRAME_NAME.match(name) is not None for name in names) >= 2


def _parse_row(key: str, row: Mapping[str, Any]) -> tuple[Clip, list[bytes]]:
    """Returns the clip and the encoded frames of a row; both may be empty."""
    meta = row.get("json")
    if isinstance(meta, bytes | str):
        meta = json.loads(meta)
    if not isinstance(meta, Mapping):
        meta = row
    if row.get("frames") is not None:
        frames = [_to_bytes(value) for value in row["frames"]]
    else:
        columns = sorted(
            (int(match[1]), name)
            for name in row
            if (match := FRAME_NAME.match(name)) is not None and row[name] is not None
        )
        frames = [_to_bytes(row[name]) for _, name in columns]
    name = key.rpartition("/")[2]
    clip = Clip(
        name,
        stored_video(meta, name),
        len(frames),
        stored_rate(meta),
        stored_numbers(meta.get("numbers"), len(frames)),
    )
    return clip, frames


def _to_bytes(value: Any) -> bytes:
    """Returns the bytes of an undecoded image cell; empty where there are none."""
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if value is not None and not isinstance(value, bytes | bytearray | memoryview):
        raise ValueError(f"a frame must be bytes, got {type(value).__name__}")
    return bytes(value) if value is not None else b""
