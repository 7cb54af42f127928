"""Warping: equal to naive loops, and true to what a flow means."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amd_hf.warping_amd import (
    backward_warp,
    forward_splat,
    full_precision,
    pixel_grid,
    resize_flow,
    visibility_from_flow,
)

from . import references

ATOL = 1e-10


def constant_flow(u: float, v: float, size: tuple[int, int], batch: int = 1) -> Tensor:
    vector = torch.tensor([u, v], dtype=torch.float64).view(1, 2, 1, 1)
    return vector.expand(batch, 2, *size).contiguous()


@pytest.fixture
def image() -> Tensor:
    return torch.rand(2, 3, 6, 9, dtype=torch.float64)


@pytest.fixture
def flow() -> Tensor:
    # Large enough to leave the image on all sides.
    return 4 * torch.randn(2, 2, 6, 9, dtype=torch.float64)


def test_pixel_grid_holds_x_then_y() -> None:
    grid = pixel_grid(2, 3, torch.zeros(1, dtype=torch.float64))
    assert grid.shape == (1, 2, 2, 3)
    assert grid.dtype == torch.float64
    assert grid[0, 0].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert grid[0, 1].tolist() == [[0, 0, 0], [1, 1, 1]]


class TestBackwardWarp:
    def test_equals_the_naive_loop(self, image: Tensor, flow: Tensor) -> None:
        expected = torch.from_numpy(references.backward_warp(image.numpy(), flow.numpy()))
        torch.testing.assert_close(backward_warp(image, flow), expected, rtol=0, atol=ATOL)

    @pytest.mark.parametrize("size", [(6, 9), (1, 5), (5, 1), (1, 1)])
    def test_zero_flow_is_the_identity(self, size: tuple[int, int]) -> None:
        image = torch.rand(2, 3, *size, dtype=torch.float64)
        warped = backward_warp(image, torch.zeros(2, 2, *size, dtype=torch.float64))
        torch.testing.assert_close(warped, image, rtol=0, atol=ATOL)

    @pytest.mark.parametrize(("u", "v"), [(2, 0), (0, -3), (-1, 2)])
    def test_whole_pixels_shift_the_image(self, image: Tensor, u: int, v: int) -> None:
        warped = backward_warp(image, constant_flow(u, v, (6, 9), batch=2))
        rows = torch.arange(6).add(v).clamp(0, 5)
        columns = torch.arange(9).add(u).clamp(0, 8)
        expected = image[:, :, rows][:, :, :, columns]  # border padding repeats the edge
        torch.testing.assert_close(warped, expected, rtol=0, atol=ATOL)

    def test_half_a_pixel_averages_neighbors(self, image: Tensor) -> None:
        warped = backward_warp(image, constant_flow(0.5, 0, (6, 9), batch=2))
        expected = (image[..., :-1] + image[..., 1:]) / 2
        torch.testing.assert_close(warped[..., :-1], expected, rtol=0, atol=ATOL)

    def test_synthesizes_the_first_frame_from_the_second(self) -> None:
        # An object at column 3 of frame 1 is at column 5 of frame 2: flow_12 is +2 there.
        first, second = torch.zeros(1, 1, 4, 9), torch.zeros(1, 1, 4, 9)
        first[..., 3], second[..., 5] = 1, 1
        warped = backward_warp(second, constant_flow(2, 0, (4, 9)).float())
        torch.testing.assert_close(warped[..., :7], first[..., :7])

    def test_gradients(self) -> None:
        image = torch.rand(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
        # Fractions away from 0 and 1, where the interpolation has a kink.
        flow = (torch.randint(-2, 2, (1, 2, 4, 5)) + 0.2 + 0.6 * torch.rand(1, 2, 4, 5)).double()
        assert torch.autograd.gradcheck(backward_warp, (image, flow.requires_grad_()))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_keeps_the_dtype_of_the_image(self, dtype: torch.dtype) -> None:
        image = torch.rand(1, 1, 4, 300).to(dtype)
        flow = torch.full((1, 2, 4, 300), 0.25, dtype=dtype)
        warped = backward_warp(image, flow)
        assert warped.dtype == dtype
        # bfloat16 coordinates would be off by a pixel at column 300.
        wide = backward_warp(image.double(), flow.double())
        torch.testing.assert_close(warped.double(), wide, rtol=0, atol=1e-2)

    def test_border_padding_equals_clamped_coordinates(self, image: Tensor, flow: Tensor) -> None:
        """The branch for MPS clamps the coordinates and pads with zeros."""
        H, W = image.shape[-2:]
        target = pixel_grid(H, W, flow) + flow
        x = target[:, 0].clamp(0, W - 1) * 2 / (W - 1) - 1
        y = target[:, 1].clamp(0, H - 1) * 2 / (H - 1) - 1
        clamped = torch.nn.functional.grid_sample(
            image, torch.stack([x, y], dim=-1), padding_mode="zeros", align_corners=True
        )
        torch.testing.assert_close(backward_warp(image, flow), clamped, rtol=0, atol=ATOL)

    def test_not_a_number_is_kept_and_does_not_crash(self, image: Tensor, flow: Tensor) -> None:
        flow[0, 1, 2, 3] = float("nan")
        flow[1, 0, 0, 0] = float("inf")
        warped = backward_warp(image.requires_grad_(), flow.requires_grad_())
        assert warped[0, :, 2, 3].isnan().all()
        assert warped.isnan().sum() == image.shape[1]
        warped.nansum().backward()
        assert image.grad is not None
        assert image.grad.isfinite().all()

    @pytest.mark.parametrize("shape", [(2, 3, 6, 9), (1, 2, 6, 9), (2, 2, 6, 8), (2, 6, 9)])
    def test_refuses_other_shapes(self, image: Tensor, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"`flow` must have shape \(2, 2, 6, 9\)"):
            backward_warp(image, torch.zeros(shape))


class TestVisibility:
    def test_equals_the_naive_loop(self, flow: Tensor) -> None:
        expected = torch.from_numpy(references.splat_weights(flow.numpy())).clamp(0, 1).float()
        torch.testing.assert_close(forward_splat(flow), expected, rtol=0, atol=1e-5)
        for threshold in (0.2, 0.7):
            expected = torch.from_numpy(references.visibility(flow.numpy(), threshold))
            assert torch.equal(visibility_from_flow(flow, threshold), expected.float())

    def test_everything_is_visible_without_motion(self) -> None:
        assert visibility_from_flow(torch.zeros(1, 2, 5, 7)).min() == 1

    def test_what_enters_the_image_is_not_visible(self) -> None:
        # All pixels of the other frame move 2 to the right: the first two columns are new.
        visible = visibility_from_flow(constant_flow(2, 0, (4, 7)))
        assert visible[0, 0, 0].tolist() == [0, 0, 1, 1, 1, 1, 1]

    def test_two_objects_on_one_place_count_once(self) -> None:
        flow = torch.zeros(1, 2, 1, 4)
        flow[0, 0, 0, 0] = 1.0
        assert forward_splat(flow)[0, 0, 0].tolist() == [0, 1, 1, 1]

    def test_has_no_gradient_and_is_float32(self, flow: Tensor) -> None:
        visible = visibility_from_flow(flow.requires_grad_())
        assert not visible.requires_grad
        assert visible.dtype == torch.float32

    @pytest.mark.parametrize("value", [float("inf"), 1e30])
    def test_far_away_flow_lands_nowhere(self, value: float) -> None:
        assert forward_splat(torch.full((1, 2, 3, 3), value)).sum() == 0

    def test_refuses_other_shapes(self) -> None:
        for function in (forward_splat, visibility_from_flow):
            with pytest.raises(ValueError, match=r"`flow` must have shape \(B, 2, H, W\)"):
                function(torch.zeros(1, 3, 4, 4))


class TestResizeFlow:
    @pytest.mark.parametrize("size", [(12, 18), (3, 9), (6, 9), (4, 30)])
    def test_equals_the_naive_loop(self, flow: Tensor, size: tuple[int, int]) -> None:
        expected = torch.from_numpy(references.resize_bilinear(flow.numpy(), size))
        expected[:, 0] *= size[1] / 9
        expected[:, 1] *= size[0] / 6
        torch.testing.assert_close(resize_flow(flow, size), expected, rtol=0, atol=ATOL)

    def test_scales_u_with_the_width_and_v_with_the_height(self) -> None:
        resized = resize_flow(constant_flow(3, -2, (8, 10)), (16, 30))
        torch.testing.assert_close(resized, constant_flow(9, -4, (16, 30)))

    def test_refuses_other_shapes(self) -> None:
        with pytest.raises(ValueError, match=r"`flow` must have shape \(B, 2, H, W\)"):
            resize_flow(torch.zeros(2, 4, 4), (8, 8))


def test_full_precision_widens_only() -> None:
    for dtype, expected in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert full_precision(torch.ones(1, dtype=dtype)).dtype == expected
