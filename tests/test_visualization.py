"""Overlays, flow colors and contact sheets."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from amd_hf.visualization import (
    MIN_MOTION_SCALE,
    OBJECT_COLOR,
    contact_sheet,
    flow_to_rgb,
    most_likely,
    overlay_object,
    overlay_segments,
    relative_motion_to_rgb,
    segment_colors,
    soft_mask_to_rgb,
)
from amd_hf.visualization.flow_colors import color_wheel
from amd_hf.visualization.palette import PAPER

SIZE = (60, 80)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


@pytest.fixture
def mask() -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[20:40, 30:60] = True
    return mask


def test_overlay_fades_the_ground_tints_and_outlines_the_object(
    image: np.ndarray, mask: np.ndarray
) -> None:
    result = overlay_object(image, mask).astype(float)
    assert result.dtype == float
    ground, inside = result[2:15, 2:20], result[26:34, 36:54]
    assert ground.mean() < 0.6 * image[2:15, 2:20].mean()
    expected = image[26:34, 36:54] * 0.7 + np.array(OBJECT_COLOR) * 0.3
    assert np.abs(inside - expected).max() <= 1
    # On the border the color of the object is opaque, whatever the image.
    edge = result[20, 35:55]
    assert np.abs(edge - OBJECT_COLOR).max() < 40


def test_overlay_keeps_its_inputs_and_takes_any_mask(image: np.ndarray, mask: np.ndarray) -> None:
    copy = image.copy()
    expected = overlay_object(image, mask)
    assert np.array_equal(image, copy)
    grey = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    for other in (mask.astype(np.uint8), grey, np.where(mask, 0.9, 0.2)):
        assert np.array_equal(overlay_object(image, other), expected)
    assert np.array_equal(overlay_object(Image.fromarray(image), mask), expected)


def test_empty_mask_leaves_the_image(image: np.ndarray, mask: np.ndarray) -> None:
    assert np.array_equal(overlay_object(image, np.zeros(SIZE, dtype=bool)), image)


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (700, 5)])
def test_any_size_can_be_drawn(size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), dtype=np.uint8)
    assert overlay_object(image, np.ones(size, dtype=bool)).shape == (*size, 3)


def test_segments_have_their_colors_and_the_object_is_outlined(image: np.ndarray) -> None:
    soft_masks = np.zeros((3, *SIZE), dtype=np.float32)
    soft_masks[0, :, :40] = 1
    soft_masks[1, :, 40:] = 1
    plain = overlay_segments(image, soft_masks, strength=1.0)
    colors = segment_colors(3)
    assert tuple(plain[30, 10]) == colors[0]
    assert tuple(plain[30, 70]) == colors[1]
    outlined = overlay_segments(image, soft_masks, object_segment=1, strength=1.0)
    assert tuple(outlined[30, 70]) == OBJECT_COLOR
    assert outlined[30, 39:41].min() > 190
    mixed = overlay_segments(image, np.full((3, *SIZE), 1 / 3), strength=1.0)
    np.testing.assert_allclose(mixed[0, 0], np.mean(colors, axis=0), atol=1)


def test_colors_are_distinct_for_any_number() -> None:
    for num_segments in (1, 2, 5, 8, 20):
        for object_segment in (None, 0, num_segments - 1):
            colors = segment_colors(num_segments, object_segment)
            assert len(set(colors)) == len(colors) == num_segments
            assert all(0 <= level <= 255 for color in colors for level in color)
            if object_segment is not None:
                assert colors[object_segment] == OBJECT_COLOR
            else:
                assert OBJECT_COLOR not in colors


def test_soft_mask_gets_lighter_with_probability() -> None:
    ramp = soft_mask_to_rgb(np.linspace(0, 1, 101)[None])
    luminance = ramp[0].astype(float).sum(axis=1)
    assert (np.diff(luminance) > 0).all()
    assert ramp[0, 60] == pytest.approx(OBJECT_COLOR, abs=1)


def test_flow_directions_have_the_usual_colors() -> None:
    """Baker et al.: right is red, down yellow, left cyan-blue, up violet; still is white."""
    flow = np.zeros((2, 1, 5), dtype=np.float32)
    flow[:, 0, 0] = 3, 0
    flow[:, 0, 1] = 0, 3
    flow[:, 0, 2] = -3, 0
    flow[:, 0, 3] = 0, -3
    right, down, left, up, still = flow_to_rgb(flow, max_magnitude=3)[0].tolist()
    assert right == [255, 0, 0]
    assert down[0] > 220
    assert down[1] > 180
    assert down[2] == 0
    assert left[0] == 0
    assert left[2] > 150
    assert up[2] > 200
    assert up[1] == 0
    assert still == [255, 255, 255]


def test_flow_saturation_is_the_length_and_scale_is_shared_by_both_axes() -> None:
    flow = np.zeros((2, 2, 6), dtype=np.float32)
    flow[0] = np.arange(6)
    shown = flow_to_rgb(flow, max_magnitude=5)[0].astype(int)
    np.testing.assert_allclose(shown[:, 1], 255 * (1 - np.arange(6) / 5), atol=1)
    diagonal = np.ones((2, 40, 10), dtype=np.float32)  # 45 degrees whatever the aspect ratio
    wide = np.ones((2, 10, 40), dtype=np.float32)
    assert np.array_equal(flow_to_rgb(diagonal)[0, 0], flow_to_rgb(wide)[0, 0])


def test_the_motion_view_is_white_where_nothing_moves_on_its_own() -> None:
    flow = np.full((2, 20, 30), 7.0, np.float32)  # the camera pans
    picture, scale = relative_motion_to_rgb(flow, MIN_MOTION_SCALE)
    assert (picture == 255).all()
    assert scale == MIN_MOTION_SCALE
    flow[0, 5:9, 5:9] += 3  # and something moves against it
    picture, scale = relative_motion_to_rgb(flow, scale)
    assert (picture[5:9, 5:9] != 255).any(axis=-1).all()
    assert (picture[10:] == 255).all()
    assert scale == pytest.approx(3)
    assert relative_motion_to_rgb(flow * 0, scale)[1] == scale, "a scale never shrinks"


def test_most_likely_segments_cover_every_pixel_once() -> None:
    soft = np.random.default_rng(0).random((4, 8, 9), dtype=np.float32)
    hard = most_likely(soft)
    assert np.array_equal(hard.sum(axis=0), np.ones((8, 9)))
    assert np.array_equal(hard.argmax(axis=0), soft.argmax(axis=0))


def test_color_wheel_is_closed_and_saturated() -> None:
    wheel = color_wheel()
    assert wheel.shape == (55, 3)
    assert (wheel.max(axis=1) == 255).all()
    assert (wheel.min(axis=1) == 0).all()
    assert np.abs(np.roll(wheel, -1, axis=0) - wheel).max() <= 255 / 4 + 1e-3


def test_contact_sheet_places_every_picture() -> None:
    red = np.zeros((20, 40, 3), dtype=np.uint8) + np.array([255, 0, 0], dtype=np.uint8)
    blue = Image.new("RGB", (10, 20), (0, 0, 255))
    sheet = contact_sheet([[red, blue], [blue]], tile_height=40, gap=4)
    assert sheet.size == (4 + 80 + 4 + 20 + 4, 4 + 44 * 2)
    assert sheet.getpixel((4, 4)) == (255, 0, 0)
    assert sheet.getpixel((90, 10)) == (0, 0, 255)
    assert sheet.getpixel((4, 50)) == (0, 0, 255)
    assert sheet.getpixel((90, 60)) == PAPER


def test_contact_sheet_writes_captions() -> None:
    tile = np.zeros((10, 60, 3), dtype=np.uint8)
    plain = contact_sheet([[tile], [tile]], tile_height=20)
    captioned = contact_sheet([[tile], [tile]], ["one", "two"], ["column"], tile_height=20)
    assert captioned.height == plain.height + 3 * 22
    without_tiles = np.asarray(captioned)[:22]
    assert (without_tiles.max(axis=2) < 120).any(), "the caption is written in ink"


def test_bad_arguments_give_one_sentence(image: np.ndarray, mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"size \(60, 80\) of the image, got \(10, 80\)"):
        overlay_object(image, mask[:10])
    with pytest.raises(ValueError, match=r"`image` must be uint8"):
        overlay_object(image / 255, mask)
    with pytest.raises(ValueError, match=r"shape \(K, 60, 80\)"):
        overlay_segments(image, mask)
    with pytest.raises(ValueError, match=r"`flow` must have shape \(2, H, W\)"):
        flow_to_rgb(image)
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([])
    with pytest.raises(ValueError, match="`row_captions` must hold 1 texts, got 2"):
        contact_sheet([[image]], ["a", "b"])
    with pytest.raises(ValueError, match="`num_segments` must be positive"):
        segment_colors(0)
    with pytest.raises(ValueError, match=r"`object_segment` must lie in 0\.\.2, got 3"):
        segment_colors(3, 3)
