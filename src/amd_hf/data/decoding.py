"""From encoded frame pairs to batches: decoding straight into the crop, screening, collation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from amd_hf.data.augmentation import (
    IMAGE_MEAN,
    IMAGE_STD,
    AugmentationPreset,
    Geometry,
    PairAugmentation,
)
from amd_hf.data.counting import SkippedPairError
from amd_hf.data.frame_arrays import (
    greatest_reduced_difference,
    open_frame,
    read_pixels,
    write_planes,
)
from amd_hf.image_io_amd import DECODE_ERRORS

# Limits of the shot-cut guard: mean difference in gray levels, correlation of color histograms,
# correlation of 24 x 24 thumbnails.
MAX_DIFFERENCE = 45.0
MIN_HISTOGRAM_CORRELATION = 0.4
MIN_THUMBNAIL_CORRELATION = 0.5
# Below this mean difference there is no cut; most pairs are done here.
LEAST_CUT_DIFFERENCE = 8.0
SCREEN_SIDE = 96
THUMBNAIL_SIDE = 24


class PairTransform:
    """Decodes an encoded pair into two crops of one size, the same region for both frames.

    JPEGs are decoded at the smallest scale that still covers the crop (`Image.draft`), which is
    where most of the speed comes from.

    Args:
        preset: One of `AUGMENTATION_PRESETS` ("published", "light", "heavy", "medium", "none") or a
            preset of your own.
        crop_size: Side of the square crop, or its (height, width), in pixels.
        flip: Probability of a horizontal flip; None keeps that of the preset.
        image_mean: Mean of red, green and blue on the scale 0..255.
        image_std: Standard deviation of red, green and blue on the scale 0..255.

    Raises:
        ValueError: If the preset is unknown, or the crop or a probability is out of range.
    """

    def __init__(
        self,
        preset: str | AugmentationPreset = "published",
        crop_size: int | Sequence[int] = 384,
        *,
        flip: float | None = None,
        image_mean: Sequence[float] = IMAGE_MEAN,
        image_std: Sequence[float] = IMAGE_STD,
    ) -> None:
        self.augmentation = PairAugmentation(
            preset, crop_size, flip=flip, image_mean=image_mean, image_std=image_std
        )

    @property
    def crop_size(self) -> tuple[int, int]:
        """Height and width of the crops in pixels."""
        return self.augmentation.crop_size

    def __call__(
        self,
        first: bytes,
        second: bytes,
        seed: int,
        *,
        min_difference: float = 0.0,
        reject_shot_cuts: bool = False,
    ) -> Tensor:
        """Returns the crops of one pair, uint8 of shape (2, 3, h, w); colors are not changed yet.

        Args:
            first: The encoded frame 1 (of one of `IMAGE_FORMATS`).
            second: The encoded frame 2, of the same size in pixels.
            seed: All draws of the augmentation follow from it.
            min_difference: Smallest mean difference in gray levels between the frames.
            reject_shot_cuts: Whether a pair across a shot cut is refused.

        Raises:
            SkippedPairError: If a frame cannot be decoded, the sizes differ, or the pair is static
                or a shot cut; its `reason` says which.
        """
        try:
            images = [open_frame(data) for data in (first, second)]
        except DECODE_ERRORS as error:
            raise SkippedPairError("unreadable", str(error)) from error
        (width, height), other = images[0].size, images[1].size
        if (width, height) != other:
            raise SkippedPairError("sizes_differ", f"{width}x{height} and {other[0]}x{other[1]}")
        geometry = self.augmentation.draw_geometry(height, width, seed)
        try:
            decoded = [
                read_pixels(image, data, geometry.scale)
                for image, data in zip(images, (first, second), strict=True)
            ]
        except DECODE_ERRORS as error:
            raise SkippedPairError("unreadable", str(error)) from error
        if decoded[0].shape != decoded[1].shape:
            # One frame could be decoded at a smaller scale than the other (JPEG beside PNG).
            other_size = decoded[0].shape[1::-1]
            resized = Image.fromarray(decoded[1]).resize(other_size, Image.Resampling.BILINEAR)
            decoded[1] = np.array(resized)
        if min_difference > 0.0 or (reject_shot_cuts and _may_be_cut(*decoded)):
            screen_pair(
                *map(Image.fromarray, decoded),
                min_difference=min_difference,
                reject_shot_cuts=reject_shot_cuts,
            )
        local = geometry.rescaled((height, width), decoded[0].shape[:2])
        crops = torch.empty(2, 3, *self.crop_size, dtype=torch.uint8)
        for pixels, planes in zip(decoded, crops, strict=True):
            self._write_crop(pixels, local, planes)
        return crops

    def finish(self, frames: Tensor, seeds: Tensor | Sequence[int]) -> Tensor:
        """Returns `PairAugmentation.finish`: color changes and normalization of (B, 2, 3, h, w)."""
        return self.augmentation.finish(frames, seeds)

    def _write_crop(self, pixels: NDArray[np.uint8], geometry: Geometry, planes: Tensor) -> None:
        """Writes the crop of a decoded frame (H, W, 3) into `planes` of shape (3, h, w)."""
        top, left, bottom, right = geometry.region
        if (bottom - top, right - left) == geometry.size:  # nothing to resize
            y, x = top + geometry.offset[0], left + geometry.offset[1]
            crop = pixels[y : y + self.crop_size[0], x : x + self.crop_size[1]]
            write_planes(crop[:, ::-1] if geometry.is_flipped else crop, planes)
            return
        frames = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)  # (1, 3, H, W)
        planes.copy_(self.augmentation.apply_geometry(frames, geometry)[0])


def _may_be_cut(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> bool:
    """Says whether two frames can differ enough for `screen_pair` to look for a cut."""
    factor = _screening_factor(first.shape[0], first.shape[1])
    return greatest_reduced_difference(first, second, factor) >= LEAST_CUT_DIFFERENCE


def _screening_factor(height: int, width: int) -> int:
    """Returns by how much frames shrink before they are screened."""
    return max(min(height, width) // SCREEN_SIDE, 1)


def screen_pair(
    first: Image.Image,
    second: Image.Image,
    *,
    min_difference: float = 0.0,
    reject_shot_cuts: bool = True,
) -> None:
    """Refuses a pair that hardly changes or that spans a shot cut.

    Args:
        first: Frame 1 in RGB.
        second: Frame 2 in RGB, of the same size.
        min_difference: Smallest mean difference in gray levels, taken at a short side of about 96
            pixels, where sensor noise and compression have mostly averaged out.
        reject_shot_cuts: Whether to look for cuts.

    Raises:
        SkippedPairError: With the reason "static" or "shot_cut".
    """
    factor = _screening_factor(first.height, first.width)
    small = [image.reduce(factor) if factor > 1 else image for image in (first, second)]
    pixels = [np.asarray(image, dtype=np.float32) for image in small]
    difference = float(np.abs(pixels[0] - pixels[1]).mean())
    if difference < min_difference:
        raise SkippedPairError("static", f"mean difference {difference:.2f}")
    if not reject_shot_cuts or difference < LEAST_CUT_DIFFERENCE:
        return
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    thumbnails = [
        np.asarray(image.convert("L").resize(side, Image.Resampling.BOX)) for image in small
    ]
    histograms = [np.asarray(image.histogram(), dtype=np.float32) for image in small]
    coarse = [histogram.reshape(-1, 16).sum(axis=1) for histogram in histograms]
    if (
        difference > MAX_DIFFERENCE
        or _correlation(*thumbnails) < MIN_THUMBNAIL_CORRELATION
        or _correlation(*coarse) < MIN_HISTOGRAM_CORRELATION
    ):
        raise SkippedPairError("shot_cut", f"mean difference {difference:.2f}")


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the correlation of two arrays; 1 where one of them is constant."""
    x = first.astype(np.float64).ravel() - first.mean()
    y = second.astype(np.float64).ravel() - second.mean()
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / norm if norm > 1e-6 else 1.0


class PairCollator:
    """Turns items of `frame_pairs(..., transform=...)` into a batch.

    Args:
        transform: The transform of the stream, which knows colors and normalization. None
            normalizes with the ImageNet statistics and leaves colors alone.
        normalize: True gives float32 that is ready for the model. False gives uint8 and the seeds,
            a quarter of the bytes to move; call `transform.finish(pixel_values, seed)` on the
            device.

    Returns from a call with a list of items:
        A dict of `pixel_values` (B, 2, 3, h, w), `key` and `video` (lists of str), `gap` (B,)
        int64 in frames, `fps` (B,) float32 with nan where unknown and `seed` (B,) int64.

    Raises:
        ValueError: If the items hold no `pixel_values`, that is, the stream had no transform.
    """

    def __init__(self, transform: PairTransform | None = None, *, normalize: bool = True) -> None:
        self.normalize = normalize
        self.transform = transform if transform is not None else PairTransform("none")

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Returns the batch of these items."""
        if not items or "pixel_values" not in items[0]:
            raise ValueError(
                "`items` must hold decoded pairs with `pixel_values`; give `frame_pairs` a"
                " `transform`."
            )
        pixels = torch.stack([torch.as_tensor(item["pixel_values"]) for item in items])
        seeds = torch.tensor([item["seed"] for item in items], dtype=torch.int64)
        rates = [math.nan if item["fps"] is None else item["fps"] for item in items]
        return {
            "pixel_values": self.transform.finish(pixels, seeds) if self.normalize else pixels,
            "key": [item["key"] for item in items],
            "video": [item["video"] for item in items],
            "gap": torch.tensor([item["gap"] for item in items], dtype=torch.int64),
            "fps": torch.tensor(rates, dtype=torch.float32),
            "seed": seeds,
        }
