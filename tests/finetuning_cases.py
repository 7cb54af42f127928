"""Tiny fine-tuning runs for tests: pictures, options, and what a run has written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from amd_hf import AMDForSemanticSegmentation
from amd_hf.training.finetuning_arguments import FinetuningArguments

from .pretraining_runs import arguments_maker
from .semantic_trees import write_pairs

Make = Callable[..., FinetuningArguments]
LABELS = "ground,red,blue"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve training and four validation pictures whose classes are plain colors."""
    root = tmp_path_factory.mktemp("pairs") / "colors"
    write_pairs(root, {"train": 12, "val": 4})
    return root


@pytest.fixture
def make(folder: Path, tmp_path: Path) -> Make:
    """Makes the arguments of a tiny run."""
    return arguments_maker(
        FinetuningArguments,
        tmp_path,
        dataset_name=str(folder),
        class_names=LABELS,
        short_side=64,
        max_train_steps=4,
        per_device_train_batch_size=2,
        validation_steps=2,
        num_pictures=1,
    )


def weights(folder: str | Path) -> dict[str, Tensor]:
    return AMDForSemanticSegmentation.from_pretrained(folder).state_dict()
