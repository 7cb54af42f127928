"""Small benchmarks and an evaluation of the tiny model, for the evaluation tests."""

import pytest

from amd_hf import AMDImageProcessor
from amd_hf.evaluation import evaluate_benchmark
from tests.evaluation_data import write_davis, write_images


@pytest.fixture
def processor(tiny_config):
    return AMDImageProcessor.from_model_config(tiny_config, size={"shortest_edge": 48})


@pytest.fixture
def davis(tmp_path):
    return write_davis(tmp_path / "davis")


@pytest.fixture
def ecssd(tmp_path):
    return write_images(tmp_path / "ecssd")


@pytest.fixture
def evaluate(tiny_model, processor):
    def run(benchmark, data, **options):
        options = {"progress": False, "num_bootstrap": 50} | options
        return evaluate_benchmark(tiny_model, processor, benchmark, data, **options)

    return run
