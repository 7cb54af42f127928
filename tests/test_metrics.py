"""Metrics against hand-computed cases, naive references and independent libraries."""

import math
import tracemalloc

import numpy as np
import py_sod_metrics
import pytest
import torch
from skimage.morphology import binary_dilation, disk
from torchmetrics.classification import BinaryJaccardIndex, MulticlassJaccardIndex

from amd_hf.metrics import (
    ConfusionMatrix,
    FBetaScores,
    PooledIoU,
    adaptive_e_measure,
    adaptive_f_beta,
    boundary_accuracy,
    e_measure_curve,
    f_beta_curve,
    mask_boundary,
    mean_absolute_error,
    region_similarity,
    s_measure,
    sequence_statistics,
    stretch_to_unit_range,
    temporal_stability,
)
from amd_hf.metrics.boundary import dilate_with_disk

TOLERANCE = 1e-6


def square(height=20, width=30, top=5, left=5, size=8):
    mask = np.zeros((height, width), dtype=bool)
    mask[top : top + size, left : left + size] = True
    return mask


def random_pair(seed, shape=(37, 52)):
    rng = np.random.default_rng(seed)
    reference = np.zeros(shape, dtype=bool)
    top, left = rng.integers(0, 15, 2)
    reference[top : top + rng.integers(4, 20), left : left + rng.integers(4, 25)] = True
    return np.clip(rng.normal(0.3 + 0.3 * reference, 0.25), 0, 1), reference


PAIRS = [random_pair(seed) for seed in range(6)]


class TestRegionSimilarity:
    def test_half_overlap(self):
        # 8x8 squares shifted by 4: 32 pixels in common, 96 in the union.
        assert region_similarity(square(left=5), square(left=9)) == pytest.approx(1 / 3)

    @pytest.mark.parametrize(
        ("prediction", "reference", "expected"),
        [
            (np.zeros((4, 4)), np.zeros((4, 4)), 1.0),
            (np.ones((4, 4)), np.zeros((4, 4)), 0.0),
            (np.zeros((4, 4)), np.ones((4, 4)), 0.0),
            (np.full((4, 4), 255, np.uint8), np.ones((4, 4), bool), 1.0),
        ],
    )
    def test_extremes(self, prediction, reference, expected):
        assert region_similarity(prediction, reference) == expected

    @pytest.mark.parametrize(("soft", "reference"), PAIRS)
    def test_matches_torchmetrics(self, soft, reference):
        other = BinaryJaccardIndex()(torch.from_numpy(soft > 0.5), torch.from_numpy(reference))
        assert region_similarity(soft > 0.5, reference) == pytest.approx(
            float(other), abs=TOLERANCE
        )

    def test_rejects_class_ids_and_other_shapes(self):
        labels = np.zeros((4, 4), np.uint8)
        labels[0, :3] = (1, 2, 3)
        with pytest.raises(ValueError, match=r"`prediction` must be boolean or hold only 0/1"):
            region_similarity(labels, np.zeros((4, 4)))
        with pytest.raises(ValueError, match=r"same shape, got \(4, 4\) and \(5, 4\)"):
            region_similarity(np.zeros((4, 4)), np.zeros((5, 4)))
        with pytest.raises(ValueError, match=r"shape \(H, W\), got shape \(2, 4, 4\)"):
            region_similarity(np.zeros((2, 4, 4)), np.zeros((4, 4)))


class TestSequenceStatistics:
    def test_by_hand(self):
        # Nine frames: the quarters are frames 1-3, 3-5, 5-7, 7-9 of the 1-based axis.
        values = [0.9, 0.9, 0.9, 0.5, 0.5, 0.5, 0.3, 0.3, 0.3]
        result = sequence_statistics(values)
        assert result.mean == pytest.approx(np.mean(values))
        assert result.recall == pytest.approx(3 / 9)
        assert result.decay == pytest.approx(0.6)

    def test_one_frame(self):
        result = sequence_statistics([0.7])
        assert (result.mean, result.recall, result.decay) == (0.7, 1.0, 0.0)

    def test_long_sequence_does_not_overflow(self):
        # The benchmark's own code keeps these indices in 8 bits and breaks beyond 255 frames.
        values = np.linspace(1, 0, 1001)
        assert sequence_statistics(values).decay == pytest.approx(0.75, abs=1e-3)

    @pytest.mark.parametrize("values", [[], [0.5, math.nan]])
    def test_rejects_nothing_and_nan(self, values):
        with pytest.raises(ValueError, match="non-empty list of numbers"):
            sequence_statistics(values)


def test_pooled_iou_differs_from_mean_and_matches_concatenation():
    pooled = PooledIoU()
    for soft, reference in PAIRS:
        pooled.update(soft > 0.5, reference)
    predictions = np.concatenate([soft > 0.5 for soft, _ in PAIRS])
    references = np.concatenate([reference for _, reference in PAIRS])
    scores = pooled.compute()
    assert scores["pooled_iou"] == pytest.approx(region_similarity(predictions, references))
    background = region_similarity(~predictions, ~references)
    expected = (scores["pooled_iou"] + background) / 2
    assert scores["pooled_mean_iou"] == pytest.approx(expected)
    assert PooledIoU().compute() == {"pooled_iou": 1.0, "pooled_mean_iou": 1.0}


class TestBoundaryAccuracy:
    def test_boundary_of_a_square_by_hand(self):
        boundary = mask_boundary(square(6, 6, 2, 2, 2))
        expected = np.zeros((6, 6), bool)
        expected[1, 1:4] = expected[3, 1:4] = expected[1:4, 1] = expected[1:4, 3] = True
        np.testing.assert_array_equal(boundary, expected)

    def test_image_border_is_no_boundary(self):
        assert not mask_boundary(np.ones((5, 7), bool)).any()

    @pytest.mark.parametrize("radius", [0, 1, 3, 8])
    def test_dilation_matches_skimage(self, radius):
        points = np.random.default_rng(radius).random((40, 33)) > 0.98
        np.testing.assert_array_equal(
            dilate_with_disk(points, radius), binary_dilation(points, disk(radius))
        )

    @pytest.mark.parametrize(("soft", "reference"), PAIRS)
    def test_matches_naive_reference(self, soft, reference):
        predicted, expected = mask_boundary(soft > 0.5), mask_boundary(reference)
        element = disk(math.ceil(0.008 * math.hypot(*reference.shape)))
        precision = (predicted & binary_dilation(expected, element)).sum() / predicted.sum()
        recall = (expected & binary_dilation(predicted, element)).sum() / expected.sum()
        value = 2 * precision * recall / (precision + recall)
        assert boundary_accuracy(soft > 0.5, reference) == pytest.approx(value, abs=TOLERANCE)

    def test_tolerance(self):
        near, far = square(left=6), square(left=9)
        assert boundary_accuracy(near, square(left=5), tolerance=1) == pytest.approx(1.0)
        assert boundary_accuracy(far, square(left=5), tolerance=1) < 0.8
        with pytest.raises(ValueError, match="`tolerance` must be positive"):
            boundary_accuracy(near, far, tolerance=0)

    @pytest.mark.parametrize(
        ("prediction", "reference", "expected"),
        [
            (np.zeros((9, 9)), np.zeros((9, 9)), 1.0),
            (square(), np.zeros((20, 30)), 0.0),
            (np.zeros((20, 30)), square(), 0.0),
            (np.zeros((9, 9)), np.ones((9, 9)), 1.0),
        ],
    )
    def test_empty(self, prediction, reference, expected):
        assert boundary_accuracy(prediction, reference) == expected


class TestSaliency:
    @pytest.mark.parametrize(("soft", "reference"), PAIRS)
    def test_matches_pysodmetrics(self, soft, reference):
        f_measure = py_sod_metrics.FmeasureHandler(beta=0.3, with_adaptive=True, with_dynamic=True)
        fm = py_sod_metrics.FmeasureV2(metric_handlers={"fm": f_measure})
        mae, sm, em = py_sod_metrics.MAE(), py_sod_metrics.Smeasure(), py_sod_metrics.Emeasure()
        for metric in (fm, mae, sm, em):
            metric.step(soft, reference, normalize=False)
        other_fm, other_em = fm.get_results()["fm"], em.get_results()["em"]
        # Their curve starts at the highest threshold.
        np.testing.assert_allclose(
            f_beta_curve(soft, reference)[::-1], other_fm["dynamic"], atol=TOLERANCE
        )
        np.testing.assert_allclose(
            adaptive_f_beta(soft, reference), other_fm["adaptive"], atol=TOLERANCE
        )
        np.testing.assert_allclose(
            mean_absolute_error(soft, reference), mae.get_results()["mae"], atol=TOLERANCE
        )
        np.testing.assert_allclose(
            s_measure(soft, reference), sm.get_results()["sm"], atol=TOLERANCE
        )
        np.testing.assert_allclose(
            e_measure_curve(soft, reference)[::-1], other_em["curve"], atol=TOLERANCE
        )
        np.testing.assert_allclose(
            adaptive_e_measure(soft, reference), other_em["adp"], atol=TOLERANCE
        )

    @pytest.mark.parametrize("fill", [0.0, 0.4, 1.0])
    @pytest.mark.parametrize("reference", [np.zeros((8, 9), bool), np.ones((8, 9), bool)])
    def test_degenerate_maps_match_pysodmetrics(self, fill, reference):
        soft = np.full((8, 9), fill)
        sm, em, mae = py_sod_metrics.Smeasure(), py_sod_metrics.Emeasure(), py_sod_metrics.MAE()
        for metric in (sm, em, mae):
            metric.step(soft, reference, normalize=False)
        assert s_measure(soft, reference) == pytest.approx(sm.get_results()["sm"], abs=TOLERANCE)
        expected = em.get_results()["em"]
        np.testing.assert_allclose(e_measure_curve(soft, reference)[::-1], expected["curve"])
        assert adaptive_e_measure(soft, reference) == pytest.approx(expected["adp"])
        assert mean_absolute_error(soft, reference) == pytest.approx(mae.get_results()["mae"])

    def test_f_beta_by_hand(self):
        soft, reference = np.array([[0.9, 0.6], [0.2, 0.0]]), np.array([[1, 0], [1, 0]])
        curve = f_beta_curve(soft, reference)
        # At 0.5: precision 1/2, recall 1/2; F is 1/2 whatever the weight.
        assert curve[128] == pytest.approx(0.5)
        # At 0.8: precision 1, recall 1/2.
        assert curve[204] == pytest.approx(1.3 * 0.5 / (0.3 + 0.5))
        # Twice the mean is 0.85, the same pixels.
        assert adaptive_f_beta(soft, reference) == pytest.approx(curve[204])

    def test_perfect_and_empty(self):
        mask = square()
        assert f_beta_curve(mask, mask)[1:].min() == 1.0
        assert mean_absolute_error(mask, mask) == 0.0
        assert s_measure(mask, mask) == pytest.approx(1.0)
        assert f_beta_curve(mask, np.zeros_like(mask)).max() == 0.0

    def test_accumulated_scores_average_the_curve_before_the_maximum(self):
        scores = FBetaScores()
        for soft, reference in PAIRS:
            scores.update(soft, reference)
        curve = np.mean([f_beta_curve(*pair) for pair in PAIRS], axis=0)
        result = scores.compute()
        assert result["max_f_beta"] == pytest.approx(curve.max())
        assert result["mean_f_beta"] == pytest.approx(curve.mean())
        assert result["max_f_beta"] <= np.mean([f_beta_curve(*pair).max() for pair in PAIRS])
        with pytest.raises(ValueError, match="at least one image"):
            FBetaScores().compute()

    def test_stretch(self):
        stretched = stretch_to_unit_range([[0.2, 0.4], [0.3, 0.3]])
        np.testing.assert_allclose(stretched, [[0, 1], [0.5, 0.5]])
        np.testing.assert_allclose(stretch_to_unit_range(np.full((2, 2), 0.3)), 0.3)

    def test_rejects_eight_bit_maps(self):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\].*divide 8-bit maps by 255"):
            mean_absolute_error(np.full((4, 4), 255), np.ones((4, 4)))
        with pytest.raises(ValueError, match="`alpha`"):
            s_measure(np.zeros((4, 4)), np.ones((4, 4)), alpha=2)


class TestConfusionMatrix:
    def test_matches_torchmetrics(self):
        rng = np.random.default_rng(0)
        reference = rng.integers(0, 5, (3, 20, 20))
        prediction = np.where(rng.random(reference.shape) < 0.6, reference, 2)
        reference[rng.random(reference.shape) < 0.1] = 255
        matrix = ConfusionMatrix(5)
        for predicted, expected in zip(prediction, reference, strict=True):
            matrix.update(predicted, expected)
        other = MulticlassJaccardIndex(5, ignore_index=255, average="none")(
            torch.from_numpy(prediction), torch.from_numpy(reference)
        )
        scores = matrix.compute()
        np.testing.assert_allclose(scores["iou"], other.numpy(), atol=TOLERANCE)
        assert scores["mean_iou"] == pytest.approx(float(other.mean()), abs=TOLERANCE)

    def test_absent_classes_do_not_count(self):
        matrix = ConfusionMatrix(21)
        matrix.update([[0, 0], [3, 3]], [[0, 0], [3, 255]])
        scores = matrix.compute()
        assert scores["mean_iou"] == 1.0
        assert math.isnan(scores["iou"][7])
        assert scores["pixel_accuracy"] == 1.0

    def test_rejects_labels_out_of_range(self):
        with pytest.raises(
            ValueError, match="`reference` must hold labels from 0 to 1, got 0 to 9"
        ):
            ConfusionMatrix(2).update([[0, 1]], [[9, 0]])
        with pytest.raises(ValueError, match="at least one labelled pixel"):
            ConfusionMatrix(2).compute()


class TestTemporalStability:
    def test_still_moving_and_flickering(self):
        still = [square()] * 4
        moving = [square(left=5 + step) for step in range(4)]
        flicker = [square(), np.zeros((20, 30), bool)] * 2
        assert temporal_stability(still) == 1.0
        assert temporal_stability(flicker) == 0.0
        assert temporal_stability(moving) == pytest.approx(7 / 9)
        assert temporal_stability([square()]) == 1.0

    def test_flow_takes_the_motion_out(self):
        moving = [square(left=5 + step) for step in range(4)]
        flow = np.zeros((2, 20, 30))
        flow[0] = 1.0
        assert temporal_stability(iter(moving), [flow] * 3) == 1.0
        with pytest.raises(ValueError, match="one field per neighboring pair, got only 2"):
            temporal_stability(moving, [flow] * 2)


def test_memory_of_a_pass_does_not_grow():
    """Peak memory of 40 images stays near that of 4."""

    def peak(num_images):
        scores, pooled = FBetaScores(), PooledIoU()
        tracemalloc.start()
        for seed in range(num_images):
            soft, reference = random_pair(seed, (200, 300))
            scores.update(soft, reference)
            pooled.update(soft > 0.5, reference)
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    peak(1)
    assert peak(40) < 1.2 * peak(4)
