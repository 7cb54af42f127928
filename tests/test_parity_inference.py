"""From files to masks: the whole inference path reproduces the published test pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from amd_hf import AMDImageProcessor, AMDModel, AMDModelOutput

from . import oracle

pytestmark = pytest.mark.parity

FRAMES = ("00006", "00009")
SEGMENTS = (0, 1)
FRAME_SIZE = (480, 854)
RESIZED_SIZE = (392, 697)


@pytest.fixture(scope="module")
def model(oracle_dir: Path) -> AMDModel:
    return oracle.official_model(oracle_dir)


@pytest.fixture(scope="module")
def expected(oracle_dir: Path) -> dict[str, Tensor]:
    return oracle.tensors(oracle_dir / "inference.safetensors")


@pytest.fixture(scope="module")
def from_jpeg(oracle_dir: Path, model: AMDModel) -> dict[str, tuple[Tensor, AMDModelOutput]]:
    """Pixel values and output for the original frames, through our own resize."""
    processor = AMDImageProcessor()
    results = {}
    for name in FRAMES:
        inputs = processor(Image.open(oracle_dir / "frames" / f"{name}.jpg"), return_tensors="pt")
        with torch.no_grad():
            results[name] = (inputs["pixel_values"], model(**inputs))
    return results


@pytest.fixture(scope="module")
def from_resized(oracle_dir: Path, model: AMDModel) -> dict[str, tuple[Tensor, AMDModelOutput]]:
    """Pixel values and output for the frames that the published pipeline had resized."""
    processor = AMDImageProcessor(do_resize=False)
    results = {}
    for name in FRAMES:
        image = Image.open(oracle_dir / "resized_png" / f"{name}.png")
        inputs = processor(image, return_tensors="pt")
        with torch.no_grad():
            results[name] = (inputs["pixel_values"], model(**inputs))
    return results


def masks_of(output: AMDModelOutput, segment: int) -> np.ndarray:
    (mask,) = AMDImageProcessor().post_process_object_segmentation(
        output, target_sizes=[FRAME_SIZE], object_segment=segment
    )
    return mask.numpy()


def published_mask(folder: Path, name: str, segment: int) -> np.ndarray:
    image = Image.open(folder / "inference_png" / f"{name}_ch{segment}.png")
    return np.asarray(image) == 255


@pytest.mark.parametrize("name", FRAMES)
def test_normalization_is_exact(
    from_resized: dict[str, tuple[Tensor, AMDModelOutput]], expected: dict[str, Tensor], name: str
) -> None:
    pixel_values, _ = from_resized[name]
    assert tuple(pixel_values.shape) == (1, 3, *RESIZED_SIZE)
    mean, std = expected[f"{name}.pixel_values.mean_std"].tolist()
    assert float(pixel_values.mean()) == pytest.approx(mean, abs=1e-5)
    assert float(pixel_values.std()) == pytest.approx(std, abs=1e-5)
    if f"{name}.pixel_values.sub8" in expected:  # recorded for four of the five frames
        assert torch.equal(pixel_values[0, :, ::8, ::8], expected[f"{name}.pixel_values.sub8"])


@pytest.mark.parametrize("name", FRAMES)
def test_segments_of_the_resized_frames(
    from_resized: dict[str, tuple[Tensor, AMDModelOutput]], expected: dict[str, Tensor], name: str
) -> None:
    _, output = from_resized[name]
    masks = output.segment_masks[0]
    torch.testing.assert_close(masks, expected[f"{name}.seg_masks"], rtol=0, atol=oracle.MASKS_ATOL)
    returned = expected[f"{name}.pred_ch1_lowres"][0, 0]
    torch.testing.assert_close(masks[1], returned, rtol=0, atol=oracle.MASKS_ATOL)
    (soft,) = AMDImageProcessor().post_process_object_segmentation(
        output, target_sizes=[FRAME_SIZE], object_segment=1, return_soft_masks=True
    )
    enlarged = expected[f"{name}.prob_ch1_upsampled.sub4"]
    torch.testing.assert_close(soft[::4, ::4], enlarged, rtol=0, atol=oracle.MASKS_ATOL)


@pytest.mark.parametrize("segment", SEGMENTS)
@pytest.mark.parametrize("name", FRAMES)
def test_masks_of_the_resized_frames_equal_the_published_files(
    oracle_dir: Path,
    from_resized: dict[str, tuple[Tensor, AMDModelOutput]],
    name: str,
    segment: int,
) -> None:
    ours = masks_of(from_resized[name][1], segment)
    theirs = published_mask(oracle_dir, name, segment)
    assert ours.shape == theirs.shape
    assert (ours != theirs).sum() <= oracle.FLIPPED_PIXELS


@pytest.mark.parametrize("name", FRAMES)
def test_pixel_values_from_jpeg(
    from_jpeg: dict[str, tuple[Tensor, AMDModelOutput]],
    from_resized: dict[str, tuple[Tensor, AMDModelOutput]],
    name: str,
) -> None:
    """Decoding and resizing are exact too: not one grey level apart from the published pipeline."""
    assert torch.equal(from_jpeg[name][0], from_resized[name][0])


@pytest.mark.parametrize("segment", SEGMENTS)
@pytest.mark.parametrize("name", FRAMES)
def test_masks_from_jpeg_equal_the_published_files(
    oracle_dir: Path,
    from_jpeg: dict[str, tuple[Tensor, AMDModelOutput]],
    name: str,
    segment: int,
) -> None:
    ours = masks_of(from_jpeg[name][1], segment)
    theirs = published_mask(oracle_dir, name, segment)
    assert theirs.any()
    assert not theirs.all()
    assert (ours != theirs).sum() <= oracle.FLIPPED_PIXELS
