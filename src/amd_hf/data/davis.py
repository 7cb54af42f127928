"""DAVIS-2016 validation split: 20 videos, one object each, 1376 frames at 480p.

Layout: `JPEGImages/480p/<sequence>/00000.jpg`, `Annotations/480p/<sequence>/00000.png` and,
optionally, `ImageSets/480p/val.txt`. Masks of DAVIS-2017 (palette images, several objects) are
read as the union of their objects.
"""

from pathlib import Path

from amd_hf.data.annotations import (
    AnnotatedFrame,
    AnnotatedSequence,
    Benchmark,
    check_masks_have_frames,
    image_files,
)

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
    sequences, missing = [], []
    for name, num_frames in sorted(VALIDATION_FRAMES.items()):
        sequence = read_sequence(name, frames_root / name, masks_root / name)
        if sequence.frames:
            sequences.append(sequence)
        if len(sequence.annotated) < num_frames:
            missing.append(f"{name} ({len(sequence.annotated)} of {num_frames} masks)")
    return Benchmark(
        name="davis2016",
        title="DAVIS-2016 val",
        kind="video",
        sequences=tuple(sequences),
        num_expected=sum(VALIDATION_FRAMES.values()),
        num_expected_sequences=len(VALIDATION_FRAMES),
        missing=tuple(missing),
    )


def read_sequence(name: str, frames_folder: Path, masks_folder: Path) -> AnnotatedSequence:
    """The frames of one folder with the masks of the same names in another.

    Raises:
        ValueError: If a mask has no frame.
    """
    frames, masks = image_files(frames_folder), image_files(masks_folder)
    check_masks_have_frames(masks, frames, masks_folder)
    return AnnotatedSequence(
        name,
        tuple(
            AnnotatedFrame(stem, path, (masks[stem],) if stem in masks else ())
            for stem, path in frames.items()
        ),
    )
