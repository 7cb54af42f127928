"""Classical baselines on pictures where the answer is known."""

import builtins

import numpy as np
import pytest
from skimage.filters import threshold_otsu

from amd_hf.data.benchmarks import open_benchmark
from amd_hf.evaluation.baselines import BASELINE_NAMES, make_baseline
from amd_hf.evaluation.motion_baseline import (
    dominant_motion,
    motion_saliency,
    otsu_threshold,
)
from amd_hf.evaluation.superpixels import (
    background_weights,
    geodesic_distances,
    markov_chain_saliency,
    robust_background_saliency,
    superpixel_graph,
)
from amd_hf.metrics import region_similarity
from tests.evaluation_data import write_davis, write_images


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

    @pytest.mark.parametrize("method", [robust_background_saliency, markov_chain_saliency])
    def test_the_disk_stands_out(self, method):
        image, mask = colored_disk()
        soft = method(image)
        assert soft.dtype == np.float32
        assert (soft.min(), soft.max()) == (0, 1)
        assert region_similarity(soft > 0.5, mask) > 0.85

    @pytest.mark.parametrize("method", [robust_background_saliency, markov_chain_saliency])
    def test_a_flat_image_does_not_break(self, method):
        soft = method(np.full((40, 50, 3), 120, np.uint8))
        assert np.isfinite(soft).all()


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
        with pytest.raises(ValueError, match="Unknown baseline 'crf'; choose from rbd, mc, motion"):
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
