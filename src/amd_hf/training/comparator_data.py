"""The batches of a comparator of AMD: the same clips and crops as in pre-training."""

from __future__ import annotations

from typing import Any, ClassVar

from amd_hf.configuration_amd import AMDConfig
from amd_hf.data.decoding import PairTransform
from amd_hf.data.frame_pairs import frame_pairs
from amd_hf.training.data_stream import EndlessBatches, source_of


class ComparatorBatches(EndlessBatches):
    """Batches of adjacent frames for ever, and the exact position in them.

    Processes read disjoint frames. A comparator that looks at other things than the same crop of
    both frames has a subclass with its own transform.
    """

    transform_type: ClassVar[type[PairTransform]] = PairTransform
    reject_shot_cuts: ClassVar[bool | None] = None  # None: left out

    def new_transform(self, args: Any, config: AMDConfig) -> PairTransform:
        """Decoding, crops and colors by the options of the run."""
        return self.transform_type(
            args.augmentation,
            args.crop_height_width(),
            image_mean=config.image_mean,
            image_std=config.image_std,
        )

    def new_dataset(self, args: Any) -> Any:
        """The endless stream; one pair of frames per clip and pass."""
        return frame_pairs(
            source_of(args.dataset),
            transform=self.transform,
            reject_shot_cuts=self.reject_shot_cuts,
            shuffle=True,
            repeat=True,
            seed=args.seed,
        )
