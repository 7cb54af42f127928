"""A pre-training run that a fault disturbs, beside one that nothing disturbs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from amd_hf.training.pretraining import pretrain
from tests.pretraining_runs import Make, assert_same_weights, samples


@pytest.fixture
def whole(make: Make) -> Path:
    """The output of a run of six steps that nothing disturbs."""
    args = make("whole", per_device_train_batch_size=3)
    pretrain(args)
    return Path(args.output_dir)


def resumed(make: Make, **options: Any) -> Any:
    return make(
        "disturbed", per_device_train_batch_size=3, resume_from_checkpoint="latest", **options
    )


def assert_same_run(args: Any, whole: Path) -> None:
    assert_same_weights(args.output_dir, whole)
    assert "\n".join(samples(args)) == (whole / "samples_rank_0.txt").read_text().strip()
    results = [
        json.loads((folder / "all_results.json").read_text())["metrics"]
        for folder in (Path(args.output_dir), whole)
    ]
    for result in results:
        result.pop("samples_per_second", None)
        result.pop("data_wait_share", None)
    assert results[0] == results[1]
