"""What `make demo` runs: real images, a real video and a generated clip with known masks.

Every picture and video goes to the output folder; nothing is downloaded. With `--input` the user's
own image, folder or video is segmented in place of them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

# Before PyTorch is loaded: threads that wait must not spin, or a busy machine gets 8 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import transformers
from PIL import Image

from amd_hf.adaptation_amd import adaptation_scale
from amd_hf.cli.main import main as amd_hf_command
from amd_hf.data.synthetic_objects import generate_clip
from amd_hf.metrics import region_similarity
from amd_hf.pipeline_amd import TASK
from amd_hf.training.video_masks import adaptation_preset
from amd_hf.video_amd import FrameStream, VideoWriter
from amd_hf.visualization import contact_sheet, overlay_object, overlay_segments

IMAGES = ("cheetah.jpg", "lion.jpg", "cheetah1.jpg", "groot.jpeg")
VIDEO = "world.mp4"
VIDEO_FRAMES = 48
IMAGE_SECONDS, CLIP_SECONDS = 12.0, 8.0
CLIP_FRAMES, CLIP_HEIGHT, CLIP_WIDTH, CLIP_SEED = 16, 192, 336, 2
CLIP_FPS = 12.0
ADAPT_STEPS = 100


def main(argv: list[str] | None = None) -> int:
    """Runs the demonstration and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", help="your own image, folder of frames or video")
    parser.add_argument("--output", default="demo_output", type=Path)
    parser.add_argument("--adapt-seconds", type=float, default=30.0, help="budget (%(default)s)")
    parser.add_argument("--video-seconds", type=float, default=12.0, help="budget (%(default)s)")
    parser.add_argument("--model", help="Hub id or folder; the bundled checkpoint")
    parser.add_argument("--device", help="cpu, cuda, mps, ...; the best one")
    args = parser.parse_args(argv)
    start = time.monotonic()
    code = segment_own(args) if args.input else demonstrate(args)
    print(f"\n{time.monotonic() - start:.0f} s in all. Results are in {args.output.resolve()}")
    return code


def segment_own(args: argparse.Namespace) -> int:
    """Segments the user's input with the command line; a video is adapted to first."""
    command = ["segment", args.input, "--output", str(args.output)]
    for name in ("model", "device"):
        if getattr(args, name):
            command += [f"--{name}", getattr(args, name)]
    command += ["--adapt-steps", str(ADAPT_STEPS), "--adapt-seconds", str(args.adapt_seconds)]
    return amd_hf_command(command)


def demonstrate(args: argparse.Namespace) -> int:
    """Images, a video, and a clip with known masks before and after adaptation."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    args.output.mkdir(parents=True, exist_ok=True)
    task: Any = TASK
    pipe = transformers.pipeline(task, model=args.model, device=args.device, dtype=torch.float32)
    segment_images(pipe, sample_media("images", IMAGES), args.output)
    for path in sample_media("videos", [VIDEO]):
        segment_video(pipe, path, args.output, args.video_seconds)
    adapt_to_clip(pipe, args.output, args.adapt_seconds)
    return 0


def sample_media(kind: str, names: Iterable[str]) -> list[Path]:
    """Sample files that come with Gradio; none where it is not installed."""
    try:
        from gradio import media
    except ImportError:
        print(f'No sample {kind}: they come with Gradio, pip install "amd-hf[demo]"')
        return []
    paths = [Path(media.MEDIA_ROOT) / kind / name for name in names]
    return [path for path in paths if path.is_file()]


def segment_images(pipe: Any, paths: list[Path], output: Path) -> None:
    """Overlays of real images, one by one and on a contact sheet."""
    rows: list[list[Any]] = []
    first_start = time.monotonic()
    for path in paths:
        start = time.monotonic()
        if rows and start - first_start > IMAGE_SECONDS:
            break
        image = Image.open(path).convert("RGB")
        segments = pipe(image, return_segments=True)
        found = next(entry for entry in segments if entry["is_object"])
        overlay = overlay_object(image, found["mask"])
        Image.fromarray(overlay).save(output / f"{path.stem}_overlay.png")
        found["mask"].save(output / f"{path.stem}_mask.png")
        soft_masks = np.stack([entry["soft_mask"] for entry in segments])
        colored = overlay_segments(image, soft_masks, pipe.model.config.object_segment)
        rows.append([image, colored, overlay])
        print(
            f"{path.name}: object at {found['box']}, score {found['score']:.2f}, "
            f"{time.monotonic() - start:.1f} s"
        )
    if rows:
        sheet = contact_sheet(rows, column_captions=["image", "segments", "object"])
        sheet.save(output / "images.png")


def segment_video(pipe: Any, path: Path, output: Path, seconds: float) -> None:
    """The overlay of a real video, as far as the time goes."""
    start = time.monotonic()
    stream = FrameStream(path)
    kept: list[np.ndarray] = []

    def decoded() -> Iterator[np.ndarray]:
        for frame in islice(stream, VIDEO_FRAMES):
            kept.append(frame)
            yield frame

    target = output / f"{path.stem}_overlay.mp4"
    with VideoWriter(target, stream.fps) as writer:
        for entries in pipe(decoded()):
            writer.write(overlay_object(kept.pop(0), entries[0]["mask"]))
            if time.monotonic() - start > seconds:
                break
    print(f"{path.name}: {writer.num_frames} frames in {time.monotonic() - start:.1f} s")


def adapt_to_clip(pipe: Any, output: Path, seconds: float) -> None:
    """Region similarity J on a generated clip, before and after a short adaptation."""
    frames, masks = generate_clip(CLIP_FRAMES, CLIP_HEIGHT, CLIP_WIDTH, CLIP_SEED)
    start = time.monotonic()
    pipe(frames[0])
    # A slow machine scores fewer frames.
    num_scored = int(np.clip(CLIP_SECONDS / (time.monotonic() - start), 4, CLIP_FRAMES))
    scored = np.linspace(0, CLIP_FRAMES - 1, num_scored).round().astype(int)
    before = [entries[0]["mask"] for entries in pipe(list(frames[scored]))]
    # The published loss alone moves little in so few steps; the masks of the whole video say what
    # moves against the camera.
    side = adaptation_scale(pipe.image_processor)["short_side"]
    adapted = pipe.adapted_to(
        frames,
        ADAPT_STEPS,
        time_limit=seconds,
        callback=report_step,
        **adaptation_preset("video_mask", side),
    )
    after = [entries[0]["mask"] for entries in adapted(list(frames[scored]))]
    print(
        f"\ngenerated clip: J {mean_similarity(before, masks[scored]):.1f} before, "
        f"{mean_similarity(after, masks[scored]):.1f} after {adapted.adaptation.num_steps} steps "
        f"of adaptation to the masks of the video ({adapted.adaptation.seconds:.0f} s; "
        f"budget {seconds:.0f} s), {num_scored} frames, {time.monotonic() - start:.0f} s in all"
    )
    results = (("before", before), ("after", after), ("true", list(masks[scored])))
    for name, found in results:
        with VideoWriter(output / f"clip_{name}.mp4", CLIP_FPS) as writer:
            for frame, mask in zip(frames[scored], found, strict=True):
                writer.write(overlay_object(frame, mask))
    shown = np.linspace(0, num_scored - 1, 4).round().astype(int)
    rows = [[overlay_object(frames[scored][t], found[t]) for t in shown] for _, found in results]
    captions = ["before adaptation", f"after {adapted.adaptation.num_steps} steps", "true mask"]
    contact_sheet(rows, row_captions=captions).save(output / "clip.png")


def mean_similarity(found: list[Any], masks: np.ndarray) -> float:
    """Mean region similarity J over the frames, in percent."""
    scores = [
        region_similarity(np.asarray(mask) > 0, true)
        for mask, true in zip(found, masks, strict=True)
    ]
    return 100 * float(np.mean(scores))


def report_step(step: int, num_steps: int, loss: float) -> None:
    """One line that is written over at every step."""
    sys.stdout.write(f"\radapting to the clip: step {step} of {num_steps}, loss {loss:.3f} ")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
