"""Fixtures and options that every test file shares."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

# No test may reach for the network by accident: without this, a missing file costs 23 s of retries.
# Tests of the loopback Hub unset it in the environment of their subprocess.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# Waiting threads sleep: spinning ones slow a busy machine down several times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from amd_hf import AMDConfig, AMDModel

    from .loopback_hub import LoopbackHub

REPOSITORY = Path(__file__).resolve().parent.parent
SEED = 20240607
MAX_THREADS = 4

if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(min(MAX_THREADS, os.cpu_count() or 1))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="also run the tests marked `slow`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips `slow` tests without `--runslow` and `gpu` tests without a CUDA device."""
    skip_slow = pytest.mark.skip(reason="slow; add --runslow to run it")
    skip_gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "slow" in item.keywords and not config.getoption("--runslow"):
            item.add_marker(skip_slow)
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(skip_gpu)


@pytest.fixture(autouse=True)
def seed_everything() -> None:
    """Every test starts from the same state of the three random generators."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of recorded tensors and data sets; the test is skipped where it is absent."""
    folder = Path(os.environ.get("AMD_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set AMD_SHARED to its folder")
    return folder


@pytest.fixture(scope="session")
def oracle_dir(shared_dir: Path) -> Path:
    """The folder of tensors recorded from the published code; skipped where it is absent."""
    folder = shared_dir / "oracle"
    if not folder.is_dir():
        pytest.skip(f"no recorded tensors at {folder}")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """An empty Hub on this machine that every call of this process goes to."""
    from .loopback_hub import LoopbackHub, connect

    with LoopbackHub() as server:
        connect(server, monkeypatch, tmp_path / "cache")
        yield server


@pytest.fixture
def tiny_config() -> AMDConfig:
    """A fresh configuration of a few thousand weights."""
    from amd_hf import AMDConfig

    return AMDConfig.tiny()


@pytest.fixture
def tiny_model(tiny_config: AMDConfig) -> AMDModel:
    """A fresh, seeded `AMDModel` of `tiny_config` in eval mode."""
    from amd_hf import AMDModel

    torch.manual_seed(SEED)
    return AMDModel(tiny_config).eval()
