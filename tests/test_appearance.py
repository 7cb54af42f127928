"""The appearance pathway takes large batches in parts where that is faster."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import amd_hf.appearance_amd
from amd_hf import AMDModel


@pytest.fixture
def parts(tiny_model: AMDModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images of every call of the backbone; 2 images of 64x64 are one part."""
    monkeypatch.setattr(amd_hf.appearance_amd, "PIXELS_AT_ONCE", 2 * 64 * 64 + 1)
    sizes: list[int] = []

    def remember(_: object, arguments: tuple[Tensor]) -> None:
        sizes.append(len(arguments[0]))

    tiny_model.appearance.backbone.register_forward_pre_hook(remember)
    return sizes


def test_parts_give_what_the_whole_gives(tiny_model: AMDModel, parts: list[int]) -> None:
    images = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        in_parts = tiny_model.eval()(pixel_values=images).segment_logits
    assert parts == [2, 2, 1]
    whole = tiny_model(pixel_values=images).segment_logits.detach()  # gradients: one batch
    assert parts == [2, 2, 1, 5]
    torch.testing.assert_close(in_parts, whole, atol=1e-5, rtol=1e-5)


def test_an_image_is_never_cut(tiny_model: AMDModel, parts: list[int]) -> None:
    with torch.no_grad():
        tiny_model.eval()(pixel_values=torch.zeros(2, 3, 96, 128))
    assert parts == [1, 1]


def test_training_sees_whole_batches(tiny_model: AMDModel, parts: list[int]) -> None:
    with torch.no_grad():  # the batch statistics are those of all images
        tiny_model.train()(pixel_values=torch.zeros(5, 3, 64, 64))
    assert parts == [5]
