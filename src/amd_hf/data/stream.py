"""The iteration behind `frame_pairs`: order, state and sharing out, as `datasets` asks for it.

The state of a stream is four numbers: round, shard, item and, for Hub data sets, the reader's own
state before the current block. Nothing is buffered, so nothing is lost or seen twice on a resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any

import numpy as np
from datasets import Features, IterableDataset, Value
from datasets.iterable_dataset import _BaseExamplesIterable

from amd_hf.data.counting import SkipCounter, SkippedPairError
from amd_hf.data.decoding import PairTransform
from amd_hf.data.sampling import PairSampler
from amd_hf.data.sources import Clip, ClipSource
from amd_hf.data.sources_hub import HubClips, permuted

DEFAULT_NUM_SHARDS = 256
RAW_FEATURES = Features(
    {
        "frame_1": Value("binary"),
        "frame_2": Value("binary"),
        "key": Value("string"),
        "video": Value("string"),
        "fps": Value("float32"),
        "gap": Value("int32"),
        "seed": Value("int64"),
    }
)
READ_ERRORS = (OSError, ValueError)


def make_stream(
    source: ClipSource | HubClips,
    *,
    sampler: PairSampler,
    transform: PairTransform | None,
    min_difference: float,
    reject_shot_cuts: bool,
    repeat: bool,
    num_shards: int | None,
    counter: SkipCounter,
) -> IterableDataset:
    """Returns the data set over `source`; `frame_pairs` explains the arguments.

    Raises:
        ValueError: If the number of shards does not fit, or no clip has a pair.
    """
    if isinstance(source, HubClips):
        if sampler.weights:
            raise ValueError("`weights` need an indexed source; a Hub data set is streamed.")
        if num_shards is not None and num_shards != source.num_shards:
            raise ValueError(
                f"`num_shards` of a Hub data set is its number of files ({source.num_shards}), got"
                f" {num_shards}; leave it out."
            )
        source = copy(source)
        source.counter = counter
        clips: _IndexedClips | _StreamedClips = _StreamedClips(source, sampler)
    else:
        for reason, (count, example) in source.left_out.items():
            counter.add(reason, example, count)
        clips = _IndexedClips(source, sampler, num_shards)
    examples = PairExamples(
        clips,
        transform=transform,
        min_difference=min_difference,
        reject_shot_cuts=reject_shot_cuts,
        repeat=repeat,
        counter=counter,
    )
    return IterableDataset(ex_iterable=examples)


def find_counter(dataset: IterableDataset) -> SkipCounter:
    """Returns the counter of the stream below any transformations of it."""
    examples = dataset._ex_iterable
    while not isinstance(examples, PairExamples):
        if not hasattr(examples, "ex_iterable"):
            raise ValueError("`dataset` is no stream of `frame_pairs`.")
        examples = examples.ex_iterable
    return examples.counter


class _IndexedClips:
    """Visits of a source with random access; a shard is every n-th visit of the round's order."""

    def __init__(self, source: ClipSource, sampler: PairSampler, num_shards: int | None) -> None:
        self.source = source
        self.sampler = sampler
        self.expected = sampler.expected_visits(source)
        visits = len(source) * sampler.pairs_per_clip
        if self.expected is not None:
            visits = max(int(self.expected.sum()), 1)
        if num_shards is not None and not 1 <= num_shards <= visits:
            raise ValueError(
                f"`num_shards` must be from 1 to the {visits} pairs of a pass, got {num_shards}."
            )
        self.num_shards = num_shards or min(DEFAULT_NUM_SHARDS, visits)

    def walk(
        self, shards: Sequence[int], round_seed: list[int], state: dict[str, Any]
    ) -> Iterator[tuple[Clip, Any, np.random.Generator]]:
        """Yields clip, reader and generator of each visit, with `state` already beyond it."""
        order = self.sampler.visits(len(self.source), self.expected, round_seed)
        while state["shard"] < len(shards):
            shard = shards[state["shard"]]
            mine = order[shard :: self.num_shards]
            while state["item"] < len(mine):
                position = state["item"]
                index = int(mine[position])
                state["item"] = position + 1
                generator = np.random.default_rng([*round_seed, 1, shard, position])
                yield self.source.clip(index), _Reader(self.source, index), generator
            state["shard"] += 1
            state["item"] = 0


class _Reader:
    """Reads frames of one clip of a source."""

    def __init__(self, source: ClipSource, index: int) -> None:
        self.source = source
        self.index = index

    def __call__(self, frames: Sequence[int]) -> list[bytes]:
        return self.source.read(self.index, frames)


class _StreamedClips:
    """Visits of a Hub data set: permuted shards, and permuted blocks of clips within each."""

    def __init__(self, source: HubClips, sampler: PairSampler) -> None:
        self.source = source
        self.sampler = sampler

    @property
    def num_shards(self) -> int:
        """Number of files of the data set."""
        return self.source.num_shards

    def walk(
        self, shards: Sequence[int], round_seed: list[int], state: dict[str, Any]
    ) -> Iterator[tuple[Clip, Any, np.random.Generator]]:
        """Yields clip, reader and generator of each visit, with `state` already beyond it."""
        num_shards = self.num_shards
        order = np.arange(num_shards)
        if self.sampler.shuffle:
            order = np.random.default_rng([*round_seed, 0]).permutation(num_shards)
        while state["shard"] < len(shards):
            shard = int(order[shards[state["shard"]]])
            for before, block in self.source.blocks(shard, state["inner"]):
                state["inner"] = before
                visits = block * self.sampler.pairs_per_clip
                if self.sampler.shuffle:
                    visits = permuted(visits, [*round_seed, 2, shard, state["block"]])
                while state["item"] < len(visits):
                    position = state["item"]
                    state["item"] = position + 1
                    place = [*round_seed, 1, shard, state["block"], position]
                    clip, frames = visits[position]
                    yield clip, _Held(frames), np.random.default_rng(place)
                state["block"] += 1
                state["item"] = 0
            state.update(shard=state["shard"] + 1, block=0, item=0, inner=None)


class _Held:
    """Reads frames of a clip that is in memory."""

    def __init__(self, frames: list[bytes]) -> None:
        self.frames = frames

    def __call__(self, frames: Sequence[int]) -> list[bytes]:
        return [self.frames[frame] for frame in frames]


class PairExamples(_BaseExamplesIterable):
    """Frame pairs in the form that `datasets.IterableDataset` iterates over."""

    # Nothing here leaves threads behind, so `datasets` need not wait for any.
    _sleep_on_threads_shutdown = False

    def __init__(
        self,
        clips: _IndexedClips | _StreamedClips,
        *,
        transform: PairTransform | None,
        min_difference: float,
        reject_shot_cuts: bool,
        repeat: bool,
        counter: SkipCounter,
    ) -> None:
        super().__init__()
        self.clips = clips
        self.transform = transform
        self.min_difference = min_difference
        self.reject_shot_cuts = reject_shot_cuts
        self.repeat = repeat
        self.counter = counter
        self.shards = list(range(clips.num_shards))
        self.epoch_key = 0

    @property
    def num_shards(self) -> int:
        """Number of shards that this process or worker reads."""
        return len(self.shards)

    @property
    def is_typed(self) -> bool:
        """Whether the features are known."""
        return self.transform is None

    @property
    def features(self) -> Features | None:
        """Columns of raw items; decoded pixels stay tensors and have none."""
        return RAW_FEATURES if self.transform is None else None

    def shuffle_data_sources(self, generator: np.random.Generator) -> PairExamples:
        """Returns the stream of another epoch; all processes derive the same order from it."""
        stream = copy(self)
        stream.epoch_key = int(generator.integers(1, 2**31))
        return stream

    def shard_data_sources(
        self, num_shards: int, index: int, contiguous: bool = True
    ) -> PairExamples:
        """Returns the part of one process or worker."""
        stream = copy(self)
        chosen = self.split_shard_indices_by_worker(num_shards, index, contiguous=contiguous)
        stream.shards = [self.shards[position] for position in chosen]
        return stream

    def reshard_data_sources(self) -> PairExamples:
        """Returns the stream itself: it already has as many shards as it can."""
        return self

    def _init_state_dict(self) -> dict[str, Any]:
        """Sets and returns the state of a stream that has yielded nothing."""
        self._state_dict = {"round": 0, **_round_start(), "type": type(self).__name__}
        return self._state_dict

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields key and item; the state is that after the item before it is yielded."""
        state = self._state_dict if self._state_dict is not None else _round_start() | {"round": 0}
        while self.repeat or state["round"] == 0:
            is_whole_round = all(state[name] == value for name, value in _round_start().items())
            num_visits = num_items = 0
            round_seed = [self.clips.sampler.seed, self.epoch_key, state["round"]]
            for clip, read, generator in self.clips.walk(self.shards, round_seed, state):
                num_visits += 1
                example = self._example(clip, read, generator)
                if example is not None:
                    num_items += 1
                    yield example["key"], example
            # With fractional weights a round may by chance have no clip for a few shards.
            is_by_chance = bool(self.clips.sampler.weights) and not num_visits
            if is_whole_round and not num_items and self.shards and not is_by_chance:
                raise RuntimeError(
                    f"No pair could be taken from {len(self.shards)} shards in a whole pass"
                    f" ({self.counter!r}; the last one was {self.counter.latest or 'none'});"
                    " check the source, `frame_gap` and `min_difference`."
                )
            if not self.repeat or not self.shards:
                return
            state.update(_round_start(), round=state["round"] + 1)

    def _example(
        self, clip: Clip, read: Any, generator: np.random.Generator
    ) -> dict[str, Any] | None:
        """Returns the item of one visit, or None (and counts) where there is none."""
        pair = self.clips.sampler.draw(clip, generator)
        seed = int(generator.integers(0, 2**62))
        if pair is None:
            self.counter.add("too_short", f"clip {clip.key} of {clip.num_frames} frames")
            return None
        key = f"{clip.key}/{pair[0]}-{pair[1]}"
        try:
            early, late = read(sorted(pair))
            first, second = (early, late) if pair[0] < pair[1] else (late, early)
            example = self._decoded(first, second, seed)
        except SkippedPairError as error:
            self.counter.add(error.reason, f"{key} ({error.detail})")
            return None
        except READ_ERRORS as error:
            self.counter.add("unreadable", f"{key} ({error})")
            return None
        example.update(key=key, video=clip.video, fps=clip.fps, gap=pair[1] - pair[0], seed=seed)
        return example

    def _decoded(self, first: bytes, second: bytes, seed: int) -> dict[str, Any]:
        """Returns the pixels of a pair, or its bytes where there is no transform."""
        if self.transform is None:
            return {"frame_1": first, "frame_2": second}
        pixels = self.transform(
            first,
            second,
            seed,
            min_difference=self.min_difference,
            reject_shot_cuts=self.reject_shot_cuts,
        )
        return {"pixel_values": pixels}


def _round_start() -> dict[str, Any]:
    """Returns the state at the start of a round, but for the round's number."""
    return {"shard": 0, "block": 0, "item": 0, "inner": None}
