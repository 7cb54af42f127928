"""Small folders of images with a class per pixel: each class is a plain color."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLORS = ((60, 120, 60), (220, 40, 40), (40, 40, 220))


def color_picture(seed: int, height: int = 48, width: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """RGB picture uint8 (H, W, 3) and its class ids uint8 (H, W): a red and a blue box."""
    generator = np.random.default_rng(seed)
    labels = np.zeros((height, width), dtype=np.uint8)
    for class_id in (1, 2):
        top, left = generator.integers(0, height // 2), generator.integers(0, width // 2)
        labels[top : top + height // 2, left : left + width // 3] = class_id
    return np.asarray(COLORS, dtype=np.uint8)[labels], labels


def write_pairs(root: Path, counts: dict[str, int], ignore: int | None = None) -> None:
    """Writes `images/<split>` and `masks/<split>`; a split named "" is written without a folder."""
    seed = 0
    for split, count in counts.items():
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            picture, labels = color_picture(seed := seed + 1)
            if ignore is not None:
                labels[:2] = ignore
            Image.fromarray(picture).save(root / "images" / split / f"p{index:02d}.png")
            Image.fromarray(labels).save(root / "masks" / split / f"p{index:02d}.png")
