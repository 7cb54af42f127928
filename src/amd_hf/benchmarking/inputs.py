"""Models, pairs and frames that the benchmark feeds in; the same every time."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from amd_hf import AMDConfig, AMDModel
from amd_hf.benchmarking.limits import JPEG_QUALITY, example_frame
from amd_hf.data.synthetic_objects import generate_clip


def seeded_model(config: AMDConfig, device: str = "cpu") -> AMDModel:
    """A freshly initialized model; the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AMDModel(config)
    nn.Module.to(model, device)
    return model


def example_pairs(batch: int, crop: int, device: str = "cpu") -> Tensor:
    """Normalized pairs (B, 2, 3, crop, crop) of generated moving objects."""
    clips = [generate_clip(2, crop, crop, seed=seed)[0] for seed in range(batch)]
    frames = torch.from_numpy(np.stack(clips))
    return normalize_pairs(frames.permute(0, 1, 4, 2, 3).float(), AMDConfig()).to(device)


def write_frames(folder: Path, count: int, size: tuple[int, int], seed: int = 0) -> list[Path]:
    """Writes generated JPEG frames, each the one before moved by two pixels; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    frame = example_frame(size, seed)
    files = [folder / f"{i:05d}.jpg" for i in range(count)]
    for shift, file in zip(itertools.count(0, 2), files, strict=False):
        Image.fromarray(np.roll(frame, shift, axis=1)).save(file, quality=JPEG_QUALITY)
    return files


def normalize_pairs(pairs: Tensor, config: AMDConfig) -> Tensor:
    """Normalizes frames with values 0..255 of shape (..., 3, H, W)."""
    mean = pairs.new_tensor(config.image_mean).view(3, 1, 1)
    std = pairs.new_tensor(config.image_std).view(3, 1, 1)
    return (pairs - mean) / std


def decode_frame(file: Path) -> Image.Image:
    """Decodes one image file in full."""
    return Image.open(file).convert("RGB")
