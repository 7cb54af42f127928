"""Runs long inputs through the package and measures memory, open files and time on the way.

    python scripts/endurance.py                                   # all three, at full length
    python scripts/endurance.py --what video --frames 2000

video: `amd-hf segment` on one long video of tiny frames. stream: samples of `frame_pairs` from
shards, decoded and augmented, round after round. image: a picture of 100 megapixels through the
pipeline with its limit raised, one just below the limit, and one above it, which is refused. The
model is a tiny one with random weights: what is measured is the path, not the network. Prints one
JSON object; exit code 1 if memory or open files grew, or a limit was passed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

VIDEO_SIZE = (32, 48)
CROP = 32
# Megabytes of growth over the whole run after its first fifth, and files beyond the start.
MAX_GROWTH_MEGABYTES = 16.0
MAX_MORE_FILES = 2
# Most megabytes of a process that segments a picture, by its megapixels; Python and torch included.
MAX_IMAGE_MEGABYTES = 4096.0
NUM_POINTS = 50
MEGAPIXELS = {"below the limit": (8900, 10000), "100 megapixels": (10000, 10000)}

SEGMENT_LARGE = """
import re, sys, warnings
from pathlib import Path
import numpy as np
import amd_hf
from PIL import Image
from transformers import pipeline
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
Image.MAX_IMAGE_PIXELS = None
model, path, raise_limit = sys.argv[1:]
pipe = pipeline("zero-shot-object-segmentation", model=model, device="cpu")
if raise_limit == "yes":
    pipe.image_processor.max_pixels = 120_000_000
try:
    (entry,) = pipe(Image.open(path) if raise_limit == "yes" else path)
    assert entry["mask"].size == Image.open(path).size
except ValueError as error:
    print("refused:", error)
# Not ru_maxrss: that begins with the memory of the parent.
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
"""


class Trace:
    """Memory and open files of a process at points on its way.

    Args:
        process: The process, of `psutil`.
    """

    def __init__(self, process: Any) -> None:
        self.process = process
        self.points: list[tuple[int, float, int]] = []

    def add(self, done: int) -> None:
        """Takes a point after `done` items."""
        with self.process.oneshot():
            megabytes = self.process.memory_info().rss / 2**20
            self.points.append((done, megabytes, self.process.num_fds()))

    def summary(self) -> dict[str, Any]:
        """Slope in megabytes per 1000 items and growth, both after the first fifth."""
        done, memory, files = (
            np.asarray(column, dtype=float) for column in zip(*self.points, strict=True)
        )
        late = done >= 0.2 * done[-1]
        slope = float(np.polyfit(done[late], memory[late], 1)[0])
        growth = slope * float(done[-1] - done[late][0])
        return {
            "items": int(done[-1]),
            "megabytes_at_a_fifth": round(float(memory[late][0]), 1),
            "megabytes_at_the_end": round(float(memory[-1]), 1),
            "megabytes_per_1000_items": round(1000 * slope, 4),
            "megabytes_of_growth": round(growth, 2),
            "open_files": [int(files[late][0]), int(files[late].max())],
        }


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Returns the arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted(KINDS)
    parser.add_argument("--what", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--frames", type=int, default=20_000, help="frames of the video")
    parser.add_argument("--samples", type=int, default=100_000, help="samples of the stream")
    arguments = parser.parse_args(words)
    if min(arguments.frames, arguments.samples) < 100:
        parser.error("`--frames` and `--samples` must be at least 100.")
    return arguments


def main(words: list[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""
    arguments = parse_arguments(words)
    results = {}
    for name in arguments.what:
        with tempfile.TemporaryDirectory(prefix="amd-endurance-") as folder:
            begin = time.monotonic()
            results[name] = KINDS[name](Path(folder), arguments)
            results[name]["seconds"] = round(time.monotonic() - begin, 1)
        print(f"{name}: {json.dumps(results[name])}", file=sys.stderr)
    print(json.dumps(results, indent=2))
    return 1 if any(result["problems"] for result in results.values()) else 0


def problems_of(summary: dict[str, Any]) -> list[str]:
    """What of a trace is not flat."""
    problems = []
    if summary["megabytes_of_growth"] > MAX_GROWTH_MEGABYTES:
        problems.append(f"memory grew by {summary['megabytes_of_growth']} MB")
    first, most = summary["open_files"]
    if most > first + MAX_MORE_FILES:
        problems.append(f"open files grew from {first} to {most}")
    return problems


def measure_video(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """`amd-hf segment` on one long video; the masks that it has written tell how far it is."""
    import psutil  # type: ignore[import-untyped]

    video, model = folder / "long.mp4", write_model(folder / "model")
    write_video(video, arguments.frames)
    words = [sys.executable, "-m", "amd_hf.cli.main", "segment", str(video), "--model", str(model)]
    words += ["--output", str(folder / "out"), "--device", "cpu"]
    masks = folder / "out" / "long" / "masks"
    log = folder / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(words, stdout=output, stderr=output)
        trace, every = Trace(psutil.Process(process.pid)), max(arguments.frames // NUM_POINTS, 1)
        begin, due = time.monotonic(), 1
        while process.poll() is None:
            if (masks / f"{due:05d}.png").exists():
                trace.add(due)
                due += every
            time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"amd-hf segment failed:\n{log.read_text()[-2000:]}")
    seconds = time.monotonic() - begin
    num_masks = sum(1 for _ in masks.iterdir())
    summary = trace.summary()
    problems = problems_of(summary)
    if num_masks != arguments.frames or not (folder / "out" / "long" / "overlay.mp4").is_file():
        problems.append(f"{num_masks} masks for {arguments.frames} frames, or no overlay")
    return {**summary, "frames_per_second": round(num_masks / seconds, 1), "problems": problems}


def measure_stream(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Decoded and augmented pairs of tar shards, in this process, for many rounds."""
    import psutil

    from amd_hf.data import PairTransform, frame_pairs, skip_counter
    from amd_hf.data.frame_pairs import open_source
    from amd_hf.data.packing import pack_clips
    from amd_hf.data.packing_clips import PackingSettings

    settings = PackingSettings(clips_per_shard=50, min_difference=0.0, short_side=CROP)
    pack_clips(open_source("generated:60"), folder / "shards", settings)
    dataset = frame_pairs(
        folder / "shards", transform=PairTransform("light", crop_size=CROP), repeat=True
    )
    trace, every = Trace(psutil.Process()), max(arguments.samples // NUM_POINTS, 1)
    begin = time.monotonic()
    for number, _ in enumerate(dataset, start=1):
        if number % every == 0:
            trace.add(number)
        if number == arguments.samples:
            break
    seconds = time.monotonic() - begin
    summary = trace.summary()
    problems = problems_of(summary)
    if skip_counter(dataset).total:
        problems.append(f"samples were left out: {skip_counter(dataset)!r}")
    speed = round(arguments.samples / seconds, 1)
    return {**summary, "samples_per_second": speed, "problems": problems}


def measure_image(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of a process that segments one very large picture."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    model = write_model(folder / "model")
    result: dict[str, Any] = {"problems": []}
    for name, (height, width) in MEGAPIXELS.items():
        path = folder / f"{width}x{height}.jpg"
        ramp = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None]
        Image.fromarray(np.broadcast_to(ramp, (height, width, 3)).copy()).save(path)
        limits = ("no",) if name == "below the limit" else ("no", "yes")
        for raise_limit in limits:
            words = [sys.executable, "-c", SEGMENT_LARGE, str(model), str(path), raise_limit]
            begin = time.monotonic()
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"A picture of {name} failed:\n{done.stderr[-2000:]}")
            *said, megabytes = done.stdout.strip().splitlines()
            label = f"{name}, limit raised" if raise_limit == "yes" else name
            is_refused = any(line.startswith("refused: ") for line in said)
            result[label] = {
                "refused": is_refused,
                "peak_megabytes": round(float(megabytes)),
                "seconds": round(time.monotonic() - begin, 1),
            }
            if is_refused != (label == "100 megapixels"):
                result["problems"].append(f"{label}: refused is {is_refused}")
            if float(megabytes) > MAX_IMAGE_MEGABYTES:
                result["problems"].append(f"{label}: {megabytes} MB")
    return result


KINDS: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "video": measure_video,
    "stream": measure_stream,
    "image": measure_image,
}


def write_model(folder: Path) -> Path:
    """Writes a tiny model with random weights that sees images at 32 pixels; returns the folder."""
    from amd_hf import AMDConfig, AMDImageProcessor, AMDModel

    config = AMDConfig.tiny()
    AMDModel(config).save_pretrained(folder)
    size = {"shortest_edge": VIDEO_SIZE[0]}
    AMDImageProcessor.from_model_config(config, size=size).save_pretrained(folder)
    return folder


def write_video(path: Path, num_frames: int) -> None:
    """Writes a video of a bright square that circles."""
    from amd_hf.video_amd import VideoWriter

    height, width = VIDEO_SIZE
    with VideoWriter(path, 25) as writer:
        for number in range(num_frames):
            frame = np.full((height, width, 3), 60, dtype=np.uint8)
            top, left = number % (height - 12), number % (width - 12)
            frame[top : top + 12, left : left + 12] = (220, 200, 40)
            writer.write(frame)


if __name__ == "__main__":
    sys.exit(main())
