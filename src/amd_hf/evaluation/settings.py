"""Settings of an evaluation: everything that can change a score, in one place."""

from dataclasses import asdict, dataclass, field
from typing import Any

AUTOCAST_TYPES = ("bfloat16", "float16")
REFINEMENTS = ("flips", "scales", "common-motion", "temporal", "guided-filter")


@dataclass(frozen=True)
class EvaluationSettings:
    """How a benchmark is scored.

    Attributes:
        threshold: Probability above which a pixel belongs to the object, fixed in advance.
        object_segment: Segment read as the object; None takes that of the model's configuration.
        adapt_steps: Steps of test-time adaptation per sequence; 0 segments image by image.
        adapt_settings: Further arguments of `adapt_to_video`.
        adapt_chunk: Frames per adapted copy for long videos; None adapts once per sequence.
        refinements: Label-free refinements, names from `REFINEMENTS`.
        sequences: Names of the sequences to score; None scores all.
        limit_frames: Scored frames per sequence (or images in all) at most.
        stride: Score every n-th frame (or image) only.
        short_side: Short side of the model's input in pixels; None takes the processor's.
        batch_size: Frames per forward pass; frames of one size only.
        autocast: `bfloat16` or `float16` for mixed precision; None computes in float32.
        stretch: Whether soft masks are stretched to [0, 1] per image before F-beta, MAE, S and E,
            as saliency toolboxes do; the AMD masks are probabilities and need it not.
        num_bootstrap: Resamples for the 95 % intervals; 0 leaves them out.
        seed: Seed of adaptation, bootstrap and random controls.

    Raises:
        ValueError: If a value is out of range.
    """

    threshold: float = 0.5
    object_segment: int | None = None
    adapt_steps: int = 0
    adapt_settings: dict[str, Any] = field(default_factory=dict)
    adapt_chunk: int | None = None
    refinements: tuple[str, ...] = ()
    sequences: tuple[str, ...] | None = None
    limit_frames: int | None = None
    stride: int = 1
    short_side: int | None = None
    batch_size: int = 1
    autocast: str | None = None
    stretch: bool = False
    num_bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks ranges; lists become tuples."""
        object.__setattr__(self, "refinements", tuple(self.refinements))
        if self.sequences is not None:
            object.__setattr__(self, "sequences", tuple(self.sequences))
        if not 0 <= self.threshold < 1:
            raise ValueError(f"`threshold` must lie in [0, 1), got {self.threshold}.")
        for name, least in (("adapt_steps", 0), ("stride", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        for name, least in (("limit_frames", 1), ("short_side", 32), ("adapt_chunk", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"`{name}` must be at least {least} or None, got {value}.")
        if self.num_bootstrap < 0:
            raise ValueError(f"`num_bootstrap` must be at least 0, got {self.num_bootstrap}.")
        if self.autocast is not None and self.autocast not in AUTOCAST_TYPES:
            raise ValueError(f"`autocast` must be one of {AUTOCAST_TYPES}, got {self.autocast!r}.")
        unknown = [name for name in self.refinements if name not in REFINEMENTS]
        if unknown:
            raise ValueError(f"`refinements` must be from {REFINEMENTS}, got {unknown[0]!r}.")

    @property
    def scores_a_part(self) -> bool:
        """Whether these settings leave frames or sequences out."""
        return self.stride > 1 or self.limit_frames is not None or self.sequences is not None

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }
