"""Pictures for a model card, drawn by the model itself: what it finds, and where it fails.

Everything shown may be passed on: the photos are given by the caller, the scenes are generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amd_hf import AMDImageProcessor, AMDModel, ZeroShotObjectSegmentationPipeline
from amd_hf.data.synthetic_objects import generate_clip
from amd_hf.evaluation.contact_sheet import results_sheet, triptych
from amd_hf.metrics import region_similarity
from amd_hf.pipeline_amd import TASK
from amd_hf.visualization import contact_sheet, most_likely, overlay_object, overlay_segments

PICTURE_FOLDER = "figures"
SCENE_SIZE = (270, 480)
NUM_SCENES = 60
# Far from the seeds of the examples and of the demonstrations, on which settings were looked at.
FIRST_SCENE_SEED = 1_000
JPEG: dict[str, Any] = {"quality": 88, "optimize": True}


@dataclass(frozen=True)
class CardPicture:
    """A picture of a model card.

    Attributes:
        file: The picture on this machine.
        caption: One or two sentences below it.
        shows_failures: Whether it stands under "Limitations" and not at the top.
    """

    file: Path
    caption: str
    shows_failures: bool = False

    @property
    def path(self) -> str:
        """Its place in the repository."""
        return f"{PICTURE_FOLDER}/{self.file.name}"

    @property
    def title(self) -> str:
        """What stands in its place where pictures are not shown."""
        return self.file.stem.replace("_", " ")


def draw_card_pictures(
    model: AMDModel,
    image_processor: AMDImageProcessor,
    folder: str | Path,
    photos: Sequence[str | Path] = (),
    num_scenes: int = NUM_SCENES,
) -> list[CardPicture]:
    """Draws what the model finds in photos, and its best, median and worst generated scenes.

    Nothing is picked by hand: every photo is shown, and the scenes are ranked by their score.

    Args:
        model: The model; it stays as it is.
        image_processor: Its image processor.
        folder: Folder for the pictures, created where it is missing.
        photos: Photos that may be passed on; without any, only the scenes are drawn.
        num_scenes: Number of generated scenes to rank, at least 3.

    Returns:
        The pictures with their captions; files that exist are overwritten.

    Raises:
        ValueError: If `num_scenes` is too small, or a photo cannot be read.
    """
    if num_scenes < 3:
        raise ValueError(f"`num_scenes` must be at least 3, got {num_scenes}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pipe = ZeroShotObjectSegmentationPipeline(
        model=model, image_processor=image_processor, task=TASK
    )
    pictures = []
    if photos:
        file = folder / "photos.jpg"
        photo_sheet(pipe, photos).save(file, **JPEG)
        caption = (
            f"{len(photos)} photos, none of them picked for the result: the photo, its segments, "
            "and the object as found (pink; a photo without pink has none)."
        )
        pictures.append(CardPicture(file, caption))
    sheet, scores = scene_sheet(pipe, num_scenes)
    file = folder / "best_median_worst.jpg"
    sheet.save(file, **JPEG)
    caption = (
        f"Best, median and worst of {num_scenes} generated scenes by region similarity J, a frame "
        f"each (mean J {np.mean(scores):.3f}, {np.mean(np.array(scores) < 0.1):.0%} below 0.1). "
        "From left to right: frame, exact mask (green), object as found (pink)."
    )
    return [*pictures, CardPicture(file, caption, shows_failures=True)]


def photo_sheet(pipe: Any, photos: Sequence[str | Path], tile_height: int = 180) -> Image.Image:
    """One column per photo: the photo, its segments, the object.

    Args:
        pipe: A `zero-shot-object-segmentation` pipeline.
        photos: Image files.
        tile_height: Height of every picture in pixels.

    Raises:
        ValueError: If there is no photo, or one cannot be read.
    """
    columns = []
    for photo in photos:
        with Image.open(photo) as opened:
            image = np.asarray(opened.convert("RGB"))
        soft, chosen = segments_of(pipe, image)
        columns.append(
            [
                image,
                overlay_segments(image, most_likely(soft), chosen),
                overlay_object(image, soft[chosen] > 0.5),
            ]
        )
    return contact_sheet(list(zip(*columns, strict=True)), tile_height=tile_height)


def scene_sheet(pipe: Any, num_scenes: int) -> tuple[Image.Image, list[float]]:
    """The best, median and worst generated scenes with their scores, and the scores of all.

    Args:
        pipe: A `zero-shot-object-segmentation` pipeline.
        num_scenes: Number of scenes to rank.

    Returns:
        The picture, and the region similarity J of every scene in [0, 1].
    """
    scores: list[float] = []
    thumbnails = {}
    for number in range(num_scenes):
        frames, masks = generate_clip(1, *SCENE_SIZE, seed=FIRST_SCENE_SEED + number)
        soft, chosen = segments_of(pipe, frames[0])
        found = soft[chosen] > 0.5
        scores.append(region_similarity(found, masks[0]))
        thumbnails[f"scene {number}"] = triptych(Image.fromarray(frames[0]), masks[0], found)
    rows = [{"name": name, "J": score} for name, score in zip(thumbnails, scores, strict=True)]
    return results_sheet(rows, thumbnails, "J"), scores


def segments_of(pipe: Any, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], int]:
    """Soft masks (K, H, W) of an image and the index of the object among them.

    Args:
        pipe: A `zero-shot-object-segmentation` pipeline.
        image: RGB image of shape (H, W, 3), uint8.
    """
    entries = pipe(image, return_segments=True)
    soft = np.stack([entry["soft_mask"] for entry in entries])
    return soft, next(index for index, entry in enumerate(entries) if entry["is_object"])
