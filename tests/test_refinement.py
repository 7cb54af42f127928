"""Label-free refinements: properties of each, and that they run under the evaluator."""

import numpy as np
import pytest
import torch

from amd_hf import AMDImageProcessor
from amd_hf.data.benchmarks import open_benchmark
from amd_hf.evaluation import REFINEMENTS, EvaluationSettings
from amd_hf.evaluation.predictors import ModelPredictor
from amd_hf.evaluation.refinement import _Window, merge_common_motion
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
