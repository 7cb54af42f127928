"""What moves against the camera: classical flow, dominant motion and their objectives."""

import sys

import numpy as np
import pytest
import torch

from amd_hf.adaptation_amd import adapt_to_video
from amd_hf.data.synthetic_objects import generate_clip
from amd_hf.evaluation.motion_baseline import dense_flow
from amd_hf.training import moving_objects
from amd_hf.training.classical_motion import (
    MovingObject,
    classical_flow,
    dominant_motion_residual,
    moving_object,
)
from amd_hf.training.objectives import OBJECTIVES


def _quadratic_flow(height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y / height - 0.5, x / width - 0.5
    return torch.stack([3 + 4 * x - 2 * y * y, -1 + 2 * y + 3 * x * y]).unsqueeze(0)


def test_camera_motion_leaves_no_residual() -> None:
    residual, scale = dominant_motion_residual(_quadratic_flow(48, 64))
    assert residual.max() < 0.05
    assert scale.item() == pytest.approx(0.15)
    assert not moving_object(_quadratic_flow(48, 64)).is_usable.any()


def test_residual_is_the_same_under_autocast() -> None:
    flow = _quadratic_flow(48, 64)
    with torch.autocast("cpu", torch.bfloat16):
        residual, _ = dominant_motion_residual(flow)
    assert torch.equal(residual, dominant_motion_residual(flow)[0])


def test_object_moving_against_the_camera_is_found() -> None:
    flow = _quadratic_flow(64, 96)
    mask = torch.zeros(64, 96, dtype=torch.bool)
    mask[20:44, 30:60] = True
    flow[:, :, mask] += torch.tensor([2.0, -1.0]).view(1, 2, 1)
    found = moving_object(flow)
    assert found.is_usable.all()
    assert torch.equal(found.probability[0] > 0.5, mask)


def test_classical_flow_finds_a_shift() -> None:
    pytest.importorskip("cv2")
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 20, 28, generator=generator)
    image = torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bicubic").clamp(0, 1)
    flow = classical_flow(image, image.roll((2, 3), dims=(2, 3)))
    middle = flow[0, :, 20:-20, 20:-20].flatten(1).median(dim=1).values
    assert torch.allclose(middle, torch.tensor([3.0, 2.0]), atol=0.3)


def test_training_and_evaluation_share_one_flow() -> None:
    pytest.importorskip("cv2")
    frames = generate_clip(3, 64, 96, seed=4)[0]
    frames = np.repeat(frames[..., :1], 3, axis=3)  # of gray frames both make the same gray
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    flows = classical_flow(images[:-1], images[1:])
    assert flows.abs().max() > 0.5
    for flow, first, second in zip(flows, frames[:-1], frames[1:], strict=True):
        assert torch.equal(flow, torch.from_numpy(dense_flow(first, second)))


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r'pip install "amd-hf\[eval\]"'):
        classical_flow(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))


def test_classical_flow_names_differing_shapes() -> None:
    pytest.importorskip("cv2")
    with pytest.raises(ValueError, match=r"one shape \(B, 3, H, W\), got"):
        classical_flow(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 40))


def test_target_overlaps_the_exact_mask_of_a_generated_clip() -> None:
    pytest.importorskip("cv2")
    overlaps = []
    for seed in range(6):
        frames, masks = generate_clip(2, 96, 128, seed)
        pair = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
        found = moving_object(classical_flow(pair[:1], pair[1:]))
        moving, exact = found.probability[0] > 0.5, torch.from_numpy(masks[0])
        overlaps.append(((moving & exact).sum() / (moving | exact).sum()).item())
    assert sum(overlaps) / len(overlaps) > 0.5


def test_moving_object_loss_rewards_the_object_segment_only() -> None:
    target = MovingObject(torch.zeros(1, 16, 16), torch.tensor([True]))
    target.probability[:, 4:12, 4:12] = 1.0
    good = torch.zeros(1, 3, 16, 16)
    good[:, 1] = torch.where(target.probability > 0.5, 8.0, -8.0)
    loss_good = moving_objects.moving_object_loss(good, target, object_segment=1)
    loss_other = moving_objects.moving_object_loss(good, target, object_segment=0)
    assert loss_good < 0.01 < loss_other
    unusable = MovingObject(target.probability, torch.tensor([False]))
    assert moving_objects.moving_object_loss(good, unusable, object_segment=1) == 0


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("moving_object", "appearance"),
        ("classical_flow", "segment_flow"),
        ("segment_flow_moving_object", "appearance"),
    ],
)
def test_objectives_train_their_pathway(name: str, trained: str, tiny_model) -> None:
    pytest.importorskip("cv2")
    frames, _ = generate_clip(2, 64, 64, seed=3)
    pixel_values = (torch.from_numpy(frames).permute(0, 3, 1, 2).float() - 116) / 58
    batch = {"pixel_values": pixel_values.unsqueeze(0)}
    tiny_model.train()
    loss, logs = OBJECTIVES[name](tiny_model, batch, 0)
    loss.backward()
    assert torch.isfinite(loss)
    assert logs
    with_gradient = {
        key.split(".")[0]
        for key, weight in tiny_model.named_parameters()
        if weight.grad is not None and weight.grad.abs().sum() > 0
    }
    assert trained in with_gradient
    if name != "segment_flow_moving_object":
        assert ("segment_flow" in with_gradient) == (trained == "segment_flow")


def test_adaptation_takes_a_registered_objective(tiny_model) -> None:
    pytest.importorskip("cv2")
    frames = list(generate_clip(4, 64, 64, seed=5)[0])
    objective = moving_objects.pair_objective("segment_flow_moving_object")
    settings = {"num_steps": 2, "short_side": 64, "crop_size": 60, "return_history": True}
    guided = adapt_to_video(tiny_model, frames, objective=objective, **settings)
    plain = adapt_to_video(tiny_model, frames, **settings)
    assert guided.losses[0] != plain.losses[0]
    with pytest.raises(ValueError, match=r"`objective` must be one of .*, got motion"):
        moving_objects.pair_objective("motion")
