"""A picture of the best, median and worst results, to look at before believing a number."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amd_hf.data.annotations import read_frame
from amd_hf.evaluation.predictors import Prediction
from amd_hf.visualization import contact_sheet, overlay_object

THUMBNAIL_HEIGHT = 144
REFERENCE_COLOR = (40, 200, 80)
NUM_PER_GROUP = 3


def thumbnail(prediction: Prediction, selected: int, threshold: float) -> bytes:
    """Frame, reference (green) and prediction of an evaluation side by side.

    Args:
        prediction: Soft masks and reference of one frame.
        selected: Index of the segment read as the object.
        threshold: Probability above which a pixel belongs to it.

    Returns:
        A JPEG file, 144 pixels high.
    """
    found = prediction.soft_masks[selected] > threshold
    return triptych(read_frame(prediction.frame.image), prediction.reference, found)


def triptych(image: Image.Image, reference: NDArray[np.bool_], found: NDArray[np.bool_]) -> bytes:
    """Frame, reference (green) and found object side by side.

    Args:
        image: The frame.
        reference: Its true mask of shape (H, W).
        found: The found mask of shape (H, W).

    Returns:
        A JPEG file, 144 pixels high.
    """
    height, width = reference.shape
    size = (max(1, round(width * THUMBNAIL_HEIGHT / height)), THUMBNAIL_HEIGHT)
    frame = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    small_reference, small_found = (
        np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        for mask in (reference, found)
    )
    panels = [
        frame,
        overlay_object(frame, small_reference, color=REFERENCE_COLOR),
        overlay_object(frame, small_found),
    ]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(panels, axis=1)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def results_sheet(
    rows: Sequence[dict[str, Any]], thumbnails: dict[str, bytes], measure: str
) -> Image.Image:
    """Best, median and worst rows with their scores, one line of pictures per group.

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
        raise ValueError("A contact sheet needs at least one scored row with a picture, got none.")
    # A third each, so that no picture stands in two groups unless there are fewer than three.
    count = min(NUM_PER_GROUP, max(1, len(ranked) // 3))
    middle = (len(ranked) - count) // 2
    groups = {
        "best": ranked[:count],
        "median": ranked[middle : middle + count],
        "worst": ranked[-count:],
    }
    captions = [
        f"{group} by {measure}:  "
        + ",  ".join(f"{row['name']} {row[measure]:.3f}" for row in members)
        for group, members in groups.items()
    ]
    pictures = [
        [Image.open(io.BytesIO(thumbnails[row["name"]])) for row in members]
        for members in groups.values()
    ]
    return contact_sheet(pictures, row_captions=captions, tile_height=THUMBNAIL_HEIGHT)


def save_contact_sheet(
    path: Path, rows: Sequence[dict[str, Any]], thumbnails: dict[str, bytes], measure: str
) -> None:
    """Writes the contact sheet as the file `path` (PNG or JPEG by its suffix).

    Raises:
        ValueError: If no row has a thumbnail.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    results_sheet(rows, thumbnails, measure).save(path)
