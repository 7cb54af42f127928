"""The `evaluate.Metric` skins load from their folders and agree with the functions."""

import evaluate
import numpy as np
import pytest

from amd_hf.metrics import (
    boundary_accuracy,
    e_measure_curve,
    f_beta_curve,
    mean_absolute_error,
    region_similarity,
    s_measure,
)

NAMES = [
    "region_similarity",
    "boundary_accuracy",
    "f_beta",
    "mae",
    "s_measure",
    "e_measure",
    "mean_iou",
    "mask_stability",
]


@pytest.fixture
def load(repository, tmp_path, monkeypatch):
    # The module cache is fixed at import; copying two small files there is harmless.
    folder = repository / "src" / "amd_hf" / "metrics"
    return lambda name, **options: evaluate.load(
        str(folder / name), cache_dir=str(tmp_path), **options
    )


@pytest.fixture
def masks():
    rng = np.random.default_rng(0)
    references = np.zeros((5, 24, 32), bool)
    references[:, 6:18, 8:20] = True
    return np.clip(rng.normal(0.3 + 0.4 * references, 0.2), 0, 1), references


def test_every_folder_has_a_skin_with_a_description(load, repository):
    folders = {path.parent.name for path in (repository / "src/amd_hf/metrics").glob("*/*.py")}
    assert folders - {"__pycache__"} == set(NAMES)
    for name in NAMES:
        assert load(name).description


def test_values(load, masks):
    soft, references = masks
    binary = soft > 0.5
    region = load("region_similarity").compute(predictions=binary, references=references)
    pairs = list(zip(binary, references, strict=True))
    assert region["J"] == pytest.approx(np.mean([region_similarity(*pair) for pair in pairs]))
    boundary = load("boundary_accuracy").compute(predictions=binary, references=references)
    assert boundary["F"] == pytest.approx(np.mean([boundary_accuracy(*pair) for pair in pairs]))
    soft_pairs = list(zip(soft, references, strict=True))
    f_beta = load("f_beta").compute(predictions=soft, references=references)
    curve = np.mean([f_beta_curve(*pair) for pair in soft_pairs], axis=0)
    assert f_beta["max_f_beta"] == pytest.approx(curve.max())
    e_measure = load("e_measure").compute(predictions=soft, references=references)
    curve = np.mean([e_measure_curve(*pair) for pair in soft_pairs], axis=0)
    assert e_measure["mean_e_measure"] == pytest.approx(curve.mean())
    mae = load("mae").compute(predictions=soft, references=references)
    assert mae["mae"] == pytest.approx(np.mean([mean_absolute_error(*p) for p in soft_pairs]))
    structure = load("s_measure").compute(predictions=soft, references=references)
    assert structure["s_measure"] == pytest.approx(np.mean([s_measure(*p) for p in soft_pairs]))
    stable = load("mask_stability").compute(predictions=binary, references=references)
    assert stable["reference_stability"] == 1.0
    assert stable["temporal_stability"] < 1.0


def test_streaming_equals_one_call_and_starts_afresh(load, masks):
    soft, references = masks
    metric = load("f_beta")
    whole = metric.compute(predictions=soft, references=references)
    metric.add(prediction=soft[0], reference=references[0])
    metric.add_batch(predictions=iter(soft[1:]), references=references[1:])
    assert metric.compute() == pytest.approx(whole)
    with pytest.raises(ValueError, match="at least one mask, got none"):
        metric.compute()


def test_options(load):
    labels = np.array([[0, 1], [2, 2]])
    result = load("mean_iou", num_labels=3, ignore_index=None).compute(
        predictions=[labels], references=[labels]
    )
    assert result["mean_iou"] == 1.0
    with pytest.raises(ValueError, match="`mae` takes no options"):
        load("mae", sigma=3)
    with pytest.raises(ValueError, match=r"pass options to `evaluate\.load`"):
        load("mae").compute(threshold=0.5)
    with pytest.raises(ValueError, match="`num_process` must be 1"):
        load("mae", num_process=2)


def test_lengths_must_match(load, masks):
    soft, references = masks
    with pytest.raises(ValueError, match="shorter"):
        load("mae").compute(predictions=soft, references=references[:3])


def test_combine(load, masks):
    soft, references = masks
    combined = evaluate.combine([load("mae"), load("s_measure")])
    result = combined.compute(predictions=soft, references=references)
    assert set(result) == {"mae", "s_measure"}
