"""Frame-pair streams, augmentation, shard packing, benchmark readers and generated clips."""

from amd_hf.data.augmentation import AUGMENTATION_PRESETS, AugmentationPreset, PairAugmentation
from amd_hf.data.counting import SkipCounter
from amd_hf.data.decoding import PairCollator, PairTransform
from amd_hf.data.frame_pairs import frame_pairs, open_source, skip_counter
from amd_hf.data.sources import Clip, ClipSource
from amd_hf.data.synthetic_objects import generate_clip

__all__ = [
    "AUGMENTATION_PRESETS",
    "AugmentationPreset",
    "Clip",
    "ClipSource",
    "PairAugmentation",
    "PairCollator",
    "PairTransform",
    "SkipCounter",
    "frame_pairs",
    "generate_clip",
    "open_source",
    "skip_counter",
]
