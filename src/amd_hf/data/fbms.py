"""FBMS-59: 59 videos of which only some frames are annotated, several objects each.

Layout: `Trainingset/<sequence>/*.jpg` and `Testset/<sequence>/*.jpg`, with the masks in
`GroundTruth` inside each sequence: `<sequence>Def.dat` names the annotated frames, their files
(`.ppm` or `.pgm`) and the color of each region; region 0 is the background. Folders without that
file are read as binary PNG masks named after their frames (with or without `_gt`).

Papers quote two sizes: both sets (59 videos, 720 annotated frames), as the AMD paper does, and the
test set alone (30 videos, 367 annotated frames). They are two benchmarks here.
"""

from pathlib import Path

from amd_hf.data.annotations import (
    AnnotatedFrame,
    AnnotatedSequence,
    Benchmark,
    check_masks_have_frames,
    image_files,
)

NUM_SEQUENCES, NUM_ANNOTATED = 59, 720
NUM_TEST_SEQUENCES, NUM_TEST_ANNOTATED = 30, 367
MASK_SUFFIX = "_gt"
MOST_REGIONS, WHITE = 10_000, 0xFFFFFF


def open_fbms59(root: Path) -> Benchmark:
    """Training and test set together: 59 sequences, 720 annotated frames.

    Args:
        root: Folder that holds `Trainingset` and `Testset`.

    Returns:
        The benchmark with the sequences found.

    Raises:
        ValueError: If the layout is not FBMS's, a definition file is broken or a mask has no frame.
    """
    return _open(
        root,
        ("Trainingset", "Testset"),
        name="fbms59",
        title="FBMS-59",
        num_expected=NUM_ANNOTATED,
        num_expected_sequences=NUM_SEQUENCES,
    )


def open_fbms59_test(root: Path) -> Benchmark:
    """The test set alone: 30 sequences, 367 annotated frames.

    Args:
        root: Folder that holds `Testset`.

    Returns:
        The benchmark with the sequences found.

    Raises:
        ValueError: If the layout is not FBMS's, a definition file is broken or a mask has no frame.
    """
    return _open(
        root,
        ("Testset",),
        name="fbms59-test",
        title="FBMS-59 test",
        num_expected=NUM_TEST_ANNOTATED,
        num_expected_sequences=NUM_TEST_SEQUENCES,
    )


def _open(
    root: Path,
    subsets: tuple[str, ...],
    *,
    name: str,
    title: str,
    num_expected: int,
    num_expected_sequences: int,
) -> Benchmark:
    """The sequences of the named subsets; their folders may be spelled in any case."""
    folders = {path.name.lower(): path for path in root.iterdir() if path.is_dir()}
    found = [folders[subset.lower()] for subset in subsets if subset.lower() in folders]
    if not found:
        raise ValueError(
            f"{root} is not an FBMS-59 folder: expected {' and '.join(subsets)} in it."
        )
    sequences = [
        _read_sequence(folder)
        for subset in found
        for folder in sorted(subset.iterdir())
        if folder.is_dir()
    ]
    sequences = [sequence for sequence in sequences if sequence.frames]
    missing = []
    if len(sequences) < num_expected_sequences:
        missing.append(f"{num_expected_sequences - len(sequences)} sequences")
    return Benchmark(
        name=name,
        title=title,
        kind="video",
        sequences=tuple(sorted(sequences, key=lambda sequence: sequence.name)),
        num_expected=num_expected,
        num_expected_sequences=num_expected_sequences,
        missing=tuple(missing),
    )


def _read_sequence(folder: Path) -> AnnotatedSequence:
    """One sequence with its annotated frames marked."""
    frames = image_files(folder)
    masks_folder = folder / "GroundTruth"
    definitions = sorted(masks_folder.glob("*.dat")) if masks_folder.is_dir() else []
    object_values: frozenset[int] | None = None
    if definitions:
        object_values, masks = _read_definition(definitions[0])
    else:
        masks = {
            stem.removesuffix(MASK_SUFFIX): path for stem, path in image_files(masks_folder).items()
        }
    check_masks_have_frames(masks, frames, masks_folder)
    return AnnotatedSequence(
        folder.name,
        tuple(
            AnnotatedFrame(stem, path, (masks[stem],), object_values)
            if stem in masks
            else AnnotatedFrame(stem, path)
            for stem, path in frames.items()
        ),
    )


def _read_definition(path: Path) -> tuple[frozenset[int], dict[str, Path]]:
    """Object colors and mask files by frame name, from a ground truth definition file.

    Colors that the file does not list count as background, as in the benchmark's own program.
    """
    lines = [line.strip() for line in path.read_text(encoding="latin-1").splitlines()]
    lines = [line for line in lines if line]
    try:
        start = lines.index("Total number of regions:")
        num_regions = int(lines[start + 1])
        if not 1 <= num_regions <= MOST_REGIONS:
            raise ValueError(f"it names {num_regions} regions")
        colors = [int(line) for line in lines[start + 2 : start + 2 + num_regions]]
        if not all(0 <= color <= WHITE for color in colors):
            raise ValueError("it names a color outside of 24 bits")
        masks = {}
        for index, line in enumerate(lines):
            if line == "File name:":
                mask = path.parent / _file_name(lines[index + 1])
                masks[_frame_of(lines, index, mask)] = mask
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"{path} is not an FBMS ground truth definition file ({error}); restore the original."
        ) from error
    if len(colors) != num_regions or not masks:
        raise ValueError(
            f"{path} names {len(colors)} of {num_regions} regions and {len(masks)} frames; "
            "restore the original."
        )
    absent = [mask.name for mask in masks.values() if not mask.is_file()]
    if absent:
        raise ValueError(f"{path} names masks that are missing: {absent[0]}; restore the files.")
    return frozenset(colors[1:]), masks


def _file_name(text: str) -> str:
    """A name of a file in the folder of the definition; other folders are not looked into."""
    if text in ("", ".", "..") or "\0" in text or text != Path(text.replace("\\", "/")).name:
        raise ValueError(f"{text[:80]!r} is not the name of a file beside it")
    return text


def _frame_of(lines: list[str], index: int, mask: Path) -> str:
    """Name of the frame a mask belongs to: from the input file where one is named."""
    if lines[index + 2 : index + 3] == ["Input file name:"]:
        return Path(lines[index + 3]).stem
    return mask.stem.removesuffix(MASK_SUFFIX)
