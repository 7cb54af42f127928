"""Which clips a pass visits in which order, and which two frames of a clip make a pair."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from amd_hf.data.sources import Clip, ClipSource

TEMPORAL_ORDERS = ("both", "forward", "backward")


@dataclass(frozen=True)
class PairSampler:
    """The random choices of a stream, each a pure function of seeds.

    Attributes:
        frame_gap: Distance in stored frames, or a range (both ends included).
        target_dt: Distance in seconds, or a range; takes precedence.
        temporal_order: "both", "forward" or "backward".
        assumed_fps: Frames per second of clips that do not state theirs.
        pairs_per_clip: Pairs drawn from a clip in one pass.
        weights: Factors of `pairs_per_clip` by the beginning of a video's name.
        shuffle: Whether clips are permuted.
        seed: Seed of everything.
    """

    frame_gap: int | tuple[int, int] = 1
    target_dt: float | tuple[float, float] | None = None
    temporal_order: str = "both"
    assumed_fps: float = 24.0
    pairs_per_clip: int = 1
    weights: Mapping[str, float] = field(default_factory=dict)
    shuffle: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.gap_range
        if not 1 <= low <= high:
            raise ValueError(
                "`frame_gap` must be a number of at least 1 or a range (min, max) of such, got"
                f" {self.frame_gap}."
            )
        if self.target_dt is not None:
            short, long = _as_range(self.target_dt)
            if not 0.0 < short <= long:
                raise ValueError(
                    "`target_dt` must be positive seconds or a range (min, max) of such, got"
                    f" {self.target_dt}."
                )
        if self.temporal_order not in TEMPORAL_ORDERS:
            raise ValueError(
                f"`temporal_order` must be one of {', '.join(TEMPORAL_ORDERS)}, got"
                f" {self.temporal_order!r}."
            )
        if self.pairs_per_clip < 1:
            raise ValueError(f"`pairs_per_clip` must be at least 1, got {self.pairs_per_clip}.")
        if not self.assumed_fps > 0.0:
            raise ValueError(f"`assumed_fps` must be positive, got {self.assumed_fps}.")
        if any(weight < 0.0 for weight in self.weights.values()):
            raise ValueError(f"`weights` must not be negative, got {dict(self.weights)}.")

    @property
    def gap_range(self) -> tuple[int, int]:
        """Smallest and largest gap in stored frames."""
        low, high = _as_range(self.frame_gap)
        return int(low), int(high)

    def weight(self, video: str) -> float:
        """Returns the factor for a video: that of the longest matching beginning, else 1."""
        matches = [prefix for prefix in self.weights if video.startswith(prefix)]
        return float(self.weights[max(matches, key=len)]) if matches else 1.0

    def expected_visits(self, source: ClipSource) -> NDArray[np.float64] | None:
        """Returns how often a pass visits each clip on average (clips,); None if all are equal."""
        if not self.weights:
            return None
        by_video = {
            name: self.weight(name) for name in {source.video(i) for i in range(len(source))}
        }
        factors = np.array([by_video[source.video(i)] for i in range(len(source))])
        if not factors.any():
            raise ValueError("`weights` leave out every video of `source`.")
        return factors * self.pairs_per_clip

    def visits(
        self, num_clips: int, expected: NDArray[np.float64] | None, round_seed: Sequence[int]
    ) -> NDArray[np.int64]:
        """Returns the clips of one pass in order, shape (visits,)."""
        generator = np.random.default_rng([*round_seed, 0])
        if expected is None:
            clips = np.tile(np.arange(num_clips, dtype=np.int64), self.pairs_per_clip)
        else:
            whole = np.floor(expected)
            extra = generator.random(num_clips) < expected - whole
            clips = np.repeat(
                np.arange(num_clips, dtype=np.int64), (whole + extra).astype(np.int64)
            )
        return generator.permutation(clips) if self.shuffle else clips

    def draw(self, clip: Clip, generator: np.random.Generator) -> tuple[int, int] | None:
        """Returns the indices of frames 1 and 2 in the clip, or None where it has no such pair."""
        pair = (
            self._by_gap(clip, generator)
            if self.target_dt is None
            else self._by_time(clip, generator)
        )
        # Drawn even where it is not used, so that the order does not shift later draws.
        is_swapped = bool(generator.random() < 0.5)
        if pair is None:
            return None
        if self.temporal_order == "backward" or (self.temporal_order == "both" and is_swapped):
            return pair[1], pair[0]
        return pair

    def _by_gap(self, clip: Clip, generator: np.random.Generator) -> tuple[int, int] | None:
        """Returns two frames at a drawn distance in stored frames."""
        low, high = self.gap_range
        high = min(high, clip.num_frames - 1)
        if high < low:
            return None
        gap = int(generator.integers(low, high + 1))
        start = int(generator.integers(0, clip.num_frames - gap))
        return start, start + gap

    def _by_time(self, clip: Clip, generator: np.random.Generator) -> tuple[int, int] | None:
        """Returns two frames at about a drawn distance in time."""
        assert self.target_dt is not None
        if clip.num_frames < 2:
            return None
        wanted = float(generator.uniform(*_as_range(self.target_dt)))
        distance = wanted * (clip.fps or self.assumed_fps)
        numbers = [clip.frame_number(index) for index in range(clip.num_frames)]
        # Starts from which the wanted time still lies inside the clip, give or take half a step;
        # a clip that is shorter than that by more than half has no such pair.
        span = numbers[-1] - numbers[0]
        if span < distance / 2.0:
            return None
        last = max(bisect_left(numbers, numbers[-1] - distance + 0.5), 1)
        start = int(generator.integers(0, min(last, clip.num_frames - 1)))
        position = bisect_left(numbers, numbers[start] + distance, lo=start + 1)
        if position == clip.num_frames:
            position -= 1
        before = position - 1
        target = numbers[start] + distance
        if before > start and target - numbers[before] <= numbers[position] - target:
            position = before
        return start, position


def _as_range(value: float | tuple[float, float]) -> tuple[float, float]:
    """Returns a number as a range of itself, and a range as it is."""
    if isinstance(value, int | float):
        return value, value
    low, high = value
    return low, high
