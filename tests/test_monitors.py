"""Monitors, collapse watch, buffer guard and moving average."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from amd_hf.training.ema import ExponentialMovingAverage
from amd_hf.training.monitors import (
    BufferGuard,
    CollapseMonitor,
    MetricAverager,
    collapsed_state,
    flatten_metrics,
    mask_statistics,
    motion_statistics,
)

K = 5


def test_uniform_masks_have_entropy_one() -> None:
    statistics = mask_statistics(torch.full((2, 2, K, 6, 8), 1 / K))
    assert float(statistics["mask_entropy"]) == pytest.approx(1.0)
    assert statistics["segment_share"].tolist() == pytest.approx([1 / K] * K)


def test_hard_masks_have_entropy_zero_and_their_shares() -> None:
    masks = torch.zeros(1, 2, K, 4, 4)
    masks[:, :, 0, :, :1] = 1
    masks[:, :, 3, :, 1:] = 1
    statistics = mask_statistics(masks)
    assert float(statistics["mask_entropy"]) == 0.0
    assert statistics["segment_share"].tolist() == pytest.approx([0.25, 0, 0, 0.75, 0])
    assert float(statistics["num_occupied_segments"]) == 2


def test_a_segment_that_wins_too_little_is_not_occupied() -> None:
    masks = torch.zeros(1, 2, K, 20, 20)
    masks[:, :, 1] = 1
    masks[:, :, 1, 0, :3] = 0
    masks[:, :, 2, 0, :3] = 1  # 3 of 400 pixels
    assert float(mask_statistics(masks)["num_occupied_segments"]) == 1


def test_motion_statistics() -> None:
    motion = torch.tensor([[[3.0, 4.0], [-3.0, -4.0]]])
    statistics = motion_statistics(motion, motion)
    assert float(statistics["segment_motion_length"]) == pytest.approx(5)
    assert float(statistics["segment_motion_spread"]) == pytest.approx(5)
    still = motion_statistics(torch.ones(1, 4, 2), torch.ones(1, 4, 2))
    assert float(still["segment_motion_spread"]) == 0


def test_averager_means_and_state() -> None:
    averager, restored = MetricAverager(), MetricAverager()
    averager.add({"loss": torch.tensor(1.0), "share": torch.tensor([1.0, 0.0])})
    restored.load_state_dict(averager.state_dict())
    for one in (averager, restored):
        one.add({"loss": torch.tensor(3.0), "share": torch.tensor([0.0, 1.0])})
        means = flatten_metrics(one.pop())
        assert means == {"loss": 2.0, "share/0": 0.5, "share/1": 0.5}
        assert one.pop() == {}


HEALTHY = {"mask_entropy": 0.5, "segment_share/0": 0.6, "segment_motion_length": 2.0}


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({}, None),
        ({"mask_entropy": 0.995}, "uniform"),
        ({"segment_share/0": 0.99}, "dominant"),
        ({"segment_motion_length": 0.01}, "still"),
        ({"visible_share": 0.001}, "invisible"),
    ],
)
def test_kinds_of_collapse(change: dict[str, float], state: str | None) -> None:
    assert collapsed_state({**HEALTHY, **change}) == state


def test_collapse_is_reported_once_after_the_patience() -> None:
    monitor = CollapseMonitor(patience=100)
    uniform = {**HEALTHY, "mask_entropy": 1.0}
    assert monitor.update(50, uniform) is None
    assert monitor.update(100, HEALTHY) is None
    assert monitor.update(150, uniform) is None
    assert monitor.update(200, {"pixel_flow_loss": 1.0}) is None  # a stage without segments
    restored = CollapseMonitor(patience=100)
    restored.load_state_dict(monitor.state_dict())
    for one in (monitor, restored):
        advice = one.update(250, uniform)
        assert advice is not None
        assert "collapsed since step 150: the masks are uniform" in advice
        assert one.update(300, uniform) is None
    dominant = {**HEALTHY, "segment_share/0": 1.0}
    assert monitor.update(350, dominant) is None
    assert "one segment takes the whole frame" in str(monitor.update(450, dominant))


def test_patience_must_be_positive() -> None:
    with pytest.raises(ValueError, match="`patience` must be at least 1, got 0"):
        CollapseMonitor(patience=0)


def test_buffer_guard_undoes_a_nan_batch() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    model(torch.randn(2, 3, 4, 4))
    guard = BufferGuard(model)
    model(torch.randn(2, 3, 4, 4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    guard.remember()
    model(torch.full((2, 3, 4, 4), math.nan))
    assert not torch.isfinite(model.state_dict()["0.running_mean"]).any()
    guard.restore()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_moving_average_follows_the_formula() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = ExponentialMovingAverage(model, decay=0.9)
    expected = None
    for update in range(30):
        with torch.no_grad():
            model[0].weight.fill_(float(update))
        model(torch.randn(4, 2))
        average.update(model)
        decay = min(0.9, (1 + update) / (10 + update))
        expected = update if update == 0 else decay * expected + (1 - decay) * update
    module = average.module
    assert float(module[0].weight[0, 0]) == pytest.approx(expected, rel=1e-5)
    assert int(module[1].num_batches_tracked) == 30
    assert not module.training
    assert average.num_updates == 30


def test_moving_average_goes_on_from_its_state() -> None:
    model = nn.Linear(2, 2)
    average = ExponentialMovingAverage(model, decay=0.9)
    average.update(model)
    restored = ExponentialMovingAverage(nn.Linear(2, 2), decay=0.9)
    restored.load_state_dict(average.state_dict())
    with torch.no_grad():
        model.weight.add_(1.0)
    for one in (average, restored):
        one.update(model)
    assert torch.equal(average.module.weight, restored.module.weight)
    assert restored.num_updates == 2


def test_decay_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"`decay` must be in \[0, 1\), got 1.0"):
        ExponentialMovingAverage(nn.Linear(1, 1), decay=1.0)
