"""Naive, loop-by-loop versions of every operator of the method, written from its formulas.

They are slow on purpose: plain NumPy in float64, one pixel at a time, no shared code with the
package. The tests compare the package with them where no recorded tensors are at hand.
Convention: flow channel 0 = u (right +), 1 = v (down +), in pixels of its own resolution.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SSIM_C1 = 0.01**2
SSIM_C2 = 0.03**2


def sample_bilinear(plane: Array, x: float, y: float) -> float:
    """Value of `plane` (H, W) at the point (x, y), which is first moved onto the border."""
    H, W = plane.shape
    x, y = min(max(x, 0.0), W - 1.0), min(max(y, 0.0), H - 1.0)
    left, top = min(int(x), W - 1), min(int(y), H - 1)
    right, bottom = min(left + 1, W - 1), min(top + 1, H - 1)
    a, b = x - left, y - top
    upper = (1 - a) * plane[top, left] + a * plane[top, right]
    lower = (1 - a) * plane[bottom, left] + a * plane[bottom, right]
    return float((1 - b) * upper + b * lower)


def backward_warp(image: Array, flow: Array) -> Array:
    """Samples `image` (B, C, H, W) at p + `flow` (B, 2, H, W) of p."""
    out = np.zeros_like(image)
    B, C, H, W = image.shape
    for b, c, i, j in itertools.product(range(B), range(C), range(H), range(W)):
        out[b, c, i, j] = sample_bilinear(image[b, c], j + flow[b, 0, i, j], i + flow[b, 1, i, j])
    return out


def splat_weights(flow: Array) -> Array:
    """Bilinear votes (B, 1, H, W) that arrive at each pixel when all are moved by `flow`."""
    B, _, H, W = flow.shape
    votes = np.zeros((B, 1, H, W))
    for b, i, j in itertools.product(range(B), range(H), range(W)):
        x, y = j + flow[b, 0, i, j], i + flow[b, 1, i, j]
        for column, row in itertools.product(
            (math.floor(x), math.floor(x) + 1), (math.floor(y), math.floor(y) + 1)
        ):
            if 0 <= column < W and 0 <= row < H:
                votes[b, 0, row, column] += (1 - abs(x - column)) * (1 - abs(y - row))
    return votes


def visibility(flow: Array, threshold: float) -> Array:
    """1 where at least `threshold` of a pixel arrives from the other frame under `flow`."""
    return (np.clip(splat_weights(flow), 0.0, 1.0) >= threshold).astype(np.float64)


def cost_volume(reference: Array, target: Array, search_range: int) -> Array:
    """Mean over channels of reference(p) x target(p + d), rows of d outermost, zero outside."""
    B, C, H, W = reference.shape
    side = 2 * search_range + 1
    out = np.zeros((B, side * side, H, W))
    offsets = range(-search_range, search_range + 1)
    for channel, (dy, dx) in enumerate(itertools.product(offsets, offsets)):
        for b, i, j in itertools.product(range(B), range(H), range(W)):
            if 0 <= i + dy < H and 0 <= j + dx < W:
                products = [reference[b, c, i, j] * target[b, c, i + dy, j + dx] for c in range(C)]
                out[b, channel, i, j] = sum(products) / C
    return out


def pool_segments(features: Array, masks: Array) -> Array:
    """Mask-weighted mean (B, K, C) of `features` (B, C, H, W) under `masks` (B, K, H, W)."""
    B, C, H, W = features.shape
    K = masks.shape[1]
    out = np.zeros((B, K, C))
    for b, k, c in itertools.product(range(B), range(K), range(C)):
        total = weight = 0.0
        for i, j in itertools.product(range(H), range(W)):
            total += features[b, c, i, j] * masks[b, k, i, j]
            weight += masks[b, k, i, j]
        out[b, k, c] = total / weight
    return out


def compose_flow(masks: Array, motion: Array) -> Array:
    """Segment flow (B, 2, H, W): the masks' mixture of one offset `motion` (B, K, 2) each."""
    B, K, H, W = masks.shape
    out = np.zeros((B, 2, H, W))
    for b, k, i, j in itertools.product(range(B), range(K), range(H), range(W)):
        out[b, :, i, j] += masks[b, k, i, j] * motion[b, k]
    return out


def resize_bilinear(image: Array, size: tuple[int, int]) -> Array:
    """Bilinear resize whose corner pixels stay at the corners (align_corners=True)."""
    B, C, H, W = image.shape
    height, width = size
    out = np.zeros((B, C, height, width))
    for b, c, i, j in itertools.product(range(B), range(C), range(height), range(width)):
        y = i * (H - 1) / (height - 1) if height > 1 else 0.0
        x = j * (W - 1) / (width - 1) if width > 1 else 0.0
        out[b, c, i, j] = sample_bilinear(image[b, c], x, y)
    return out


def ssim_distance(x: Array, y: Array) -> Array:
    """(1 - SSIM) / 2 in [0, 1] over 3x3 windows without padding: (B, C, H - 2, W - 2)."""
    B, C, H, W = x.shape
    out = np.zeros((B, C, H - 2, W - 2))
    for b, c, i, j in itertools.product(range(B), range(C), range(H - 2), range(W - 2)):
        p, q = x[b, c, i : i + 3, j : j + 3].ravel(), y[b, c, i : i + 3, j : j + 3].ravel()
        mean_p, mean_q = sum(p) / 9, sum(q) / 9
        var_p = sum((value - mean_p) ** 2 for value in p) / 9
        var_q = sum((value - mean_q) ** 2 for value in q) / 9
        covariance = sum((s - mean_p) * (t - mean_q) for s, t in zip(p, q, strict=True)) / 9
        similarity = (
            (2 * mean_p * mean_q + SSIM_C1)
            * (2 * covariance + SSIM_C2)
            / ((mean_p**2 + mean_q**2 + SSIM_C1) * (var_p + var_q + SSIM_C2))
        )
        out[b, c, i, j] = min(max((1 - similarity) / 2, 0.0), 1.0)
    return out


def photometric_loss(
    image: Array, synthesized: Array, visible: Array, l1_weight: float, ssim_weight: float
) -> float:
    """(l1_weight L1 + ssim_weight SSIM distance) of one scale, per visible pixel."""
    mask = np.broadcast_to(visible, image.shape)
    l1 = float(
        np.mean(
            [
                abs(p - q) * m
                for p, q, m in zip(image.ravel(), synthesized.ravel(), mask.ravel(), strict=True)
            ]
        )
    )
    ssim = float(ssim_distance(synthesized * mask, image * mask).mean())
    return (l1_weight * l1 + ssim_weight * ssim) / float(visible.mean())


def area_resize(image: Array, size: tuple[int, int]) -> Array:
    """Mean over the source cells of each target pixel (adaptive average pooling)."""
    B, C, H, W = image.shape
    height, width = size
    out = np.zeros((B, C, height, width))
    for i, j in itertools.product(range(height), range(width)):
        rows = slice(i * H // height, -(-(i + 1) * H // height))
        columns = slice(j * W // width, -(-(j + 1) * W // width))
        out[:, :, i, j] = image[:, :, rows, columns].mean(axis=(2, 3))
    return out
