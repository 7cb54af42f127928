"""Speed with one and with several processes; the module that a launcher runs is this one.

    torchrun --nproc_per_node 2 -m amd_hf.benchmarking.processes FOLDER

prints one JSON object: seconds of each piece of work. Every process computes on one thread.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from amd_hf import AMDConfig, AMDImageProcessor, AMDModel
from amd_hf.benchmarking.inputs import example_pairs, seeded_model
from amd_hf.benchmarking.workloads import TrainingStep
from amd_hf.data.packing import pack_clips
from amd_hf.data.packing_clips import PackingSettings
from amd_hf.data.ranks import Ranks
from amd_hf.data.synthetic_objects import generate_clip


def time_processes(
    counts: Sequence[int] = (1, 2),
    frame_size: tuple[int, int] = (240, 426),
    num_videos: int = 8,
    num_frames: int = 8,
    preset: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Times evaluation, segmentation, packing and training steps with some numbers of processes.

    The work is the same for all counts, but for training, where every process adds a pair.

    Args:
        counts: Numbers of processes.
        frame_size: Height and width of the generated frames.
        num_videos: Videos to evaluate, to segment and to pack.
        num_frames: Frames of each.
        preset: Fields of the configuration of the model; None takes that of `AMDConfig.small`.

    Returns:
        Rows of `work`, `against` ("processes"), `value` (their number) and `seconds`.

    Raises:
        RuntimeError: If a launched process fails.
    """
    config = AMDConfig.small() if preset is None else AMDConfig(**preset)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_work(folder, config, frame_size, num_videos, num_frames)
        for count in counts:
            for work, seconds in _launch(folder, count).items():
                rows.append(
                    {"work": work, "against": "processes", "value": count, "seconds": seconds}
                )
    return rows


def _write_work(
    folder: Path, config: AMDConfig, size: tuple[int, int], num_videos: int, num_frames: int
) -> None:
    """Writes a model and generated videos as a DAVIS folder."""
    from amd_hf.data.davis import VALIDATION_FRAMES

    model = AMDModel(config)
    model.save_pretrained(folder / "model")
    AMDImageProcessor.from_model_config(config).save_pretrained(folder / "model")
    for seed, name in enumerate(sorted(VALIDATION_FRAMES)[:num_videos]):
        frames, masks = generate_clip(num_frames, *size, seed=seed)[:2]
        places = [folder / f"davis/{kind}/480p/{name}" for kind in ("JPEGImages", "Annotations")]
        for place in places:
            place.mkdir(parents=True)
        for index, (frame, mask) in enumerate(zip(frames, masks, strict=True)):
            Image.fromarray(frame).save(places[0] / f"{index:05d}.jpg", quality=90)
            labels = 255 * (np.asarray(mask) > 0).astype(np.uint8)
            Image.fromarray(labels).save(places[1] / f"{index:05d}.png")


def _launch(folder: Path, count: int) -> dict[str, float]:
    """Runs this module in `count` processes and returns what the main one measured."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    module = ["-m", "amd_hf.benchmarking.processes", str(folder)]
    done = subprocess.run(
        [*launcher, "--nproc_per_node", str(count), *module],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"Measuring {count} processes failed: {done.stderr.strip()[-500:]}")
    return dict(json.loads(lines[-1]))


def main(folder: Path, ranks: Ranks) -> dict[str, float]:
    """Does all work with the other processes; returns seconds by name."""
    torch.set_num_threads(1)
    work: dict[str, Callable[[], Any]] = {
        "evaluation": lambda: _evaluate(folder, ranks),
        "segmentation": lambda: _segment(folder, ranks),
        "packing": lambda: _pack(folder, ranks),
        "training step, a pair per process": _training(folder, ranks),
    }
    seconds = {}
    for name, function in work.items():
        ranks.wait()
        begin = time.perf_counter()
        function()
        ranks.wait()
        seconds[name] = time.perf_counter() - begin
    return seconds


def _evaluate(folder: Path, ranks: Ranks) -> None:
    from amd_hf.evaluation import evaluate_benchmark

    model = AMDModel.from_pretrained(folder / "model").eval()
    processor = AMDImageProcessor.from_pretrained(folder / "model")
    evaluate_benchmark(model, processor, "davis2016", folder / "davis", progress=False, ranks=ranks)


def _segment(folder: Path, ranks: Ranks) -> None:
    from amd_hf.cli.main import main as command

    videos = sorted((folder / "davis/JPEGImages/480p").iterdir())
    arguments = ["segment", *map(str, videos), "--model", str(folder / "model"), "--quiet"]
    with contextlib.redirect_stdout(io.StringIO()):
        code = command([*arguments, "--device", "cpu", "--output", str(folder / f"m{ranks.count}")])
    if code:
        raise RuntimeError("Segmenting the generated videos failed.")


def _pack(folder: Path, ranks: Ranks) -> None:
    from amd_hf.data.frame_pairs import open_source

    settings = PackingSettings(frames_per_clip=2, clips_per_shard=4, short_side=128)
    source = open_source(folder / "davis/JPEGImages/480p")
    pack_clips(source, folder / f"packed{ranks.count}", settings, ranks=ranks)


def _training(folder: Path, ranks: Ranks, num_steps: int = 5) -> Callable[[], None]:
    """Steps with averaged gradients, after one that does not count."""
    config = AMDConfig.from_pretrained(folder / "model")
    step = TrainingStep(seeded_model(config), example_pairs(1, 192))
    if ranks.count > 1:
        ranks.wait()  # connects
        step.loss_of = nn.parallel.DistributedDataParallel(step.model)
    step()

    def run() -> None:
        for _ in range(num_steps):
            step()

    return run


if __name__ == "__main__":
    with Ranks.from_environment() as together:
        measured = main(Path(sys.argv[1]), together)
    if together.is_main:
        sys.stdout.write(json.dumps(measured) + "\n")
