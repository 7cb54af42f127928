"""One forward of a pair reproduces every tensor that the published code computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from amd_hf import AMDModelOutput
from amd_hf.loss_amd import photometric_loss, ssim_distance
from amd_hf.warping_amd import backward_warp, visibility_from_flow

from . import oracle

pytestmark = pytest.mark.parity

# Recorded, computed by the published code, and never used by it.
UNUSED = ("smooth_unused", "loss.whole", "dense_flow.scale1", "dense_flow.scale2")
UNUSED = (*UNUSED, "dense_flow.scale3", "dense_flow.scale4")
SCALES = range(4)


@pytest.fixture(scope="module")
def expected(oracle_dir: Path) -> dict[str, Tensor]:
    return oracle.tensors(oracle_dir / "case_a_eval.safetensors")


@pytest.fixture(scope="module")
def run(oracle_dir: Path) -> tuple[AMDModelOutput, dict[str, Tensor]]:
    """The output for the recorded pairs in eval mode, and all intermediate tensors."""
    model = oracle.official_model(oracle_dir)
    pair = oracle.tensors(oracle_dir / "inputs.safetensors")["a.pixel_values"]
    with torch.no_grad(), oracle.record(model) as recording:
        output = model(pixel_values=pair, output_pixel_flow=True)
    return output, recording.values


def assert_recorded(
    expected: dict[str, Tensor], computed: dict[str, Tensor], prefix: str, atol: float
) -> int:
    """Compares all recorded tensors whose name starts with `prefix`; returns how many."""
    names = [n for n in expected if n.startswith(prefix) and not any(u in n for u in UNUSED)]
    for name in names:
        base = name.partition(".sub")[0]
        torch.testing.assert_close(
            oracle.subsampled(name, computed[base]),
            expected[name],
            rtol=0,
            atol=atol,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    return len(names)


def test_logits_and_masks(
    run: tuple[AMDModelOutput, dict[str, Tensor]], expected: dict[str, Tensor]
) -> None:
    output, _ = run
    logits, masks = expected["seg_logits"], expected["seg_masks"]
    torch.testing.assert_close(output.segment_logits, logits, rtol=0, atol=oracle.LOGITS_ATOL)
    torch.testing.assert_close(output.segment_masks, masks, rtol=0, atol=oracle.MASKS_ATOL)


def test_upsampled_masks(
    run: tuple[AMDModelOutput, dict[str, Tensor]], expected: dict[str, Tensor]
) -> None:
    masks = run[0].segment_masks.flatten(0, 1)
    enlarged = torch.nn.functional.interpolate(
        masks, size=(96, 160), mode="bilinear", align_corners=True
    ).unflatten(0, (2, 2))
    name = "seg_masks_up_acT.sub2"
    torch.testing.assert_close(
        oracle.subsampled(name, enlarged), expected[name], rtol=0, atol=oracle.MASKS_ATOL
    )


def test_backbone_stages(
    run: tuple[AMDModelOutput, dict[str, Tensor]], expected: dict[str, Tensor]
) -> None:
    for stage in range(4):
        torch.testing.assert_close(
            run[1][f"backbone.out{stage}"][:, :8],
            expected[f"backbone.out{stage}.head8ch"],
            rtol=1e-4,
            atol=oracle.LOGITS_ATOL,
        )


def test_frames_of_the_motion_pathway(
    run: tuple[AMDModelOutput, dict[str, Tensor]], expected: dict[str, Tensor]
) -> None:
    name = "flownet_input.sub8"
    frames = oracle.subsampled(name, run[1]["frames"])
    torch.testing.assert_close(frames, expected[name], rtol=0, atol=oracle.OPERATOR_ATOL)


@pytest.mark.parametrize(
    ("prefix", "count", "atol"),
    [
        ("pyramid.", 4, oracle.FEATURES_ATOL),
        ("fw.corr_raw.", 2, oracle.FEATURES_ATOL),
        ("bw.corr_raw.", 2, oracle.FEATURES_ATOL),
        ("fw.motion_feat.", 5, oracle.FEATURES_ATOL),
        ("bw.motion_feat.", 5, oracle.FEATURES_ATOL),
        ("fw.pooled_feat.", 5, oracle.POOLED_ATOL),
        ("bw.pooled_feat.", 5, oracle.POOLED_ATOL),
        ("fw.segment_flow_residual.", 5, oracle.FLOW_ATOL),
        ("bw.segment_flow_residual.", 5, oracle.FLOW_ATOL),
        ("fw.dense_flow_residual.", 5, oracle.FLOW_ATOL),
        ("bw.dense_flow_residual.", 5, oracle.FLOW_ATOL),
        ("fw.segment_flow_vectors", 1, oracle.FLOW_ATOL),
        ("bw.segment_flow_vectors", 1, oracle.FLOW_ATOL),
        ("fw.segment_flow.", 5, oracle.FLOW_ATOL),
        ("bw.segment_flow.", 5, oracle.FLOW_ATOL),
        ("fw.dense_flow.", 1, oracle.FLOW_ATOL),
        ("bw.dense_flow.", 1, oracle.FLOW_ATOL),
        ("warped.im1.", 4, oracle.WARP_ATOL),
        ("warped.im2.", 4, oracle.WARP_ATOL),
        ("loss.seg.photo.", 8, oracle.LOSS_ATOL),
    ],
)
def test_intermediate_tensors(
    run: tuple[AMDModelOutput, dict[str, Tensor]],
    expected: dict[str, Tensor],
    prefix: str,
    count: int,
    atol: float,
) -> None:
    assert assert_recorded(expected, run[1], prefix, atol) == count


def test_cost_volumes_take_both_signs(expected: dict[str, Tensor]) -> None:
    # Otherwise the parity above could not see a missing leaky rectifier.
    assert (expected["fw.corr_raw.level1"] < 0).float().mean() > 0.05


@pytest.mark.parametrize("frame", [1, 2])
def test_visibility(
    run: tuple[AMDModelOutput, dict[str, Tensor]], expected: dict[str, Tensor], frame: int
) -> None:
    visibility = run[1][f"valid_mask.im{frame}.scale0"]
    name = f"valid_mask.im{frame}.scale0.sub4"
    wrong = oracle.subsampled(name, visibility).to(torch.uint8) != expected[name]
    assert wrong.sum() <= oracle.FLIPPED_PIXELS
    count = float(expected[f"valid_mask.im{frame}.count"])
    assert abs(float(visibility.sum()) - count) <= oracle.FLIPPED_PIXELS
    assert 0 < count < visibility.numel()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("frame", [1, 2])
def test_parts_of_the_loss(
    run: tuple[AMDModelOutput, dict[str, Tensor]],
    expected: dict[str, Tensor],
    frame: int,
    scale: int,
) -> None:
    place = f"im{frame}.scale{scale}"
    image, synthesized = run[1][f"image.{place}"], run[1][f"warped.{place}"]
    visible = run[1][f"valid_mask.{place}"]
    parts = {
        "l1": ((image - synthesized).abs() * visible).mean(),
        "ssim_mean": ssim_distance(synthesized * visible, image * visible).mean(),
        "valid_mean": visible.mean(),
    }
    for part, value in parts.items():
        name = f"loss.seg.{part}.{place}"
        torch.testing.assert_close(value, expected[name], rtol=0, atol=oracle.LOSS_ATOL)


def test_total_loss(
    run: tuple[AMDModelOutput, dict[str, Tensor]], expected: dict[str, Tensor]
) -> None:
    for name in ("loss", "loss.seg.total"):
        torch.testing.assert_close(run[0].loss, expected[name], rtol=0, atol=oracle.LOSS_ATOL)


def test_output_is_what_was_recorded(run: tuple[AMDModelOutput, dict[str, Tensor]]) -> None:
    output, values = run
    pairs = {
        "fw.segment_flow_vectors": output.segment_motion_12,
        "bw.segment_flow_vectors": output.segment_motion_21,
        "fw.segment_flow.scale0": output.segment_flow_12,
        "bw.segment_flow.scale0": output.segment_flow_21,
        "fw.dense_flow.scale0": output.pixel_flow_12,
        "bw.dense_flow.scale0": output.pixel_flow_21,
        "warped.im1.scale0": output.synthesized_1,
        "warped.im2.scale0": output.synthesized_2,
        "valid_mask.im1.scale0": output.visibility_1,
        "valid_mask.im2.scale0": output.visibility_2,
    }
    for name, tensor in pairs.items():
        assert torch.equal(values[name], tensor), name


def test_loss_of_the_pixel_flow(
    run: tuple[AMDModelOutput, dict[str, Tensor]], expected: dict[str, Tensor]
) -> None:
    """The published code scores its pixel flow too (and drops the result)."""
    output, values = run
    image, source = values["image.im1.scale0"], values["image.im2.scale0"]
    visible = visibility_from_flow(output.pixel_flow_21)
    loss = photometric_loss(image, backward_warp(source, output.pixel_flow_12), visible)
    name = "loss.whole.photo.im1.scale0"
    torch.testing.assert_close(loss, expected[name], rtol=0, atol=oracle.LOSS_ATOL)
