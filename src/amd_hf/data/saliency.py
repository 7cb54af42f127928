"""Image benchmarks of one mask per image: DUTS-TE, ECSSD, PASCAL-S, DUT-OMRON and HKU-IS.

Each is a folder of images and a folder of masks of the same names. The folder names of the
original distributions and the plain pair `images` / `masks` are known.
"""

from dataclasses import dataclass
from pathlib import Path

from amd_hf.data.annotations import (
    AnnotatedFrame,
    AnnotatedSequence,
    Benchmark,
    check_masks_have_frames,
    image_files,
)

PLAIN_FOLDERS = ("images", "masks")


@dataclass(frozen=True)
class SaliencySet:
    """Facts of one image benchmark.

    Attributes:
        title: Name for people.
        num_images: Images of the complete set.
        folders: Pairs (image folder, mask folder) of the original distribution.
    """

    title: str
    num_images: int
    folders: tuple[tuple[str, str], ...]


SALIENCY_SETS = {
    "duts-te": SaliencySet(
        "DUTS-TE",
        5019,
        (
            ("DUTS-TE-Image", "DUTS-TE-Mask"),
            ("DUTS-TE/DUTS-TE-Image", "DUTS-TE/DUTS-TE-Mask"),
        ),
    ),
    "ecssd": SaliencySet("ECSSD", 1000, (("images", "ground_truth_mask"),)),
    "pascal-s": SaliencySet(
        "PASCAL-S",
        850,
        (("datasets/imgs/pascal", "datasets/masks/pascal"), ("imgs/pascal", "masks/pascal")),
    ),
    "dut-omron": SaliencySet("DUT-OMRON", 5168, (("DUT-OMRON-image", "pixelwiseGT-new-PNG"),)),
    "hku-is": SaliencySet("HKU-IS", 4447, (("imgs", "gt"), ("HKU-IS/imgs", "HKU-IS/gt"))),
    "duts-tr-dev": SaliencySet("DUTS-TR (200 images, for choosing)", 200, ()),
}


def open_saliency(name: str, root: Path) -> Benchmark:
    """One of the image benchmarks under `root`.

    Args:
        name: Key of `SALIENCY_SETS`.
        root: Folder that holds the image folder and the mask folder.

    Returns:
        The benchmark, one "sequence" per image.

    Raises:
        ValueError: If the folders are not there, or a mask has no image.
    """
    facts = SALIENCY_SETS[name]
    pairs = (*facts.folders, PLAIN_FOLDERS)
    for images_folder, masks_folder in ((root / first, root / second) for first, second in pairs):
        if images_folder.is_dir() and masks_folder.is_dir():
            break
    else:
        expected = " or ".join(f"{first} + {second}" for first, second in pairs)
        raise ValueError(f"{root} is not a {facts.title} folder: expected {expected} in it.")
    images, masks = image_files(images_folder), image_files(masks_folder)
    check_masks_have_frames(masks, images, masks_folder)
    sequences = tuple(
        AnnotatedSequence(
            stem, (AnnotatedFrame(stem, path, (masks[stem],) if stem in masks else ()),)
        )
        for stem, path in images.items()
    )
    return Benchmark(
        name=name,
        title=facts.title,
        kind="image",
        sequences=sequences,
        num_expected=facts.num_images,
        num_expected_sequences=facts.num_images,
    )
