"""Contact sheets: many pictures in one, with captions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from amd_hf.visualization.palette import INK, PAPER

_CAPTION_SIZE = 16


def contact_sheet(
    rows: Sequence[Sequence[NDArray[np.uint8] | Image.Image]],
    row_captions: Sequence[str] | None = None,
    column_captions: Sequence[str] | None = None,
    tile_height: int = 180,
    gap: int = 6,
) -> Image.Image:
    """One picture of all pictures, in rows and columns on white.

    Args:
        rows: Rows of RGB images (uint8 (H, W, 3) arrays or PIL images) of any sizes; rows may
            differ in length.
        row_captions: One text per row, written above it.
        column_captions: One text per column, written above the first row.
        tile_height: Height of every picture in pixels; widths follow the aspect ratios.
        gap: White space between pictures in pixels.

    Raises:
        ValueError: If there is no picture, or the number of captions does not match.
    """
    tiles = [[_tile(image, tile_height) for image in row] for row in rows]
    num_columns = max((len(row) for row in tiles), default=0)
    if num_columns == 0:
        raise ValueError("`rows` must hold at least one picture.")
    _check_captions("row_captions", row_captions, len(tiles))
    _check_captions("column_captions", column_captions, num_columns)
    widths = [
        max(row[column].width for row in tiles if column < len(row))
        for column in range(num_columns)
    ]
    line = _CAPTION_SIZE + gap
    row_height = tile_height + gap + (line if row_captions else 0)
    top = gap + (line if column_captions else 0)
    size = (sum(widths) + gap * (num_columns + 1), top + row_height * len(tiles))
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    lefts = [gap + sum(widths[:column]) + gap * column for column in range(num_columns)]
    for column, text in enumerate(column_captions or ()):
        _write(draw, (lefts[column], gap), text)
    for index, row in enumerate(tiles):
        y = top + index * row_height
        if row_captions:
            _write(draw, (gap, y), row_captions[index])
            y += line
        for left, tile in zip(lefts, row, strict=False):
            sheet.paste(tile, (left, y))
    return sheet


def _tile(image: NDArray[np.uint8] | Image.Image, height: int) -> Image.Image:
    """RGB copy of the given height."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    width = max(round(picture.width * height / picture.height), 1)
    return picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def _write(draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str) -> None:
    """Writes a caption in the font that comes with Pillow."""
    draw.text(corner, text, fill=INK, font=ImageFont.load_default(_CAPTION_SIZE))


def _check_captions(name: str, captions: Sequence[str] | None, count: int) -> None:
    """Raises ValueError where captions are given in another number than `count`."""
    if captions is not None and len(captions) != count:
        raise ValueError(f"`{name}` must hold {count} texts, got {len(captions)}.")
