"""Video benchmarks that keep the frames and the masks of every sequence in a folder of its name."""

from collections.abc import Mapping
from pathlib import Path

from amd_hf.data.annotations import (
    AnnotatedFrame,
    AnnotatedSequence,
    Benchmark,
    check_masks_have_frames,
    image_files,
)


def open_mask_folders(
    name: str, title: str, num_frames: Mapping[str, int], frames_root: Path, masks_root: Path
) -> Benchmark:
    """The sequences of a benchmark that are there.

    Args:
        name: Name of the benchmark on the command line.
        title: Its name for people.
        num_frames: Annotated frames of every sequence of the complete set.
        frames_root: Holds a folder of frames per sequence.
        masks_root: Holds a folder of masks per sequence.

    Returns:
        The benchmark with the sequences found.

    Raises:
        ValueError: If a mask has no frame.
    """
    sequences, missing = [], []
    for sequence_name, expected in sorted(num_frames.items()):
        sequence = read_sequence(
            sequence_name, frames_root / sequence_name, masks_root / sequence_name
        )
        if sequence.frames:
            sequences.append(sequence)
        if len(sequence.annotated) < expected:
            missing.append(f"{sequence_name} ({len(sequence.annotated)} of {expected} masks)")
    return Benchmark(
        name=name,
        title=title,
        kind="video",
        sequences=tuple(sequences),
        num_expected=sum(num_frames.values()),
        num_expected_sequences=len(num_frames),
        missing=tuple(missing),
    )


def read_sequence(name: str, frames_folder: Path, masks_folder: Path) -> AnnotatedSequence:
    """The frames of one folder with the masks of the same names in another.

    Args:
        name: Name of the sequence.
        frames_folder: Its frames.
        masks_folder: Its masks, or one folder of masks per object: their union is the object.

    Raises:
        ValueError: If a mask has no frame.
    """
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
