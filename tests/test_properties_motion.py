"""Motion pathway: cost volume and pyramid against naive loops and simple scenes."""

from __future__ import annotations

import pytest
import torch

from amd_hf import AMDConfig
from amd_hf.motion_amd import AMDMotionPathway, cost_volume, normalize_features

from . import references

ATOL = 1e-10


class TestCostVolume:
    # Sizes below, at and above the 8x8 blocks of the implementation.
    @pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (9, 7), (16, 8)])
    @pytest.mark.parametrize("search_range", [1, 2, 4])
    def test_equals_the_naive_loop(self, size: tuple[int, int], search_range: int) -> None:
        reference = torch.randn(2, 2, *size, dtype=torch.float64)
        target = torch.randn(2, 2, *size, dtype=torch.float64)
        expected = torch.from_numpy(
            references.cost_volume(reference.numpy(), target.numpy(), search_range)
        )
        ours = cost_volume(reference, target, search_range)
        assert ours.shape == (2, (2 * search_range + 1) ** 2, *size)
        torch.testing.assert_close(ours, expected, rtol=0, atol=ATOL)

    @pytest.mark.parametrize(("dx", "dy"), [(0, 0), (2, -1), (-2, 2)])
    def test_finds_a_shift(self, dx: int, dy: int) -> None:
        r = 2
        reference = torch.randn(1, 64, 12, 12)
        target = reference.roll((dy, dx), dims=(2, 3))  # p in the reference is at p + d here
        best = cost_volume(reference, target, r)[0, :, 4:-4, 4:-4].mean(dim=(1, 2)).argmax()
        assert int(best) == (dy + r) * (2 * r + 1) + (dx + r)

    def test_is_zero_where_the_target_ends(self) -> None:
        ones = torch.ones(1, 3, 8, 8)
        volume = cost_volume(ones, ones, 1)[0]
        left_neighbor = volume[1 * 3 + 0]
        assert left_neighbor[:, 0].max() == 0
        torch.testing.assert_close(left_neighbor[:, 1:], torch.ones(8, 7))

    def test_gradients(self) -> None:
        reference = torch.randn(1, 2, 5, 9, dtype=torch.float64, requires_grad=True)
        target = torch.randn(1, 2, 5, 9, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda a, b: cost_volume(a, b, 1), (reference, target))

    @pytest.mark.parametrize("shape", [(1, 2, 4, 5), (1, 3, 4, 4), (2, 4, 4)])
    def test_refuses_other_shapes(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"`reference` and `target` must have one shape"):
            cost_volume(torch.zeros(1, 2, 4, 4), torch.zeros(shape), 1)


def test_normalized_features_have_zero_mean_per_channel_and_unit_variance() -> None:
    features = 3 + 5 * torch.randn(2, 4, 6, 7, dtype=torch.float64)
    normalized = normalize_features(features)
    assert normalized.mean(dim=(2, 3)).abs().max() < ATOL
    variances = normalized.var(dim=(1, 2, 3), correction=0)
    torch.testing.assert_close(variances, torch.ones(2, dtype=torch.float64))
    assert torch.isfinite(normalize_features(torch.zeros(1, 2, 4, 4))).all()


@pytest.fixture
def pathway(tiny_config: AMDConfig) -> AMDMotionPathway:
    return AMDMotionPathway(tiny_config).double()


def test_pyramid_halves_the_size_at_every_level(tiny_config: AMDConfig) -> None:
    pyramid = AMDMotionPathway(tiny_config).pyramid(torch.rand(2, 3, 64, 64))
    channels = list(tiny_config.pyramid_channels)[::-1]
    assert [tuple(level.shape) for level in pyramid] == [
        (2, c, size, size) for c, size in zip(channels, (4, 8, 16, 32), strict=True)
    ]


def test_published_estimator_sees_115_channels_and_returns_96() -> None:
    with torch.device("meta"):
        pathway = AMDMotionPathway(AMDConfig.official())
    assert pathway.estimator.convs[0].in_channels == 81 + 32 + 2
    assert pathway.out_channels == 96
    assert sum(p.numel() for p in pathway.parameters()) == 1_721_714 - (96 * 64 + 64 + 64 * 2 + 2)


def test_weights_are_shared_by_levels_but_for_the_context(pathway: AMDMotionPathway) -> None:
    contexts = {tuple(conv.weight.shape[:2]) for conv in pathway.context_convs}
    assert contexts == {(4, 8), (4, 4)}
    assert len(pathway.context_convs) == 3


def test_coarsest_level_does_not_warp(pathway: AMDMotionPathway) -> None:
    features = torch.randn(1, 8, 4, 4, dtype=torch.float64)
    target = torch.randn(1, 8, 4, 4, dtype=torch.float64)
    flow = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    # Sharing the context makes level 1 with zero flow the same function as level 0.
    pathway.context_convs[1] = pathway.context_convs[0]
    torch.testing.assert_close(
        pathway(features, target, flow, 0), pathway(features, target, flow, 1)
    )


def test_target_is_warped_by_the_flow(pathway: AMDMotionPathway) -> None:
    """With the right flow the warped target is the reference: same cost volume as no motion."""
    reference = torch.randn(1, 8, 8, 8, dtype=torch.float64)
    target = torch.zeros_like(reference)
    target[..., 2:] = reference[..., :-2]
    flow = torch.zeros(1, 2, 8, 8, dtype=torch.float64)
    flow[:, 0] = 2
    seen: list[torch.Tensor] = []
    pathway.estimator.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    pathway(reference, target, flow, 1)
    pathway(reference, reference, torch.zeros_like(flow), 1)
    volume = (2 * pathway.search_range + 1) ** 2
    moved, still = (x[:, :volume, :, :4] for x in seen)  # away from what left the image
    torch.testing.assert_close(moved, still)
    assert torch.equal(seen[0][:, -2:], flow)


def test_normalized_cost_volume_ignores_contrast(tiny_config: AMDConfig) -> None:
    pathway = AMDMotionPathway(AMDConfig.tiny(normalize_cost_volume=True)).double()
    reference = torch.randn(1, 8, 8, 8, dtype=torch.float64)
    target = torch.randn(1, 8, 8, 8, dtype=torch.float64)
    flow = torch.zeros(1, 2, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(
        pathway(reference, target, flow, 1), pathway(reference, 3 * target + 2, flow, 1)
    )
    assert not AMDMotionPathway(tiny_config).normalize_cost_volume
