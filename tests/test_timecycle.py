"""TimeCycle: patches, the tracker, the cycle, the loop and its result."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from amd_hf import AMDConfig, AMDForSemanticSegmentation
from amd_hf.training.timecycle import Localizer, TimeCycle, alignment, patch_grid
from amd_hf.training.timecycle_training import (
    TimeCycleArguments,
    TimeCycleRun,
    parse_timecycle_arguments,
    pretrain_timecycle,
)

from .pretraining_runs import (  # noqa: F401 (fixtures)
    StopAfter,
    arguments_maker,
    assert_same,
    clips,
    samples,
)

Make = Callable[..., TimeCycleArguments]


@pytest.fixture
def make(clips: Path, tmp_path: Path) -> Make:
    """Makes the arguments of a tiny run."""
    return arguments_maker(
        TimeCycleArguments,
        tmp_path,
        dataset=str(clips),
        per_device_train_batch_size=2,
        max_train_steps=4,
    )


def test_an_upright_patch_is_a_window_of_its_frame() -> None:
    frame = torch.arange(9.0 * 12).view(1, 1, 9, 12)
    # The window of a third of each side whose first pixel is row 3, column 8.
    position = torch.tensor([[2 * (8 + 2) / 12 - 1, 2 * (3 + 1.5) / 9 - 1, 0.0]])
    patch = F.grid_sample(frame, patch_grid(position, (3, 4)), align_corners=False)
    torch.testing.assert_close(patch[0, 0], frame[0, 0, 3:6, 8:12])


def test_a_patch_turns_about_its_center() -> None:
    position = torch.tensor([[0.2, -0.1, math.pi / 2]])
    grid = patch_grid(position, (3, 3))
    upright = patch_grid(position * torch.tensor([1.0, 1.0, 0.0]), (3, 3))
    torch.testing.assert_close(grid[0, 1, 1], torch.tensor([0.2, -0.1]))
    torch.testing.assert_close(grid, upright.rot90(1, dims=(1, 2)))


def test_the_alignment_is_the_mean_over_naive_points() -> None:
    first, second = torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([[-0.2, 0.0, -0.1]])
    expected = 0.0
    for row in range(4):
        for column in range(5):
            points = []
            for x, y, angle in (first[0].tolist(), second[0].tolist()):
                u, v = (2 * column + 1) / 5 - 1, (2 * row + 1) / 4 - 1
                points.append(
                    (
                        (u * math.cos(angle) - v * math.sin(angle)) / 3 + x,
                        (u * math.sin(angle) + v * math.cos(angle)) / 3 + y,
                    )
                )
            expected += sum((a - b) ** 2 for a, b in zip(*points, strict=True)) / 20
    assert float(alignment(first, second, (4, 5))) == pytest.approx(expected, abs=1e-6)
    assert float(alignment(first, first, (4, 5))) == 0.0


def test_the_tracker_learns_to_find_a_patch() -> None:
    """With features that tell places apart, only the localizer is trained."""
    torch.manual_seed(0)
    localizer = Localizer((2, 2), (6, 6), temperature=0.1)
    optimizer = torch.optim.Adam(localizer.parameters(), lr=3e-3)
    distances = []
    for _ in range(150):
        frame = F.normalize(torch.randn(16, 8, 6, 6), dim=1)
        position = torch.zeros(16, 3)
        position[:, :2].uniform_(-2 / 3, 2 / 3)
        patch = F.grid_sample(frame, patch_grid(position, (2, 2)), align_corners=False)
        found = localizer(F.normalize(patch, dim=1), frame)
        assert (found[:, :2].abs() <= 2 / 3).all()
        distance = alignment(position, found, (2, 2))
        distance.backward()
        optimizer.step()
        optimizer.zero_grad()
        distances.append(float(distance.detach()))
    chance = 2 * (4 / 9) / 3  # of answering the center: the variance of both coordinates
    assert distances[0] > 0.7 * chance
    assert np.mean(distances[-20:]) < 0.25 * chance


@pytest.mark.parametrize("size", [(64, 64), (72, 100)])
def test_the_loss_reaches_the_whole_backbone(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = TimeCycle(AMDConfig.tiny(zero_init_residual=False), size)
    loss, distance, similarity = network(torch.randn(3, 2, 3, *size))
    torch.testing.assert_close(loss, 0.1 * distance - similarity)
    assert similarity.detach().abs() <= 1
    loss.backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_the_cycle_is_weighed(make: Make) -> None:
    torch.manual_seed(0)
    network = TimeCycle(AMDConfig.tiny(), (64, 64), alignment_weight=0.0)
    loss, _, similarity = network(torch.randn(2, 2, 3, 64, 64))
    torch.testing.assert_close(loss, -similarity, rtol=0, atol=0)
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        TimeCycle(AMDConfig.tiny(), (64, 64), temperature=0.0)


def test_a_stopped_run_goes_on_exactly(make: Make) -> None:
    options: dict[str, Any] = {"checkpointing_steps": 3, "max_train_steps": 5}
    whole = make("whole", **options)
    results = pretrain_timecycle(whole)
    assert math.isfinite(results["metrics"]["cycle_distance"])
    parts = make("parts", **options)
    assert TimeCycleRun(parts, StopAfter(2)).run()["end"] == "SIGTERM"
    pretrain_timecycle(make("parts", **options, resume_from_checkpoint="latest"))
    assert_same(
        *(load_file(Path(args.output_dir) / "model.safetensors") for args in (whole, parts))
    )
    assert samples(parts) == samples(whole)


def test_the_result_is_a_start_for_fine_tuning(make: Make) -> None:
    args = make(max_train_steps=1)
    pretrain_timecycle(args)
    saved = load_file(Path(args.output_dir) / "model.safetensors")
    assert all(name.startswith("appearance.backbone.") for name in saved)
    model = AMDForSemanticSegmentation.from_pretrained(args.output_dir)
    state = model.state_dict()
    for name, value in saved.items():
        assert torch.equal(state[name], value), name
    backbone = model.appearance.backbone.state_dict()
    assert len(backbone) == len(saved)


def test_wrong_options_are_refused(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="`augmentation` must be one of"):
        make(augmentation="strong")
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        make(temperature=0.0)
    args = make(dataset="nowhere/at/all")
    with pytest.raises(ValueError, match="nowhere"):
        pretrain_timecycle(args)
    assert not Path(args.output_dir).exists()
    with pytest.raises(SystemExit):
        parse_timecycle_arguments(["--dataset", "x"])
    assert "`output_dir` is required" in capsys.readouterr().err


def test_the_defaults_are_those_of_the_release() -> None:
    args = parse_timecycle_arguments(["--dataset", "x", "--output_dir", "y"])
    assert (args.learning_rate, args.momentum, args.weight_decay) == (2e-4, 0.5, 0.0)
    assert (args.alignment_weight, args.per_device_train_batch_size) == (0.1, 36)
    assert args.temperature == pytest.approx(512**-0.5)
    assert (args.max_grad_norm, args.lr_scheduler_type) == (10.0, "constant")
