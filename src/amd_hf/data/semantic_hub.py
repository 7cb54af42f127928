"""Images with a class per pixel from a data set of the Hub: a column of images, one of masks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from amd_hf.data.annotations import pixel_codes
from amd_hf.data.semantic_images import MaskCoding, parse_label_names
from amd_hf.image_io_amd import DECODE_ERRORS, open_image, to_rgb, upright_size

IMAGE_COLUMNS = ("image", "pixel_values", "img")
MASK_COLUMNS = ("annotation", "mask", "label", "labels", "segmentation", "segmentation_mask")
SPLIT_ALIASES = {"val": ("validation", "val", "valid", "dev"), "train": ("train", "training")}
DATA_EXTRA = 'Hub data sets need the `train` extra: pip install "amd-hf[train]".'


class LabelledRows:
    """Rows of a `datasets.Dataset` with an image and a mask.

    Args:
        rows: The data set, in random access.
        title: What messages call it.
        image_column: Column of the images.
        mask_column: Column of the masks.
        coding: How ids are stored in the masks.
        labels: Names of the classes, if known.
    """

    def __init__(
        self,
        rows: Any,
        title: str,
        image_column: str,
        mask_column: str,
        coding: MaskCoding | None = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        from datasets import Image as ImageFeature

        for column in (image_column, mask_column):
            rows = rows.cast_column(column, ImageFeature(decode=False))
        self.rows = rows
        self.title = title
        self.image_column = image_column
        self.mask_column = mask_column
        self.coding = coding or MaskCoding()
        self.labels = tuple(labels) if labels is not None else None
        # One column at a time: the check of the masks must not read all images.
        self._columns = {name: rows.select_columns([name]) for name in (image_column, mask_column)}

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def key(self, index: int) -> str:
        """`row N`."""
        return f"row {index}"

    def _open(self, index: int, column: str) -> Image.Image:
        cell = self._columns[column][index][column]
        if cell is None:
            raise ValueError(f"Row {index} of {self.title} has no `{column}`; remove the row.")
        return open_image(io.BytesIO(cell["bytes"]) if cell.get("bytes") else cell["path"])

    def _unreadable(self, index: int, error: Exception) -> ValueError:
        return ValueError(
            f"Cannot read row {index} of {self.title} ({error}); repair or remove the row."
        )

    def load_image(self, index: int) -> Image.Image:
        """The image in RGB, upright.

        Raises:
            ValueError: If it cannot be decoded.
        """
        try:
            with self._open(index, self.image_column) as image:
                return to_rgb(ImageOps.exif_transpose(image))
        except DECODE_ERRORS as error:
            raise self._unreadable(index, error) from error

    def load_mask(self, index: int) -> NDArray[np.int64]:
        """Class ids of shape (H, W).

        Raises:
            ValueError: If it cannot be decoded.
        """
        try:
            with self._open(index, self.mask_column) as mask:
                codes = pixel_codes(mask)
        except DECODE_ERRORS as error:
            raise self._unreadable(index, error) from error
        return self.coding.decode(codes)

    def image_size(self, index: int) -> tuple[int, int]:
        """Height and width of the upright image.

        Raises:
            ValueError: If it cannot be opened.
        """
        try:
            with self._open(index, self.image_column) as image:
                return upright_size(image)
        except DECODE_ERRORS as error:
            raise self._unreadable(index, error) from error

    def subset(self, indices: Sequence[int], title: str) -> LabelledRows:
        """Some of the rows, under another title."""
        rows = self.rows.select(list(indices))
        return LabelledRows(
            rows, title, self.image_column, self.mask_column, self.coding, self.labels
        )


def open_semantic_hub(
    dataset_name: str,
    split: str,
    *,
    config_name: str | None = None,
    image_column: str | None = None,
    mask_column: str | None = None,
    coding: MaskCoding | None = None,
    token: str | None = None,
) -> LabelledRows | None:
    """One split of a data set of the Hub.

    Args:
        dataset_name: Id on the Hub.
        split: `train`, `val` (also found as `validation`), `test` or a name of the data set.
        config_name: Configuration of the data set, if it has several.
        image_column: Column of the images; None looks for the usual names.
        mask_column: Column of the masks; None looks for the usual names.
        coding: How ids are stored in the masks.
        token: Token for private data sets.

    Returns:
        The rows; None where the data set has no such split.

    Raises:
        ImportError: If `datasets` is not installed.
        ValueError: If the data set cannot be loaded or a column is missing.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(DATA_EXTRA) from error
    try:
        found = datasets.load_dataset(dataset_name, config_name, token=token)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"`dataset_name` {dataset_name!r} is neither a folder nor a data set that can be "
            f"loaded from the Hub: {error}"
        ) from error
    names = [name for name in SPLIT_ALIASES.get(split, (split,)) if name in found]
    if not names:
        return None
    rows = found[names[0]]
    columns = (
        _column(rows, image_column, IMAGE_COLUMNS, "image_column"),
        _column(rows, mask_column, MASK_COLUMNS, "mask_column"),
    )
    title = f"{dataset_name} {names[0]}"
    if len(rows) == 0:
        raise ValueError(f"The split `{names[0]}` of {dataset_name} is empty.")
    return LabelledRows(rows, title, *columns, coding, hub_labels(dataset_name, token))


def _column(rows: Any, asked: str | None, usual: Sequence[str], option: str) -> str:
    candidates = (asked,) if asked else usual
    for name in candidates:
        if name in rows.column_names:
            return name
    raise ValueError(
        f"`{option}` must be one of the columns {', '.join(rows.column_names)}, got "
        f"{asked or 'none of the usual names'}; pass --{option}."
    )


def hub_labels(dataset_name: str, token: str | None = None) -> tuple[str, ...] | None:
    """Names of the classes from `id2label.json` of a data set's repository, if it has one.

    Raises:
        ValueError: If the file does not map 0, 1, 2, ... to names.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        path = hf_hub_download(dataset_name, "id2label.json", repo_type="dataset", token=token)
    except (HfHubHTTPError, HFValidationError, OSError):
        return None  # the names are optional there, and may come from --class_names
    return parse_label_names(path)
