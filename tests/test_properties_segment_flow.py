"""Segment flow: pooling, composition and the coarse-to-fine loop against independent versions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from amd_hf import AMDConfig, AMDModel
from amd_hf.segment_flow_amd import (
    AMDReadout,
    AMDSegmentFlow,
    compose_flow,
    masks_of_level,
    pool_features,
)
from amd_hf.warping_amd import backward_warp

from . import references

ATOL = 1e-10


def random_masks(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).softmax(dim=1)


class TestPooling:
    def test_equals_the_naive_loop(self) -> None:
        features = torch.randn(2, 4, 5, 6, dtype=torch.float64)
        masks = random_masks(2, 3, 5, 6)
        expected = torch.from_numpy(references.pool_segments(features.numpy(), masks.numpy()))
        torch.testing.assert_close(pool_features(features, masks), expected, rtol=0, atol=ATOL)

    def test_one_hot_masks_give_the_mean_of_each_region(self) -> None:
        features = torch.randn(1, 4, 6, 6, dtype=torch.float64)
        labels = torch.arange(36).view(1, 6, 6) % 3
        masks = F.one_hot(labels, 3).permute(0, 3, 1, 2).double()
        pooled = pool_features(features, masks)
        for k in range(3):
            region = features[0][:, labels[0] == k]
            torch.testing.assert_close(pooled[0, k], region.mean(dim=1))

    def test_one_segment_over_everything_gives_the_global_mean(self) -> None:
        features = torch.randn(2, 4, 5, 6, dtype=torch.float64)
        pooled = pool_features(features, torch.ones(2, 1, 5, 6, dtype=torch.float64))
        torch.testing.assert_close(pooled[:, 0], features.mean(dim=(2, 3)))

    def test_does_not_depend_on_the_mass_of_a_segment(self) -> None:
        features = torch.randn(1, 4, 5, 6, dtype=torch.float64)
        masks = random_masks(1, 3, 5, 6)
        torch.testing.assert_close(
            pool_features(features, masks), pool_features(features, masks / 9)
        )

    def test_empty_segment_is_zero_and_keeps_gradients_finite(self) -> None:
        masks = torch.zeros(1, 2, 4, 4)
        masks[:, 0] = 1
        masks.requires_grad_()
        features = torch.randn(1, 3, 4, 4, requires_grad=True)
        pooled = pool_features(features, masks)
        assert torch.equal(pooled[0, 1], torch.zeros(3))
        pooled[:, 0].sum().backward()
        assert features.grad is not None
        assert torch.isfinite(features.grad).all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_never_below_float32(self, dtype: torch.dtype) -> None:
        # 4096 ones do not fit a sum in these types.
        features, masks = (
            torch.ones(1, 2, 64, 64, dtype=dtype),
            torch.ones(1, 1, 64, 64, dtype=dtype),
        )
        pooled = pool_features(features, masks)
        assert pooled.dtype == torch.float32
        assert torch.equal(pooled, torch.ones(1, 1, 2))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            third = pool_features(torch.full((1, 2, 64, 64), 1 / 3), torch.ones(1, 1, 64, 64))
        assert third.dtype == torch.float32
        torch.testing.assert_close(third, torch.full((1, 1, 2), 1 / 3), rtol=0, atol=1e-5)

    def test_gradients(self) -> None:
        features = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
        masks = random_masks(1, 2, 3, 4).requires_grad_()
        assert torch.autograd.gradcheck(pool_features, (features, masks))


class TestComposition:
    def test_equals_the_naive_loop(self) -> None:
        masks, motion = random_masks(2, 3, 4, 5), torch.randn(2, 3, 2, dtype=torch.float64)
        expected = torch.from_numpy(references.compose_flow(masks.numpy(), motion.numpy()))
        torch.testing.assert_close(compose_flow(masks, motion), expected, rtol=0, atol=ATOL)

    def test_one_motion_for_all_segments_is_a_constant_flow(self) -> None:
        motion = torch.tensor([3.0, -1.0]).expand(1, 4, 2)
        flow = compose_flow(random_masks(1, 4, 5, 6).float(), motion)
        torch.testing.assert_close(
            flow, torch.tensor([3.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 5, 6)
        )

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_never_below_float32(self, dtype: torch.dtype) -> None:
        # Subpixel differences at 100 pixels are lost in these types.
        masks, motion = torch.full((1, 2, 2, 2), 0.5), torch.full((1, 2, 2), 100.3)
        with torch.autocast("cpu", dtype=dtype):
            flow = compose_flow(masks, motion)
        assert flow.dtype == torch.float32
        torch.testing.assert_close(flow, torch.full((1, 2, 2, 2), 100.3))
        assert compose_flow(masks.to(dtype), motion.to(dtype)).dtype == torch.float32


def test_masks_are_resized_with_aligned_corners() -> None:
    masks = random_masks(1, 3, 4, 5)
    expected = torch.from_numpy(references.resize_bilinear(masks.numpy(), (7, 3)))
    torch.testing.assert_close(masks_of_level(masks, (7, 3)), expected, rtol=0, atol=ATOL)
    torch.testing.assert_close(
        masks_of_level(masks, (9, 9)).sum(dim=1), torch.ones(1, 9, 9).double()
    )


@pytest.fixture
def segment_flow(tiny_config: AMDConfig) -> AMDSegmentFlow:
    return AMDSegmentFlow(tiny_config).double()


def pyramids(segment_flow: AMDSegmentFlow, batch: int = 2) -> tuple[list[Tensor], list[Tensor]]:
    pyramid = segment_flow.motion_pathway.pyramid
    frames = torch.rand(2, batch, 3, 64, 64, dtype=torch.float64)
    return pyramid(frames[0])[:3], pyramid(frames[1])[:3]


def as_published(
    module: AMDSegmentFlow, references: list[Tensor], targets: list[Tensor], masks: Tensor
) -> tuple[list[Tensor], Tensor]:
    """The loop as the published code runs it: one full map per segment, read out pixel by pixel."""
    K = masks.shape[1]
    maps: list[Tensor] = []
    flows: list[Tensor] = []
    flow = torch.zeros_like(references[0][:, :2])
    for level, (reference, target) in enumerate(zip(references, targets, strict=True)):
        size = reference.shape[-2:]
        if level:

            def double(x: Tensor, size: torch.Size = size) -> Tensor:
                return F.interpolate(2 * x, size=size, mode="bilinear", align_corners=True)

            flow, maps = double(flow), [double(x) for x in maps]
            target = backward_warp(target, flow)
        pathway = module.motion_pathway
        r = pathway.search_range
        padded = F.pad(target, (r, r, r, r))
        volume = torch.stack(
            [
                (reference * padded[..., y : y + size[0], x : x + size[1]]).mean(dim=1)
                for y in range(2 * r + 1)
                for x in range(2 * r + 1)
            ],
            dim=1,
        )
        context = F.leaky_relu(pathway.context_convs[level](reference), 0.1)
        features = pathway.estimator(torch.cat([F.leaky_relu(volume, 0.1), context, flow], dim=1))
        m = F.interpolate(masks, size=size, mode="bilinear", align_corners=True)
        for k in range(K):
            pooled = (features * m[:, k : k + 1]).sum(dim=(2, 3)) / m[:, k].sum(dim=(1, 2))[:, None]
            spread = pooled[:, :, None, None].expand(-1, -1, *size)
            hidden = F.leaky_relu(
                F.conv2d(
                    spread,
                    module.readout.hidden.weight[:, :, None, None],
                    module.readout.hidden.bias,
                ),
                0.1,
            )
            residual = F.conv2d(
                hidden, module.readout.output.weight[:, :, None, None], module.readout.output.bias
            )
            if level:
                maps[k] = maps[k] + residual
            else:
                maps.append(residual)
        flow = sum(m[:, k : k + 1] * maps[k] for k in range(K))  # type: ignore[assignment]
        flows.append(flow)
    stride = 4
    enlarged = [
        F.interpolate(stride * flow, scale_factor=stride, mode="bilinear", align_corners=True)
        for flow in flows[::-1]
    ]
    return enlarged, stride * torch.stack([x.mean(dim=(2, 3)) for x in maps], dim=1)


class TestLoop:
    def test_equals_the_loop_over_full_maps(self, segment_flow: AMDSegmentFlow) -> None:
        first, second = pyramids(segment_flow)
        masks = random_masks(2, 3, 8, 8)
        flows, motion = as_published(segment_flow, first, second, masks)
        ours = segment_flow(first, second, masks)
        torch.testing.assert_close(ours.segment_motion, motion, rtol=0, atol=ATOL)
        assert len(ours.flows) == len(flows) == 3
        for mine, theirs in zip(ours.flows, flows, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=ATOL)

    def test_finest_flow_is_composed_of_the_segment_motion(
        self, segment_flow: AMDSegmentFlow
    ) -> None:
        first, second = pyramids(segment_flow)
        masks = random_masks(2, 3, 16, 16)  # the size of the finest level
        ours = segment_flow(first, second, masks)
        composed = compose_flow(masks, ours.segment_motion / 4)
        expected = F.interpolate(4 * composed, scale_factor=4, mode="bilinear", align_corners=True)
        torch.testing.assert_close(ours.flows[0], expected)

    def test_order_of_the_segments_does_not_matter(self, segment_flow: AMDSegmentFlow) -> None:
        first, second = pyramids(segment_flow)
        masks = random_masks(2, 3, 8, 8)
        order = torch.tensor([2, 0, 1])
        ours = segment_flow(first, second, masks)
        permuted = segment_flow(first, second, masks[:, order])
        torch.testing.assert_close(permuted.segment_motion, ours.segment_motion[:, order])
        torch.testing.assert_close(permuted.flows[0], ours.flows[0])

    def test_equal_masks_give_every_segment_the_same_motion(
        self, segment_flow: AMDSegmentFlow
    ) -> None:
        first, second = pyramids(segment_flow)
        masks = torch.full((2, 3, 8, 8), 1 / 3, dtype=torch.float64)
        ours = segment_flow(first, second, masks)
        motion = ours.segment_motion
        torch.testing.assert_close(motion, motion[:, :1].expand_as(motion))
        constant = motion[:, 0, :, None, None].expand(-1, -1, 64, 64)
        torch.testing.assert_close(ours.flows[0], constant)

    def test_pixel_flow_does_not_change_the_segment_flow(
        self, segment_flow: AMDSegmentFlow
    ) -> None:
        first, second = pyramids(segment_flow)
        masks = random_masks(2, 3, 8, 8)
        plain = segment_flow(first, second, masks)
        both = segment_flow(first, second, masks, output_pixel_flow=True)
        assert plain.pixel_flow is None
        assert both.pixel_flow.shape == (2, 2, 64, 64)
        assert torch.equal(plain.segment_motion, both.segment_motion)

    def test_without_masks_every_pixel_has_its_own_motion(
        self, segment_flow: AMDSegmentFlow
    ) -> None:
        ours = segment_flow(*pyramids(segment_flow), None)
        assert ours.segment_motion is None
        assert torch.equal(ours.pixel_flow, ours.flows[0])
        assert [flow.shape[-1] for flow in ours.flows] == [64, 32, 16]

    def test_gradients_of_the_masks(self) -> None:
        config = AMDConfig.tiny(
            motion_size=[16, 16],
            pyramid_channels=[2, 3],
            num_motion_levels=2,
            scale_weights=[1.0, 0.0],
            search_range=1,
            estimator_channels=[3, 3, 2, 2, 2],
        )
        module = AMDSegmentFlow(config).double()
        frames = torch.rand(2, 1, 3, 16, 16, dtype=torch.float64)
        first, second = (module.motion_pathway.pyramid(frame) for frame in frames)
        logits = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)

        def motion_of(logits: Tensor) -> Tensor:
            fixed = [x.detach() for x in first], [x.detach() for x in second]
            return module(*fixed, logits.softmax(dim=1)).segment_motion

        assert torch.autograd.gradcheck(motion_of, (logits,))


def test_readout_of_vectors_equals_readout_of_pixels() -> None:
    readout = AMDReadout(6, 5, 0.1).double()
    features = torch.randn(2, 6, 4, 4, dtype=torch.float64)
    pixels = readout(features.permute(0, 2, 3, 1))
    torch.testing.assert_close(pixels[:, 1, 2], readout(features[:, :, 1, 2]))


class TestDirections:
    """Both directions of a pair."""

    def pair(self) -> Tensor:
        return torch.randn(1, 2, 3, 40, 48, dtype=torch.float64)

    def test_swapping_the_frames_swaps_the_directions(self, tiny_model: AMDModel) -> None:
        model, pair = tiny_model.double(), self.pair()
        with torch.no_grad():
            ours, swapped = model(pixel_values=pair), model(pixel_values=pair.flip(1))
        for name in ("segment_motion_{}", "segment_flow_{}"):
            torch.testing.assert_close(ours[name.format("12")], swapped[name.format("21")])
            torch.testing.assert_close(ours[name.format("21")], swapped[name.format("12")])
        for name in ("synthesized_{}", "visibility_{}"):
            torch.testing.assert_close(ours[name.format(1)], swapped[name.format(2)])
        torch.testing.assert_close(ours.segment_masks, swapped.segment_masks.flip(1))
        torch.testing.assert_close(ours.loss, swapped.loss)

    def test_flow_of_frame_1_is_composed_with_the_masks_of_frame_2(
        self, tiny_model: AMDModel
    ) -> None:
        model, pair = tiny_model.double(), self.pair()
        with torch.no_grad():
            output = model(pixel_values=pair)
            frames = model.frames_in_rgb(pair[0])
            first, second = (
                model.segment_flow.motion_pathway.pyramid(frame[None])[:3] for frame in frames
            )
            flows, motion = as_published(
                model.segment_flow, first, second, output.segment_masks[:, 1]
            )
        torch.testing.assert_close(output.segment_flow_12, flows[0], rtol=0, atol=ATOL)
        torch.testing.assert_close(output.segment_motion_12, motion, rtol=0, atol=ATOL)
