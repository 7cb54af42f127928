"""Augmentation of frame pairs: named presets, the same for both frames, on any device.

Every random choice follows from one integer seed per pair, so a pair looks the same in whatever
process, on whatever device and after whatever resume it is prepared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

IMAGE_MEAN = (123.675, 116.28, 103.53)
IMAGE_STD = (58.395, 57.12, 57.375)
# Weights of red, green and blue in luma (ITU-R BT.601), as in the "L" mode of Pillow.
LUMA = (0.299, 0.587, 0.114)
# The published configuration resizes the short side to 400 x U(0.96, 1) for crops of 384.
PUBLISHED_SHORT_SIDE = 400.0 / 384.0
RESIZED_CROP_TRIES = 10
OUTPUT_STRIDE = 8


@dataclass(frozen=True)
class AugmentationPreset:
    """What is drawn for a pair; lengths are relative to the crop.

    Attributes:
        short_side: Short side of the resized frame in short sides of the crop.
        short_side_jitter: The short side is multiplied by a draw from this range.
        area: Share of the frame that a resized crop covers; None crops at the scale above.
        ratio: Range of width over height of a resized crop, relative to that of the crop.
        random_position: Whether the crop lies anywhere; False takes the middle.
        flip: Probability of a horizontal flip.
        brightness: Largest relative change of brightness.
        contrast: Largest relative change of contrast.
        saturation: Largest relative change of saturation.
        hue: Largest turn of the hue as a share of the full circle.
        jitter_probability: Probability that the four color changes happen.
        gray_probability: Probability that the pair loses its color.
        antialias: Whether shrinking averages; the released code samples bilinearly instead.
    """

    short_side: float = 1.0
    short_side_jitter: tuple[float, float] = (1.0, 1.0)
    area: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3.0 / 4.0, 4.0 / 3.0)
    random_position: bool = True
    flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter_probability: float = 0.0
    gray_probability: float = 0.0
    antialias: bool = True


# "published": the released configuration. "light" and "heavy": the two rows of the paper's
# augmentation study, which names the operations only; the strengths of "heavy" are those of
# MoCo v2. "medium": ours, crops that keep at least half of the frame, so that where objects tend to
# be stays learnable. "none": resize and center crop, for validation.
AUGMENTATION_PRESETS: dict[str, AugmentationPreset] = {
    "published": AugmentationPreset(
        short_side=PUBLISHED_SHORT_SIDE, short_side_jitter=(0.96, 1.0), antialias=False
    ),
    "light": AugmentationPreset(),
    "heavy": AugmentationPreset(
        area=(0.2, 1.0),
        flip=0.5,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        jitter_probability=0.8,
        gray_probability=0.2,
    ),
    "medium": AugmentationPreset(
        area=(0.5, 1.0),
        ratio=(5.0 / 6.0, 6.0 / 5.0),
        flip=0.5,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.05,
        jitter_probability=0.8,
        gray_probability=0.2,
    ),
    "none": AugmentationPreset(random_position=False),
}


@dataclass(frozen=True)
class Geometry:
    """How a frame becomes a crop: a region of it is resized, and a window of that is kept.

    Attributes:
        region: Top, left, bottom and right of the region in pixels of the frame.
        size: Height and width to which the region is resized.
        offset: Top and left of the window in the resized region.
        is_flipped: Whether the window is mirrored left to right.
    """

    region: tuple[int, int, int, int]
    size: tuple[int, int]
    offset: tuple[int, int]
    is_flipped: bool

    @property
    def scale(self) -> float:
        """Pixels of the resized region per pixel of the frame, the larger of both directions."""
        top, left, bottom, right = self.region
        return max(self.size[0] / (bottom - top), self.size[1] / (right - left))

    def rescaled(self, old: tuple[int, int], new: tuple[int, int]) -> Geometry:
        """Returns the same crop of a frame of size `old` (H, W) that was decoded at size `new`.

        The region is rounded to whole pixels of the smaller frame, alike for both frames.
        """
        if old == new:
            return self
        y, x = new[0] / old[0], new[1] / old[1]
        top = min(round(self.region[0] * y), new[0] - 1)
        left = min(round(self.region[1] * x), new[1] - 1)
        bottom = max(round(self.region[2] * y), top + 1)
        right = max(round(self.region[3] * x), left + 1)
        return replace(self, region=(top, left, min(bottom, new[0]), min(right, new[1])))


class PairAugmentation:
    """Turns frames of any size into crops of one size, with the same draw for both frames.

    Args:
        preset: One of `AUGMENTATION_PRESETS` or a preset of your own.
        crop_size: Side of the square crop, or its (height, width), in pixels.
        flip: Probability of a horizontal flip; None keeps that of the preset.
        image_mean: Mean of red, green and blue on the scale 0..255.
        image_std: Standard deviation of red, green and blue on the scale 0..255.

    Raises:
        ValueError: If the preset is unknown, or the crop or a probability is out of range.

    Source: AMD released configuration (preset "published"); released code differs: it transposes
        portrait frames.
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
        if isinstance(preset, str):
            if preset not in AUGMENTATION_PRESETS:
                known = ", ".join(AUGMENTATION_PRESETS)
                raise ValueError(f"`preset` must be one of {known}, got {preset!r}.")
            preset = AUGMENTATION_PRESETS[preset]
        if flip is not None:
            if not 0.0 <= flip <= 1.0:
                raise ValueError(f"`flip` must be a probability from 0 to 1, got {flip}.")
            preset = replace(preset, flip=flip)
        sides = [crop_size, crop_size] if isinstance(crop_size, int) else list(crop_size)
        if len(sides) != 2 or min(sides) < 8:
            raise ValueError(
                f"`crop_size` must be one or two numbers of at least 8 pixels, got {crop_size}."
            )
        self.preset = preset
        self.crop_size: tuple[int, int] = (int(sides[0]), int(sides[1]))
        self.image_mean = tuple(float(value) for value in image_mean)
        self.image_std = tuple(float(value) for value in image_std)

    @property
    def frame_short_side(self) -> int:
        """Short side at which a whole frame shows things as large as the crops do on average.

        A model is best used at the scale at which it was trained. In pixels, a multiple of 8, the
        output stride; the published preset and crop give the published 392.
        """
        preset = self.preset
        if preset.area is None:
            relative = preset.short_side * sum(preset.short_side_jitter) / 2
        else:
            # A region of area share a is enlarged by a ** -0.5; this is the mean over all shares.
            low, high = preset.area
            relative = 2 / (math.sqrt(low) + math.sqrt(high))
        return max(round(min(self.crop_size) * relative / OUTPUT_STRIDE), 1) * OUTPUT_STRIDE

    def draw_geometry(self, height: int, width: int, seed: int) -> Geometry:
        """Returns the crop for frames of this size; a pure function of its arguments."""
        generator = np.random.default_rng([seed, 0])
        if self.preset.area is not None:
            region = self._resized_crop(height, width, generator)
            size, offset = self.crop_size, (0, 0)
        else:
            region = (0, 0, height, width)
            size, offset = self._scaled_crop(height, width, generator)
        return Geometry(region, size, offset, bool(generator.random() < self.preset.flip))

    def apply_geometry(self, frames: Tensor, geometry: Geometry) -> Tensor:
        """Cuts frames of shape (..., 3, H, W) to (..., 3, h, w), on their device, in their type."""
        top, left, bottom, right = geometry.region
        region = frames[..., top:bottom, left:right]
        flat = region.reshape(-1, *region.shape[-3:])
        # Bytes are resized as bytes on the CPU, several times faster than as float32.
        is_fast = flat.dtype == torch.uint8 and flat.device.type == "cpu"
        resized = F.interpolate(
            flat if is_fast else flat.float(),
            size=geometry.size,
            mode="bilinear",
            antialias=self.preset.antialias,
        )
        y, x = geometry.offset
        crop = resized[..., y : y + self.crop_size[0], x : x + self.crop_size[1]]
        if geometry.is_flipped:
            crop = crop.flip(-1)
        if not frames.is_floating_point() and not is_fast:
            crop = crop.round().clamp(0, 255)
        return crop.to(frames.dtype).reshape(*frames.shape[:-2], *self.crop_size)

    def finish(self, frames: Tensor, seeds: Tensor | Sequence[int]) -> Tensor:
        """Changes colors where the preset says so and normalizes.

        Args:
            frames: Crops of shape (B, 2, 3, h, w) in 0..255, uint8 or floating point, any device.
            seeds: One seed per pair, of length B.

        Returns:
            float32 of the same shape and device, (value - mean) / std.

        Raises:
            ValueError: If there is not one seed per pair.
        """
        values = seeds.tolist() if isinstance(seeds, Tensor) else list(seeds)
        if len(values) != frames.shape[0]:
            raise ValueError(
                f"`seeds` must hold one seed per pair ({frames.shape[0]}), got {len(values)}."
            )
        # A copy in any case, so that the caller's batch stays and the steps below work in place.
        pixels = frames.to(torch.float32, copy=True)
        if self.preset.jitter_probability > 0.0 or self.preset.gray_probability > 0.0:
            changes = torch.tensor([self._draw_colors(int(seed)) for seed in values])
            pixels = change_colors(pixels, changes)
        mean = pixels.new_tensor(self.image_mean).view(3, 1, 1)
        std = pixels.new_tensor(self.image_std).view(3, 1, 1)
        return pixels.sub_(mean).div_(std)

    def __call__(self, frames: Tensor, seed: int) -> Tensor:
        """Returns normalized crops (2, 3, h, w) of a pair of frames (2, 3, H, W) in 0..255."""
        geometry = self.draw_geometry(frames.shape[-2], frames.shape[-1], seed)
        return self.finish(self.apply_geometry(frames, geometry).unsqueeze(0), [seed])[0]

    def _scaled_crop(
        self, height: int, width: int, generator: np.random.Generator
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """Returns the size to which the frame is resized, and where the crop lies in it."""
        crop_height, crop_width = self.crop_size
        base = min(self.crop_size) * self.preset.short_side
        short = int(base * generator.uniform(*self.preset.short_side_jitter) + 1e-6)
        scale = max(short / min(height, width), crop_height / height, crop_width / width)
        new_height = max(int(height * scale + 0.5), crop_height)
        new_width = max(int(width * scale + 0.5), crop_width)
        if self.preset.random_position:
            top = int(generator.integers(0, new_height - crop_height + 1))
            left = int(generator.integers(0, new_width - crop_width + 1))
        else:
            top, left = (new_height - crop_height) // 2, (new_width - crop_width) // 2
        return (new_height, new_width), (top, left)

    def _resized_crop(
        self, height: int, width: int, generator: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """Returns a region of random area and ratio; the largest centered one where none fits."""
        assert self.preset.area is not None
        aspect = self.crop_size[1] / self.crop_size[0]
        low, high = (math.log(value) for value in self.preset.ratio)
        for _ in range(RESIZED_CROP_TRIES):
            area = height * width * generator.uniform(*self.preset.area)
            ratio = math.exp(generator.uniform(low, high)) * aspect
            rows, columns = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < rows <= height and 0 < columns <= width:
                top = int(generator.integers(0, height - rows + 1))
                left = int(generator.integers(0, width - columns + 1))
                return top, left, top + rows, left + columns
        rows = max(min(height, round(width / aspect)), 1)
        columns = max(min(width, round(height * aspect)), 1)
        top, left = (height - rows) // 2, (width - columns) // 2
        return top, left, top + rows, left + columns

    def _draw_colors(self, seed: int) -> list[float]:
        """Returns factors of brightness, contrast and saturation, hue turn and gray share."""
        generator = np.random.default_rng([seed, 1])
        preset = self.preset
        draws = generator.uniform(-1.0, 1.0, size=4)
        is_jittered = bool(generator.random() < preset.jitter_probability)
        is_gray = bool(generator.random() < preset.gray_probability)
        strengths = (preset.brightness, preset.contrast, preset.saturation)
        factors = [
            1.0 + strength * float(draw) if is_jittered else 1.0
            for strength, draw in zip(strengths, draws[:3], strict=True)
        ]
        turn = preset.hue * float(draws[3]) if is_jittered else 0.0
        return [*factors, turn, 1.0 if is_gray else 0.0]


def change_colors(frames: Tensor, changes: Tensor) -> Tensor:
    """Returns frames with changed brightness, contrast, saturation, hue and gray share.

    The changes follow each other in this order and make one affine map of color per pair, so both
    frames pass through the same function: contrast pulls towards the mean luma of the pair, not of
    each frame. The hue turns in the YIQ plane, which keeps luma. Values are clamped once, at the
    end.

    Args:
        frames: Pairs of shape (B, 2, 3, H, W) in 0..255, floating point.
        changes: Five numbers per pair, shape (B, 5): factors of brightness, contrast and
            saturation (1 changes nothing), turn of the hue as a share of the circle (0 changes
            nothing), and share of gray (0 keeps the colors, 1 removes them).

    Returns:
        Pairs of the same shape, clamped to 0..255.
    """
    B, T, C, H, W = frames.shape
    brightness, contrast, saturation, turn, gray = changes.to(frames).view(-1, 5, 1, 1).unbind(1)
    luma = frames.new_tensor([LUMA, LUMA, LUMA])  # (3, 3): every channel becomes the luma
    identity = torch.eye(3).to(frames)
    mean = frames.mean(dim=(1, 3, 4)) @ luma[0]  # (B,)
    matrix = _blend(gray, luma, identity) @ _hue_turns(2.0 * math.pi * turn.reshape(-1))
    matrix = matrix @ _blend(1.0 - saturation, luma, identity) * contrast * brightness
    # Gray stays gray under hue, saturation and gray share, so the offset of contrast is kept.
    offset = (1.0 - contrast) * brightness * mean.view(-1, 1, 1)  # (B, 1, 1)
    pixels = frames.reshape(B, T, C, H * W)
    changed = torch.matmul(matrix.unsqueeze(1), pixels).add_(offset.unsqueeze(1))
    return changed.clamp_(0.0, 255.0).view(B, T, C, H, W)


def _blend(share: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Returns `share` (B, 1, 1) of the first matrix and the rest of the second, (B, 3, 3)."""
    return share * first + (1.0 - share) * second


def _hue_turns(angle: Tensor) -> Tensor:
    """Returns matrices (B, 3, 3) that turn chroma by `angle` (B,) in radians; luma stays."""
    to_yiq = angle.new_tensor([list(LUMA), [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    cos, sin = torch.cos(angle), torch.sin(angle)
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).view(-1, 3, 3)
    return torch.linalg.inv(to_yiq) @ turn @ to_yiq
