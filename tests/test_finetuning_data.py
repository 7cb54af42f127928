"""The crops, colors and order of the images that fine-tuning sees."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from amd_hf import AMDConfig
from amd_hf.training.finetuning_data import (
    CropTransform,
    SemanticBatches,
    draw_color_changes,
    open_semantic_data,
)
from amd_hf.training.finetuning_results import spread_indices

from .finetuning_cases import Make, folder, make  # noqa: F401 (fixtures)
from .semantic_trees import COLORS


def test_the_color_changes_are_in_their_range() -> None:
    seeds = torch.arange(4000).unsqueeze(1)
    changes = draw_color_changes(seeds, 1.0)
    lowest = torch.tensor([0.875, 0.5, 0.5, -0.1, 0.0])
    highest = torch.tensor([1.125, 1.5, 1.5, 0.1, 0.0])
    assert (changes >= lowest).all()
    assert (changes <= highest).all()
    unchanged = changes == torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
    assert ((unchanged.float().mean(dim=0)[:4] - 0.5).abs() < 0.03).all()
    assert unchanged[:, 4].all()
    half = draw_color_changes(seeds, 0.5)
    torch.testing.assert_close(half[:, :3] - 1, (changes[:, :3] - 1) / 2)


def test_crops_carry_their_mask_along(make: Make) -> None:
    data = open_semantic_data(make())
    transform = CropTransform(make(), AMDConfig.tiny().image_mean)
    image, mask = data.train.load_image(0), data.train.load_mask(0)
    num_checked, columns = 0, set()
    for seed in range(20):
        pixels, labels = transform(image, mask, [seed])
        assert pixels.shape == (3, 64, 64)
        assert labels.shape == (64, 64)
        for class_id, color in enumerate(COLORS):
            # Bilinear sampling mixes colors at borders only: look three pixels away from them.
            other = (labels != class_id).float()[None, None]
            inside = torch.nn.functional.max_pool2d(other, 7, stride=1, padding=3)[0, 0] == 0
            distance = (pixels.float() - torch.tensor(color).view(3, 1, 1)).abs().amax(dim=0)
            assert (distance[inside] <= 1).all()
            num_checked += int(inside.sum())
        columns.add(tuple(labels[:, 0].tolist()))
        again = transform(image, mask, [seed])
        assert torch.equal(pixels, again[0])
        assert torch.equal(labels, again[1])
    assert num_checked > 10_000
    assert len(columns) > 5


def test_what_lies_outside_of_the_image_is_ignored(make: Make) -> None:
    args = make(min_scale=0.5, max_scale=0.5, flip=0.0)
    transform = CropTransform(args, (124.0, 116.0, 104.0))
    image = Image.new("RGB", (64, 64), (200, 10, 10))
    pixels, labels = transform(image, np.ones((64, 64), dtype=np.int64), [0])
    assert (labels[:32, :32] == 1).all()
    assert (labels[32:] == 255).all()
    assert (labels[:, 32:] == 255).all()
    assert pixels[:, 40, 40].tolist() == [124, 116, 104]


def test_two_processes_read_what_one_reads(make: Make) -> None:
    data = open_semantic_data(make())
    config = AMDConfig.tiny()

    def keys(size: int, rank: int, count: int, batches: int) -> list[list[str]]:
        stream = SemanticBatches(
            make(per_device_train_batch_size=size),
            data.train,
            config.image_mean,
            config.image_std,
            rank,
            count,
        )
        return [next(stream)["key"] for _ in range(batches)]

    alone = keys(4, 0, 1, 6)
    first, second = keys(2, 0, 2, 6), keys(2, 1, 2, 6)
    assert [a + b for a, b in zip(first, second, strict=True)] == alone
    # Every image once per epoch (12 images, 4 a step).
    assert sorted(key for batch in alone[:3] for key in batch) == sorted(
        data.train.key(i) for i in range(12)
    )
    assert alone[:3] != alone[3:]


def test_a_part_of_the_images_is_spread_over_all() -> None:
    assert spread_indices(10, 4) == [0, 3, 6, 9]
    assert spread_indices(3, 8) == [0, 1, 2]
    assert spread_indices(5, 0) == []
