"""Each operator alone reproduces the published code, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from amd_hf.hub.convert_official import MOTION, official_key_table
from amd_hf.loss_amd import photometric_loss, ssim_distance
from amd_hf.motion_amd import cost_volume
from amd_hf.view_synthesis_amd import synthesize_views
from amd_hf.warping_amd import backward_warp, forward_splat, visibility_from_flow

from . import oracle

pytestmark = pytest.mark.parity

SCALE_WEIGHTS = [1.0, 1.0, 1.0, 1.0, 0.0]
VISIBILITY_THRESHOLD = 0.2
# Gradients through the whole motion pathway in float32; entries relative to the largest one.
DEEP_GRADIENT_RTOL = 1e-3


def unit_ops(folder: Path, prefix: str) -> dict[str, Tensor]:
    return oracle.tensors(folder / "unit_ops.safetensors", prefix)


def assert_gradients(
    function: Callable[[Tensor, Tensor], Tensor],
    inputs: tuple[Tensor, Tensor],
    cotangent: Tensor,
    expected: tuple[Tensor, Tensor, Tensor],
) -> None:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    gradients = torch.autograd.grad(output, leaves, cotangent)
    for ours, theirs in zip((output.detach(), *gradients), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=oracle.OPERATOR_ATOL)


def test_cost_volume(oracle_dir: Path) -> None:
    op = unit_ops(oracle_dir, "corr.")
    assert_gradients(
        lambda first, second: cost_volume(first, second, 4),
        (op["x1"], op["x2"]),
        op["cotangent"],
        (op["out"], op["grad_x1"], op["grad_x2"]),
    )


def test_backward_warp(oracle_dir: Path) -> None:
    op = unit_ops(oracle_dir, "warp.")
    assert_gradients(
        backward_warp,
        (op["x"], op["flow"]),
        op["cotangent"],
        (op["border.out"], op["border.grad_x"], op["border.grad_flow"]),
    )
    # The recorded flow leaves the image, so zero padding would be seen.
    assert not torch.allclose(op["border.out"], op["zeros.out"])


def test_visibility(oracle_dir: Path) -> None:
    op = unit_ops(oracle_dir, "occ.")
    splat = forward_splat(op["flow21"])
    torch.testing.assert_close(splat, op["corr_map"].clamp(0, 1), rtol=0, atol=oracle.OPERATOR_ATOL)
    # The published code stores occlusion, 1 - visibility.
    visible = visibility_from_flow(op["flow21"], VISIBILITY_THRESHOLD)
    assert ((1 - visible) != op["mask_backward"]).sum() == 0
    assert 0.1 < visible.mean() < 0.9


def test_ssim_distance(oracle_dir: Path) -> None:
    op = unit_ops(oracle_dir, "ssim.")
    distance = ssim_distance(op["x"], op["y"])
    torch.testing.assert_close(distance, op["dist"], rtol=0, atol=oracle.OPERATOR_ATOL)


def test_loss_and_its_gradient(oracle_dir: Path) -> None:
    op = unit_ops(oracle_dir, "loss.")
    frames = torch.cat(op["target"].chunk(2, dim=1))  # all first frames, then all second ones
    recorded = [op[f"flow4.scale{scale}"] for scale in range(5)]
    leaves = [flow.clone().requires_grad_() for flow in recorded]
    flows = [torch.cat(flow.chunk(2, dim=1)) for flow in leaves]
    B = len(frames) // 2
    views = synthesize_views(
        frames,
        frames.roll(B, dims=0),
        flows,
        flows[0].roll(B, dims=0),
        SCALE_WEIGHTS,
        VISIBILITY_THRESHOLD,
    )
    assert views[4] is None
    terms = torch.stack(
        [
            torch.stack(
                [
                    photometric_loss(view.image[i], view.synthesized[i], view.visibility[i])
                    for i in (slice(None, B), slice(B, None))
                ]
            )
            for view in views
            if view is not None
        ]
    )
    torch.testing.assert_close(
        terms, op["photo_terms_im1im2_per_scale"], rtol=0, atol=oracle.LOSS_ATOL
    )
    total = terms.mean(dim=1).sum()
    torch.testing.assert_close(total, op["total"], rtol=0, atol=oracle.LOSS_ATOL)
    assert views[0] is not None
    for frame, visible in enumerate(views[0].visibility.chunk(2), start=1):
        assert torch.equal(visible.to(torch.uint8), op[f"valid_mask{frame}.scale0"])
    gradients = torch.autograd.grad(total, leaves[:4])
    for scale, gradient in enumerate(gradients):
        expected = op[f"grad_flow4.scale{scale}"]
        atol = 1e-3 * float(expected.abs().max())
        torch.testing.assert_close(gradient, expected, rtol=0, atol=atol)


def test_motion_pathway_alone(oracle_dir: Path) -> None:
    op = unit_ops(oracle_dir, "pwc.")
    height, width = op["two_frame"].shape[-2:]
    model = oracle.official_model(oracle_dir, motion_size=[height, width])
    frames = torch.cat(op["two_frame"].chunk(2, dim=1))
    masks = torch.cat([op["mask1"], op["mask2"]]).requires_grad_()
    flow = model.estimate_flow(frames, masks, output_pixel_flow=True)
    assert flow.segment_motion is not None
    assert flow.pixel_flow is not None
    for i, direction in enumerate(oracle.DIRECTIONS):
        values = {
            "segment_flow_vectors": flow.segment_motion[i : i + 1],
            "dense_flow.scale0": flow.pixel_flow[i : i + 1],
            **{f"segment_flow.scale{s}": f[i : i + 1] for s, f in enumerate(flow.flows)},
        }
        for name, value in values.items():
            torch.testing.assert_close(
                value.detach(), op[f"{direction}.{name}"], rtol=0, atol=oracle.FLOW_ATOL
            )
    views = synthesize_views(
        frames,
        frames.roll(1, dims=0),
        flow.flows,
        flow.flows[0].roll(1, dims=0),
        SCALE_WEIGHTS,
        VISIBILITY_THRESHOLD,
    )
    loss = torch.stack(
        [
            0.5 * photometric_loss(view.image[i], view.synthesized[i], view.visibility[i])
            for view in views
            if view is not None
            for i in (slice(0, 1), slice(1, 2))
        ]
    ).sum()
    torch.testing.assert_close(loss.detach(), op["loss"], rtol=0, atol=oracle.LOSS_ATOL)
    loss.backward()
    assert masks.grad is not None
    for gradient, name in zip(masks.grad.chunk(2), ("grad_mask1", "grad_mask2"), strict=True):
        atol = DEEP_GRADIENT_RTOL * float(op[name].abs().max())
        torch.testing.assert_close(gradient, op[name], rtol=0, atol=atol)
    ours = {name: p.grad for name, p in model.named_parameters()}
    norms = {n: t for n, t in op.items() if n.startswith("gradnorm.")}
    table = official_key_table(model.config)
    assert len(norms) == sum(name.startswith(MOTION) for name in table)
    for name, norm in norms.items():
        gradient = ours[table[f"{MOTION}.{name.removeprefix('gradnorm.')}"]]
        assert gradient is not None, name
        torch.testing.assert_close(
            gradient.norm(), norm, rtol=DEEP_GRADIENT_RTOL, atol=1e-7, msg=name
        )
