"""Fast decoding gives the pixels of Pillow, and the shortcut before screening never decides."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from amd_hf.data import frame_arrays
from amd_hf.data.counting import SkippedPairError
from amd_hf.data.decoding import PairTransform
from amd_hf.data.synthetic_objects import generate_clip


def needs_opencv() -> None:
    """Skips where OpenCV is missing or older than 4.11, which decodes into RGB."""
    if frame_arrays.opencv() is None:
        pytest.skip("needs OpenCV from 4.11 on")


def encoded(frame: np.ndarray, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, kind, quality=85)
    return buffer.getvalue()


def by_pillow(data: bytes, scale: float) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    if scale < 1:
        image.draft("RGB", tuple(math.ceil(side * scale) for side in image.size))
    return np.array(image.convert("RGB"))


@pytest.mark.parametrize("scale", [2.0, 1.0, 0.6, 0.4, 0.2, 0.05])
@pytest.mark.parametrize("size", [(96, 141), (65, 64)])
def test_jpeg_equals_pillow(scale: float, size: tuple[int, int]) -> None:
    pytest.importorskip("cv2")
    data = encoded(generate_clip(1, *size, seed=3)[0][0])
    pixels = frame_arrays.read_pixels(Image.open(io.BytesIO(data)), data, scale)
    assert np.array_equal(pixels, by_pillow(data, scale))
    assert pixels.flags.writeable


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_jpegs_and_formats_go_to_pillow(mode: str) -> None:
    frame = Image.fromarray(generate_clip(1, 40, 50, seed=1)[0][0])
    for kind in ("JPEG", "TIFF"):
        buffer = io.BytesIO()
        frame.convert(mode).save(buffer, kind)
        data = buffer.getvalue()
        pixels = frame_arrays.read_pixels(Image.open(io.BytesIO(data)), data, 1.0)
        assert np.array_equal(pixels, by_pillow(data, 1.0))


def test_jpeg_stored_sideways_is_not_turned() -> None:
    frame = Image.fromarray(generate_clip(1, 40, 56, seed=1)[0][0])
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    frame.save(buffer, "JPEG", exif=exif)
    data = buffer.getvalue()
    assert frame_arrays.read_pixels(Image.open(io.BytesIO(data)), data, 1.0).shape == (40, 56, 3)


def test_cut_jpeg_is_refused() -> None:
    """OpenCV alone would fill it up with gray."""
    data = encoded(generate_clip(1, 64, 96, seed=1)[0][0])
    for length in (len(data) - 2, len(data) // 2):
        with pytest.raises(SkippedPairError, match="truncated"):
            PairTransform("none", 32)(data[:length], data, 0)
    trailing = data + b"\0\0"  # no end mark at the end: left to Pillow
    pixels = frame_arrays.read_pixels(Image.open(io.BytesIO(trailing)), trailing, 1.0)
    assert np.array_equal(pixels, by_pillow(data, 1.0))


@pytest.mark.parametrize("preset", ["published", "light", "heavy", "none"])
def test_crops_do_not_depend_on_opencv(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cv2")
    frames, _ = generate_clip(2, 90, 160, seed=2)
    first, second = map(encoded, frames)
    for crop in (32, 90):
        transform = PairTransform(preset, crop, flip=0.5)
        fast = [transform(first, second, seed, reject_shot_cuts=True) for seed in range(6)]
        with monkeypatch.context() as patch:
            patch.setattr(frame_arrays, "opencv", lambda: None)
            slow = [transform(first, second, seed, reject_shot_cuts=True) for seed in range(6)]
        assert all(torch.equal(a, b) for a, b in zip(fast, slow, strict=True))
        assert all(a.is_contiguous() and a.shape == (2, 3, crop, crop) for a in fast)


@pytest.mark.parametrize("size", [(192, 341), (193, 196), (97, 300), (288, 384)])
@pytest.mark.parametrize("noise", [2, 20, 200])
def test_bound_is_a_bound(size: tuple[int, int], noise: int) -> None:
    needs_opencv()
    draw = np.random.default_rng(noise)
    first = draw.integers(0, 256 - noise, (*size, 3)).astype(np.uint8)
    second = first.copy()
    edge = second[-5:] if noise == 20 else second  # a change where boxes are cut
    edge += draw.integers(0, noise, edge.shape).astype(np.uint8)
    factor = max(min(size) // 96, 1)
    small = [
        np.asarray(Image.fromarray(frame).reduce(factor), dtype=np.float32)
        for frame in (first, second)
    ]
    exact = float(np.abs(small[0] - small[1]).mean())
    bound = frame_arrays.greatest_reduced_difference(first, second, factor)
    assert exact <= bound
    assert bound <= factor * exact + 2.0 + noise * (factor > 1)


def test_no_bound_without_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_arrays, "opencv", lambda: None)
    frame = np.zeros((8, 8, 3), np.uint8)
    assert frame_arrays.greatest_reduced_difference(frame, frame, 2) == math.inf


def test_equal_frames_need_no_screening(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_opencv()
    calls: list[bool] = []
    monkeypatch.setattr("amd_hf.data.decoding.screen_pair", lambda *_, **__: calls.append(True))
    frames, _ = generate_clip(1, 48, 64, seed=0)
    transform, data = PairTransform("none", 32), encoded(frames[0])
    transform(data, data, 0, reject_shot_cuts=True)
    assert not calls
    transform(data, data, 0, min_difference=1.0)
    transform(data, encoded(255 - frames[0]), 0, reject_shot_cuts=True)
    assert len(calls) == 2
