"""Work on whole videos and processes: adaptation, start-up, peak memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

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
# Smaller crops: 256 pixels, and those at which the bundled checkpoint adapts (172 pixels).
SMALL_SHORT_SIDES = (267, 180)
# Steps of a whole adaptation, and how much longer than the short run the long one is.
WHOLE_RUN = 100
LONGER = 4


def time_adaptation(
    config: AMDConfig,
    num_steps: int = 2,
    num_frames: int = 12,
    frame_size: tuple[int, int] = (480, 854),
    short_side: int = PUBLISHED_SHORT_SIDE,
    small_sides: Sequence[int] = SMALL_SHORT_SIDES,
    rounds: int = 1,
    device: str = "cpu",
) -> Measurement:
    """Times test-time adaptation to one video of JPEG frames, as published and as `adapt_to_video`.

    The published way is its training command on one video: every step decodes and resizes the
    frames of its pairs anew. Reading the video counts for both. Of `adapt_to_video` a longer run is
    timed in bfloat16, too: what it does once (reading, copying the model, the first step's
    preparations) must not count for every step of a whole run.

    Args:
        config: Architecture.
        num_steps: Steps that are timed, and `LONGER` times as many; 100 are published.
        num_frames: Frames of the video.
        frame_size: Height and width of the frames.
        short_side: Short side that crops are taken from; the crop is 0.96 of it.
        small_sides: Short sides of further variants with smaller crops.
        rounds: Rounds that count.
        device: Device to measure.

    Returns:
        Timings of `num_steps` steps; in its notes the seconds of `WHOLE_RUN` steps.
    """
    model = seeded_model(config, device)
    crop = int(short_side * SHORT_SIDE_RANGE[0])
    settings: dict[str, dict[str, Any]] = {
        "fp32": {"short_side": short_side, "crop_size": crop},
        "bf16": {
            "short_side": short_side,
            "crop_size": crop,
            "autocast_dtype": torch.bfloat16,
        },
    }
    for side in small_sides:
        small = int(side * SHORT_SIDE_RANGE[0])
        settings[f"bf16, crops of {small}"] = settings["bf16"] | {
            "short_side": side,
            "crop_size": small,
        }
    with tempfile.TemporaryDirectory() as folder:
        files = write_frames(Path(folder), num_frames, frame_size)
        work: dict[str, Callable[[], Any]] = {
            "published": lambda: _adapt_as_published(model, files, num_steps, short_side)
        }
        longer: dict[str, Callable[[], Any]] = {}
        for name, options in settings.items():
            work[name] = partial(adapt_to_video, model, folder, num_steps, **options)
            if name != "fp32":  # slow, and no target
                steps = LONGER * num_steps
                longer[name] = partial(adapt_to_video, model, folder, steps, **options)
        timings = measure(work, rounds, device)
        longer_timings = measure(longer, rounds, device)
    whole = {"published": WHOLE_RUN / num_steps * timings["published"].median}
    for name, timing in longer_timings.items():
        whole[name] = whole_run_seconds(timings[name].median, timing.median, num_steps)
    return Measurement(
        "adaptation",
        f"{num_steps} steps of 2 pairs of {crop}x{crop}, "
        f"{num_frames} frames of {frame_size[0]}x{frame_size[1]}",
        timings,
        notes={f"seconds_of_{WHOLE_RUN}_steps": whole},
    )


def whole_run_seconds(short: float, long: float, num_steps: int) -> float:
    """Seconds of `WHOLE_RUN` steps, from runs of `num_steps` and `LONGER` times as many.

    Args:
        short: Seconds of the shorter run.
        long: Seconds of the longer run.
        num_steps: Steps of the shorter run.
    """
    per_step = max(long - short, 0.0) / ((LONGER - 1) * num_steps)
    return short + (WHOLE_RUN - num_steps) * per_step


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


def memory_of_training(config: AMDConfig, crop: int = 384, batch: int = 2) -> dict[str, float]:
    """Peak resident memory in GB of a process that takes two training steps on the CPU.

    Args:
        config: Architecture.
        crop: Side of the square crops.
        batch: Pairs per step.

    Returns:
        One figure per variant, and `import` for a process that only imports and builds the model.
    """
    code = (
        "import json\n"
        "from amd_hf import AMDConfig\n"
        "from amd_hf.benchmarking.inputs import example_pairs, seeded_model\n"
        "from amd_hf.benchmarking.timing import peak_memory\n"
        "from amd_hf.benchmarking.workloads import TrainingStep\n"
        f"model = seeded_model(AMDConfig(**json.loads({json.dumps(config.to_json_string())})))\n"
        "step = {step}\n"
        "[step() for _ in range(2)]\n"
        "print(peak_memory())\n"
    )
    pairs = f"example_pairs({batch}, {crop})"
    variants = {
        "import": "lambda: None",
        "published": f"TrainingStep(model, {pairs}, published=True)",
        "fp32": f"TrainingStep(model, {pairs})",
        "bf16": f"TrainingStep(model, {pairs}, autocast=True)",
    }
    return {
        name: float(_run(code.replace("{step}", step)).splitlines()[-1])
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
