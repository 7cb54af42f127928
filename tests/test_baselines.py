"""Classical baselines on pictures where the answer is known."""

import builtins

import numpy as np
import pytest
from skimage.filters import threshold_otsu

from amd_hf.data.benchmarks import open_benchmark
from amd_hf.evaluation.baselines import BASELINE_NAMES, IMAGE_BASELINES, make_baseline
from amd_hf.evaluation.motion_baseline import (
    dominant_motion,
    motion_saliency,
    otsu_threshold,
)
from amd_hf.metrics import region_similarity
from amd_hf.saliency.hierarchical import (
    CUE_WEIGHTS,
    TREE_WEIGHT,
    encompassed_sides,
    infer_tree,
    initial_regions,
    merge_small_regions,
)
from amd_hf.saliency.reconstruction import (
    centered_on_object,
    cluster,
    dense_errors,
    posterior,
    propagated,
    sparse_errors,
)
from amd_hf.saliency.superpixels import (
    background_weights,
    geodesic_distances,
    indecision,
    region_means,
    superpixel_graph,
)
from tests.evaluation_data import write_davis, write_images

SALIENCY_METHODS = list(IMAGE_BASELINES.values())


def colored_disk(height=90, width=120, seed=0):
    """A red disk on a two-tone green background with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    mask = (y - 45) ** 2 + (x - 66) ** 2 < 20**2
    image = np.broadcast_to((60.0, 120.0, 70.0), (height, width, 3)).copy()
    image[:, : width // 2] = (70, 140, 80)
    image[mask] = (200, 60, 50)
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8), mask


class TestSuperpixels:
    def test_graph(self):
        image, _ = colored_disk()
        graph = superpixel_graph(image, 60)
        count = len(graph.colors)
        assert 30 < count < 90
        assert set(np.unique(graph.labels)) == set(range(count))
        assert (graph.is_neighbor == graph.is_neighbor.T).all()
        assert not graph.is_neighbor.diagonal().any()
        assert graph.on_boundary[graph.labels[0]].all()
        assert not graph.on_boundary[graph.labels[45, 60]]
        painted = graph.paint(graph.centers[:, 0])
        assert painted.shape == (90, 120)
        assert painted[2, 60] < painted[85, 60]

    def test_geodesic_distances_by_hand(self):
        weights = np.array([[0, 1, 9], [1, 0, 2], [9, 2, 0]], dtype=float)
        edges = np.ones((3, 3), bool)
        distances = geodesic_distances(weights, edges)
        assert distances[0, 2] == 3  # around the corner
        edges[1, 2] = edges[2, 1] = False
        assert geodesic_distances(weights, edges)[0, 2] == 9
        edges[0, 2] = edges[2, 0] = False
        assert geodesic_distances(weights, edges)[0, 2] == np.inf

    def test_background_is_what_touches_the_border(self):
        image, mask = colored_disk()
        graph = superpixel_graph(image)
        weights = graph.paint(background_weights(graph))
        assert weights[mask].mean() < 0.2
        assert weights[~mask].mean() > 0.8

    @pytest.mark.parametrize("method", SALIENCY_METHODS)
    def test_the_disk_stands_out(self, method):
        image, mask = colored_disk()
        soft = method(image)
        assert soft.dtype == np.float32
        assert (soft.min(), soft.max()) == (0, 1)
        assert region_similarity(soft > 0.5, mask) > 0.85

    @pytest.mark.parametrize("method", SALIENCY_METHODS)
    def test_a_flat_image_does_not_break(self, method):
        soft = method(np.full((40, 50, 3), 120, np.uint8))
        assert np.isfinite(soft).all()


class TestMarkovChain:
    def test_indecision_by_hand(self):
        assert indecision(np.array([0.0, 1.0, 0.05, 0.99])) == 1.0
        assert indecision(np.array([0.45, 0.55])) == 5.0
        assert indecision(np.array([0.0, 0.25])) == (1 + 3) / 2


class TestReconstruction:
    def test_what_the_border_spans_has_no_error(self):
        rng = np.random.default_rng(0)
        axes = rng.normal(size=(2, 8))
        templates = 0.5 + rng.normal(size=(30, 2)) @ axes
        inside = 0.5 + rng.normal(size=(5, 2)) @ axes
        outside = inside + np.linalg.svd(axes)[2][-1] * 0.7  # orthogonal to both axes
        errors = dense_errors(np.concatenate([inside, outside]), templates)
        np.testing.assert_allclose(errors[:5], 0, atol=1e-9)
        np.testing.assert_allclose(errors[5:], 0.7**2, rtol=1e-9)

    def test_equal_templates_leave_the_distance(self):
        errors = dense_errors(np.array([[1.0, 2.0], [4.0, 6.0]]), np.full((3, 2), (1.0, 2.0)))
        np.testing.assert_allclose(errors, [0, 25], atol=1e-12)

    def test_sparse_codes_solve_the_lasso(self):
        rng = np.random.default_rng(1)
        templates = rng.uniform(0, 1, (12, 8))
        features = np.concatenate([templates[:2], [np.eye(8)[7] * 3]])
        templates[:, 7] = 0.0
        features[:2, 7] = 0.0
        errors = sparse_errors(features, templates)
        assert (errors[:2] < 1e-3).all()  # a template needs one coefficient
        assert errors[2] == pytest.approx(9)  # nothing at the border looks like this
        # One template: soft thresholding by hand.
        one = np.array([[2.0, 0.0]])
        code = (2 * 2.0 * 3.0 - 0.01) / (2 * 4.0)
        expected = (3 - 2 * code) ** 2 + 1
        assert sparse_errors(np.array([[3.0, 1.0]]), one)[0] == pytest.approx(expected, rel=1e-6)

    def test_clusters_follow_the_groups(self):
        rng = np.random.default_rng(2)
        groups = np.repeat(np.arange(3), 10)
        features = np.eye(3)[groups] * 5 + rng.normal(0, 0.1, (30, 3))
        found = cluster(features, 3)
        assert all(len(set(found[groups == group])) == 1 for group in range(3))
        assert len(set(found)) == 3
        np.testing.assert_array_equal(found, cluster(features, 3))

    def test_errors_spread_within_a_cluster_only(self):
        features = np.zeros((4, 2))
        features[2:] = 9
        errors = np.array([1.0, 0.0, 0.3, 0.3])
        mixed = propagated(errors, features, np.array([0, 0, 1, 1]))
        np.testing.assert_allclose(mixed, [1.0, 0.5, 0.3, 0.3])

    def test_the_gaussian_sits_on_the_object(self):
        spread = centered_on_object(np.ones((20, 30)))
        assert np.unravel_index(spread.argmax(), spread.shape) in {(9, 14), (9, 15), (10, 14)}
        corner = np.full((20, 20), 0.2)
        corner[:6, :6] = 1
        biased = centered_on_object(corner)
        top, left = np.unravel_index(biased.argmax(), biased.shape)
        assert max(top, left) < 6  # on the object, on the side of the rest
        assert biased[5, 5] > biased[0, 0] > biased[19, 19]

    def test_agreeing_maps_become_certain(self):
        prior = np.full((20, 20), 0.3)
        prior[5:15, 5:15] = 0.7
        sure = posterior(prior, prior)
        assert (sure[5:15, 5:15] > 0.99).all()
        assert (sure[:5] < 0.01).all()
        # A map that says nothing leaves the prior.
        np.testing.assert_allclose(posterior(prior, np.zeros((20, 20))), prior, atol=1e-3)


class TestHierarchy:
    def test_largest_squares_by_hand(self):
        labels = np.zeros((6, 9), int)
        labels[:, 4:] = 1
        labels[2, 6] = 2
        labels[5, :] = 3
        assert encompassed_sides(labels).tolist() == [4, 2, 1, 1]

    def test_small_regions_join_the_nearest_color(self):
        labels = np.zeros((12, 20), int)
        labels[:, 10:] = 1
        labels[5:7, 9:11] = 2  # too small, on the seam
        colors = np.zeros((12, 20, 3))
        colors[:, 10:] = 9.0
        colors[5:7, 9:11] = 8.0  # nearer to the right side
        merged = merge_small_regions(labels, colors, 4)
        assert len(np.unique(merged)) == 2
        assert merged[5, 9] == merged[0, 15] != merged[0, 0]

    def test_layers_are_nested_and_coarse_enough(self):
        image, _ = colored_disk()
        fine = merge_small_regions(initial_regions(image), image.astype(float), 3)
        coarse = merge_small_regions(fine, image.astype(float), 9)
        assert encompassed_sides(fine).min() >= 3
        assert encompassed_sides(coarse).min() >= 9
        around = region_means(fine, coarse[..., None])[:, 0]
        np.testing.assert_allclose(around[fine], coarse)  # each fine region lies in one coarse one
        assert coarse.max() < fine.max()

    def test_tree_inference_minimizes_the_energy(self):
        rng = np.random.default_rng(3)
        cues = [rng.uniform(size=6), rng.uniform(size=3), rng.uniform(size=2)]
        parents = [np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1])]

        def energy(values):
            layers = np.split(values, [6, 9])
            own = sum(
                weight * np.square(layer - cue).sum()
                for weight, layer, cue in zip(CUE_WEIGHTS, layers, cues, strict=True)
            )
            pairs = [(layers[0], layers[1][parents[0]]), (layers[1], layers[2][parents[1]])]
            return own + TREE_WEIGHT * sum(np.square(a - b).sum() for a, b in pairs)

        found = np.concatenate(infer_tree(cues, parents))
        for _ in range(20):
            assert energy(found) < energy(found + rng.normal(0, 0.01, 11))
        # The slope is zero in every direction.
        for direction in np.eye(11):
            slope = (energy(found + 1e-5 * direction) - energy(found - 1e-5 * direction)) / 2e-5
            assert slope == pytest.approx(0, abs=1e-6)


class TestMotion:
    def test_dominant_motion_ignores_a_minority(self):
        y, x = np.mgrid[-1:1:60j, -1:1:80j]
        camera = np.stack([2 + 0.5 * x - 0.3 * y * x, -1 + 0.4 * y])
        flow = camera.copy()
        flow[:, 20:40, 30:50] += 6
        fitted = dominant_motion(flow.astype(np.float32))
        np.testing.assert_allclose(fitted, camera, atol=0.1)

    def test_otsu_matches_skimage(self):
        rng = np.random.default_rng(0)
        values = np.concatenate([rng.normal(1, 0.6, 40000), rng.normal(3.5, 0.8, 9000)])
        assert otsu_threshold(values) == pytest.approx(threshold_otsu(values), abs=0.05)
        assert otsu_threshold(np.full(9, 2.5)) == 2.5
        assert otsu_threshold(np.array([0.0] * 50 + [1.0] * 50)) == pytest.approx(0.5, abs=0.01)

    def test_a_moving_square_is_found(self):
        rng = np.random.default_rng(0)
        texture = np.kron(rng.integers(0, 255, (34, 44, 3)), np.ones((4, 4, 1)))
        patch = np.kron(rng.integers(0, 255, (12, 12, 3)), np.ones((4, 4, 1)))
        frames = []
        for shift in (0, 4):
            frame = texture[4:124, 4 + shift // 2 : 164 + shift // 2].copy()  # a panning camera
            frame[40:88, 40 + shift : 88 + shift] = patch
            frames.append(frame.astype(np.uint8))
        soft = motion_saliency(*frames)
        truth = np.zeros((120, 160), bool)
        truth[40:88, 40:88] = True
        assert region_similarity(soft > 0.5, truth) > 0.7

    def test_nothing_moves(self):
        frame = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        assert not motion_saliency(frame, frame).any()


class TestUnderTheEvaluator:
    @pytest.mark.parametrize("name", BASELINE_NAMES)
    def test_videos(self, name, tmp_path):
        benchmark = open_benchmark("davis2016", write_davis(tmp_path, ("dog",)))
        sequence = benchmark.sequences[0]
        found = list(make_baseline(name, "video").predict(sequence, sequence.frames))
        assert len(found) == 4
        for prediction in found:
            assert prediction.soft_masks.shape == (1, 48, 64)
            if name == "rbd":
                assert region_similarity(prediction.soft_masks[0] > 0.5, prediction.reference) > 0.6

    def test_images(self, tmp_path):
        benchmark = open_benchmark("ecssd", write_images(tmp_path, 2))
        (prediction,) = make_baseline("rbd", "image").predict(
            benchmark.sequences[0], benchmark.sequences[0].frames
        )
        assert prediction.soft_masks.max() <= 1

    def test_bad_names(self):
        with pytest.raises(
            ValueError, match="Unknown baseline 'crf'; choose from rbd, hs, mc, dsr, motion"
        ):
            make_baseline("crf", "video")
        with pytest.raises(ValueError, match="'motion' needs a video benchmark"):
            make_baseline("motion", "image")

    @pytest.mark.parametrize(
        ("package", "call"),
        [
            ("skimage.color", lambda image: superpixel_graph(image)),
            ("cv2", lambda image: motion_saliency(image, image)),
        ],
    )
    def test_missing_extra_is_named(self, package, call, monkeypatch):
        original = builtins.__import__

        def absent(name, *args, **kwargs):
            if name == package:
                raise ImportError(name)
            return original(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", absent)
        with pytest.raises(ImportError, match=r'pip install "amd-hf\[eval\]"'):
            call(np.zeros((40, 40, 3), np.uint8))
