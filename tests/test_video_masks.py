"""Adaptation to a whole video: its fused masks, how they are cut, and what a model learns."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from amd_hf import AMDImageProcessor, AMDModel
from amd_hf.adaptation_amd import adapt_to_video
from amd_hf.cli.main import main
from amd_hf.data.synthetic_objects import generate_clip
from amd_hf.training.pseudo_masks import flow_evidence, pseudo_mask
from amd_hf.training.video_masks import (
    VideoMaskObjective,
    adaptation_preset,
    color_evidence,
    smooth_along_flow,
)
from tests.evaluation_data import write_davis

pytest.importorskip("cv2")
SIDE = 64
SMALL = {"short_side": SIDE, "crop_size": 60, "short_side_range": (0.94, 1.0)}


def _video(num_frames: int = 6, seed: int = 5) -> tuple[dict[int, Tensor], np.ndarray]:
    pixels, masks = generate_clip(num_frames, SIDE, SIDE, seed)
    return dict(enumerate(torch.from_numpy(pixels).permute(0, 3, 1, 2))), masks


def _iou(mask: Tensor, truth: np.ndarray) -> float:
    found = mask.numpy() > 0.5
    return float((found & truth).sum() / max((found | truth).sum(), 1))


def _neighbors(count: int) -> list[tuple[int, int]]:
    ahead = [(n, n + 1) for n in range(count - 1)]
    return [*ahead, *[(there, here) for here, there in ahead]]


def test_smoothing_follows_the_motion_and_fills_a_gap() -> None:
    truth = torch.zeros(5, 20, 40)
    for number in range(5):
        truth[number, 5:15, 4 + 3 * number : 14 + 3 * number] = 1.0
    seen = truth.clone()
    seen[2] = 0.0  # the object was missed once
    neighbors = _neighbors(5)
    flows = torch.zeros(len(neighbors), 2, 20, 40)
    flows[:4, 0], flows[4:, 0] = 3.0, -3.0
    smoothed = smooth_along_flow(seen, flows, neighbors, 2)
    assert (smoothed[2, 5:15, 10:20] > 0.5).all()
    # An exact flow moves nothing else: away from the frame's border truth stays truth.
    assert torch.allclose(smooth_along_flow(truth, flows, neighbors, 3), truth, atol=1e-5)


def test_smoothing_without_neighbors_or_rounds_changes_nothing() -> None:
    masks = torch.rand(2, 8, 9)
    assert torch.equal(smooth_along_flow(masks, torch.empty(0, 2, 8, 9), [], 5), masks)
    flows = torch.ones(2, 2, 8, 9)
    assert torch.equal(smooth_along_flow(masks, flows, [(0, 1), (1, 0)], 0), masks)


def test_color_evidence_tells_object_from_ground_through_wrong_masks() -> None:
    frames = torch.zeros(2, 3, 20, 20)
    frames[:, 2] = 0.8
    frames[:, :, 5:15, 5:15] = torch.tensor([0.9, 0.2, 0.1]).view(3, 1, 1)
    masks = torch.zeros(2, 20, 20)
    masks[:, 5:15, 8:18] = 0.9  # off by three columns
    evidence = color_evidence(frames, masks)
    assert (evidence[:, 5:15, 5:15] > 1.0).all()
    assert (evidence[:, :5] < -0.5).all()
    assert evidence.abs().max() <= 4.0


def test_color_evidence_of_one_color_is_none() -> None:
    masks = torch.zeros(1, 8, 8)
    masks[:, 2:5, 2:5] = 1.0
    assert color_evidence(torch.full((1, 3, 8, 8), 0.5), masks).abs().max() < 1e-4


def test_fused_masks_are_better_than_those_of_single_frames(tiny_model: AMDModel) -> None:
    fused, single = [], []
    for seed in range(2):
        frames, truth = _video(seed=seed)
        targets = VideoMaskObjective().video_targets(tiny_model.eval(), frames)
        alone = VideoMaskObjective(0.0, 0).video_targets(tiny_model.eval(), frames)
        assert list(targets) == list(frames)
        for number, mask in targets.items():
            assert mask.shape == (SIDE, SIDE)
            assert 0.0 <= float(mask.min()) <= float(mask.max()) <= 1.0
            fused.append(_iou(mask, truth[number]))
            single.append(_iou(alone[number], truth[number]))
    assert np.mean(fused) > 0.5
    assert np.mean(fused) > np.mean(single)


def test_frames_without_a_neighbor_keep_the_models_word(tiny_model: AMDModel) -> None:
    frames, _ = _video(4)
    apart = {number * 10: frame for number, frame in frames.items()}
    targets = VideoMaskObjective(0.0).video_targets(tiny_model.eval(), apart)
    together = VideoMaskObjective(0.0).video_targets(tiny_model.eval(), frames)
    assert all((mask < 0.5).all() for mask in targets.values())  # K = 5 untrained segments
    assert any((mask > 0.5).any() for mask in together.values())


def test_a_still_video_has_no_objects_in_motion(tiny_model: AMDModel) -> None:
    frame = _video()[0][0]
    still = {0: frame, 1: frame, 2: frame}
    moving_only = VideoMaskObjective(use_saliency=False)
    targets = moving_only.video_targets(tiny_model.eval(), still)
    assert all((mask < 0.5).all() for mask in targets.values())


def test_saliency_speaks_for_an_object_that_stands_still(tiny_model: AMDModel) -> None:
    frame = torch.full((3, 96, 128), 70, dtype=torch.uint8)
    frame[:, 30:66, 44:92] = torch.tensor([230, 40, 40], dtype=torch.uint8).view(3, 1, 1)
    video = {0: frame, 1: frame, 2: frame}
    contrast = {}
    for use_saliency in (True, False):
        objective = VideoMaskObjective(use_saliency=use_saliency, color_weight=0.0)
        mask = objective.video_targets(tiny_model.eval(), video)[1]
        contrast[use_saliency] = float(mask[34:62, 48:88].mean() / mask[:20].mean())
    assert contrast[True] > 3.0 * contrast[False]


class _Brightness:
    """An objective whose maps are the frames' own first channel: crops must agree."""

    def __init__(self) -> None:
        self.prepared, self.errors = 0, []

    def video_targets(self, model: AMDModel, frames: dict[int, Tensor]) -> dict[int, Tensor]:
        assert not model.training
        assert not torch.is_grad_enabled()
        self.prepared += 1
        return {number: frame[0].float() / 255.0 for number, frame in frames.items()}

    def __call__(self, model: Any, pixel_values: Tensor, targets: Tensor) -> Tensor:
        mean, std = model.config.image_mean[0], model.config.image_std[0]
        red = (pixel_values[:, :, 0] * std + mean) / 255.0
        self.errors.append(float((red - targets).abs().max()))
        return model(pixel_values=pixel_values.flatten(0, 1)).segment_logits.square().mean()


def test_targets_are_made_once_and_cut_with_their_frames(tiny_model: AMDModel) -> None:
    objective = _Brightness()
    frames = list(generate_clip(4, SIDE, 80, 1)[0])
    adapt_to_video(tiny_model, frames, 3, objective=objective, **SMALL)
    assert objective.prepared == 1
    assert len(objective.errors) == 3
    assert max(objective.errors) < 1e-3
    adapt_to_video(tiny_model, frames, 0, objective=objective, **SMALL)
    assert objective.prepared == 1


def test_a_model_learns_the_moving_object(tiny_model: AMDModel) -> None:
    frames, truth = _video(6, seed=3)
    preset = {**adaptation_preset("video_mask"), "learning_rate": 1e-2}
    video = [frame.permute(1, 2, 0).numpy() for frame in frames.values()]
    result = adapt_to_video(tiny_model, video, 40, return_history=True, **preset, **SMALL)
    assert np.mean(result.losses[-5:]) < 0.8 * np.mean(result.losses[:5])
    config: Any = tiny_model.config
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.image_mean, config.image_std))
    pixels = (torch.stack(list(frames.values())) - mean) / std
    segment = config.object_segment
    truth_small = torch.nn.functional.adaptive_avg_pool2d(
        torch.from_numpy(truth).float()[:, None], (SIDE // 8, SIDE // 8)
    )[:, 0]

    def contrast(model: AMDModel) -> float:
        with torch.no_grad():
            mask = model.eval()(pixel_values=pixels).segment_masks[:, segment]
        inside = (mask * truth_small).sum() / truth_small.sum()
        return float(inside - (mask * (1 - truth_small)).sum() / (1 - truth_small).sum())

    assert contrast(result.model) > contrast(tiny_model) + 0.15


def test_only_the_appearance_pathway_adapts(tiny_model: AMDModel) -> None:
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    video = list(generate_clip(4, SIDE, SIDE, 2)[0])
    adapted = adapt_to_video(tiny_model, video, 2, **adaptation_preset("video_mask"), **SMALL)
    changed = {n.split(".")[0] for n, v in adapted.state_dict().items() if not v.equal(before[n])}
    assert changed
    assert "segment_flow" not in changed
    assert all(value.equal(before[name]) for name, value in tiny_model.state_dict().items())


def test_flow_evidence_feeds_the_same_mask_as_frames() -> None:
    flow = torch.zeros(2, 2, SIDE, SIDE)
    flow[:, 0, 20:40, 20:40] = 4.0
    mask = pseudo_mask(flow_evidence(flow))
    assert (mask[22:38, 22:38] > 0.5).all()
    assert not (mask[:15] > 0.5).any()


def test_wrong_names_and_weights_give_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"`objective` must be one of .*video_mask.*, got masks"):
        adaptation_preset("masks")
    assert set(adaptation_preset("segment_flow_moving_object")) == {"objective"}
    with pytest.raises(ValueError, match="must be at least 0, got -1 and 8"):
        VideoMaskObjective(color_weight=-1)


def test_another_segment_can_become_the_object(tiny_model) -> None:
    frames, _ = _video(3)
    config = tiny_model.config
    other = (config.object_segment + 1) % config.num_segments
    default = VideoMaskObjective(use_saliency=False)
    chosen = VideoMaskObjective(use_saliency=False, object_segment=other)
    masks = [one.video_targets(tiny_model.eval(), frames)[0] for one in (default, chosen)]
    assert not torch.equal(*masks)
    pairs, everything = torch.randn(1, 2, 3, SIDE, SIDE), torch.ones(1, 2, SIDE, SIDE)
    with torch.no_grad():
        shares = tiny_model(pixel_values=pairs[0]).segment_masks.mean(dim=(0, 2, 3))
        losses = [one(tiny_model, pairs, everything) for one in (default, chosen)]
    # The segment that holds more of the frame has less to learn.
    assert (losses[0] < losses[1]) == (shares[config.object_segment] > shares[other])
    with pytest.raises(ValueError, match=r"`object_segment` must lie in 0\.\."):
        VideoMaskObjective(object_segment=99).video_targets(tiny_model, frames)


def test_settings_given_by_hand_override_the_preset(
    tmp_path, tiny_model, tiny_config, capsys, monkeypatch
) -> None:
    seen: list[dict[str, Any]] = []

    def watched(model: AMDModel, frames: Any, num_steps: int, **settings: Any) -> AMDModel:
        seen.append(settings)
        return adapt_to_video(model, frames, num_steps, **settings)

    monkeypatch.setattr("amd_hf.adaptation_amd.adapt_to_video", watched)
    checkpoint = str(tmp_path / "tiny-amd")
    tiny_model.save_pretrained(checkpoint)
    processor = AMDImageProcessor.from_model_config(tiny_config, size={"shortest_edge": 48})
    processor.save_pretrained(checkpoint)
    root = str(write_davis(tmp_path / "davis"))
    command = ["evaluate", "davis2016", "--data", root, "--model", checkpoint, "--device", "cpu"]
    options = ["--adapt-set", "objective=video_mask", "--adapt-set", "learning_rate=2e-3"]
    only = ["--sequences", "dog", "--limit-frames", "1", "--bootstrap", "0", "--json", "--quiet"]
    assert main([*command, "--adapt-steps", "1", *options, *only]) == 0
    result = json.loads(capsys.readouterr().out)
    chosen = result["settings"]["adapt_settings"]
    assert chosen == {"objective": "video_mask", "learning_rate": 0.002}
    assert isinstance(seen[0]["objective"], VideoMaskObjective)
    assert seen[0]["learning_rate"] == 0.002
    assert seen[0]["parameters"] == "appearance"
    assert (seen[0]["short_side"], seen[0]["crop_size"]) == (49, 47)
    capsys.readouterr()
    assert main([*command, "--adapt-steps", "1", *options, *only, "--short-side", "64"]) == 0
    assert (seen[1]["short_side"], seen[1]["crop_size"]) == (65, 62)
