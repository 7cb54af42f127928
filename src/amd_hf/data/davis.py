"""DAVIS-2016 validation split: 20 videos, one object each, 1376 frames at 480p.

Layout: `JPEGImages/480p/<sequence>/00000.jpg`, `Annotations/480p/<sequence>/00000.png` and,
optionally, `ImageSets/480p/val.txt`. Masks of DAVIS-2017 (palette images, several objects) are
read as the union of their objects.
"""

from pathlib import Path

from amd_hf.data.annotations import Benchmark
from amd_hf.data.mask_folders import open_mask_folders

VALIDATION_FRAMES = {
    "blackswan": 50,
    "bmx-trees": 80,
    "breakdance": 84,
    "camel": 90,
    "car-roundabout": 75,
    "car-shadow": 40,
    "cows": 104,
    "dance-twirl": 90,
    "dog": 60,
    "drift-chicane": 52,
    "drift-straight": 50,
    "goat": 90,
    "horsejump-high": 50,
    "kite-surf": 50,
    "libby": 49,
    "motocross-jump": 40,
    "paragliding-launch": 80,
    "parkour": 100,
    "scooter-black": 43,
    "soapbox": 99,
}
RESOLUTION = "480p"


def open_davis2016(root: Path) -> Benchmark:
    """The validation split under `root`.

    Args:
        root: Folder that holds `JPEGImages` and `Annotations`.

    Returns:
        The benchmark with the sequences found.

    Raises:
        ValueError: If the layout is not DAVIS's, or a mask has no frame.
    """
    frames_root, masks_root = root / "JPEGImages" / RESOLUTION, root / "Annotations" / RESOLUTION
    if not frames_root.is_dir() or not masks_root.is_dir():
        raise ValueError(
            f"{root} is not a DAVIS folder: expected JPEGImages/480p and Annotations/480p in it."
        )
    return open_mask_folders(
        "davis2016", "DAVIS-2016 val", VALIDATION_FRAMES, frames_root, masks_root
    )
