"""SegTrackv2: 14 videos, 24 objects, read as one object per video (the union of its masks).

Layout: `JPEGImages/<sequence>/*` and `GroundTruth/<sequence>/*.png`, or, for sequences with several
objects, `GroundTruth/<sequence>/<object>/*.png` as in the original distribution.
"""

from pathlib import Path

from amd_hf.data.annotations import Benchmark
from amd_hf.data.mask_folders import open_mask_folders

# Counting every sequence in full gives 1066 frames; papers that quote 976 leave some out.
SEQUENCE_FRAMES = {
    "bird_of_paradise": 98,
    "birdfall": 30,
    "bmx": 36,
    "cheetah": 29,
    "drift": 74,
    "frog": 279,
    "girl": 21,
    "hummingbird": 29,
    "monkey": 31,
    "monkeydog": 71,
    "parachute": 51,
    "penguin": 42,
    "soldier": 32,
    "worm": 243,
}


def open_segtrackv2(root: Path) -> Benchmark:
    """The sequences under `root`.

    Args:
        root: Folder that holds `JPEGImages` and `GroundTruth`.

    Returns:
        The benchmark with the sequences found.

    Raises:
        ValueError: If the layout is not SegTrackv2's, or a mask has no frame.
    """
    frames_root, masks_root = root / "JPEGImages", root / "GroundTruth"
    if not frames_root.is_dir() or not masks_root.is_dir():
        raise ValueError(
            f"{root} is not a SegTrackv2 folder: expected JPEGImages and GroundTruth in it."
        )
    return open_mask_folders("segtrackv2", "SegTrackv2", SEQUENCE_FRAMES, frames_root, masks_root)
