"""SegTrackv2: 14 videos, 24 objects, read as one object per video (the union of its masks).

Layout: `JPEGImages/<sequence>/*` and `GroundTruth/<sequence>/*.png`, or, for sequences with several
objects, `GroundTruth/<sequence>/<object>/*.png` as in the original distribution.
"""

from pathlib import Path

from amd_hf.data.annotations import (
    AnnotatedFrame,
    AnnotatedSequence,
    Benchmark,
    check_masks_have_frames,
    image_files,
)

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
    sequences, missing = [], []
    for name, num_frames in sorted(SEQUENCE_FRAMES.items()):
        sequence = _read_sequence(name, frames_root / name, masks_root / name)
        if sequence.frames:
            sequences.append(sequence)
        if len(sequence.annotated) < num_frames:
            missing.append(f"{name} ({len(sequence.annotated)} of {num_frames} masks)")
    return Benchmark(
        name="segtrackv2",
        title="SegTrackv2",
        kind="video",
        sequences=tuple(sequences),
        num_expected=sum(SEQUENCE_FRAMES.values()),
        num_expected_sequences=len(SEQUENCE_FRAMES),
        missing=tuple(missing),
    )


def _read_sequence(name: str, frames_folder: Path, masks_folder: Path) -> AnnotatedSequence:
    """One sequence; masks may lie in one folder per object."""
    frames = image_files(frames_folder)
    folders = [masks_folder]
    if masks_folder.is_dir():
        folders += sorted(path for path in masks_folder.iterdir() if path.is_dir())
    masks: dict[str, list[Path]] = {}
    for folder in folders:
        for stem, path in image_files(folder).items():
            masks.setdefault(stem, []).append(path)
    check_masks_have_frames(masks, frames, masks_folder)
    return AnnotatedSequence(
        name,
        tuple(
            AnnotatedFrame(stem, path, tuple(masks.get(stem, ()))) for stem, path in frames.items()
        ),
    )
