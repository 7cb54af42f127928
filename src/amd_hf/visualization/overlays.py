"""Masks and segments drawn over their image."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageFilter

from amd_hf.visualization.palette import OBJECT_COLOR, Color, segment_colors

# ITU-R BT.601 luma, as in Pillow's conversion to grey.
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def overlay_object(
    image: ArrayLike | Image.Image,
    mask: ArrayLike | Image.Image,
    color: Color = OBJECT_COLOR,
    tint: float = 0.3,
    dim: float = 0.45,
) -> NDArray[np.uint8]:
    """The image with its object tinted and outlined, and everything else faded.

    Args:
        image: RGB image, uint8 of shape (H, W, 3), or a PIL image.
        mask: Object mask of shape (H, W) or a PIL image: bool, 0/1, 0/255, or probabilities; it is
            drawn where it exceeds half of its range.
        color: RGB color of tint and outline.
        tint: Share of `color` inside the object, in [0, 1].
        dim: How far the background loses light and color, in [0, 1].

    Returns:
        uint8 array of shape (H, W, 3); the image itself where the mask is empty.

    Raises:
        ValueError: If image and mask differ in size.
    """
    pixels = _to_rgb(image)
    inside = _to_bool(mask)
    if inside.shape != pixels.shape[:2]:
        raise ValueError(
            f"`mask` must have the size {pixels.shape[:2]} of the image, got {inside.shape}."
        )
    if not inside.any():
        return pixels.astype(np.uint8)
    grey = (pixels @ _LUMA)[:, :, None]
    background = (pixels + (grey - pixels) * dim) * (1 - dim)
    target = np.asarray(color, dtype=np.float32)
    foreground = pixels + (target - pixels) * tint
    soft = _blur(inside, 0.6)[:, :, None]  # a soft step in place of a jagged one
    drawn = background + (foreground - background) * soft
    return _outline(drawn, inside, color)


def overlay_segments(
    image: ArrayLike | Image.Image,
    soft_masks: ArrayLike,
    object_segment: int | None = None,
    strength: float = 0.6,
) -> NDArray[np.uint8]:
    """The image colored by its segments, the object outlined.

    Args:
        image: RGB image, uint8 of shape (H, W, 3), or a PIL image.
        soft_masks: Segment masks of shape (K, H, W) that sum to 1 over K.
        object_segment: Index of the object segment, or None for no outline.
        strength: Share of the segment colors, in [0, 1].

    Returns:
        uint8 array of shape (H, W, 3).

    Raises:
        ValueError: If image and masks differ in size.
    """
    pixels = _to_rgb(image)
    masks = np.asarray(soft_masks, dtype=np.float32)
    if masks.ndim != 3 or masks.shape[1:] != pixels.shape[:2]:
        raise ValueError(
            f"`soft_masks` must have shape (K, {pixels.shape[0]}, {pixels.shape[1]}), got "
            f"{masks.shape}."
        )
    colors = np.asarray(segment_colors(len(masks), object_segment), dtype=np.float32)
    colored = np.einsum("khw,kc->hwc", masks, colors)
    grey = (pixels @ _LUMA)[:, :, None]
    # Grey below the colors: hues of the image would be mistaken for segments.
    drawn = grey + (colored - grey) * strength
    if object_segment is None:
        return _to_uint8(drawn)
    return _outline(drawn, masks.argmax(axis=0) == object_segment, (255, 255, 255))


def most_likely(soft_masks: NDArray[np.float32]) -> NDArray[np.float32]:
    """Masks with 1 where a segment is the most likely one, else 0.

    Args:
        soft_masks: Segment masks of shape (K, H, W).

    Returns:
        float32 array of shape (K, H, W) that sums to 1 over K.
    """
    segments = np.arange(len(soft_masks))[:, None, None]
    return (soft_masks.argmax(axis=0)[None] == segments).astype(np.float32)


def soft_mask_to_rgb(soft_mask: ArrayLike, color: Color = OBJECT_COLOR) -> NDArray[np.uint8]:
    """A probability map as black (0) over `color` to white (1).

    Args:
        soft_mask: Probabilities of shape (H, W) in [0, 1].
        color: RGB color of 0.6.

    Returns:
        uint8 array of shape (H, W, 3).
    """
    values = np.clip(np.asarray(soft_mask, dtype=np.float32), 0, 1)
    channels = [np.interp(values, (0.0, 0.6, 1.0), (8, level, 255)) for level in color]
    return _to_uint8(np.stack(channels, axis=-1))


def _to_rgb(image: ArrayLike | Image.Image) -> NDArray[np.floating]:
    """Float32 copy of shape (H, W, 3) on the 0..255 scale."""
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(
            f"`image` must be uint8 of shape (H, W, 3), got {pixels.dtype} of shape {pixels.shape}."
        )
    return pixels.astype(np.float32)


def _to_bool(mask: ArrayLike | Image.Image) -> NDArray[np.bool_]:
    """Bool copy of a mask of any range."""
    values = np.asarray(mask)
    if values.dtype == np.bool_:
        return values
    return values > (0.5 if values.size and values.max() <= 1 else 127)


def _to_uint8(pixels: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _blur(inside: NDArray[np.bool_], radius: float) -> NDArray[np.floating]:
    """Mask smoothed by a Gaussian, in [0, 1]."""
    picture = Image.fromarray(inside.astype(np.uint8) * np.uint8(255))
    blurred = picture.filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(blurred, dtype=np.float32) / np.float32(255)


def _outline(
    drawn: NDArray[np.floating], inside: NDArray[np.bool_], color: Color
) -> NDArray[np.uint8]:
    """Draws a smooth line along the border of `inside`, as wide as suits the size of the image."""
    radius = max(min(inside.shape) / 240, 1.0)
    # 1 on the border, 0 a few pixels away from it.
    nearness = 1 - np.abs(2 * _blur(inside, radius) - 1)
    opacity = np.clip(nearness * 2.5 - 0.75, 0, 1)[:, :, None]
    target = np.asarray(color, dtype=np.float32)
    return _to_uint8(drawn + (target - drawn) * opacity)
