"""Label-free refinements: properties of each, and that they run under the evaluator."""

import numpy as np
import pytest
import torch

from amd_hf import AMDImageProcessor
from amd_hf.data.benchmarks import open_benchmark
from amd_hf.evaluation import REFINEMENTS, EvaluationSettings
from amd_hf.evaluation.predictors import ModelPredictor
from amd_hf.evaluation.refinement import _Window, guided_filter, merge_common_motion
from tests.evaluation_data import write_davis


class TestCommonMotion:
    def masks(self):
        """Background all around, two parts of an object, a still thing."""
        labels = torch.zeros(8, 10, dtype=torch.long)
        labels[2:4, 2:5], labels[4:6, 2:5], labels[2:4, 7:9] = 1, 2, 3
        return torch.nn.functional.one_hot(labels, 4).permute(2, 0, 1).float()

    def test_parts_that_move_together_are_joined(self):
        masks = self.masks()
        motion = torch.tensor([[0.0, 0.0], [6.0, 0.0], [5.0, 1.0], [0.2, 0.0]])
        merged = merge_common_motion(masks, motion)
        assert torch.equal(merged[1], masks[1] + masks[2])
        assert torch.equal(merged[2], masks[1] + masks[2])
        assert torch.equal(merged[0], masks[0])
        assert torch.equal(merged[3], masks[3])

    def test_nothing_is_joined_when_nothing_moves(self):
        masks = self.masks()
        motion = torch.tensor([[0.0, 0.0], [0.3, 0.0], [0.31, 0.0], [0.3, 0.1]])
        assert torch.equal(merge_common_motion(masks, motion), masks)

    def test_a_common_camera_motion_changes_nothing(self):
        masks = self.masks()
        motion = torch.tensor([[0.0, 0.0], [6.0, 0.0], [5.0, 1.0], [0.2, 0.0]])
        shifted = merge_common_motion(masks, motion + torch.tensor([-9.0, 4.0]))
        assert torch.equal(shifted, merge_common_motion(masks, motion))

    def test_shapes(self):
        with pytest.raises(ValueError, match=r"`motion` \(K, 2\), got"):
            merge_common_motion(self.masks(), torch.zeros(3, 2))


class TestGuidedFilter:
    def guide(self):
        """Left half dark, right half bright."""
        guide = torch.full((3, 60, 80), 0.2)
        guide[:, :, 40:] = 0.8
        return guide

    def test_edges_snap_to_the_image(self):
        soft = torch.zeros(1, 60, 80)
        soft[:, :, 44:] = 1.0  # 4 pixels off
        refined = guided_filter(self.guide(), soft, radius=0.08)
        before = (soft[0, :, 40:] > 0.5).float().mean()
        after = (refined[0, :, 40:] > 0.5).float().mean()
        assert after > before
        assert (refined[0, :, :38] > 0.5).float().mean() == 0

    @pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
    def test_constant_masks_stay(self, value):
        soft = torch.full((2, 60, 80), value)
        assert torch.allclose(guided_filter(self.guide(), soft), soft, atol=1e-4)

    def test_flat_guide_is_a_blur(self):
        soft = torch.zeros(1, 41, 41)
        soft[0, 20, 20] = 1.0
        refined = guided_filter(torch.full((3, 41, 41), 0.5), soft)
        assert 0 < refined.max() < 0.5
        assert refined.argmax() == 20 * 41 + 20

    def test_large_images_keep_their_size(self):
        generator = torch.Generator().manual_seed(0)
        guide = torch.rand(3, 500, 300, generator=generator)
        refined = guided_filter(guide, torch.rand(2, 500, 300, generator=generator))
        assert refined.shape == (2, 500, 300)
        assert refined.isfinite().all()

    def test_matches_a_naive_gray_reference(self):
        """For a gray guide He's scalar formula must come out."""
        rng = np.random.default_rng(0)
        gray = rng.random((30, 36)).astype(np.float32)
        soft = rng.random((30, 36)).astype(np.float32)
        eps, window = 0.05, max(1, round(0.06 * float(np.hypot(30, 36))))

        def mean(values):
            result = np.empty_like(values, dtype=np.float64)
            for y in range(30):
                for x in range(36):
                    rows = slice(max(0, y - window), y + window + 1)
                    result[y, x] = values[rows, max(0, x - window) : x + window + 1].mean()
            return result

        # Three equal channels share the slope: eps weighs on each third of it.
        variance = mean(gray * gray) - mean(gray) ** 2
        slope = 3 * (mean(gray * soft) - mean(gray) * mean(soft)) / (3 * variance + eps)
        offset = mean(soft) - slope * mean(gray)
        expected = np.clip(mean(slope) * gray + mean(offset), 0, 1)
        guide = torch.from_numpy(np.stack([gray] * 3))
        refined = guided_filter(guide, torch.from_numpy(soft)[None], radius=0.06, eps=eps)
        np.testing.assert_allclose(refined[0].numpy(), expected, atol=1e-4)

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match=r"`guide` must have shape \(3, H, W\)"):
            guided_filter(torch.zeros(3, 5, 5), torch.zeros(1, 5, 6))
        with pytest.raises(ValueError, match="must be positive"):
            guided_filter(torch.zeros(3, 5, 5), torch.zeros(1, 5, 5), eps=0)


class TestInTheEvaluator:
    @pytest.fixture
    def sequence(self, tmp_path):
        write_davis(tmp_path, ("dog",))
        return open_benchmark("davis2016", tmp_path).sequences[0]

    @pytest.fixture
    def soft_masks(self, tiny_model, tiny_config, sequence):
        processor = AMDImageProcessor.from_model_config(tiny_config, size={"shortest_edge": 48})

        def run(*names):
            settings = EvaluationSettings(refinements=names)
            predictor = ModelPredictor(tiny_model, processor, settings)
            found = list(predictor.predict(sequence, sequence.frames))
            assert [item.frame.name for item in found] == [f.name for f in sequence.frames]
            return np.stack([item.soft_masks for item in found])

        return run

    @pytest.mark.parametrize("name", [name for name in REFINEMENTS if name != "common-motion"])
    def test_each_changes_the_masks(self, name, soft_masks):
        refined = soft_masks(name)
        assert refined.min() >= 0
        assert refined.max() <= 1
        assert not np.allclose(refined, soft_masks(), atol=1e-4)

    def test_all_together(self, soft_masks):
        refined = soft_masks(*REFINEMENTS)
        assert np.isfinite(refined).all()

    def test_flips_give_mirrored_masks_for_a_mirrored_frame(self, tiny_model, tiny_config):
        processor = AMDImageProcessor.from_model_config(tiny_config, do_resize=False)
        settings = EvaluationSettings(refinements=("flips",))
        predictor = ModelPredictor(tiny_model, processor, settings)
        window = _Window(predictor, tiny_model, type("Sequence", (), {"frames": ()})())
        pixels = torch.randn(1, 3, 64, 64)
        found = []
        for variant in (pixels, pixels.flip(-1)):
            predictor.pixel_values = lambda frame, short_side=None, variant=variant: variant
            found.append(window._averaged(None))
        assert torch.allclose(found[0], found[1].flip(-1), atol=1e-5)

    def test_only_neighbors_stay_in_memory(self, tiny_model, tiny_config, tmp_path):
        write_davis(tmp_path / "long", ("dog",), num_frames=5)
        sequence = open_benchmark("davis2016", tmp_path / "long").sequences[0]
        processor = AMDImageProcessor.from_model_config(tiny_config, size={"shortest_edge": 48})
        settings = EvaluationSettings(refinements=("temporal", "common-motion"))
        window = _Window(ModelPredictor(tiny_model, processor, settings), tiny_model, sequence)
        for index in range(5):
            window.smoothed(index)
            assert len(window._masks) <= 3
            assert len(window._pairs) <= 4
