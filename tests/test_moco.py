"""MoCo v2: the loss, the queue, the key network, the views, the loop and its result."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from amd_hf import AMDConfig, AMDForSemanticSegmentation
from amd_hf.training.finetuning_arguments import FinetuningArguments
from amd_hf.training.finetuning_start import build_semantic_model
from amd_hf.training.moco import MomentumContrast, info_nce
from amd_hf.training.moco_data import TwoViewTransform, view_seeds
from amd_hf.training.moco_training import (
    MocoArguments,
    MocoRun,
    parse_moco_arguments,
    pretrain_moco,
)

from .pretraining_runs import (  # noqa: F401 (fixtures)
    StopAfter,
    arguments_maker,
    assert_same,
    clips,
    samples,
)

Make = Callable[..., MocoArguments]


@pytest.fixture
def make(clips: Path, tmp_path: Path) -> Make:
    """Makes the arguments of a tiny run."""
    return arguments_maker(
        MocoArguments,
        tmp_path,
        dataset=str(clips),
        per_device_train_batch_size=4,
        queue_size=32,
        dimension=8,
        max_train_steps=4,
    )


def contrast(**options: Any) -> MomentumContrast:
    settings: dict[str, Any] = {"dimension": 8, "queue_size": 16, **options}
    return MomentumContrast(AMDConfig.tiny(), **settings)


def test_info_nce_is_the_mean_over_naive_rows() -> None:
    query, key = (F.normalize(torch.randn(5, 8), dim=1) for _ in range(2))
    queue = F.normalize(torch.randn(8, 12), dim=0)
    loss, accuracy = info_nce(query, key, queue, 0.2)
    losses, hits = [], []
    for q, k in zip(query, key, strict=True):
        scores = [float(q @ k) / 0.2, *(float(q @ column) / 0.2 for column in queue.T)]
        losses.append(-scores[0] + np.log(np.exp(scores).sum()))
        hits.append(scores[0] == max(scores))
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(accuracy) == pytest.approx(np.mean(hits))


def test_equal_views_are_told_from_the_queue() -> None:
    query = F.normalize(torch.randn(4, 64), dim=1)
    queue = F.normalize(torch.randn(64, 32), dim=0)
    loss, accuracy = info_nce(query, query, queue, 0.07)
    assert float(accuracy) == 1.0
    assert float(loss) < float(info_nce(query, query.flip(0), queue, 0.07)[0])


def test_the_queue_holds_the_newest_keys_and_wraps_around() -> None:
    network = contrast(queue_size=6).train()
    start = network.queue.clone()
    network(torch.randn(4, 2, 3, 64, 64))
    assert int(network.queue_position) == 4
    assert torch.equal(network.queue[:, 4:], start[:, 4:])
    assert not torch.isclose(network.queue[:, :4], start[:, :4]).all(dim=0).any()
    held = network.queue.clone()
    network(torch.randn(4, 2, 3, 64, 64))
    assert int(network.queue_position) == 2
    assert torch.equal(network.queue[:, 2:4], held[:, 2:4])
    assert not torch.isclose(network.queue[:, :2], held[:, :2]).all(dim=0).any()
    torch.testing.assert_close(network.queue.norm(dim=0), torch.ones(6))


def test_the_key_network_follows_and_has_no_gradient() -> None:
    network = contrast(momentum=0.9).train()
    with torch.no_grad():
        network.projection[0].weight.add_(1.0)
    before = network.key_projection[0].weight.clone()
    loss, _ = network(torch.randn(4, 2, 3, 64, 64))
    loss.backward()
    expected = 0.9 * before + 0.1 * network.projection[0].weight
    torch.testing.assert_close(network.key_projection[0].weight, expected)
    assert all(p.grad is None for p in network.key_backbone.parameters())
    assert any(float(p.grad.abs().max()) > 0 for p in network.backbone.parameters())


def test_shuffled_keys_come_back_in_order() -> None:
    network = contrast(num_key_groups=3).eval()  # without batch statistics groups do not matter
    images = torch.randn(7, 3, 64, 64)
    with torch.no_grad():
        expected = network._embed(network.key_backbone, network.key_projection, images)
        torch.testing.assert_close(network._keys(images), expected)


def test_evaluation_leaves_the_queue_alone() -> None:
    network = contrast().eval()
    queue = network.queue.clone()
    network(torch.randn(2, 2, 3, 64, 64))
    assert torch.equal(network.queue, queue)


@pytest.mark.parametrize("preset", ["light", "heavy"])
def test_two_views_differ_and_follow_from_the_seed(clips: Path, preset: str) -> None:
    frame = next(clips.rglob("*.jpg")).read_bytes()
    transform = TwoViewTransform(preset, 64)
    views = transform(frame, b"never read", 7)
    assert views.shape == (2, 3, 64, 64)
    assert not torch.equal(views[0], views[1])
    assert torch.equal(views, transform(frame, b"", 7))
    finished = transform.finish(views[None], [7])
    assert finished.shape == (1, 2, 3, 64, 64)
    # Each view has the colors that it would have alone, from a seed of its own.
    for view, seed in enumerate(view_seeds([7])):
        alone = transform.augmentation.finish(views[None, view : view + 1], [seed])
        torch.testing.assert_close(finished[0, view], alone[0, 0])


def backbone(folder: str | Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(Path(folder) / "model.safetensors")


def test_a_stopped_run_goes_on_exactly(make: Make) -> None:
    options: dict[str, Any] = {"checkpointing_steps": 3, "max_train_steps": 5}
    whole = make("whole", **options)
    results = pretrain_moco(whole)
    assert results["metrics"]["loss"] > 0
    parts = make("parts", **options)
    assert MocoRun(parts, StopAfter(2)).run()["end"] == "SIGTERM"
    pretrain_moco(make("parts", **options, resume_from_checkpoint="latest"))
    for name in ("", "step_5"):
        assert_same(*(backbone(Path(args.output_dir) / name) for args in (whole, parts)))
    assert samples(parts) == samples(whole)


def test_the_result_is_a_start_for_fine_tuning(make: Make, tmp_path: Path) -> None:
    args = make(max_train_steps=1)
    pretrain_moco(args)
    saved = backbone(args.output_dir)
    assert all(name.startswith("appearance.backbone.") for name in saved)
    finetuning = FinetuningArguments(
        dataset_name="unused",
        output_dir=str(tmp_path / "out"),
        model_name_or_path=args.output_dir,
    )
    model = build_semantic_model(finetuning, ["a", "b"])
    state = model.state_dict()
    for name, value in saved.items():
        assert torch.equal(state[name], value), name
    fresh = AMDForSemanticSegmentation(AMDConfig.tiny())
    assert state.keys() == fresh.state_dict().keys()
    assert all(bool(value.isfinite().all()) for value in state.values())


@pytest.mark.slow
def test_two_processes_share_one_queue(clips: Path, repository: Path, tmp_path: Path) -> None:
    options = {
        "dataset": clips,
        "output_dir": "out",
        "config_name": "tiny",
        "crop_size": 64,
        "per_device_train_batch_size": 2,
        "queue_size": 12,
        "dimension": 8,
        "max_train_steps": 2,
        "dataloader_num_workers": 0,
    }
    words = [str(repository / "scripts" / "pretrain_moco.py")]
    words += [f"--{name}={value}" for name, value in options.items()]
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", *words],
        cwd=tmp_path,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    state = backbone(tmp_path / "out" / "step_2")
    # Two steps of two images in each of two processes.
    assert int(state["queue_position"]) == 8
    keys = state["queue"].T
    assert len({tuple(key.tolist()) for key in keys}) == 12


def test_wrong_options_are_refused(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="`augmentation` must be one of"):
        make(augmentation="strong")
    with pytest.raises(ValueError, match="`queue_size` must be at least the batch"):
        make(queue_size=2)
    with pytest.raises(ValueError, match="`key_momentum` must be below 1"):
        make(key_momentum=1.0)
    args = make(dataset="nowhere/at/all")
    with pytest.raises(ValueError, match="nowhere"):
        pretrain_moco(args)
    assert not Path(args.output_dir).exists()
    with pytest.raises(SystemExit):
        parse_moco_arguments(["--dataset", "x"])
    assert "`output_dir` is required" in capsys.readouterr().err


def test_the_defaults_are_those_of_moco_v2() -> None:
    args = parse_moco_arguments(["--dataset", "x", "--output_dir", "y"])
    assert (args.learning_rate, args.momentum, args.weight_decay) == (0.03, 0.9, 1e-4)
    assert (args.temperature, args.queue_size, args.key_momentum) == (0.2, 65_536, 0.999)
    assert args.lr_scheduler_type == "cosine"
