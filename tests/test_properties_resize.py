"""Resizing of 8-bit images equals OpenCV, with which the published pipelines resize."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from amd_hf.image_io_amd import resize_image


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((48, 85), (39, 69)),  # a little smaller, as at inference
        ((50, 60), (25, 30)),  # half
        ((5, 7), (9, 4)),  # one side larger, one smaller
        ((30, 40), (64, 90)),  # larger
        ((33, 1), (50, 1)),  # one column
        ((1, 1), (4, 4)),
        ((64, 200), (32, 61)),
    ],
)
def test_equals_opencv(source: tuple[int, int], target: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*source, 3), dtype=np.uint8)
    height, width = target
    theirs = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    ours = resize_image(torch.from_numpy(image).permute(2, 0, 1)[None], target)
    assert ours.dtype == torch.float32
    np.testing.assert_array_equal(ours[0].permute(1, 2, 0).numpy(), theirs.astype(np.float32))


def test_same_size_is_the_identity() -> None:
    image = torch.randint(0, 256, (2, 3, 9, 7), dtype=torch.uint8)
    assert torch.equal(resize_image(image, (9, 7)), image.float())


def test_constant_image_stays_constant() -> None:
    for level in (0, 1, 128, 255):
        image = torch.full((1, 3, 11, 13), level, dtype=torch.uint8)
        assert torch.equal(resize_image(image, (17, 8)), torch.full((1, 3, 17, 8), float(level)))
