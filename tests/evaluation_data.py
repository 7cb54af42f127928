"""Small generated benchmarks, laid out like the originals, for the evaluation tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64


def square(left: int, top: int = 14, size: int = 20) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + size, left : left + size] = True
    return mask


def textured_frame(mask: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    background = rng.integers(60, 110, (HEIGHT, WIDTH, 3))
    foreground = rng.integers(170, 250, (HEIGHT, WIDTH, 3))
    return np.where(mask[..., None], foreground, background).astype(np.uint8)


def write_davis(
    root: Path, sequences: Sequence[str] = ("blackswan", "dog"), num_frames: int = 4
) -> Path:
    """Videos of a bright square that moves 2 pixels a frame."""
    for number, name in enumerate(sequences):
        frames, masks = root / "JPEGImages/480p" / name, root / "Annotations/480p" / name
        frames.mkdir(parents=True)
        masks.mkdir(parents=True)
        for index in range(num_frames):
            mask = square(8 + 2 * index + 10 * number)
            frame = textured_frame(mask, number)
            Image.fromarray(frame).save(frames / f"{index:05d}.jpg", quality=95)
            Image.fromarray(mask).save(masks / f"{index:05d}.png")
    return root


def write_images(root: Path, num_images: int = 5) -> Path:
    """Images of a bright square, as an ECSSD folder."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for index in range(num_images):
        mask = square(6 + 6 * index)
        Image.fromarray(textured_frame(mask, index)).save(root / f"images/{index}.jpg", quality=95)
        Image.fromarray(mask).save(root / f"masks/{index}.png")
    return root
