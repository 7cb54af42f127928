"""Images with a class per pixel, from folders: VOC 2012 (with the SBD list) and images/masks pairs.

Layouts, by what is found in the folder:

    JPEGImages/ SegmentationClass/ [SegmentationClassAug/] ImageSets/Segmentation/*.txt   VOC 2012
    images/<split>/ masks/<split>/      or <split>/images/ <split>/masks/                 pairs
    images/ masks/                                                                        one split

Masks are gray or palette pictures of class ids. An image and its mask share their name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amd_hf.data.annotations import image_files, read_frame, read_labels, read_text, shown
from amd_hf.data.semantic_images import MaskCoding, parse_label_names
from amd_hf.data.voc import VOC_LABELS
from amd_hf.image_io_amd import DECODE_ERRORS, open_image, upright_size

IMAGE_FOLDERS = ("images", "image", "imgs", "JPEGImages")
MASK_FOLDERS = ("masks", "mask", "annotations", "labels", "SegmentationClass")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
    "test": ("test", "testing"),
}
# The list of the 10,582 images of VOC and SBD goes by several names.
AUGMENTED_LISTS = ("train_aug.txt", "trainaug.txt")


@dataclass(frozen=True)
class LabelledFile:
    """An image file and its mask file."""

    name: str
    image: Path
    mask: Path


class LabelledFiles:
    """Image files with mask files.

    Args:
        files: The pairs.
        title: What messages call this split.
        coding: How ids are stored in the masks.
        labels: Names of the classes, if known.
    """

    def __init__(
        self,
        files: Sequence[LabelledFile],
        title: str,
        coding: MaskCoding | None = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        self.files = tuple(files)
        self.title = title
        self.coding = coding or MaskCoding()
        self.labels = tuple(labels) if labels is not None else None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def key(self, index: int) -> str:
        """Name of the file without suffix."""
        return self.files[index].name

    def load_image(self, index: int) -> Image.Image:
        """The image in RGB, upright.

        Raises:
            ValueError: If the file cannot be decoded.
        """
        return read_frame(self.files[index].image)

    def load_mask(self, index: int) -> NDArray[np.int64]:
        """Class ids of shape (H, W).

        Raises:
            ValueError: If the file cannot be decoded.
        """
        return self.coding.decode(read_labels(self.files[index].mask))

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width of the upright image.

        Raises:
            ValueError: If the file cannot be opened.
        """
        path = self.files[index].image
        try:
            with open_image(path) as image:
                return upright_size(image)
        except DECODE_ERRORS as error:
            raise ValueError(
                f"Cannot read the image {path} ({error}); replace the file."
            ) from error

    def subset(self, indices: Sequence[int], title: str) -> LabelledFiles:
        """Some of the images, under another title."""
        return LabelledFiles([self.files[i] for i in indices], title, self.coding, self.labels)


def open_semantic_folder(
    root: str | Path,
    split: str = "train",
    *,
    coding: MaskCoding | None = None,
    image_folder: str | None = None,
    mask_folder: str | None = None,
    mask_suffix: str = "",
) -> LabelledFiles:
    """One split of a folder of images with masks.

    Args:
        root: The folder; see the module for the layouts.
        split: `train`, `val`, `test`, or a name of your own. VOC also knows `train_aug`: the
            training images of VOC and SBD.
        coding: How ids are stored in the masks.
        image_folder: Folder of the images below `root` (or absolute), if not one of the usual.
        mask_folder: Folder of the masks below `root` (or absolute), if not one of the usual.
        mask_suffix: What the names of the masks have in addition, such as `_mask`.

    Returns:
        The images of the split, sorted by name.

    Raises:
        ValueError: If the layout is not known, the split is missing or empty, or an image has no
            mask or a mask no image.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"`dataset_name` must be a folder or a Hub data set, got {root}.")
    voc = None if image_folder or mask_folder else _voc_root(root)
    if voc is not None:
        return _open_voc(voc, split, coding)
    images, masks = find_pair(root, split, image_folder, mask_folder)
    files = _match(images, masks, mask_suffix)
    if not files:
        raise ValueError(
            f"The split `{split}` of {root} is empty: no image in {images}; add images and masks."
        )
    return LabelledFiles(files, f"{root.name} {split}", coding, read_label_file(root))


def available_splits(
    root: str | Path, image_folder: str | None = None, mask_folder: str | None = None
) -> list[str]:
    """The splits of a folder: `train`, `val`, `test`, `train_aug` as far as they are there.

    Args:
        root: The folder.
        image_folder: As for `open_semantic_folder`.
        mask_folder: As for `open_semantic_folder`.

    Returns:
        Names of splits; none where images and masks are not divided.
    """
    root = Path(root)
    if image_folder is not None and mask_folder is not None:
        pair = (root / image_folder, root / mask_folder)
        return [name for name in SPLIT_NAMES if _inner(*pair, name) is not None]
    voc = _voc_root(root)
    if voc is not None:
        lists = {path.stem for path in (voc / "ImageSets" / "Segmentation").glob("*.txt")}
        found = [name for name in SPLIT_NAMES if name in lists]
        return [*found, *(["train_aug"] if _augmented_names(voc) is not None else [])]
    return [name for name in SPLIT_NAMES if _split_pair(root, name) is not None]


def find_pair(
    root: Path, split: str, image_folder: str | None, mask_folder: str | None
) -> tuple[Path, Path]:
    """The folders of the images and of the masks of a split.

    Raises:
        ValueError: If they are not found; the message names the expected layouts.
    """
    if (image_folder is None) != (mask_folder is None):
        raise ValueError("`image_folder` and `mask_folder` must be given together, got only one.")
    if image_folder is not None and mask_folder is not None:
        plain: tuple[Path, Path] | None = (root / image_folder, root / mask_folder)
        for folder in plain or ():
            if not folder.is_dir():
                raise ValueError(f"`image_folder` and `mask_folder` must exist, got {folder}.")
        pair = _inner(root / image_folder, root / mask_folder, split)
    else:
        plain, pair = _pair_in(root), _split_pair(root, split)
    if pair is not None:
        return pair
    splits = available_splits(root, image_folder, mask_folder)
    if splits or (plain is not None and split != "train"):
        raise ValueError(
            f"{root} has no split `{split}` of images and masks; it has "
            f"{', '.join(splits) or 'no folders of splits'}."
        )
    if plain is None:
        raise ValueError(
            f"{root} holds no images with masks: expected `images/` and `masks/` with files of the "
            "same names, with or without a folder per split, or the VOC 2012 layout; name others "
            "with --image_folder and --mask_folder."
        )
    return plain


def _pair_in(folder: Path) -> tuple[Path, Path] | None:
    images = [folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()]
    masks = [folder / name for name in MASK_FOLDERS if (folder / name).is_dir()]
    return (images[0], masks[0]) if images and masks else None


def _inner(images: Path, masks: Path, split: str) -> tuple[Path, Path] | None:
    for name in SPLIT_NAMES.get(split, (split,)):
        if (images / name).is_dir() and (masks / name).is_dir():
            return images / name, masks / name
    return None


def _split_pair(root: Path, split: str) -> tuple[Path, Path] | None:
    pair = _pair_in(root)
    if pair is not None and (inside := _inner(*pair, split)) is not None:
        return inside
    for name in SPLIT_NAMES.get(split, (split,)):
        if (found := _pair_in(root / name)) is not None:
            return found
    return None


def _match(images: Path, masks: Path, mask_suffix: str) -> list[LabelledFile]:
    """Pairs of files by name; every file must have its partner."""
    pictures = image_files(images)
    wanted = {
        name.removesuffix(mask_suffix): path
        for name, path in image_files(masks).items()
        if name.endswith(mask_suffix)
    }
    if lonely := [name for name in pictures if name not in wanted]:
        raise ValueError(
            f"{len(lonely)} of {len(pictures)} images in {images} have no mask of the same name in "
            f"{masks} ({shown(lonely)}); add the masks, remove the images, or say how the names "
            "of masks end with --mask_suffix."
        )
    if orphans := [name for name in wanted if name not in pictures]:
        raise ValueError(
            f"{len(orphans)} of {len(wanted)} masks in {masks} have no image of the same name in "
            f"{images} ({shown(orphans)}); add the images or remove the masks."
        )
    return [LabelledFile(name, path, wanted[name]) for name, path in pictures.items()]


def _voc_root(root: Path) -> Path | None:
    for folder in (root, root / "VOCdevkit" / "VOC2012", root / "VOC2012"):
        if (folder / "SegmentationClass").is_dir() and (folder / "ImageSets").is_dir():
            return folder
    return None


def _open_voc(root: Path, split: str, coding: MaskCoding | None) -> LabelledFiles:
    names = _augmented_names(root) if split == "train_aug" else _listed_names(root, split)
    if names is None:
        raise ValueError(
            f"{root} has no list of the split `{split}`: expected "
            f"ImageSets/Segmentation/{split}.txt in it."
        )
    if split == "train_aug":
        shared = sorted(set(names) & set(_listed_names(root, "val") or ()))
        if shared:
            raise ValueError(
                f"The train_aug list of {root} holds {len(shared)} validation images "
                f"({shown(shared)}); use the list of 10,582 names without them."
            )
    images = image_files(root / "JPEGImages")
    masks = image_files(root / "SegmentationClassAug") | image_files(root / "SegmentationClass")
    for kind, found in (("image", images), ("mask", masks)):
        absent = [name for name in names if name not in found]
        if absent:
            raise ValueError(
                f"{len(absent)} of {len(names)} names in the `{split}` list of {root} have no "
                f"{kind} ({shown(absent)}); restore the files or shorten the list."
            )
    if not names:
        raise ValueError(f"The split `{split}` of {root} is empty; its list names no image.")
    files = [LabelledFile(name, images[name], masks[name]) for name in names]
    return LabelledFiles(files, f"VOC 2012 {split}", coding, VOC_LABELS)


def _listed_names(root: Path, split: str) -> list[str] | None:
    return _read_list(root / "ImageSets" / "Segmentation" / f"{split}.txt")


def _augmented_names(root: Path) -> list[str] | None:
    """The VOC and SBD training names: one list, or `train.txt` and `aug.txt` together."""
    lists = root / "ImageSets" / "Segmentation"
    for name in AUGMENTED_LISTS:
        if (names := _read_list(lists / name)) is not None:
            return names
    train, more = _read_list(lists / "train.txt"), _read_list(lists / "aug.txt")
    if train is None or more is None:
        return None
    return list(dict.fromkeys([*train, *more]))


def _read_list(path: Path) -> list[str] | None:
    """Names of a list; lines are names, or paths of an image and its mask."""
    if not path.is_file():
        return None
    lines = read_text(path).splitlines()
    return [Path(line.split()[0]).stem for line in lines if line.strip()]


def read_label_file(root: Path) -> tuple[str, ...] | None:
    """Names of the classes from `id2label.json` or `classes.txt` in a folder, if one is there.

    Raises:
        ValueError: If the file is not a list of names, or ids are missing.
    """
    for name in ("id2label.json", "classes.txt"):
        if (root / name).is_file():
            return parse_label_names(str(root / name))
    return None
