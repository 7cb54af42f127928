"""The guided filter: properties, a naive reference, and its place in the pipeline."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from amd_hf import AMDImageProcessor
from amd_hf.guided_filter_amd import guided_filter
from amd_hf.pipeline_amd import TASK


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


class TestInThePipeline:
    @pytest.fixture
    def pipe(self, tiny_model):
        processor = AMDImageProcessor.from_model_config(
            tiny_model.config, size={"shortest_edge": 64}
        )
        return pipeline(TASK, model=tiny_model, image_processor=processor, device="cpu")

    @pytest.fixture
    def images(self):
        """Noisy pictures of two sizes, left dark and right bright."""
        pictures = []
        for seed, width in enumerate((96, 96, 72)):
            pixels = np.random.default_rng(seed).integers(0, 60, (64, width, 3), dtype=np.uint8)
            pixels[:, width // 2 :] += 150
            pictures.append(Image.fromarray(pixels))
        return pictures

    def test_is_the_filter_of_the_soft_masks(self, pipe, images):
        options = {"return_segments": True, "threshold": 0.2}
        plain = pipe(images[0], **options)
        refined = pipe(images[0], refine="guided-filter", **options)
        guide = torch.from_numpy(np.array(images[0])).permute(2, 0, 1).float() / 255
        soft = torch.from_numpy(np.stack([entry["soft_mask"] for entry in plain]))
        expected = guided_filter(guide, soft).numpy()
        assert np.abs(expected - soft.numpy()).max() > 1e-3
        for entry, mask in zip(refined, expected, strict=True):
            np.testing.assert_allclose(entry["soft_mask"], mask, atol=1e-6)
            assert np.array_equal(np.array(entry["mask"]) > 0, entry["soft_mask"] > 0.2)

    def test_batches_give_the_same(self, pipe, images):
        options = {"refine": "guided-filter", "return_segments": True}
        single = [pipe(image, **options) for image in images]
        for found in (pipe(images, **options), pipe(images, batch_size=2, **options)):
            for left, right in zip(single, found, strict=True):
                for one, other in zip(left, right, strict=True):
                    np.testing.assert_allclose(one["soft_mask"], other["soft_mask"], atol=1e-5)

    def test_unknown_refinement(self, pipe, images):
        with pytest.raises(ValueError, match="`refine` must be 'guided-filter' or None, got 'crf'"):
            pipe(images[0], refine="crf")
