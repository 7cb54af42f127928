"""PASCAL VOC 2012 semantic segmentation: 20 classes and background, 255 is ignored.

Layout: `JPEGImages/*.jpg`, `SegmentationClass/*.png`, `ImageSets/Segmentation/<split>.txt`, also
inside `VOCdevkit/VOC2012`.
"""

from pathlib import Path

from amd_hf.data.annotations import (
    AnnotatedFrame,
    AnnotatedSequence,
    Benchmark,
    image_files,
    read_text,
    shown,
)

VOC_LABELS = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
SPLIT_IMAGES = {"train": 1464, "val": 1449}


def open_voc2012(root: Path, split: str = "val") -> Benchmark:
    """One split of the segmentation task under `root`.

    Args:
        root: Folder that holds `JPEGImages`, `SegmentationClass` and `ImageSets`.
        split: `val` or `train`; the list file decides what belongs to it.

    Returns:
        The benchmark, one "sequence" per image.

    Raises:
        ValueError: If the layout is not VOC's, or a listed mask has no image.
    """
    for folder in (root, root / "VOCdevkit" / "VOC2012", root / "VOC2012"):
        if (folder / "SegmentationClass").is_dir():
            root = folder
            break
    names_file = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not names_file.is_file() or not (root / "SegmentationClass").is_dir():
        raise ValueError(
            f"{root} is not a VOC 2012 folder: expected SegmentationClass and "
            f"ImageSets/Segmentation/{split}.txt in it."
        )
    names = read_text(names_file).split()
    images, masks = image_files(root / "JPEGImages"), image_files(root / "SegmentationClass")
    orphans = [name for name in names if name in masks and name not in images]
    if orphans:
        raise ValueError(
            f"{root} has {len(orphans)} masks without an image of the same name "
            f"({shown(orphans)}); restore the images."
        )
    absent = [name for name in names if name not in images]
    sequences = tuple(
        AnnotatedSequence(
            name, (AnnotatedFrame(name, images[name], (masks[name],) if name in masks else ()),)
        )
        for name in names
        if name in images
    )
    expected = SPLIT_IMAGES.get(split, len(names))
    return Benchmark(
        name="voc2012",
        title=f"VOC 2012 {split}",
        kind="semantic",
        sequences=sequences,
        num_expected=expected,
        num_expected_sequences=expected,
        missing=(f"{len(absent)} listed images ({shown(absent)})",) if absent else (),
    )
