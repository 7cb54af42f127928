"""`amd-hf segment`: images, folders of frames and video files in, masks and overlays out."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers.image_utils import SizeDict

from amd_hf.adaptation_amd import adaptation_scale
from amd_hf.cli.adaptation_objectives import (
    SEGMENT_FLOW,
    VIDEO_MASK,
    WITHOUT_OPENCV,
    offered_objectives,
)
from amd_hf.cli.checkpoints import LOAD_ERRORS, unusable_checkpoint
from amd_hf.cli.finished import FinishedJobs, identity_of
from amd_hf.cli.inputs import Job, plan_jobs
from amd_hf.cli.progress import Console
from amd_hf.cli.segment_options import add_segment_options
from amd_hf.data.ranks import Ranks
from amd_hf.image_io_amd import MIN_SIDE, read_image
from amd_hf.pipeline_amd import TASK
from amd_hf.video_amd import FrameStream, VideoWriter
from amd_hf.visualization import overlay_object
from amd_hf.whole_files import PARTIAL_PREFIX, save_picture

DONE, FAILED = 0, 2
# ImportError: an objective of the adaptation that needs an extra.
_INPUT_ERRORS = (ValueError, TypeError, OSError, RuntimeError, MemoryError, ImportError)


def add_parser(subparsers: Any) -> None:
    """Adds `segment` to the commands of `amd-hf`.

    Args:
        subparsers: What `argparse.ArgumentParser.add_subparsers` returned.
    """
    parser = subparsers.add_parser(
        "segment",
        help="segment the object of images, folders of frames and videos",
        description="Writes NAME_mask.png and NAME_overlay.png for an image, NAME/masks/*.png and "
        "NAME/overlay.mp4 for a video. A folder of same-size images is one video. An interrupted "
        "command goes on where it was. Over several processes: torchrun --nproc_per_node N -m "
        "amd_hf.cli segment ...",
    )
    add_segment_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Segments every input; a failed one does not stop the others.

    Args:
        args: The parsed arguments of `amd-hf segment`.

    Returns:
        The exit code: 0, or 2 where an input failed or nothing could be started.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    console = Console(args.json, args.quiet)
    output = Path(args.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        console.fail(str(output), f"The output folder {args.output!r} is not writable ({error}).")
        return FAILED
    with Ranks.from_environment() as ranks:
        try:
            return _segment_together(args, output, console, ranks)
        except RuntimeError as error:  # of another process; those of an input are caught below
            console.fail(args.output, str(error))
            return FAILED


def _segment_together(
    args: argparse.Namespace, output: Path, console: Console, ranks: Ranks
) -> int:
    """Runs the jobs of this process; the main one tells the results of all."""
    jobs = plan_jobs(args.inputs, console if ranks.is_main else Console(is_mute=True))
    if not jobs:
        return finish(console, 0) if ranks.is_main else DONE
    console.is_quiet |= not ranks.is_main
    try:
        best = "cuda" if torch.cuda.is_available() else None
        device = args.device or (ranks.device(best) if best else None)
        pipe = load_pipeline(args.model, device, args.short_side)
    except (*_INPUT_ERRORS, AssertionError) as error:
        console.fail(args.model or "the bundled checkpoint", str(error))
        return FAILED
    if args.adapt_steps and ranks.is_main and not all(job.is_video for job in jobs):
        console.note("Images are segmented without adaptation; it needs a video.")
    args.adapt_objective = args.adapt_objective or _default_objective(args, console)
    finished = FinishedJobs(output, identity_of(vars(args), pipe.model), ranks.rank)
    if finished.num_found:
        console.note(f"Going on: {finished.num_found} of {len(jobs)} inputs are done.")
    console.is_holding = ranks.count > 1
    lines = _run_jobs(ranks.share(jobs), pipe, output, args, console, finished)
    shares = ranks.gather((lines, console.failures))
    if shares is None:
        return DONE  # the main process counts what failed
    finished.clear()
    _tell(console, shares, len(jobs))
    return finish(console, len(jobs))


def _tell(
    console: Console, shares: list[tuple[list[list[str]], list[tuple[str, str]]]], num_jobs: int
) -> None:
    """Writes the lines of all processes in the order of the jobs and takes over their failures."""
    console.is_holding = False
    console.failures = [failure for _, failures in shares for failure in failures]
    for index in range(num_jobs):
        for line in shares[index % len(shares)][0][index // len(shares)]:
            console.line(line)


def _run_jobs(
    jobs: list[Job],
    pipe: Any,
    output: Path,
    args: argparse.Namespace,
    console: Console,
    finished: FinishedJobs,
) -> list[list[str]]:
    """Runs every job and reports those that fail; returns the lines that were held back by job."""
    lines = []
    with console.bar("inputs", len(jobs), "input") as bar:
        for job in jobs:
            known = finished.get(job)
            if known is not None:
                console.result(*known)
            else:
                _run_job(job, pipe, output, args, console, finished)
            lines.append(console.release())
            bar.update()
    return lines


def _run_job(
    job: Job,
    pipe: Any,
    output: Path,
    args: argparse.Namespace,
    console: Console,
    finished: FinishedJobs,
) -> None:
    """Runs one job; where it succeeds, its result is told and noted."""
    num_failures = len(console.failures)
    segment = segment_video if job.is_video else segment_image
    try:
        result = segment(job, pipe, output, args, console)
    except _INPUT_ERRORS as error:
        console.fail(job.source, _naming(job.source, str(error) or type(error).__name__))
        return
    if result is None:
        return
    console.result(*result)
    if len(console.failures) == num_failures:
        finished.add(job, *result)


def finish(console: Console, num_jobs: int) -> int:
    """Counts what failed and returns the exit code."""
    if not console.failures:
        return DONE
    files = ", ".join(repr(source) for source, _ in console.failures[:5])
    more = ", ..." if len(console.failures) > 5 else ""
    console.note(f"{len(console.failures)} failed: {files}{more} ({num_jobs} tried).")
    return FAILED


def load_pipeline(model: str | None, device: str | None, short_side: int | None = None) -> Any:
    """The pipeline of a checkpoint in float32.

    Args:
        model: Hub id or folder; None is the bundled checkpoint.
        device: Name of a device; None takes the best one.
        short_side: Short side of the model's input in pixels; None takes that of the checkpoint.

    Raises:
        ValueError: If there is no such checkpoint or device, or it is no AMD model, or the side is
            too small.
    """
    if short_side is not None and short_side < MIN_SIDE:
        raise ValueError(f"`--short-side` must be at least {MIN_SIDE} pixels, got {short_side}.")
    if device is not None:
        try:
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"There is no device {device!r} here ({reason}).") from error
    task: Any = TASK  # transformers' overloads name its own tasks only
    try:
        pipe = transformers.pipeline(task, model=model, device=device, dtype=torch.float32)
    except LOAD_ERRORS as error:
        raise unusable_checkpoint(model or "in the package", error) from error
    if short_side is not None:
        pipe.image_processor.size = SizeDict(shortest_edge=short_side)
    return pipe


def segment_image(
    job: Job, pipe: Any, output: Path, args: argparse.Namespace, console: Console
) -> tuple[dict[str, Any], str]:
    """Writes the mask and the overlay of one image; returns its record and a sentence."""
    start = time.monotonic()
    image = read_image(job.source)
    entry = pipe(image, threshold=args.threshold, **_segment(args))[0]
    mask_path = output / f"{job.name}_mask.png"
    overlay_path = output / f"{job.name}_overlay.png"
    save_picture(entry["mask"], mask_path)
    save_picture(Image.fromarray(overlay_object(image, entry["mask"])), overlay_path)
    share = float(np.asarray(entry["mask"]).mean() / 255)
    record = {
        "input": job.source,
        "kind": "image",
        "mask": str(mask_path),
        "overlay": str(overlay_path),
        "score": round(entry["score"], 4),
        "box": entry["box"],
        "object_share": round(share, 4),
        "seconds": round(time.monotonic() - start, 2),
    }
    found = f"object on {share:.1%} of the picture, score {entry['score']:.2f}"
    return record, f"{job.source} -> {mask_path} ({found if share else 'nothing found'})"


def segment_video(
    job: Job, pipe: Any, output: Path, args: argparse.Namespace, console: Console
) -> tuple[dict[str, Any], str] | None:
    """Writes the masks and the overlay of one video; returns its record and a sentence.

    What was decoded before an error is kept, told and followed by the error.
    """
    start = time.monotonic()
    folder = output / job.name
    masks = folder / "masks"
    masks.mkdir(parents=True, exist_ok=True)
    fps = args.fps
    num_expected: int | None = len(job.frames)
    if not job.frames:
        stream = FrameStream(job.source)
        fps, num_expected = fps or stream.fps, stream.num_frames
    for partial in masks.glob(f"{PARTIAL_PREFIX}*"):  # of a killed run
        partial.unlink()
    old_masks = {path.name for path in masks.glob("*.png")}
    pipe, num_steps = _adapted(job, pipe, args, console)
    scores: list[float] = []
    error: Exception | None = None
    with (
        VideoWriter(folder / "overlay.mp4", fps) as writer,
        console.bar(job.name, num_expected, "frame") as bar,
    ):
        try:
            for name, frame, entry in _segmented(job, pipe, args, console):
                save_picture(entry["mask"], masks / name)
                writer.write(overlay_object(frame, entry["mask"]))
                old_masks.discard(name)
                scores.append(entry["score"])
                bar.update()
        except _INPUT_ERRORS as caught:
            error = caught
    if old_masks:
        console.note(f"{masks} also holds {len(old_masks)} masks of an earlier run.")
    record = {
        "input": job.source,
        "kind": "video",
        "masks": str(masks),
        "overlay": str(folder / "overlay.mp4") if scores else None,
        "num_frames": len(scores),
        "mean_score": round(float(np.mean(scores)), 4) if scores else 0.0,
        "adapt_steps": num_steps,
        "adapt_objective": args.adapt_objective if num_steps else None,
        "seconds": round(time.monotonic() - start, 2),
    }
    steps = f", after {num_steps} steps of adaptation" if args.adapt_steps else ""
    sentence = f"{job.source} -> {folder} ({len(scores)} frames{steps})"
    if error is None:
        return (record, sentence) if scores else None
    if not scores:
        raise ValueError(str(error)) from error
    console.result(record, sentence)
    raise ValueError(f"{error} The {len(scores)} frames before it are written.") from error


def _adapted(job: Job, pipe: Any, args: argparse.Namespace, console: Console) -> tuple[Any, int]:
    """The pipeline with a model adapted to the video, and the number of steps taken."""
    if not args.adapt_steps:
        return pipe, 0

    with console.bar(f"adapting to {job.name}", args.adapt_steps, "step") as bar:

        def advance(step: int, num_steps: int, loss: float) -> None:
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()

        adapted = pipe.adapted_to(
            (frame for _, frame in _frames(job, None)) if job.frames else job.source,
            args.adapt_steps,
            callback=advance,
            time_limit=args.adapt_seconds,
            seed=args.seed,
            **_adaptation(args, pipe),
        )
    return adapted, adapted.adaptation.num_steps


def _default_objective(args: argparse.Namespace, console: Console) -> str:
    """The objective of this machine; says where that is not the best one."""
    name = offered_objectives()[0]
    if args.adapt_steps and name != VIDEO_MASK:
        console.note(f"{WITHOUT_OPENCV} The published loss is used in its place.")
    return name


def _adaptation(args: argparse.Namespace, pipe: Any) -> dict[str, Any]:
    """The settings of the objective; nothing for the published one."""
    if args.adapt_objective == SEGMENT_FLOW:
        return {}
    from amd_hf.training.video_masks import adaptation_preset

    scale = adaptation_scale(pipe.image_processor)
    return adaptation_preset(VIDEO_MASK, scale.get("short_side"), args.object_segment)


def _segmented(
    job: Job, pipe: Any, args: argparse.Namespace, console: Console
) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
    """Name of the mask, frame and object entry of every frame, decoded on demand."""
    waiting: deque[tuple[str, np.ndarray]] = deque()

    def decoded() -> Iterator[np.ndarray]:
        for name, frame in _frames(job, console):
            waiting.append((name, frame))
            yield frame

    batch_size = args.batch_size or (1 if pipe.device.type == "cpu" else 8)
    results = pipe(decoded(), threshold=args.threshold, batch_size=batch_size, **_segment(args))
    for entries in results:
        name, frame = waiting.popleft()
        yield name, frame, entries[0]


def _frames(job: Job, console: Console | None) -> Iterator[tuple[str, np.ndarray]]:
    """Name of the mask and decoded frame; damaged files of a folder are reported and left out."""
    if not job.frames:
        for number, frame in enumerate(FrameStream(job.source)):
            yield f"{number:05d}.png", frame
    stems = [path.stem for path in job.frames]
    for path in job.frames:
        try:
            frame = read_image(path)
        except ValueError as error:
            if console is not None:
                console.fail(str(path), str(error))
            continue
        yield f"{path.stem if stems.count(path.stem) == 1 else path.name}.png", frame


def _segment(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of the pipeline that say what to read and how, where they were given."""
    given = {"object_segment": args.object_segment, "refine": args.refine}
    return {name: value for name, value in given.items() if value is not None}


def _naming(source: str, reason: str) -> str:
    """The reason, with the input's name where it lacks it."""
    return reason if os.path.basename(source) in reason else f"{source}: {reason}"
