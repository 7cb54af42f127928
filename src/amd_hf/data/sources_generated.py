"""Clips of generated moving objects, encoded like all other sources."""

from __future__ import annotations

from collections.abc import Sequence

from amd_hf.data.encoding import encode_ppm
from amd_hf.data.sources import Clip, ClipSource
from amd_hf.data.synthetic_objects import generate_clip

GENERATED_FPS = 24.0


class GeneratedSource(ClipSource):
    """Clips of `generate_clip`, made on demand from the clip's number.

    Args:
        num_clips: Number of different clips.
        num_frames: Frames per clip, at least 2.
        size: Height and width in pixels.
        seed: First seed; clip i has the seed `seed + i`.

    Raises:
        ValueError: If there is no clip or no pair in a clip.
    """

    def __init__(
        self,
        num_clips: int = 1024,
        num_frames: int = 6,
        size: tuple[int, int] = (192, 256),
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_clips < 1 or num_frames < 2:
            raise ValueError(
                "`num_clips` must be at least 1 and `num_frames` at least 2, got"
                f" {num_clips} and {num_frames}."
            )
        self.num_clips = num_clips
        self.num_frames = num_frames
        self.size = size
        self.seed = seed

    def __len__(self) -> int:
        return self.num_clips

    def clip(self, index: int) -> Clip:
        """Returns clip `index`."""
        name = f"generated/{self.seed + index:06d}"
        return Clip(name, name, self.num_frames, GENERATED_FPS)

    def read(self, index: int, frames: Sequence[int]) -> list[bytes]:
        """Returns lossless `frames` of clip `index`."""
        images, _ = generate_clip(max(frames) + 1, *self.size, seed=self.seed + index)
        return [encode_ppm(images[frame]) for frame in frames]
