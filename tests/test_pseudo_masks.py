"""Pseudo-masks: evidence from motion and a model, the shards that hold them, and the stage."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from amd_hf import AMDConfig, AMDModel
from amd_hf.data.augmentation import PairAugmentation
from amd_hf.data.frame_pairs import open_source
from amd_hf.data.object_masks import ObjectMasks
from amd_hf.data.synthetic_objects import generate_clip
from amd_hf.training.arguments import PretrainingArguments
from amd_hf.training.data_stream import EndlessBatches
from amd_hf.training.objectives import OBJECTIVES
from amd_hf.training.pretraining import pretrain
from amd_hf.training.pseudo_mask_shards import PseudoMaskSettings, write_pseudo_masks
from amd_hf.training.pseudo_masks import (
    MotionEvidence,
    background_saliency,
    is_plausible,
    motion_evidence,
    object_masks,
    pseudo_mask,
    refine_by_color,
)

pytest.importorskip("cv2")
HEIGHT, WIDTH = 96, 128


def _frames(clip_number: int = 1, num_frames: int = 3) -> tuple[torch.Tensor, np.ndarray]:
    pixels, masks = generate_clip(num_frames, HEIGHT, WIDTH, clip_number)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0, masks


def _folder_of_clips(folder: Path, count: int = 4) -> Path:
    for number in range(count):
        video = folder / f"video_{number}"
        video.mkdir(parents=True)
        for index, pixels in enumerate(generate_clip(3, HEIGHT, WIDTH, number)[0]):
            Image.fromarray(pixels).save(video / f"{index:05d}.jpg", quality=95)
    return folder


def _iou(mask: torch.Tensor, truth: np.ndarray) -> float:
    found = mask.numpy() > 0.5
    return float((found & truth).sum() / max((found | truth).sum(), 1))


def _square() -> torch.Tensor:
    mask = torch.zeros(40, 60)
    mask[10:30, 20:40] = 1.0
    return mask


def test_motion_alone_finds_the_moving_objects() -> None:
    scores = []
    for number in range(6):
        frames, truth = _frames(number)
        evidence = motion_evidence(frames[1], frames[[0, 2]])
        scores.append(_iou(pseudo_mask(evidence), truth[1]))
    assert np.mean(scores) > 0.3
    assert max(scores) > 0.6


def test_two_flows_agree_more_than_one() -> None:
    evidence = [
        MotionEvidence(torch.full((4, 4), ratio), torch.ones(4, 4)) for ratio in (2.0, 3.0, 8.0)
    ]
    values = [float(pseudo_mask(item)[0, 0]) for item in evidence]
    assert values == pytest.approx([0.0, 0.5, 1.0])


def test_model_and_motion_add_up_as_log_odds() -> None:
    middle = MotionEvidence(torch.full((2, 2), 3.0), torch.ones(2, 2))
    for probability in (0.2, 0.5, 0.9):
        seen = torch.full((2, 2), probability)
        odds = float(pseudo_mask(middle, seen)[0, 0].logit())
        assert odds == pytest.approx(2.0 * float(torch.tensor(probability).logit()), abs=1e-4)
    still = MotionEvidence(torch.full((2, 2), 0.5), torch.ones(2, 2))
    assert pseudo_mask(still, torch.full((2, 2), 0.6)).max() < 0.5
    # Certain motion does not drown a certain model: its evidence is bounded.
    fast = MotionEvidence(torch.full((2, 2), 100.0), torch.ones(2, 2))
    assert pseudo_mask(fast, torch.full((2, 2), 0.01)).max() < 0.5


def test_saliency_is_one_more_witness_in_log_odds() -> None:
    middle = MotionEvidence(torch.full((2, 2), 3.0), torch.ones(2, 2))
    seen = torch.full((2, 2), 0.7)
    without = pseudo_mask(middle, seen).logit()
    for saliency in (0.2, 0.5, 0.9):
        added = pseudo_mask(middle, seen, torch.full((2, 2), saliency)).logit() - without
        assert torch.allclose(added, 2.0 * torch.tensor(saliency).logit(), atol=1e-3)
    # Without a model, motion and saliency decide; none of them alone is certain.
    for saliency in (0.0, 1.0):
        alone = pseudo_mask(middle, saliency=torch.full((2, 2), saliency))
        assert 0.0 < float(alone[0, 0]) < 1.0
        assert (float(alone[0, 0]) > 0.5) == bool(saliency)


def test_saliency_is_high_on_what_the_border_does_not_reach() -> None:
    truth = torch.zeros(60, 80, dtype=torch.bool)
    truth[20:40, 30:55] = True
    frame = torch.where(truth, torch.tensor([0.9, 0.2, 0.2]).view(3, 1, 1), 0.3)
    saliency = background_saliency(frame)
    assert saliency.shape == truth.shape
    assert saliency.dtype == torch.float32
    assert saliency[truth].mean() > 0.8
    assert saliency[~truth].mean() < 0.2


def test_saliency_keeps_an_object_that_motion_finds_in_part(tmp_path: Path) -> None:
    """Shards with and without it: saliency raises the agreement with the exact masks."""
    source = open_source(_folder_of_clips(tmp_path / "clips", 8))
    scores = {}
    for use_saliency in (False, True):
        folder = tmp_path / f"masks_{use_saliency}"
        index = write_pseudo_masks(source, folder, PseudoMaskSettings(use_saliency=use_saliency))
        assert index["settings"]["use_saliency"] is use_saliency
        masks = ObjectMasks(folder)
        found = []
        for number in range(8):
            truth = generate_clip(3, HEIGHT, WIDTH, number)[1]
            key = source.clip(number).key.replace("/", "__")
            mask = masks.mask(key, 1)
            if mask is not None:
                found.append(_iou(mask / 255.0, truth[1]))
        scores[use_saliency] = found
    assert len(scores[True]) >= 6
    assert np.mean(scores[True]) > np.mean(scores[False]) + 0.1


@pytest.mark.parametrize("case", ["good", "small", "large", "border", "still"])
def test_plausible_masks_are_kept(case: str) -> None:
    mask = _square()
    residual = torch.ones(40, 60)
    if case == "small":
        mask = torch.zeros(40, 60)
        mask[0:3, 0:3] = 1.0
    elif case == "large":
        mask[:] = 1.0
    elif case == "border":
        mask = torch.zeros(40, 60)
        mask[:4] = 1.0
    elif case == "still":
        residual *= 0.1
    assert is_plausible(mask, MotionEvidence(residual * 5, residual)) is (case == "good")


def test_colors_cut_a_mask_to_the_object() -> None:
    truth = _square().bool()
    frame = torch.where(truth, 0.8, 0.2).expand(3, -1, -1)
    frame = (frame + 0.05 * torch.rand(3, 40, 60)).clamp(0, 1)
    rough = torch.zeros(40, 60)
    rough[8:27, 22:44] = 0.7
    refined = refine_by_color(frame, rough)
    assert _iou(refined > 0.4, truth.numpy()) > _iou(rough, truth.numpy()) + 0.1
    assert torch.equal(refined, refine_by_color(frame, rough))  # no draw of its own
    assert refined[0, 0] == 0.0
    assert torch.equal(refine_by_color(frame, torch.zeros(40, 60)), torch.zeros(40, 60))


def test_model_masks_do_not_depend_on_the_mirror() -> None:
    model = AMDModel(AMDConfig.tiny()).eval()
    frames, _ = _frames()
    soft = object_masks(model, frames, 64)
    mirrored = object_masks(model, frames.flip(-1), 64)
    assert soft.shape == (3, HEIGHT, WIDTH)
    assert torch.allclose(soft, mirrored.flip(-1), atol=0.02)


def test_shards_hold_frames_and_masks(tmp_path: Path) -> None:
    source = open_source(_folder_of_clips(tmp_path / "clips"))
    index = write_pseudo_masks(source, tmp_path / "out", PseudoMaskSettings(clips_per_shard=3))
    assert index["clips"] + sum(index["skipped"].values()) == 4
    assert json.loads((tmp_path / "out" / "index.json").read_text()) == index
    masks = ObjectMasks(tmp_path / "out")
    assert len(masks) == index["masks"] > 0
    read = open_source(tmp_path / "out")
    assert len(read) == index["clips"]
    clip = read.clip(0)
    [encoded] = read.read(0, [0])
    image = Image.open(io.BytesIO(encoded))
    found = [masks.mask(clip.key, frame) for frame in range(clip.num_frames)]
    assert any(mask is not None for mask in found)
    assert all(mask is None or tuple(mask.shape[::-1]) == image.size for mask in found)


def test_interrupted_writing_goes_on_after_the_last_whole_shard(tmp_path: Path) -> None:
    source = open_source(_folder_of_clips(tmp_path / "clips"))
    settings = PseudoMaskSettings(clips_per_shard=2)
    whole = write_pseudo_masks(source, tmp_path / "whole", settings)

    class StoppedError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        write_pseudo_masks(source, tmp_path / "cut", settings, progress=stop)
    (tmp_path / "cut" / "shard-00001.partial").write_bytes(b"half")
    assert write_pseudo_masks(source, tmp_path / "cut", settings) == whole
    for number in range(2):
        name = f"shard-{number:05d}.tar"
        assert ObjectMasks(tmp_path / "whole")._place == ObjectMasks(tmp_path / "cut")._place
        assert (tmp_path / "whole" / name).stat().st_size == (
            tmp_path / "cut" / name
        ).stat().st_size


def test_workers_do_not_change_the_result(tmp_path: Path) -> None:
    source = open_source(_folder_of_clips(tmp_path / "clips"))
    settings = PseudoMaskSettings(clips_per_shard=2)
    alone = write_pseudo_masks(source, tmp_path / "alone", settings)
    shared = write_pseudo_masks(source, tmp_path / "shared", settings, num_workers=2)
    assert shared == alone
    for path in (tmp_path / "alone").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "shared" / path.name).read_bytes()


def test_other_settings_are_refused(tmp_path: Path) -> None:
    source = open_source(_folder_of_clips(tmp_path / "clips"))
    write_pseudo_masks(source, tmp_path / "out", PseudoMaskSettings(clips_per_shard=3))
    with pytest.raises(ValueError, match="begun with other clips_per_shard"):
        write_pseudo_masks(source, tmp_path / "out", PseudoMaskSettings(clips_per_shard=2))


def test_masks_are_cut_like_the_frames(tmp_path: Path) -> None:
    """A mask that is painted into the frames themselves stays aligned under every crop and flip."""
    folder = tmp_path / "shards"
    source = open_source(_folder_of_clips(tmp_path / "clips"))
    write_pseudo_masks(source, folder)
    masks = ObjectMasks(folder)
    augmentation = PairAugmentation("heavy", (48, 64))
    key, frame = next(iter(masks._place))
    mask = masks.mask(key, frame)
    assert mask is not None
    painted = mask.expand(3, -1, -1).unsqueeze(0)
    for seed in range(8):
        geometry = augmentation.draw_geometry(*mask.shape, seed)
        expected = augmentation.apply_geometry(painted, geometry)[0, 0] / 255.0
        crops = masks.crops([f"{key}/{frame}-{frame}"], [seed], augmentation)
        assert torch.equal(crops["object_masks"][0, 0], expected)
    assert crops["has_object_mask"].all()


def test_sets_with_equal_names_are_joined_by_a_prefix(tmp_path: Path) -> None:
    """Without one, the frames of one set would get the masks of the other."""
    joined = tmp_path / "joined"
    joined.mkdir()
    shards = []
    for number, prefix in enumerate(("", "", "other__")):
        clips = _folder_of_clips(tmp_path / f"clips_{number}", 1 + number)
        settings = PseudoMaskSettings(key_prefix=prefix)
        write_pseudo_masks(open_source(clips), tmp_path / f"masks_{number}", settings)
        shards.append(
            (tmp_path / f"masks_{number}" / "shard-00000.tar").rename(joined / f"{number}.tar")
        )
    with pytest.raises(ValueError, match=r"masks of clip 'video_0' in two shards, 0.tar and 1.tar"):
        ObjectMasks(joined)
    shards[1].unlink()
    masks = ObjectMasks(joined)
    assert masks.mask("video_0", 0) is not None
    assert masks.mask("other__video_0", 0) is not None


def test_prefix_that_would_break_names_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"`key_prefix` must hold neither dots nor slashes, got 'a.b'"
    ):
        PseudoMaskSettings(key_prefix="a.b")


def test_folder_of_a_version_without_prefix_goes_on(tmp_path: Path) -> None:
    clips = _folder_of_clips(tmp_path / "clips", 1)
    write_pseudo_masks(open_source(clips), tmp_path / "masks")
    path = tmp_path / "masks" / "pseudo_masks.json"
    settings = json.loads(path.read_text())
    del settings["key_prefix"]
    path.write_text(json.dumps(settings))
    assert write_pseudo_masks(open_source(clips), tmp_path / "masks")["clips"] == 1


def test_folder_without_masks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="make_pseudo_masks"):
        ObjectMasks(tmp_path)


def _arguments(folder: Path, output: Path, **options: object) -> PretrainingArguments:
    return PretrainingArguments.from_recipe(
        "moving_objects",
        **{
            "config_name": "tiny",
            "dataset": str(folder),
            "output_dir": str(output),
            "stages": "pseudo_mask",
            "crop_size": "64",
            "augmentation": "medium",
            "per_device_train_batch_size": 4,
            "max_train_steps": 60,
            "num_warmup_steps": 5,
            "learning_rate": 1e-2,
            "ema_decay": 0.0,
            "dataloader_num_workers": 0,
            "validation_steps": 0,
            "checkpointing_steps": 0,
            "num_object_segment_pairs": 0,
            "speed_report_seconds": 0.0,
            "logging_steps": 10,
            **options,
        },
    )


def test_batches_carry_masks_and_the_stage_learns_them(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    write_pseudo_masks(open_source(_folder_of_clips(tmp_path / "clips", 6)), folder)
    args = _arguments(folder, tmp_path / "run")
    batch = next(EndlessBatches(args, AMDConfig.tiny()))
    assert batch["object_masks"].shape == (4, 2, 64, 64)
    assert batch["has_object_mask"].any()
    results = pretrain(args)
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    losses = [row["loss"] for row in rows]
    assert results["step"] == 60
    assert losses[-1] < 0.9 * losses[0]


def test_joint_stage_adds_both_frames_to_the_published_loss() -> None:
    model = AMDModel(AMDConfig.tiny()).eval()
    batch = {
        "pixel_values": torch.randn(2, 2, 3, 64, 64),
        "object_masks": torch.ones(2, 2, 64, 64),
        "has_object_mask": torch.tensor([[True, False], [False, False]]),
    }
    loss, logs = OBJECTIVES["segment_flow_pseudo_mask"](model, batch, 0)
    photometric = model(pixel_values=batch["pixel_values"])
    assert loss.item() == pytest.approx(
        logs["photometric_loss"].item() + logs["pseudo_mask_loss"].item()
    )
    assert logs["photometric_loss"].item() == pytest.approx(photometric.loss.item(), rel=1e-5)
    # Only the one frame with a mask counts.
    object_masks_of_it = photometric.segment_masks[0, 0, model.config.object_segment]
    expected = -object_masks_of_it.log().mean()
    assert logs["pseudo_mask_loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    assert all(
        parameter.grad is None or parameter.grad.isfinite().all()
        for parameter in model.parameters()
    )


@pytest.mark.parametrize("stage", ["pseudo_mask", "segment_flow_pseudo_mask"])
def test_stage_names_a_data_set_without_masks(stage: str) -> None:
    model = AMDModel(AMDConfig.tiny())
    with pytest.raises(ValueError, match="need a `dataset` of scripts/make_pseudo_masks"):
        OBJECTIVES[stage](model, {"pixel_values": torch.zeros(1, 2, 3, 64, 64)}, 0)
