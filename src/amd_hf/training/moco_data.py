"""Two differently augmented views of one frame, from the same clips as in pre-training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from amd_hf.data.counting import SkippedPairError
from amd_hf.data.decoding import PairTransform
from amd_hf.data.frame_arrays import open_frame
from amd_hf.image_io_amd import DECODE_ERRORS, to_rgb
from amd_hf.training.comparator_data import ComparatorBatches


class TwoViewTransform(PairTransform):
    """Decodes frame 1 of a pair into two crops with their own geometry and their own colors.

    Frame 2 is not looked at. The arguments are those of `PairTransform`.
    """

    def __call__(
        self,
        first: bytes,
        second: bytes,
        seed: int,
        *,
        min_difference: float = 0.0,
        reject_shot_cuts: bool = False,
    ) -> Tensor:
        """Returns the two views, uint8 of shape (2, 3, h, w); colors are not changed yet.

        Args:
            first: The encoded frame.
            second: Not read.
            seed: All draws follow from it.
            min_difference: Without effect.
            reject_shot_cuts: Without effect.

        Raises:
            SkippedPairError: If the frame cannot be decoded.
        """
        try:
            with open_frame(first) as image:
                pixels = np.array(to_rgb(image))
        except DECODE_ERRORS as error:
            raise SkippedPairError("unreadable", str(error)) from error
        frame = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)  # (1, 3, H, W)
        geometries = [
            self.augmentation.draw_geometry(frame.shape[-2], frame.shape[-1], view_seed)
            for view_seed in view_seeds([seed])
        ]
        return torch.cat([self.augmentation.apply_geometry(frame, view) for view in geometries])

    def finish(self, frames: Tensor, seeds: Tensor | Sequence[int]) -> Tensor:
        """Changes the colors of each view on its own and normalizes; (B, 2, 3, h, w) float32."""
        numbers = seeds.tolist() if isinstance(seeds, Tensor) else list(seeds)
        views = frames.flatten(0, 1).unsqueeze(1)  # (2B, 1, 3, h, w)
        finished = self.augmentation.finish(views, view_seeds(numbers))
        return finished.reshape(frames.shape)


def view_seeds(seeds: Sequence[int]) -> list[int]:
    """Two seeds per seed; seeds of pairs are below 2**62, so these fit into int64."""
    return [2 * seed + view for seed in seeds for view in (0, 1)]


class TwoViewBatches(ComparatorBatches):
    """Batches of two views of the first frame of a pair."""

    transform_type = TwoViewTransform
    reject_shot_cuts = False  # frame 2 is not looked at
