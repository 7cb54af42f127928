"""A picture of the best, median and worst results, to look at before believing a number."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from amd_hf.data.annotations import read_frame
from amd_hf.evaluation.predictors import Prediction

THUMBNAIL_HEIGHT = 144
CAPTION_HEIGHT = 16
REFERENCE_COLOR = (40, 200, 80)
PREDICTION_COLOR = (230, 60, 50)
NUM_PER_GROUP = 3


def thumbnail(prediction: Prediction, selected: int, threshold: float) -> bytes:
    """Frame, reference and prediction side by side.

    Args:
        prediction: Soft masks and reference of one frame.
        selected: Index of the segment read as the object.
        threshold: Probability above which a pixel belongs to it.

    Returns:
        A JPEG file, 144 pixels high.
    """
    height, width = prediction.reference.shape
    size = (max(1, round(width * THUMBNAIL_HEIGHT / height)), THUMBNAIL_HEIGHT)
    frame = np.asarray(read_frame(prediction.frame.image).resize(size, Image.Resampling.BILINEAR))
    found = prediction.soft_masks[selected] > threshold
    panels = [
        frame,
        _overlay(frame, prediction.reference, REFERENCE_COLOR),
        _overlay(frame, found, PREDICTION_COLOR),
    ]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(panels, axis=1)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _overlay(
    frame: NDArray[np.uint8], mask: NDArray[np.bool_], color: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """The frame with the mask tinted; the mask is brought to its size."""
    small = Image.fromarray(mask).resize((frame.shape[1], frame.shape[0]), Image.Resampling.NEAREST)
    inside = np.asarray(small)[..., None]
    tinted = 0.45 * frame + 0.55 * np.array(color)
    return np.where(inside, tinted, frame).astype(np.uint8)


def contact_sheet(
    rows: Sequence[dict[str, Any]], thumbnails: dict[str, bytes], measure: str
) -> Image.Image:
    """Best, median and worst rows with their scores, one column per group.

    Args:
        rows: Rows of an evaluation.
        thumbnails: JPEG files by row name, from `thumbnail`.
        measure: Name of the score that ranks the rows; higher is better.

    Returns:
        An RGB image.

    Raises:
        ValueError: If no row has a thumbnail.
    """
    ranked = sorted(
        (row for row in rows if row["name"] in thumbnails),
        key=lambda row: row[measure],
        reverse=True,
    )
    if not ranked:
        raise ValueError(
            "A contact sheet needs at least one scored row with a thumbnail, got none."
        )
    count = min(NUM_PER_GROUP, len(ranked))
    middle = max(0, (len(ranked) - count) // 2)
    groups = {
        "best": ranked[:count],
        "median": ranked[middle : middle + count],
        "worst": ranked[-count:],
    }
    columns = [
        [
            _captioned(
                thumbnails[row["name"]], f"{group}: {row['name']}  {measure} {row[measure]:.3f}"
            )
            for row in members
        ]
        for group, members in groups.items()
    ]
    width = max(tile.width for column in columns for tile in column)
    height = THUMBNAIL_HEIGHT + CAPTION_HEIGHT
    sheet = Image.new("RGB", (width * len(columns), height * count), "white")
    for x, column in enumerate(columns):
        for y, tile in enumerate(column):
            sheet.paste(tile, (x * width, y * height))
    return sheet


def _captioned(jpeg: bytes, caption: str) -> Image.Image:
    """One thumbnail with a line of text above it."""
    with Image.open(io.BytesIO(jpeg)) as picture:
        tile = Image.new("RGB", (picture.width, picture.height + CAPTION_HEIGHT), "white")
        tile.paste(picture, (0, CAPTION_HEIGHT))
    ImageDraw.Draw(tile).text((3, 2), caption, fill="black")
    return tile


def save_contact_sheet(
    path: Path, rows: Sequence[dict[str, Any]], thumbnails: dict[str, bytes], measure: str
) -> None:
    """Writes the contact sheet as the file `path` (PNG or JPEG by its suffix).

    Raises:
        ValueError: If no row has a thumbnail.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(rows, thumbnails, measure).save(path)
