"""`AMDImageProcessor`: published preprocessing, every kind of input, masks at the images' sizes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor
from transformers.image_utils import SizeDict

from amd_hf import AMDConfig, AMDImageProcessor, AMDModel
from amd_hf.image_processing_amd import output_size, resize_masks

GREY_LEVEL = 1 / 57.12  # one of 256 levels after the division by the smallest deviation


@pytest.fixture
def processor() -> AMDImageProcessor:
    return AMDImageProcessor(size={"shortest_edge": 64}, max_size=160)


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["00006", "00009"])
def test_published_preprocessing(oracle_dir: Path, name: str) -> None:
    recorded = np.array(Image.open(oracle_dir / "resized_png" / f"{name}.png"))
    processor = AMDImageProcessor()
    pixels = processor(oracle_dir / "frames" / f"{name}.jpg", return_tensors="pt").pixel_values
    mean = torch.tensor(processor.image_mean).view(3, 1, 1)
    std = torch.tensor(processor.image_std).view(3, 1, 1)
    expected = (torch.from_numpy(recorded).permute(2, 0, 1).float() - mean) / std
    assert pixels.shape == (1, 3, 392, 697)
    difference = (pixels[0] - expected).abs()
    assert difference.max() <= GREY_LEVEL + 1e-6
    assert (difference * std).mean() < 0.13


def test_normalization_is_that_of_the_model(rgb: np.ndarray) -> None:
    config = AMDConfig.tiny(image_mean=[1.0, 2.0, 3.0], image_std=[4.0, 5.0, 6.0], object_segment=3)
    processor = AMDImageProcessor.from_model_config(config, do_resize=False)
    pixels = processor(rgb, return_tensors="pt").pixel_values[0]
    expected = (rgb.astype(np.float32) - [1, 2, 3]) / [4, 5, 6]
    np.testing.assert_allclose(pixels.permute(1, 2, 0), expected, atol=1e-6)
    assert processor.object_segment == 3


def test_all_inputs_of_one_image_agree(
    processor: AMDImageProcessor, rgb: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(rgb).save(path)
    chw = torch.from_numpy(rgb).permute(2, 0, 1)
    expected = processor(rgb, return_tensors="pt").pixel_values
    assert expected.shape == (1, 3, 64, 80)
    for images in (path, str(path), Image.open(path), chw, chw.float() / 255, [rgb], rgb[None]):
        assert processor(images, return_tensors="pt").pixel_values.equal(expected)
    as_numpy = processor(rgb, return_tensors="np").pixel_values
    np.testing.assert_array_equal(as_numpy, expected.numpy())


def test_batches_and_lists_of_frames(processor: AMDImageProcessor, rgb: np.ndarray) -> None:
    def shape(images: object) -> tuple[int, ...]:
        return tuple(processor(images, return_tensors="pt").pixel_values.shape)

    assert shape([rgb, rgb]) == (2, 3, 64, 80)
    assert shape(np.stack([rgb] * 3)) == (3, 3, 64, 80)
    assert shape([[rgb, rgb], [rgb, rgb], [rgb, rgb]]) == (3, 2, 3, 64, 80)
    assert shape(np.stack([np.stack([rgb, rgb])] * 3)) == (3, 2, 3, 64, 80)
    assert [tuple(x.shape) for x in processor([rgb, rgb[:20]]).pixel_values] == [
        (3, 64, 80),
        (3, 64, 160),
    ]


def test_pairs_go_straight_into_the_model(
    processor: AMDImageProcessor, rgb: np.ndarray, tiny_model: AMDModel
) -> None:
    inputs = processor([[rgb, rgb]], return_tensors="pt")
    with torch.no_grad():
        output = tiny_model(**inputs)
    assert output.loss is not None
    masks = processor.post_process_object_segmentation(output, [(40, 50)] * 2)
    assert [mask.shape for mask in masks] == [(40, 50), (40, 50)]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1, 1), (64, 64)), ((3000, 2), (160, 32)), ((2, 3000), (32, 160)), ((80, 40), (128, 64))],
)
def test_extreme_and_portrait_sizes(
    processor: AMDImageProcessor, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    pixels = processor(np.zeros(size, np.uint8), return_tensors="pt").pixel_values
    assert tuple(pixels.shape) == (1, 3, *expected)


def test_size_settings() -> None:
    assert output_size(10, 20, SizeDict(shortest_edge=40), None) == (40, 80)
    assert output_size(10, 20, SizeDict(shortest_edge=40, longest_edge=60), 999) == (32, 60)
    assert output_size(10, 20, SizeDict(height=33, width=44), None) == (33, 44)
    with pytest.raises(ValueError, match="`size` must be"):
        output_size(10, 20, SizeDict(max_height=4, max_width=4), None)


def test_settings_of_one_call(processor: AMDImageProcessor, rgb: np.ndarray) -> None:
    pixels = processor(rgb, return_tensors="pt", size={"height": 32, "width": 48}).pixel_values
    assert pixels.shape == (1, 3, 32, 48)
    pixels = processor(rgb, return_tensors="pt", size=32, do_normalize=False).pixel_values
    assert pixels.shape == (1, 3, 32, 40)
    assert pixels.max() > 200
    with pytest.raises(ValueError, match="more than the limit of 99"):
        processor(rgb, max_pixels=99)
    with pytest.raises(TypeError, match="shortest_side"):
        processor(rgb, shortest_side=3)


def test_bad_input_gives_one_sentence(processor: AMDImageProcessor, rgb: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"20000 x 20000 pixels, more than the limit of 89478485"):
        processor(np.broadcast_to(np.uint8(0), (20000, 20000)))
    with pytest.raises(ValueError, match=r"There is no file 'nothing\.jpg'"):
        processor("nothing.jpg")
    with pytest.raises(ValueError, match="got an empty list"):
        processor([])
    with pytest.raises(ValueError, match="cannot form one batch"):
        processor([rgb, rgb[:20]], return_tensors="pt")
    with pytest.raises(ValueError, match="one common length"):
        processor([[rgb, rgb], [rgb]])
    with pytest.raises(ValueError, match="got both"):
        processor([[rgb, rgb], rgb])
    with pytest.raises(TypeError, match="got NoneType"):
        processor(None)


def test_saved_and_loaded_by_the_auto_class(tmp_path: Path, rgb: np.ndarray) -> None:
    processor = AMDImageProcessor(
        size={"shortest_edge": 48}, max_size=100, max_pixels=10_000, object_segment=2
    )
    processor.save_pretrained(tmp_path)
    AMDConfig.tiny().save_pretrained(tmp_path)
    for loaded in (
        AMDImageProcessor.from_pretrained(tmp_path),
        AutoImageProcessor.from_pretrained(tmp_path),
    ):
        assert type(loaded) is AMDImageProcessor
        assert loaded.to_dict() == processor.to_dict()
        assert (loaded.max_size, loaded.max_pixels, loaded.object_segment) == (100, 10_000, 2)
        assert loaded(rgb, return_tensors="pt").pixel_values.equal(
            processor(rgb, return_tensors="pt").pixel_values
        )


def _output(*segments: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(segment_masks=torch.stack(segments)[None])


def test_masks_are_enlarged_with_aligned_corners(processor: AMDImageProcessor) -> None:
    ramp = torch.tensor([[0.0, 1.0]]).expand(2, 2)
    soft = processor.post_process_object_segmentation(
        _output(ramp, 1 - ramp), [(3, 5)], return_soft_masks=True
    )[0]
    torch.testing.assert_close(soft, torch.linspace(0, 1, 5).expand(3, 5))
    mask = processor.post_process_object_segmentation(_output(ramp, 1 - ramp), [(3, 5)])[0]
    assert mask.dtype == torch.bool
    # Exactly 0.5 is background, as in the published evaluation.
    assert mask.tolist() == [[False, False, False, True, True]] * 3


def test_threshold_and_segment_are_chosen() -> None:
    output = _output(torch.full((2, 2), 0.3), torch.full((2, 2), 0.7))
    processor = AMDImageProcessor(object_segment=1)
    post_process = processor.post_process_object_segmentation
    assert post_process(output)[0].all()
    assert not post_process(output, threshold=0.7)[0].any()
    assert not post_process(output, object_segment=0)[0].any()
    assert post_process(output, object_segment=0, threshold=0.2)[0].all()


def test_logits_alone_are_enough(processor: AMDImageProcessor) -> None:
    logits = torch.randn(2, 3, 4, 5, dtype=torch.bfloat16)
    soft = processor.post_process_object_segmentation(
        SimpleNamespace(segment_logits=logits), return_soft_masks=True
    )
    assert soft[0].dtype == torch.float32
    torch.testing.assert_close(torch.stack(soft), logits.float().softmax(dim=1)[:, 0])


def test_post_processing_refuses_bad_arguments(processor: AMDImageProcessor) -> None:
    output = _output(torch.zeros(2, 2), torch.ones(2, 2))
    post_process = processor.post_process_object_segmentation
    with pytest.raises(ValueError, match=r"`threshold` must lie in \[0, 1\), got 1"):
        post_process(output, threshold=1)
    with pytest.raises(ValueError, match=r"`object_segment` must lie in 0\.\.1.*got 2"):
        post_process(output, object_segment=2)
    for sizes in ([(3, 3)] * 2, [(0, 3)], [(3, 3, 3)]):
        with pytest.raises(ValueError, match="must be 1 positive"):
            post_process(output, sizes)
    with pytest.raises(ValueError, match="got SimpleNamespace without them"):
        post_process(SimpleNamespace(loss=1))


def test_semantic_maps(processor: AMDImageProcessor) -> None:
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 1, 0] = 5.0
    logits[0, 2, 1] = 5.0
    output = SimpleNamespace(logits=logits)
    classes = processor.post_process_semantic_segmentation(output, torch.tensor([[4, 6]]))[0]
    assert classes.dtype == torch.int64
    assert classes.tolist() == [[1] * 6] * 2 + [[2] * 6] * 2
    segments = processor.post_process_semantic_segmentation(
        SimpleNamespace(segment_masks=logits.softmax(dim=1))
    )
    assert segments[0].tolist() == [[1, 1], [2, 2]]


def test_resize_masks_without_sizes_keeps_them() -> None:
    masks = torch.rand(2, 3, 4, 5)
    assert torch.stack(resize_masks(masks, None)).equal(masks)
