"""The label-free choice of the object segment, on pairs whose object is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from amd_hf import DEFAULT_CHECKPOINT, AMDConfig, AMDImageProcessor, AMDModel
from amd_hf.data.decoding import PairCollator, PairTransform
from amd_hf.data.frame_pairs import frame_pairs
from amd_hf.evaluation.object_segment import (
    CUE_WEIGHTS,
    choose_from_cues,
    choose_object_segment,
    segment_cues,
    store_object_segment,
)

SIZE = (64, 64)
K = 5


def scene(object_segment: int, box: tuple[int, int, int, int], shift: int) -> tuple[Tensor, Tensor]:
    """Quadrant background segments and one moving box; (2, K, 16, 16) masks and (K, 2) motion."""
    others = [segment for segment in range(K) if segment != object_segment]
    masks = torch.zeros(2, K, 16, 16)
    quadrants = [(slice(0, 8), slice(0, 8)), (slice(0, 8), slice(8, 16))]
    quadrants += [(slice(8, 16), slice(0, 8)), (slice(8, 16), slice(8, 16))]
    for segment, (rows, columns) in zip(others, quadrants, strict=True):
        masks[:, segment, rows, columns] = 1
    top, left, bottom, right = box
    for frame in range(2):
        columns = slice(left + frame * shift, right + frame * shift)
        masks[frame, :, top:bottom, columns] = 0
        masks[frame, object_segment, top:bottom, columns] = 1
    motion = 0.3 * torch.randn(K, 2)
    motion[object_segment, 0] += shift * 63 / 15
    return masks, motion


def batch_of_scenes(object_segment: int, count: int = 24) -> tuple[Tensor, Tensor]:
    scenes = []
    for _ in range(count):
        top, left = torch.randint(2, 8, (2,)).tolist()
        height, width = torch.randint(3, 6, (2,)).tolist()
        box = (top, left, top + height, left + width)
        scenes.append(scene(object_segment, box, shift=int(torch.randint(0, 3, ()))))
    masks, motion = zip(*scenes, strict=True)
    return torch.stack(masks), torch.stack(motion)


@pytest.mark.parametrize("object_segment", range(K))
def test_the_moving_box_is_the_object(object_segment: int) -> None:
    masks, motion = batch_of_scenes(object_segment)
    choice = choose_from_cues(segment_cues(masks, motion, SIZE))
    assert choice.index == object_segment
    assert choice.confidence > 0.9
    assert choice.num_pairs == 24
    assert set(choice.cues) == set(CUE_WEIGHTS)


@pytest.mark.parametrize("cue", sorted(CUE_WEIGHTS))
def test_no_single_cue_prefers_the_background(cue: str) -> None:
    masks, motion = batch_of_scenes(2)
    values = segment_cues(masks, motion, SIZE)[cue]
    assert ((values >= 0) & (values <= 1)).all()
    mean = values.mean(dim=0)
    if cue not in ("consistency", "area"):  # of the still background these are perfect
        assert int(mean.argmax()) == 2
    assert float(mean[2]) > 0.5


def test_without_motion_the_others_decide() -> None:
    masks, motion = batch_of_scenes(1)
    cues = segment_cues(masks, torch.zeros_like(motion), SIZE)
    assert torch.equal(cues["relative_motion"], torch.zeros(24, K))
    assert choose_from_cues(cues).index == 1


def test_a_uniform_camera_motion_is_no_cue() -> None:
    masks, _ = batch_of_scenes(1)
    cues = segment_cues(masks, torch.full((24, K, 2), 5.0), SIZE)
    assert cues["relative_motion"].abs().max() < 1e-4


def test_consistency_follows_the_motion() -> None:
    masks, motion = scene(0, (4, 4, 8, 8), shift=3)
    right = segment_cues(masks[None], motion[None], SIZE)["consistency"][0, 0]
    wrong = segment_cues(masks[None], -motion[None], SIZE)["consistency"][0, 0]
    assert float(right) > 0.8
    assert float(wrong) < 0.2


def test_an_empty_segment_scores_low_and_finite() -> None:
    masks, motion = scene(0, (4, 4, 8, 8), shift=2)
    masks[:, 1] += masks[:, 4]
    masks[:, 4] = 0
    cues = segment_cues(masks[None], motion[None], SIZE)
    assert all(torch.isfinite(values).all() for values in cues.values())
    assert float(cues["area"][0, 4]) == 0


def test_indecision_shows_in_the_confidence() -> None:
    cues = {name: torch.rand(200, K) for name in CUE_WEIGHTS}
    assert choose_from_cues(cues).confidence < 0.4


def test_choice_by_a_model_and_its_config() -> None:
    model = AMDModel(AMDConfig.tiny()).train()
    pairs = [torch.randn(2, 2, 3, 64, 64) for _ in range(4)]
    choice = choose_object_segment(model, pairs, num_pairs=5)
    assert choice.num_pairs == 5
    assert model.training
    assert choice == choose_object_segment(model, [{"pixel_values": p} for p in pairs], num_pairs=5)
    store_object_segment(model.config, choice)
    assert model.config.object_segment == choice.index
    assert model.config.object_segment_confidence == pytest.approx(choice.confidence, abs=1e-4)
    table = choice.table().splitlines()
    assert len(table) == 2 + K
    assert table[2 + choice.index].startswith(f"| {choice.index} (object) |")


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match=r"`segment_masks` must have shape \(B, 2, K, h, w\)"):
        segment_cues(torch.zeros(1, K, 4, 4), torch.zeros(1, K, 2), SIZE)
    with pytest.raises(ValueError, match=r"`segment_motion_12` must have shape \(1, 5, 2\)"):
        segment_cues(torch.zeros(1, 2, K, 4, 4), torch.zeros(1, 4, 2), SIZE)
    with pytest.raises(ValueError, match="`pairs` must hold at least one pair, got none"):
        choose_object_segment(AMDModel(AMDConfig.tiny()), [])
    with pytest.raises(ValueError, match="`cue_weights` must give weights"):
        choose_from_cues({name: torch.rand(2, K) for name in CUE_WEIGHTS}, {"area": 1.0})


@pytest.mark.slow
def test_the_bundled_choice_agrees_with_the_oracle(shared_dir: Path) -> None:
    """The index chosen from unlabelled clips is the one that fits labelled images best."""
    model = AMDModel.from_pretrained(DEFAULT_CHECKPOINT).eval()
    transform = PairTransform("none", (128, 176))
    stream = frame_pairs(str(shared_dir / "data" / "train"), transform=transform, frame_gap=(1, 2))
    collate = PairCollator(transform)
    pairs = (collate(list(batch)) for batch in zip(*[iter(stream)] * 8, strict=False))
    choice = choose_object_segment(model, pairs, num_pairs=32)

    processor = AMDImageProcessor(size={"shortest_edge": 128})
    overlaps = torch.zeros(model.config.num_segments)
    folder = shared_dir / "data" / "dev" / "duts-tr"
    for path in sorted((folder / "images").glob("*.jpg"))[:24]:
        image = Image.open(path).convert("RGB")
        truth = torch.from_numpy(np.array(Image.open(folder / "masks" / f"{path.stem}.png")) > 0)
        with torch.no_grad():
            outputs = model(**processor(image, return_tensors="pt"))
        for segment in range(model.config.num_segments):
            mask = processor.post_process_object_segmentation(
                outputs, target_sizes=[truth.shape], object_segment=segment
            )[0]
            union = (mask | truth).sum().clamp(min=1)
            overlaps[segment] += (mask & truth).sum() / union
    assert choice.index == int(overlaps.argmax())
    assert choice.index == model.config.object_segment
    assert choice.confidence > 0.5
