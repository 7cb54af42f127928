"""Generated clips: reproducible, really moving, with masks that follow the objects."""

from __future__ import annotations

import numpy as np
import pytest

from amd_hf.data.synthetic_objects import generate_clip


def test_shapes_and_types() -> None:
    frames, masks = generate_clip(4, 48, 64, seed=0)
    assert frames.shape == (4, 48, 64, 3)
    assert frames.dtype == np.uint8
    assert masks.shape == (4, 48, 64)
    assert masks.dtype == bool


def test_same_seed_same_clip_and_other_seed_another() -> None:
    first, first_masks = generate_clip(3, 40, 56, seed=7)
    second, second_masks = generate_clip(3, 40, 56, seed=7)
    other, _ = generate_clip(3, 40, 56, seed=8)
    assert np.array_equal(first, second)
    assert np.array_equal(first_masks, second_masks)
    assert not np.array_equal(first, other)


def test_a_longer_clip_starts_with_the_shorter_one() -> None:
    short, short_masks = generate_clip(2, 40, 56, seed=3)
    long, long_masks = generate_clip(5, 40, 56, seed=3)
    assert np.array_equal(long[:2], short)
    assert np.array_equal(long_masks[:2], short_masks)


@pytest.mark.parametrize("seed", range(6))
def test_objects_stay_in_view_and_everything_moves(seed: int) -> None:
    frames, masks = generate_clip(60, 48, 64, seed=seed)
    share = masks.mean(axis=(1, 2))
    assert share.min() > 0.01
    assert share.max() < 0.7
    adjacent, apart = (_background_change(frames, masks, lag) for lag in (1, 8))
    # Sensor noise alone would give the same difference at every lag.
    assert adjacent > 0.3
    assert apart > 1.3 * adjacent


def _background_change(frames: np.ndarray, masks: np.ndarray, lag: int) -> float:
    difference = np.abs(frames[lag:].astype(int) - frames[:-lag].astype(int)).mean(axis=3)
    return float(difference[~(masks[lag:] | masks[:-lag])].mean())


def test_mask_edges_are_image_edges() -> None:
    """The gradient across the mask's border is stronger than in the rest of the frame."""
    ratios = []
    for seed in range(8):
        frames, masks = generate_clip(1, 96, 96, seed=seed, num_objects=1)
        gray = frames[0].astype(float).mean(axis=2)
        step = np.abs(np.diff(gray, axis=1))
        border = masks[0][:, 1:] != masks[0][:, :-1]
        ratios.append(step[border].mean() / step[~border].mean())
    assert np.median(ratios) > 1.5


def test_num_objects_adds_area() -> None:
    one = np.mean([generate_clip(1, 64, 64, seed=s, num_objects=1)[1].mean() for s in range(10)])
    three = np.mean([generate_clip(1, 64, 64, seed=s, num_objects=3)[1].mean() for s in range(10)])
    assert three > 1.5 * one


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 32, 32, 0), "`num_frames` must be at least 1, got 0"),
        ((1, 8, 32, 0), "`height` and `width` must be at least 16, got 8 x 32"),
        ((1, 32, 32, -1), "`seed` must not be negative, got -1"),
    ],
)
def test_errors(arguments: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate_clip(*arguments)


def test_num_objects_out_of_range() -> None:
    with pytest.raises(ValueError, match="`num_objects` must be from 1 to 3, got 4"):
        generate_clip(1, 32, 32, 0, num_objects=4)
