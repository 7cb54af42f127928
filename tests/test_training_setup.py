"""The optimizer of a pre-training run."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import copy

import pytest
import torch

from amd_hf import AMDModel
from amd_hf.training.setup import build_config, build_optimizer

from .pretraining_runs import Make, clips, make  # noqa: F401 (fixtures)


def test_the_two_pathways_have_their_learning_rates(make: Make) -> None:
    args = make(motion_lr_scale=0.1)
    model = AMDModel(build_config(args))
    groups = build_optimizer(args, model).param_groups
    assert [group["lr"] for group in groups] == pytest.approx([1e-3, 1e-4])
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_fused_update_is_the_published_one(make: Make, tiny_model: AMDModel, name: str) -> None:
    args = make(optimizer=name, weight_decay=0.01)
    plain_model = copy.deepcopy(tiny_model)
    fused = build_optimizer(args, tiny_model)
    plain_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    plain = plain_class(plain_model.parameters(), lr=args.learning_rate, weight_decay=0.01)
    assert fused.param_groups[0]["fused"]
    generator = torch.Generator().manual_seed(0)
    pairs = list(zip(tiny_model.parameters(), plain_model.parameters(), strict=True))
    for _ in range(3):
        for ours, theirs in pairs:
            ours.grad = torch.randn(ours.shape, generator=generator)
            theirs.grad = ours.grad.clone()
        fused.step()
        plain.step()
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
