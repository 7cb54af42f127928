"""Photometric loss: equal to naive loops, zero for a perfect synthesis, blind to what is hidden."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amd_hf.loss_amd import SSIM_C1, SSIM_C2, photometric_loss, ssim_distance
from amd_hf.view_synthesis_amd import area_resize, synthesize_views

from . import references

ATOL = 1e-9


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    return torch.rand(2, 3, 7, 8, dtype=torch.float64), torch.rand(2, 3, 7, 8, dtype=torch.float64)


@pytest.fixture
def visible() -> Tensor:
    return (torch.rand(2, 1, 7, 8) > 0.3).double()


def test_constants_are_those_of_ssim() -> None:
    assert pytest.approx(references.SSIM_C1) == SSIM_C1
    assert pytest.approx(references.SSIM_C2) == SSIM_C2


class TestSsimDistance:
    def test_equals_the_naive_loop(self, images: tuple[Tensor, Tensor]) -> None:
        expected = torch.from_numpy(references.ssim_distance(*(i.numpy() for i in images)))
        torch.testing.assert_close(ssim_distance(*images), expected, rtol=0, atol=ATOL)
        assert expected.max() > 0.6  # anticorrelated windows too

    def test_is_zero_for_equal_images(self, images: tuple[Tensor, Tensor]) -> None:
        assert ssim_distance(images[0], images[0]).abs().max() < ATOL

    def test_is_symmetric(self, images: tuple[Tensor, Tensor]) -> None:
        torch.testing.assert_close(ssim_distance(*images), ssim_distance(*images[::-1]))

    def test_lies_between_zero_and_one(self) -> None:
        first = torch.randint(0, 2, (1, 3, 12, 12)).float()
        distance = ssim_distance(first, 1 - first)
        assert distance.min() >= 0
        assert distance.max() <= 1
        assert distance.max() > 0.9

    def test_windows_are_not_padded(self) -> None:
        assert ssim_distance(torch.rand(1, 1, 3, 9), torch.rand(1, 1, 3, 9)).shape == (1, 1, 1, 7)

    @pytest.mark.parametrize("shape", [(1, 3, 7, 7), (1, 3, 8, 2)])
    def test_refuses_other_shapes(self, shape: tuple[int, ...]) -> None:
        other = torch.zeros(1, 3, 8, 8) if shape[-1] != 2 else torch.zeros(shape)
        with pytest.raises(ValueError, match=r"`first` and `second` must have one shape"):
            ssim_distance(torch.zeros(shape), other)


class TestPhotometricLoss:
    @pytest.mark.parametrize("weights", [(0.15, 0.85), (1.0, 0.0), (0.0, 1.0)])
    def test_equals_the_naive_loop(
        self, images: tuple[Tensor, Tensor], visible: Tensor, weights: tuple[float, float]
    ) -> None:
        expected = references.photometric_loss(
            *(tensor.numpy() for tensor in (*images, visible)), *weights
        )
        assert float(photometric_loss(*images, visible, *weights)) == pytest.approx(expected)

    def test_default_weights_are_the_published_ones(
        self, images: tuple[Tensor, Tensor], visible: Tensor
    ) -> None:
        assert torch.equal(
            photometric_loss(*images, visible), photometric_loss(*images, visible, 0.15, 0.85)
        )

    def test_is_zero_for_a_perfect_synthesis(
        self, images: tuple[Tensor, Tensor], visible: Tensor
    ) -> None:
        assert abs(float(photometric_loss(images[0], images[0], visible))) < ATOL

    def test_does_not_see_hidden_pixels(
        self, images: tuple[Tensor, Tensor], visible: Tensor
    ) -> None:
        image, synthesized = images
        changed = torch.where(visible > 0, synthesized, 1 - synthesized)
        assert not torch.equal(changed, synthesized)
        torch.testing.assert_close(
            photometric_loss(image, synthesized, visible), photometric_loss(image, changed, visible)
        )

    def test_absolute_part_is_a_mean_over_visible_pixels(self) -> None:
        image = torch.zeros(1, 3, 6, 6)
        visible = torch.zeros(1, 1, 6, 6)
        visible[..., :2] = 1
        loss = photometric_loss(image, image + 0.25, visible, 1.0, 0.0)
        assert float(loss) == pytest.approx(0.25)

    def test_fully_occluded_pair_costs_nothing(self, images: tuple[Tensor, Tensor]) -> None:
        synthesized = images[1].requires_grad_()
        loss = photometric_loss(images[0], synthesized, torch.zeros(2, 1, 7, 8))
        assert loss.detach() == 0
        (gradient,) = torch.autograd.grad(loss, synthesized)
        assert torch.equal(gradient, torch.zeros_like(gradient))

    def test_gradients(self, visible: Tensor) -> None:
        image = torch.rand(1, 2, 4, 5, dtype=torch.float64)
        # Differences away from 0, where the absolute value has a kink.
        synthesized = (image + 0.1 + 0.2 * torch.rand_like(image)).requires_grad_()
        mask = visible[:1, :, :4, :5]
        assert torch.autograd.gradcheck(
            lambda x, y: photometric_loss(x, y, mask), (image.requires_grad_(), synthesized)
        )

    def test_float64_stays(self, images: tuple[Tensor, Tensor], visible: Tensor) -> None:
        assert photometric_loss(*images, visible.float()).dtype == torch.float64


class TestSynthesizedViews:
    def test_area_resize_averages(self) -> None:
        image = torch.rand(1, 2, 12, 8, dtype=torch.float64)
        expected = torch.from_numpy(references.area_resize(image.numpy(), (3, 4)))
        torch.testing.assert_close(area_resize(image, (3, 4)), expected)
        assert area_resize(image, (12, 8)) is image

    def test_every_scale_of_an_exact_shift(self) -> None:
        # Frame 2 is frame 1 moved right by 4 pixels; scale s sees a shift of 4 / 2**s.
        second = torch.rand(1, 3, 32, 32)
        first = second.roll(-4, dims=3)
        flows = [
            torch.tensor([4 / 2**s, 0]).view(1, 2, 1, 1).expand(1, 2, 32 >> s, 32 >> s)
            for s in range(3)
        ]
        views = synthesize_views(first, second, flows, -flows[0], [1.0, 0.0, 1.0], 0.2)
        assert views[1] is None  # no weight, not computed
        for view in (views[0], views[2]):
            assert view is not None
            difference = (view.image - view.synthesized).abs() * view.visibility
            assert difference.max() < 1e-5
        # What leaves frame 1 on the right is not visible in frame 2.
        assert views[0] is not None
        assert views[0].visibility[..., -4:].max() == 0
        assert views[0].visibility[..., :-4].min() == 1

    def test_finest_scale_is_there_even_without_weight(self) -> None:
        flows = [torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 4, 4)]
        frames = torch.rand(1, 3, 8, 8)
        views = synthesize_views(frames, frames, flows, flows[0], [0.0, 1.0], 0.2)
        assert views[0] is not None
        assert torch.allclose(views[0].synthesized, frames, atol=1e-6)
