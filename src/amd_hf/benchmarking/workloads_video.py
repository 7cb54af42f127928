"""Work on whole videos and processes: adaptation, the data loader, start-up, peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from amd_hf import AMDConfig, AMDModel
from amd_hf.adaptation_amd import adapt_to_video
from amd_hf.benchmarking.inputs import decode_frame, normalize_pairs, seeded_model, write_frames
from amd_hf.benchmarking.timing import measure
from amd_hf.benchmarking.workloads import Measurement, TrainingStep

# The published crop leaves short sides of 384..399; the larger one is where both are timed.
SHORT_SIDE_RANGE = (0.96, 1.0)
PUBLISHED_SHORT_SIDE = 400


def time_adaptation(
    config: AMDConfig,
    num_steps: int = 2,
    num_frames: int = 12,
    frame_size: tuple[int, int] = (480, 854),
    short_side: int = PUBLISHED_SHORT_SIDE,
    rounds: int = 1,
    device: str = "cpu",
) -> Measurement:
    """Times test-time adaptation to one video of JPEG frames, as published and as `adapt_to_video`.

    The published way is its training command on one video: every step decodes and resizes the
    frames of its pairs anew. Reading the video counts for both.

    Args:
        config: Architecture.
        num_steps: Steps that are timed; 100 are published.
        num_frames: Frames of the video.
        frame_size: Height and width of the frames.
        short_side: Short side that crops are taken from; the crop is 0.96 of it.
        rounds: Rounds that count.
        device: Device to measure.
    """
    model = seeded_model(config, device)
    crop = int(short_side * SHORT_SIDE_RANGE[0])
    with tempfile.TemporaryDirectory() as folder:
        files = write_frames(Path(folder), num_frames, frame_size)
        adapt = partial(
            adapt_to_video, model, folder, num_steps, short_side=short_side, crop_size=crop
        )
        timings = measure(
            {
                "published": lambda: _adapt_as_published(model, files, num_steps, short_side),
                "fp32": partial(adapt, autocast_dtype=None),
                "bf16": partial(adapt, autocast_dtype=torch.bfloat16),
            },
            rounds,
            device,
        )
    per_step = {name: timing.median / num_steps for name, timing in timings.items()}
    return Measurement(
        "adaptation",
        f"{num_steps} steps of 2 pairs of {crop}x{crop}, "
        f"{num_frames} frames of {frame_size[0]}x{frame_size[1]}",
        timings,
        notes={"seconds_per_step": per_step},
    )


def _adapt_as_published(
    model: AMDModel, files: Sequence[Path], num_steps: int, short_side: int
) -> None:
    """Trains a copy of the model on pairs that are read from disk for every step."""
    draw = np.random.default_rng(0)
    crop = int(short_side * SHORT_SIDE_RANGE[0])
    device = model.device
    step = TrainingStep(model, torch.empty(0, device=device), published=True)
    for _ in range(num_steps):
        pairs = []
        for _ in range(2):
            first = int(draw.integers(len(files) - 1))
            side = int(draw.integers(crop, short_side))
            frames = torch.stack([_read_resized(files[first + i], side) for i in range(2)])
            top, left = (int(draw.integers(n - crop + 1)) for n in frames.shape[-2:])
            pairs.append(frames[..., top : top + crop, left : left + crop])
        step.pairs = normalize_pairs(torch.stack(pairs), model.config).to(device)
        step()


def time_loader(num_workers: int = 2, num_batches: int = 12, batch: int = 8) -> Measurement:
    """Times the stream of frame pairs from JPEG frames against decoding alone.

    The limit decodes the same two frames of every pair in full with Pillow, in as many processes;
    the stream may exceed it, since it decodes at a reduced scale where the crop allows.

    Args:
        num_workers: Worker processes.
        num_batches: Batches that are timed.
        batch: Pairs per batch.

    Raises:
        ImportError: If `datasets` is not installed.
    """
    from torch.utils.data import DataLoader

    from amd_hf.data.decoding import PairCollator, PairTransform
    from amd_hf.data.frame_pairs import frame_pairs

    transform = PairTransform("published", 384)
    with tempfile.TemporaryDirectory() as folder:
        for video in range(2 * max(num_workers, 1)):
            write_frames(Path(folder) / f"video{video}", 4, (480, 854), seed=video)
        files = sorted(Path(folder).rglob("*.jpg"))
        stream = frame_pairs(folder, transform=transform, repeat=True, reject_shot_cuts=False)
        loader = DataLoader(
            stream, batch, num_workers=num_workers, collate_fn=PairCollator(transform)
        )
        batches = iter(loader)
        next(batches)
        paced = measure({"loader": partial(next, batches)}, num_batches)["loader"]
        alone = measure(
            {"decode": lambda: [decode_frame(file) for file in files[:4]]}, max(num_batches // 2, 1)
        )["decode"]
        del batches, loader
    processes = min(max(num_workers, 1), os.cpu_count() or 1)
    pairs_per_second = batch / paced.median
    limit = processes * len(files[:4]) / alone.median / 2
    return Measurement(
        "data loader",
        f"{num_workers} workers, batches of {batch} pairs, crops of 384x384 from 480x854 JPEG",
        {"loader": paced, "decode": alone},
        notes={
            "pairs_per_second": pairs_per_second,
            "decode_limit_pairs_per_second": limit,
            "share_of_limit": pairs_per_second / limit,
        },
    )


_PROBES = {
    "import torch": "import torch",
    "import amd_hf": "import amd_hf",
    "first mask": (
        "import amd_hf, PIL.Image, transformers\n"
        "p = transformers.pipeline('zero-shot-object-segmentation')\n"
        "p(PIL.Image.new('RGB', (128, 96)))"
    ),
}


def time_start(rounds: int = 3) -> Measurement:
    """Times fresh processes: importing, and the first mask of the bundled checkpoint."""
    probes = dict(_PROBES)
    timings = measure({name: partial(_run, code) for name, code in probes.items()}, rounds)
    return Measurement("start-up", "a fresh process each", timings)


def peak_memory(config: AMDConfig, crop: int = 384, batch: int = 2) -> dict[str, float]:
    """Peak resident memory in GB of a process that takes two training steps on the CPU.

    Args:
        config: Architecture.
        crop: Side of the square crops.
        batch: Pairs per step.

    Returns:
        One figure per variant, and `import` for a process that only imports and builds the model.
    """
    code = (
        "import json, resource, sys\n"
        "from amd_hf import AMDConfig\n"
        "from amd_hf.benchmarking.inputs import example_pairs, seeded_model\n"
        "from amd_hf.benchmarking.workloads import TrainingStep\n"
        f"model = seeded_model(AMDConfig(**json.loads({json.dumps(config.to_json_string())})))\n"
        "steps = {step}\n"
        "[steps() for _ in range(2)]\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    pairs = f"example_pairs({batch}, {crop})"
    variants = {
        "import": "lambda: None",
        "published": f"TrainingStep(model, {pairs}, published=True)",
        "fp32": f"TrainingStep(model, {pairs})",
        "bf16": f"TrainingStep(model, {pairs}, autocast=True)",
    }
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return {
        name: int(_run(code.replace("{step}", step)).splitlines()[-1]) * unit / 1e9
        for name, step in variants.items()
    }


def _read_resized(file: Path, short_side: int) -> Tensor:
    frame = torch.from_numpy(np.array(decode_frame(file))).permute(2, 0, 1).float()
    height, width = frame.shape[-2:]
    scale = short_side / min(height, width)
    size = (int(height * scale + 0.5), int(width * scale + 0.5))
    return F.interpolate(frame[None], size=size, mode="bilinear", align_corners=False)[0]


def _run(code: str) -> str:
    """Runs Python code in a fresh process and returns what it prints."""
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    if finished.returncode:
        raise RuntimeError(f"A measuring process failed: {finished.stderr.strip()[-500:]}")
    return finished.stdout
