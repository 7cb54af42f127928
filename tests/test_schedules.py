"""Learning-rate schedules against their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from amd_hf.training.schedules import build_schedule

BASE, LEAST, STEPS = 1e-4, 1e-6, 50


def learning_rates(name: str, num_warmup_steps: int = 0, scale: float = 1.0) -> list[float]:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([{"params": [weight], "lr": BASE * scale}], lr=BASE)
    schedule = build_schedule(
        name,
        optimizer,
        num_train_steps=STEPS,
        num_warmup_steps=num_warmup_steps,
        min_learning_rate=LEAST,
    )
    rates = []
    for _ in range(STEPS + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_poly_is_the_published_formula() -> None:
    expected = [(BASE - LEAST) * (1 - step / STEPS) ** 0.9 + LEAST for step in range(STEPS + 1)]
    assert learning_rates("poly") == pytest.approx(expected, rel=1e-9)


def test_cosine_ends_at_the_least_rate_after_the_warmup() -> None:
    rates = learning_rates("cosine", num_warmup_steps=10)
    assert rates[:11] == pytest.approx([BASE * step / 10 for step in range(11)])
    halfway = LEAST + (BASE - LEAST) * 0.5 * (1 + math.cos(math.pi * 0.5))
    assert rates[30] == pytest.approx(halfway)
    assert rates[-1] == pytest.approx(LEAST)


def test_constant_stays() -> None:
    assert set(learning_rates("constant")) == {BASE}


def test_a_scaled_group_keeps_its_ratio() -> None:
    full, scaled = learning_rates("poly"), learning_rates("poly", scale=0.1)
    assert scaled == pytest.approx([0.1 * rate for rate in full])


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"`name` must be one of poly, cosine, constant, got 'x'"):
        learning_rates("x")
