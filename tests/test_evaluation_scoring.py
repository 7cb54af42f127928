"""Rows, summaries and intervals of the scores of a benchmark."""

# ruff: noqa: F811 (fixtures)

import weakref

import numpy as np
import pytest

from amd_hf.data.annotations import read_reference
from amd_hf.data.benchmarks import open_benchmark
from amd_hf.evaluation import bootstrap_interval
from amd_hf.evaluation.predictors import Prediction
from amd_hf.evaluation.scoring import ScoredRows, score_image, score_video, summarize
from amd_hf.metrics import FBetaScores, boundary_accuracy, region_similarity

from .evaluation_cases import davis, ecssd  # noqa: F401 (fixtures)


class ReferencePredictor:
    """Three segments: empty, the reference, everything."""

    num_segments = 3
    selected = 2

    def predict(self, sequence, frames):
        for frame in frames:
            reference = read_reference(frame)
            soft = np.stack([0 * reference, reference, 0 * reference + 1]).astype(np.float32)
            yield Prediction(frame, soft, reference)


class TestScoring:
    def test_video_row(self, davis):
        sequence = open_benchmark("davis2016", davis).sequences[0]
        predictor = ReferencePredictor()
        row = score_video("blackswan", predictor.predict(sequence, sequence.frames), 2, 0.5)
        references = [read_reference(frame) for frame in sequence.frames]
        everything = np.ones_like(references[0])
        assert row["per_segment"]["J"][:2] == [0.0, 1.0]
        assert row["J"] == pytest.approx(
            np.mean([region_similarity(everything, reference) for reference in references])
        )
        assert row["per_segment"]["F"][1] == 1.0
        assert row["F"] == boundary_accuracy(everything, references[0])
        assert (row["best_segment"], row["selected_segment"]) == (1, 2)
        assert 0 < row["reference_stability"] < 1
        assert row["per_segment"]["temporal_stability"][1] == row["reference_stability"]

    def test_image_row_and_summary_match_the_metrics(self, ecssd):
        rng = np.random.default_rng(0)
        scored, expected = ScoredRows(), FBetaScores()
        for sequence in open_benchmark("ecssd", ecssd).sequences:
            reference = read_reference(sequence.frames[0])
            soft = rng.random((2, *reference.shape)).astype(np.float32)
            row, curves = score_image(
                sequence.name, Prediction(sequence.frames[0], soft, reference), 1, 0.5, False
            )
            scored.rows.append(row)
            scored.curves.append(curves)
            expected.update(soft[1].astype(np.float64), reference)
        scores, intervals = summarize(scored, "image", 1, 200, 0)
        for measure, value in expected.compute().items():
            assert scores[measure] == pytest.approx(value, abs=1e-5)
            low, high = intervals[measure]
            assert low <= scores[measure] + 1e-6
            assert high >= scores[measure] - 1e-6

    def test_a_pass_holds_one_frame_at_a_time(self, davis):
        sequence = open_benchmark("davis2016", davis).sequences[0]
        alive = []

        def predictions():
            for prediction in ReferencePredictor().predict(sequence, sequence.frames):
                alive.append(weakref.ref(prediction.soft_masks))
                assert sum(reference() is not None for reference in alive) <= 2
                yield prediction
                del prediction

        row = score_video("blackswan", predictions(), 2, 0.5)
        assert row["num_frames"] == len(alive) == 4


class TestBootstrap:
    def test_matches_the_normal_interval(self):
        values = np.random.default_rng(0).normal(0.5, 0.1, 400)
        low, high = bootstrap_interval(values, 4000)
        half = 1.96 * values.std() / 20
        assert low == pytest.approx(values.mean() - half, abs=1e-3)
        assert high == pytest.approx(values.mean() + half, abs=1e-3)

    def test_seed_statistic_and_one_unit(self):
        values = np.random.default_rng(1).random((30, 4))
        first = bootstrap_interval(values, 100, statistic=lambda means: means.max(axis=1))
        assert first == bootstrap_interval(values, 100, statistic=lambda means: means.max(axis=1))
        assert first != bootstrap_interval(values[:, 0], 100)
        assert bootstrap_interval([0.4], 10) == pytest.approx((0.4, 0.4))

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="N >= 1"):
            bootstrap_interval([])
        with pytest.raises(ValueError, match="`num_resamples` must be at least 1"):
            bootstrap_interval([0.1], 0)
