"""What images with a class per pixel have in common, and the checks before training starts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amd_hf.data.annotations import read_text, shown

IGNORED = 255
"""Id of the pixels that do not count, in everything that `load_mask` returns."""

FIRST_COLOR_CODE = 65536
NUM_READERS = 8


@dataclass(frozen=True)
class MaskCoding:
    """How the stored ids of a mask are read.

    Attributes:
        ignore_index: Stored id of the pixels that do not count; None if every pixel counts.
        do_reduce_labels: Whether id 0 is "other", does not count, and all ids move down by one.
    """

    ignore_index: int | None = IGNORED
    do_reduce_labels: bool = False

    def decode(self, stored: NDArray[np.integer]) -> NDArray[np.int64]:
        """Class ids (H, W) of stored ids (H, W); `IGNORED` where a pixel does not count."""
        ids = stored.astype(np.int64)
        ignored = np.zeros(ids.shape, dtype=bool)
        if self.ignore_index is not None:
            ignored |= ids == self.ignore_index
        if self.do_reduce_labels:
            ignored |= ids == 0
            ids = ids - 1
        elif self.ignore_index != IGNORED:
            # A stored 255 would pass for an ignored pixel: keep it outside of every class.
            ids[ids == IGNORED] = IGNORED + 1
        return np.where(ignored, IGNORED, ids)


class LabelledImages(Protocol):
    """Images with a class per pixel, in random access."""

    @property
    def title(self) -> str:
        """What messages call these images."""

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the classes where the source knows them."""

    def __len__(self) -> int:
        """Number of images."""

    def key(self, index: int) -> str:
        """Name of an image."""

    def load_image(self, index: int) -> Image.Image:
        """The image in RGB, upright."""

    def load_mask(self, index: int) -> NDArray[np.int64]:
        """Class ids of shape (H, W); `IGNORED` where a pixel does not count."""

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width of the upright image."""

    def subset(self, indices: Sequence[int], title: str) -> LabelledImages:
        """Some of the images, under another title."""


@dataclass
class MaskScan:
    """What the masks of some images hold.

    Attributes:
        pixels: Number of pixels by class id; `IGNORED` is among the ids.
        keys: Names of the images in which an id occurs.
        mismatched: `name: image HxW, mask HxW` for every image whose mask has another size; such
            masks are not counted.
    """

    pixels: dict[int, int] = field(default_factory=dict)
    keys: dict[int, list[str]] = field(default_factory=dict)
    mismatched: list[str] = field(default_factory=list)

    @property
    def class_ids(self) -> list[int]:
        """All ids but `IGNORED`, sorted."""
        return sorted(set(self.pixels) - {IGNORED})


def scan_masks(images: LabelledImages) -> MaskScan:
    """Reads every mask once, and the size of every image.

    Raises:
        ValueError: If a file cannot be read.
    """

    def look(index: int) -> tuple[str, dict[int, int], str | None]:
        mask = images.load_mask(index)
        size, key = images.image_size(index), images.key(index)
        if mask.shape != size:
            # Not counted: the few bytes of a damaged mask can stand for a hundred megapixels.
            sizes = f"image {size[0]}x{size[1]}, mask {mask.shape[0]}x{mask.shape[1]}"
            return key, {}, f"{key}: {sizes}"
        ids, counts = np.unique(mask, return_counts=True)
        return key, {int(i): int(n) for i, n in zip(ids, counts, strict=True)}, None

    scan = MaskScan()
    with ThreadPoolExecutor(NUM_READERS) as readers:
        for key, found, mismatch in readers.map(look, range(len(images))):
            for class_id, count in found.items():
                scan.pixels[class_id] = scan.pixels.get(class_id, 0) + count
                scan.keys.setdefault(class_id, []).append(key)
            if mismatch is not None:
                scan.mismatched.append(mismatch)
    return scan


def check_masks(scan: MaskScan, title: str, num_labels: int) -> None:
    """Checks what was found against the classes.

    Args:
        scan: Result of `scan_masks`.
        title: What the message calls the images.
        num_labels: Number of classes.

    Raises:
        ValueError: If a mask has another size than its image or an id outside of the classes, or
            no pixel counts.
    """
    _check_sizes(scan, title)
    outside = [class_id for class_id in scan.class_ids if not 0 <= class_id < num_labels]
    if outside:
        names = list(dict.fromkeys(key for class_id in outside for key in scan.keys[class_id]))
        hint = (
            "the masks are RGB pictures, so save class ids as gray or palette pictures"
            if max(outside) >= FIRST_COLOR_CODE
            else "name the id of unlabelled pixels with --ignore_index, or all classes with "
            "--class_names"
        )
        raise ValueError(
            f"{len(names)} masks of {title} hold ids outside of the {num_labels} classes "
            f"0..{num_labels - 1} (ids {shown(str(i) for i in outside)}; in {shown(names)}); "
            f"{hint}."
        )
    if not scan.class_ids:
        raise ValueError(
            f"No pixel of {title} has a class: all are ignored; check --ignore_index and "
            "--do_reduce_labels."
        )


def _check_sizes(scan: MaskScan, title: str) -> None:
    if scan.mismatched:
        raise ValueError(
            f"{len(scan.mismatched)} masks of {title} differ in size (height x width) from their "
            f"images ({shown(scan.mismatched)}); save every mask at the size of its image."
        )


def infer_num_labels(scan: MaskScan, title: str) -> int:
    """The number of classes that the ids of the masks ask for.

    Raises:
        ValueError: If a mask has another size than its image, or the ids are not plausible as
            class ids.
    """
    _check_sizes(scan, title)
    highest = max(scan.class_ids, default=-1)
    if not 1 <= highest < IGNORED or highest > 2 * len(scan.class_ids):
        raise ValueError(
            f"The classes of {title} cannot be told from its masks, which hold the ids "
            f"{shown(str(i) for i in scan.class_ids)}; name the classes with --class_names, and "
            "the id of unlabelled pixels with --ignore_index."
        )
    return highest + 1


def parse_label_names(text: str) -> tuple[str, ...]:
    """Names of the classes in the order of their ids.

    Args:
        text: `name,name,...`, a text file with a name per line, or a JSON file with a list or a
            dict of names by id.

    Raises:
        ValueError: If a name is empty or double, or the ids are not 0, 1, 2, ...
    """
    path = Path(text)
    is_file = os.path.isfile(text)  # false, not an error, for a list longer than a name can be
    if path.suffix == ".json" and is_file:
        names = _names_of_json(read_text(path), text)
    elif is_file:
        names = [line.strip() for line in read_text(path).splitlines()]
        names = [name for name in names if name]
    else:
        names = [name.strip() for name in text.split(",")]
    if not names or not all(names) or len(set(names)) != len(names):
        raise ValueError(
            f"`class_names` must be different names, one per class, got {text!r}; pass "
            "name,name,... or a file with one name per line."
        )
    return tuple(names)


def _names_of_json(text: str, source: str) -> list[str]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is no JSON ({error}); restore the original.") from error
    if isinstance(content, list):
        return [str(name) for name in content]
    if isinstance(content, Mapping):
        by_id = {int(key): str(name) for key, name in content.items() if _is_id(key)}
        if len(by_id) == len(content) and sorted(by_id) == list(range(len(by_id))):
            return [by_id[index] for index in range(len(by_id))]
    raise ValueError(f"{source} must map the ids 0, 1, 2, ... to names, or be a list of names.")


def _is_id(key: str) -> bool:
    """Whether a key of a JSON object is a class id; no data set has 10^9 classes."""
    return key.isdecimal() and len(key) < 10
