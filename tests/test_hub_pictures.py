"""Pictures of model cards: drawn by the model, ranked by score, nothing picked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from amd_hf import AMDImageProcessor, AMDModel, ZeroShotObjectSegmentationPipeline
from amd_hf.data.synthetic_objects import generate_clip
from amd_hf.hub import draw_card_pictures
from amd_hf.hub import pictures as module
from amd_hf.pipeline_amd import TASK
from amd_hf.visualization import OBJECT_COLOR, overlay_object

PINK = np.array(OBJECT_COLOR, dtype=np.float32)


@pytest.fixture
def processor(tiny_model: AMDModel) -> AMDImageProcessor:
    return AMDImageProcessor.from_model_config(tiny_model.config, size={"shortest_edge": 48})


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


class Oracle:
    """A pipeline that knows the mask of every scene and finds a chosen share of its columns."""

    def __init__(self, shares: list[float]) -> None:
        self.shares = shares
        self.num_seen = 0

    def __call__(self, image: np.ndarray, return_segments: bool) -> list[dict[str, Any]]:
        assert return_segments
        seed = module.FIRST_SCENE_SEED + self.num_seen
        frames, masks = generate_clip(1, *module.SCENE_SIZE, seed=seed)
        assert np.array_equal(frames[0], image), "the frame that is shown is the one that is scored"
        kept = masks[0].copy()
        columns = np.flatnonzero(kept.any(axis=0))
        kept[:, columns[round(len(columns) * self.shares[self.num_seen]) :]] = False
        self.num_seen += 1
        soft = kept.astype(np.float32)
        return [
            {"soft_mask": 1 - soft, "is_object": False},
            {"soft_mask": soft, "is_object": True},
        ]


def test_scenes_are_ranked_by_their_score() -> None:
    sheet, scores = module.scene_sheet(Oracle([0.0, 1.0, 0.5]), 3)
    assert scores[0] == 0.0
    assert scores[1] == 1.0
    assert 0.2 < scores[2] < 0.8
    # Three rows of one scene: frame, exact mask, found object.
    rows = np.array_split(np.asarray(sheet, dtype=np.float32), 3)
    width = sheet.width // 3
    pink = [(np.abs(row[:, 2 * width :] - PINK).max(axis=-1) < 60).sum() for row in rows]
    assert pink[0] > pink[1] > pink[2] == 0, "best, median, worst"


def test_captions_tell_what_is_drawn(
    tiny_model: AMDModel, processor: AMDImageProcessor, photo: Path, tmp_path: Path
) -> None:
    drawn = draw_card_pictures(tiny_model, processor, tmp_path / "drawn", [photo], num_scenes=4)
    assert [picture.path for picture in drawn] == [
        "figures/photos.jpg",
        "figures/best_median_worst.jpg",
    ]
    assert [picture.shows_failures for picture in drawn] == [False, True]
    pipe = ZeroShotObjectSegmentationPipeline(
        model=tiny_model, image_processor=processor, task=TASK
    )
    scores = module.scene_sheet(pipe, 4)[1]
    stated = re.search(r"4 generated scenes .*mean J (\d\.\d+)", drawn[1].caption)
    assert stated is not None
    assert float(stated[1]) == pytest.approx(np.mean(scores), abs=5e-4)
    for picture in drawn:
        with Image.open(picture.file) as opened:
            assert opened.format == "JPEG"
            assert min(opened.size) > 100


def test_a_photo_its_segments_and_its_object(
    tiny_model: AMDModel, processor: AMDImageProcessor, photo: Path
) -> None:
    pipe = ZeroShotObjectSegmentationPipeline(
        model=tiny_model, image_processor=processor, task=TASK
    )
    image = np.asarray(Image.open(photo))
    sheet = module.photo_sheet(pipe, [photo, photo], tile_height=60)
    gap = 6
    assert sheet.size == (2 * 90 + 3 * gap, gap + 3 * (60 + gap))
    tiles = [np.asarray(sheet)[gap + at * 66 :][:60, gap : gap + 90] for at in range(3)]
    assert np.array_equal(tiles[0], image)
    soft, chosen = module.segments_of(pipe, image)
    assert chosen == tiny_model.config.object_segment
    assert np.array_equal(tiles[2], overlay_object(image, soft[chosen] > 0.5))


def test_too_few_scenes_or_no_photo(
    tiny_model: AMDModel, processor: AMDImageProcessor, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="`num_scenes` must be at least 3, got 2"):
        draw_card_pictures(tiny_model, processor, tmp_path, num_scenes=2)
    assert [
        picture.file.name
        for picture in draw_card_pictures(tiny_model, processor, tmp_path, num_scenes=3)
    ] == ["best_median_worst.jpg"]
