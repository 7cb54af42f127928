"""What every benchmark reader returns: sequences of frames with their masks, read on demand."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from amd_hf.data.sources import natural_key
from amd_hf.image_io_amd import DECODE_ERRORS, IMAGE_SUFFIXES, open_image, to_rgb

MIDDLE_GRAY = 127
NUM_NAMES_SHOWN = 3

BenchmarkKind = Literal["video", "image", "semantic"]


@dataclass(frozen=True)
class AnnotatedFrame:
    """One frame and the files of its masks.

    Attributes:
        name: Name without suffix, unique within its sequence.
        image: File of the frame.
        masks: Files whose union is the object; empty where the frame is not annotated.
        object_values: Pixel codes of the object (gray level, or R * 65536 + G * 256 + B); None
            where the masks are binary, or palettes whose index 0 is the background.
    """

    name: str
    image: Path
    masks: tuple[Path, ...] = ()
    object_values: frozenset[int] | None = None


@dataclass(frozen=True)
class AnnotatedSequence:
    """Frames of one video in the order of time, or the one image of an image benchmark."""

    name: str
    frames: tuple[AnnotatedFrame, ...]

    @property
    def annotated(self) -> tuple[AnnotatedFrame, ...]:
        """The frames that have a mask."""
        return tuple(frame for frame in self.frames if frame.masks)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as found on disk.

    Attributes:
        name: Name on the command line, such as `davis2016`.
        title: Name for people, such as `DAVIS-2016 val`.
        kind: Videos with object masks, images with object masks, or images with class labels.
        sequences: What was found, sorted by name.
        num_expected: Annotated frames (or images) in the complete set.
        num_expected_sequences: Sequences (or images) in the complete set.
        missing: What the complete set has and this one lacks, in words.
    """

    name: str
    title: str
    kind: BenchmarkKind
    sequences: tuple[AnnotatedSequence, ...]
    num_expected: int
    num_expected_sequences: int
    missing: tuple[str, ...] = ()

    @property
    def num_found(self) -> int:
        """Frames (or images) that have a mask and can be scored."""
        return sum(len(sequence.annotated) for sequence in self.sequences)

    @property
    def num_without_mask(self) -> int:
        """Frames (or images) without a mask: used for adaptation, never scored."""
        return sum(len(sequence.frames) for sequence in self.sequences) - self.num_found

    @property
    def is_complete(self) -> bool:
        """Whether everything of the complete set was found."""
        return self.num_found >= self.num_expected and not self.missing


def image_files(folder: Path) -> dict[str, Path]:
    """Image files of a folder by name without suffix, in natural order; {} where it is absent.

    Raises:
        ValueError: If two files differ in suffix only.
    """
    if not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: natural_key(path.name)):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in found:
            raise ValueError(
                f"{folder} holds both {found[path.stem].name} and {path.name}; keep one of them."
            )
        found[path.stem] = path
    return found


def read_text(path: Path) -> str:
    """The text of a list or table.

    Raises:
        ValueError: If the file cannot be read or is no UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise ValueError(f"Cannot read {path} ({reason}); restore the original.") from error


def shown(names: Iterable[str]) -> str:
    """The first names of a list and how many more there are, for messages."""
    listed = list(names)
    text = ", ".join(listed[:NUM_NAMES_SHOWN])
    more = len(listed) - NUM_NAMES_SHOWN
    return f"{text} and {more} more" if more > 0 else text


def check_masks_have_frames(masks: Iterable[str], frames: Iterable[str], where: Path) -> None:
    """Raises ValueError when a mask has no frame of the same name."""
    known = set(frames)
    orphans = [name for name in masks if name not in known]
    if orphans:
        raise ValueError(
            f"{where} has {len(orphans)} masks without a frame of the same name "
            f"({shown(orphans)}); restore the frames or remove the masks."
        )


def read_frame(path: Path) -> Image.Image:
    """The frame as an RGB image, turned upright.

    Raises:
        ValueError: If the file is missing or cannot be decoded.
    """
    try:
        with open_image(path) as image:
            return to_rgb(ImageOps.exif_transpose(image))
    except DECODE_ERRORS as error:
        raise ValueError(f"Cannot read the frame {path} ({error}); replace the file.") from error


def read_labels(path: Path) -> NDArray[np.integer]:
    """Pixel codes of a mask file as stored: palette index, gray level, or R*65536 + G*256 + B.

    Returns:
        Integer array of shape (H, W).

    Raises:
        ValueError: If the file is missing or cannot be decoded.
    """
    try:
        with open_image(path) as image:
            return pixel_codes(image)
    except DECODE_ERRORS as error:
        raise ValueError(f"Cannot read the mask {path} ({error}); replace the file.") from error


def pixel_codes(image: Image.Image) -> NDArray[np.integer]:
    """Pixel codes of an opened mask as stored: see `read_labels`.

    Returns:
        Integer array of shape (H, W).

    Raises:
        ValueError: If it holds fractions; on damaged files others of `DECODE_ERRORS`.
    """
    if image.mode in ("1", "L", "P") or image.mode.startswith("I"):
        return np.asarray(image).astype(np.int64)
    if image.mode == "F":
        raise ValueError("it holds floating-point numbers, not whole ones")
    channels = np.asarray(image.convert("RGB")).astype(np.int64)
    return channels[..., 0] * 65536 + channels[..., 1] * 256 + channels[..., 2]


def read_object_mask(path: Path, object_values: frozenset[int] | None = None) -> NDArray[np.bool_]:
    """Where the object is.

    Args:
        path: Mask file. Palette images: every index but 0 is object. Gray images: 0/1, or levels
            up to 255 of which those above 127 are object.
        object_values: Pixel codes of the object, where the data set defines them.

    Returns:
        Boolean array of shape (H, W).

    Raises:
        ValueError: If the file cannot be decoded or holds class numbers instead of a mask.
    """
    if object_values is not None:
        return np.isin(read_labels(path), list(object_values))
    try:
        with open_image(path) as image:
            is_indexed = image.mode in ("1", "P")
            levels = np.asarray(image if is_indexed else image.convert("L"))
    except DECODE_ERRORS as error:
        raise ValueError(f"Cannot read the mask {path} ({error}); replace the file.") from error
    highest = int(levels.max())
    if is_indexed or highest <= 1:
        return levels > 0
    if highest <= MIDDLE_GRAY:
        raise ValueError(
            f"The mask {path} holds gray levels up to {highest}; expected 0/255, 0/1 or a palette "
            "image, so save class numbers as a palette image or make the object 255."
        )
    return levels > MIDDLE_GRAY


def read_reference(frame: AnnotatedFrame) -> NDArray[np.bool_]:
    """The union of a frame's masks.

    Returns:
        Boolean array of shape (H, W), at the size of the mask files.

    Raises:
        ValueError: If the frame has no mask, or its masks are unreadable or differ in size.
    """
    if not frame.masks:
        raise ValueError(f"The frame {frame.image} has no mask; skip it when scoring.")
    union = read_object_mask(frame.masks[0], frame.object_values)
    for path in frame.masks[1:]:
        mask = read_object_mask(path, frame.object_values)
        if mask.shape != union.shape:
            raise ValueError(
                f"The masks of one frame must have one size, got {mask.shape} in {path} and "
                f"{union.shape} in {frame.masks[0]}."
            )
        union = union | mask
    return union
