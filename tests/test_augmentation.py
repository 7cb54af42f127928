"""Augmentation: presets, identity over the two frames, seeds, agreement of its two paths."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from amd_hf.data import AUGMENTATION_PRESETS, AugmentationPreset, PairAugmentation, PairTransform
from amd_hf.data.augmentation import change_colors
from amd_hf.data.synthetic_objects import generate_clip

HEIGHT, WIDTH = 96, 160


def encoded(frame: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, kind, quality=95)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return generate_clip(2, HEIGHT, WIDTH, seed=4)[0]


@pytest.mark.parametrize("preset", list(AUGMENTATION_PRESETS))
@pytest.mark.parametrize("crop", [32, (24, 40)])
def test_same_change_of_both_frames(
    frames: np.ndarray, preset: str, crop: int | tuple[int, int]
) -> None:
    """A pair of equal frames stays a pair of equal frames through every step of every preset."""
    transform = PairTransform(preset, crop_size=crop, flip=0.5)
    same = encoded(frames[0])
    for seed in range(12):
        crops = transform(same, same, seed)
        size = (crop, crop) if isinstance(crop, int) else crop
        assert crops.shape == (2, 3, *size)
        assert torch.equal(crops[0], crops[1])
        finished = transform.finish(crops.unsqueeze(0), [seed])
        assert torch.equal(finished[0, 0], finished[0, 1])
        other = PairAugmentation(preset, crop, flip=0.5)(
            torch.stack([torch.zeros(3, 64, 90)] * 2), seed
        )
        assert torch.equal(other[0], other[1])


@pytest.mark.parametrize("preset", ["published", "light", "heavy"])
def test_seed_decides_alone(frames: np.ndarray, preset: str) -> None:
    transform = PairTransform(preset, crop_size=32)
    first, second = encoded(frames[0]), encoded(frames[1])
    crops = [transform(first, second, seed) for seed in (1, 1, 2)]
    np.random.seed(9)
    torch.manual_seed(9)
    assert torch.equal(crops[0], transform(first, second, 1))
    assert torch.equal(crops[0], crops[1])
    assert not torch.equal(crops[0], crops[2])


def test_published_crops_equal_resizing_then_cropping(frames: np.ndarray) -> None:
    """The released pipeline: cv2 resize to a short side of 400 * U(.96, 1), then a crop of 384."""
    cv2 = pytest.importorskip("cv2")
    augmentation = PairAugmentation("published", 48)
    transform = PairTransform("published", 48)
    data = encoded(frames[0])
    shorts = set()
    for seed in range(25):
        geometry = augmentation.draw_geometry(HEIGHT, WIDTH, seed)
        short, long = geometry.size
        assert 48 <= short < 50  # 400 * U(.96, 1) for crops of 384 is 50 * U(.96, 1) here
        assert long == int(WIDTH * short / HEIGHT + 0.5)
        shorts.add(short)
        resized = cv2.resize(frames[0], (long, short), interpolation=cv2.INTER_LINEAR)
        y, x = geometry.offset
        expected = resized[y : y + 48, x : x + 48].astype(int)
        crop = transform(data, data, seed)[0].permute(1, 2, 0).numpy().astype(int)
        assert np.abs(crop - expected).max() <= 1
    assert len(shorts) == 2


def test_published_short_side_is_that_of_the_release() -> None:
    augmentation = PairAugmentation("published", 384)
    sides = [augmentation.draw_geometry(720, 1280, seed).size[0] for seed in range(300)]
    assert min(sides) == 384
    assert max(sides) == 399


@pytest.mark.parametrize("preset", ["published", "light", "heavy", "none"])
def test_bytes_and_floats_agree(frames: np.ndarray, preset: str) -> None:
    """The decoder's path over bytes and that over floating-point tensors give the same picture."""
    transform = PairTransform(preset, crop_size=32)
    augmentation = PairAugmentation(preset, 32)
    tensors = torch.from_numpy(frames).permute(0, 3, 1, 2)
    for seed in range(8):
        fast = transform(encoded(frames[0]), encoded(frames[1]), seed)
        geometry = augmentation.draw_geometry(HEIGHT, WIDTH, seed)
        slow = augmentation.apply_geometry(tensors.float(), geometry)
        assert slow.dtype == torch.float32
        assert (fast.float() - slow).abs().max() <= 1.5
        assert torch.equal(augmentation.apply_geometry(tensors, geometry), fast)


@pytest.mark.gpu
def test_crops_on_the_device_equal_those_on_the_host(frames: np.ndarray) -> None:
    augmentation = PairAugmentation("heavy", 32)
    tensors = torch.from_numpy(frames).permute(0, 3, 1, 2)
    for seed in range(4):
        geometry = augmentation.draw_geometry(HEIGHT, WIDTH, seed)
        there = augmentation.apply_geometry(tensors.cuda(), geometry).cpu()
        assert there.dtype == torch.uint8
        here = augmentation.apply_geometry(tensors, geometry)
        assert (there.int() - here.int()).abs().max() <= 1


def test_reduced_jpeg_decoding_changes_little() -> None:
    frames, _ = generate_clip(2, 480, 640, seed=1)
    transform = PairTransform("none", crop_size=64)
    png = transform(encoded(frames[0]), encoded(frames[1]), 0).float()
    jpeg = transform(encoded(frames[0], "JPEG"), encoded(frames[1], "JPEG"), 0).float()
    assert (png - jpeg).abs().mean() < 2.0


def test_reduced_decoding_keeps_the_region() -> None:
    """A frame decoded at half size gives the same crop as one decoded in full."""
    frames, _ = generate_clip(2, 480, 640, seed=2)
    transform = PairTransform("heavy", crop_size=32)
    elsewhere = transform(encoded(frames[0]), encoded(frames[1]), 99).float()
    for seed in range(6):
        png = transform(encoded(frames[0]), encoded(frames[1]), seed).float()
        jpeg = transform(encoded(frames[0], "JPEG"), encoded(frames[1], "JPEG"), seed).float()
        mixed = transform(encoded(frames[0]), encoded(frames[1], "JPEG"), seed).float()
        other_place = (png - elsewhere).abs().mean()
        # The region is rounded to pixels of the reduced frame, each eight of the original.
        assert (png - jpeg).abs().mean() < 0.3 * other_place
        assert (png - mixed).abs().mean() < 0.3 * other_place


@pytest.mark.parametrize(
    ("preset", "crop_size", "expected"),
    [
        ("published", 384, 392),  # as in the published test
        ("light", 384, 384),
        ("none", (96, 160), 96),
        ("heavy", (128, 192), 176),
        ("medium", (128, 192), 152),
    ],
)
def test_whole_frames_at_the_scale_of_the_crops(preset: str, crop_size: Any, expected: int) -> None:
    transform = PairAugmentation(preset, crop_size=crop_size)
    assert transform.frame_short_side == expected
    # The mean over drawn crops, for frames of the shape of the crops.
    height, width = (4 * side for side in transform.crop_size)
    sides = []
    for seed in range(400):
        geometry = transform.draw_geometry(height, width, seed)
        top, left, bottom, right = geometry.region
        enlarged = geometry.size[0] * geometry.size[1] / ((bottom - top) * (right - left))
        sides.append(min(height, width) * math.sqrt(enlarged))
    assert np.mean(sides) == pytest.approx(expected, rel=0.05)


def test_light_and_none_use_the_whole_short_side() -> None:
    for seed in range(10):
        geometry = PairAugmentation("light", 64).draw_geometry(90, 200, seed)
        assert geometry.region == (0, 0, 90, 200)
        assert geometry.size == (64, 142)
        assert 0 <= geometry.offset[1] <= 142 - 64
    middle = PairAugmentation("none", 64).draw_geometry(90, 200, 0)
    assert middle.offset == (0, 39)


def test_heavy_covers_its_range() -> None:
    augmentation = PairAugmentation("heavy", 64)
    areas, ratios, flips = [], [], 0
    for seed in range(400):
        geometry = augmentation.draw_geometry(120, 160, seed)
        top, left, bottom, right = geometry.region
        assert min(left, top, 160 - right, 120 - bottom) >= 0
        assert geometry.size == (64, 64)
        areas.append((right - left) * (bottom - top) / (120 * 160))
        ratios.append((right - left) / (bottom - top))
        flips += geometry.is_flipped
    assert 0.19 < min(areas) < 0.25
    assert 0.8 < max(areas) <= 1.0
    assert min(ratios) == pytest.approx(0.75, abs=0.04)
    assert max(ratios) == pytest.approx(4 / 3, abs=0.04)
    assert 150 < flips < 250


def test_flip_mirrors() -> None:
    preset = AugmentationPreset(random_position=False, flip=1.0)
    frames, _ = generate_clip(1, 32, 32, seed=0)
    data = encoded(frames[0])
    flipped = PairTransform(preset, crop_size=32)(data, data, 0)
    straight = PairTransform(preset, crop_size=32, flip=0.0)(data, data, 0)
    assert torch.equal(flipped, straight.flip(-1))
    tensors = torch.from_numpy(frames).permute(0, 3, 1, 2)
    geometry = PairAugmentation(preset, 32).draw_geometry(32, 32, 0)
    augmentation = PairAugmentation(preset, 32)
    assert torch.equal(augmentation.apply_geometry(tensors, geometry), flipped[:1])


def test_colors_neutral_changes_keep_the_pair() -> None:
    pair = torch.rand(2, 2, 3, 8, 8) * 255
    neutral = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]] * 2)
    torch.testing.assert_close(change_colors(pair, neutral), pair, atol=2e-2, rtol=0)


def test_colors_do_what_they_say() -> None:
    pair = torch.rand(1, 2, 3, 8, 8) * 100 + 50
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)

    def changed(*change: float) -> torch.Tensor:
        return change_colors(pair, torch.tensor([change]))

    torch.testing.assert_close(changed(1.2, 1, 1, 0, 0), pair * 1.2, atol=2e-2, rtol=0)
    pair_of_both = changed(1.2, 0.5, 0.7, 0.05, 0.3)
    step = pair
    for change in ((1.2, 1, 1, 0, 0), (1, 0.5, 1, 0, 0), (1, 1, 0.7, 0, 0)):
        step = change_colors(step, torch.tensor([change]))
    step = change_colors(step, torch.tensor([(1.0, 1, 1, 0.05, 0)]))
    step = change_colors(step, torch.tensor([(1.0, 1, 1, 0, 0.3)]))
    torch.testing.assert_close(pair_of_both, step, atol=2e-2, rtol=0)
    contrast = changed(1, 0.5, 1, 0, 0)
    mean = (pair * luma).sum(2).mean()
    torch.testing.assert_close(contrast, mean + 0.5 * (pair - mean), atol=2e-2, rtol=0)
    gray = changed(1, 1, 1, 0, 1)
    expected = (pair * luma).sum(2, keepdim=True).expand_as(pair)
    torch.testing.assert_close(gray, expected, atol=2e-2, rtol=0)
    torch.testing.assert_close(changed(1, 1, 0, 0, 0), expected, atol=2e-2, rtol=0)
    turned = changed(1, 1, 1, 0.1, 0)
    assert (turned - pair).abs().mean() > 1.0
    kept = ((turned - pair) * luma).sum(2).abs()
    assert kept.max() < 2.0  # luma stays but for clamping
    red = torch.zeros(1, 2, 3, 1, 1)
    red[:, :, 0] = 120.0
    third = change_colors(red, torch.tensor([[1.0, 1.0, 1.0, 1 / 3, 0.0]]))
    assert third[0, 0, 0] < third[0, 0].max()  # a third of the circle is no longer red


def test_heavy_colors_follow_the_seed_of_each_pair() -> None:
    augmentation = PairAugmentation("heavy", 8)
    pixels = (torch.rand(1, 2, 3, 8, 8) * 255).to(torch.uint8).expand(40, -1, -1, -1, -1)
    seeds = torch.arange(40)
    batch = augmentation.finish(pixels, seeds)
    for index in (0, 7, 23):
        alone = augmentation.finish(pixels[:1], [index])
        torch.testing.assert_close(batch[index], alone[0])
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    colors = batch * std + mean
    num_gray = int((colors.amax(2) - colors.amin(2)).flatten(1).amax(1).lt(0.01).sum())
    num_kept = int((colors - pixels.float()).flatten(1).abs().amax(1).lt(0.05).sum())
    assert 3 <= num_gray <= 16
    assert 2 <= num_kept <= 14


@pytest.mark.gpu
def test_colors_on_the_device_equal_those_on_the_host() -> None:
    augmentation = PairAugmentation("heavy", 16)
    pixels = (torch.rand(6, 2, 3, 16, 16) * 255).to(torch.uint8)
    seeds = torch.arange(6)
    there = augmentation.finish(pixels.cuda(), seeds.cuda()).cpu()
    torch.testing.assert_close(there, augmentation.finish(pixels, seeds), atol=1e-3, rtol=1e-4)


def test_small_frames_are_enlarged() -> None:
    tiny, _ = generate_clip(1, 16, 24, seed=0)
    data = encoded(tiny[0])
    for preset in AUGMENTATION_PRESETS:
        assert PairTransform(preset, crop_size=64)(data, data, 3).shape == (2, 3, 64, 64)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            ("strong",),
            {},
            "`preset` must be one of published, light, heavy, medium, none, got 'strong'",
        ),
        (("light", 4), {}, "`crop_size` must be one or two numbers of at least 8 pixels, got 4"),
        (("light", (32, 32, 32)), {}, "`crop_size` must be one or two numbers"),
        (("light", 32), {"flip": 1.5}, "`flip` must be a probability from 0 to 1, got 1.5"),
        (("light", 32), {"flip": math.nan}, "`flip` must be a probability from 0 to 1, got nan"),
    ],
)
def test_errors(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairAugmentation(*arguments, **options)


def test_seeds_must_match_the_batch() -> None:
    with pytest.raises(ValueError, match=r"one seed per pair \(2\), got 1"):
        PairAugmentation("none", 8).finish(torch.zeros(2, 2, 3, 8, 8), [1])
