"""What the buttons of the demo do: from an upload to what the page shows."""

from __future__ import annotations

import ctypes
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
import numpy as np
from gradio.utils import get_upload_folder
from PIL import Image

from amd_hf.cli import demo_actions as actions
from amd_hf.cli import demo_adaptation as adaptation
from amd_hf.cli import demo_uploads as uploads
from amd_hf.cli.demo_models import BUNDLED, load_model
from amd_hf.cli.demo_theme import OBJECT, other_name
from amd_hf.visualization import overlay_object

try:  # on ZeroGPU hardware a function gets its GPU from this decorator
    from spaces import GPU  # type: ignore[attr-defined]
except ImportError:
    GPU = None

Function = TypeVar("Function", bound=Callable[..., Any])


class VisitorStoppedError(Exception):
    """The visitor pressed Stop or left; the work in progress is dropped."""


class RunningJobs:
    """The stop file of every visitor's job; a file also reaches a job in another process."""

    def __init__(self) -> None:
        self._stop_files: dict[str, Path] = {}
        self._lock = threading.Lock()

    @contextmanager
    def job(self, visitor: str) -> Iterator[Path]:
        """Gives a folder that lives as long as the block; its file `stop` ends the job."""
        with tempfile.TemporaryDirectory(prefix="amd-demo-") as folder:
            stop_file = Path(folder) / "stop"
            with self._lock:
                self._stop_files[visitor] = stop_file
            try:
                yield Path(folder)
            finally:
                with self._lock:
                    if self._stop_files.get(visitor) == stop_file:
                        del self._stop_files[visitor]

    def stop(self, visitor: str) -> bool:
        """Asks the visitor's job to stop; tells whether there was one."""
        with self._lock:
            stop_file = self._stop_files.get(visitor)
            if stop_file is not None:
                stop_file.touch()
        return stop_file is not None


JOBS = RunningJobs()


def on_gpu(function: Function) -> Function:
    """Lends a GPU to `function` on ZeroGPU hardware and changes nothing elsewhere."""
    return function if GPU is None else GPU(duration=180)(function)


@contextmanager
def told_to_visitor() -> Iterator[None]:
    """Shows a refusal as a message on the page."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(str(error), title="That did not work", print_exception=False) from error


def own_upload(path: str | None) -> str | None:
    """Returns the path of a visitor's upload and refuses any other place on the server.

    Gradio checks this only where the request itself marks the file as one, so a request without
    the mark could name every picture and video that the server can read.

    Args:
        path: What the request named, or None where the visitor chose no file.

    Raises:
        ValueError: If the file does not lie in the folder of uploads.
    """
    if path and Path(get_upload_folder()).resolve() not in Path(path).resolve().parents:
        raise ValueError(f"{Path(path).name} was not uploaded to this page; upload it first.")
    return path


def segment_image(
    image: str | None, threshold: float = 0.5, model_name: str = BUNDLED
) -> Iterator[tuple[Any, ...]]:
    """Finds the object and all segments of one image."""
    with told_to_visitor(), tempfile.TemporaryDirectory(prefix="amd-demo-") as folder:
        rgb = uploads.read_uploaded_image(own_upload(image))
        soft, chosen = _segment(rgb, model_name)
        mask = soft[chosen] > threshold
        file = Path(folder) / "mask.png"
        Image.fromarray(mask.astype(np.uint8) * 255).save(file)
        note = f"The object covers **{mask.mean():.0%}** of the image."
        if not mask.any():
            note = "No pixel is above the threshold: **no object found**."
        # The folder lives until the page has its copy: Gradio then asks for the next result.
        yield (rgb, overlay_object(rgb, mask)), (rgb, _sections(soft, chosen)), note, str(file)


@on_gpu
def _segment(rgb: actions.Frame, model_name: str) -> tuple[actions.SoftMasks, int]:
    model, processor = load_model(model_name)
    return actions.soft_segments(model, processor, rgb), model.config.object_segment


def _sections(soft: actions.SoftMasks, chosen: int) -> list[tuple[Any, str]]:
    """The region of each segment with its name, the object first."""
    labels = soft.argmax(axis=0)
    others = [index for index in range(len(soft)) if index != chosen]
    names = {chosen: OBJECT} | {index: other_name(at) for at, index in enumerate(others)}
    return [((labels == index).astype(np.float32), name) for index, name in names.items()]


@dataclass(frozen=True)
class VideoSettings:
    """What a visitor chose for a video.

    Args:
        adapt_steps: Adaptation steps; 0 segments every frame on its own.
        objective: A name that `chosen_objective` returned.
        threshold: Probability in [0, 1) above which a pixel belongs to the object.
        model_name: Label of a model.
    """

    adapt_steps: int
    objective: str
    threshold: float
    model_name: str


def segment_video(
    video: str | None,
    adapt_steps: float = 0,
    threshold: float = 0.5,
    model_name: str = BUNDLED,
    objective: str | None = None,
    request: gr.Request | None = None,
    progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio looks for it in the defaults
) -> Iterator[tuple[Any, ...]]:
    """Finds the object in every frame, after adapting a copy of the model to the video."""
    with told_to_visitor(), JOBS.job(_visitor(request)) as folder:
        chosen = adaptation.chosen_objective(objective)
        progress(0.0, desc="Reading the video")
        frames, fps = uploads.read_uploaded_video(own_upload(video))
        settings = VideoSettings(int(adapt_steps), chosen, threshold, model_name)
        found = _segment_frames(frames, fps, settings, folder)
        give_back_memory()
        if found is None:
            yield gr.skip(), gr.skip(), gr.skip(), "Stopped; nothing was kept."
            return
        result, num_steps = found
        note = (
            f"{len(frames)} frames, {_steps_taken(settings, num_steps)}; the object covers "
            f"**{result.object_share:.0%}** of the pixels. Motion is shown against the rest of the "
            "picture: white does not move on its own."
        )
        yield str(result.object_video), str(result.segment_video), str(result.masks), note


def _steps_taken(settings: VideoSettings, num_steps: int) -> str:
    """What the note says about the adaptation."""
    if not settings.adapt_steps:
        return "no adaptation"
    name = adaptation.OBJECTIVES[settings.objective][0].lower()
    if num_steps == settings.adapt_steps:
        return f"{num_steps} adaptation steps ({name})"
    seconds = f"{adaptation.MAX_ADAPT_SECONDS:.0f} s"
    return f"{num_steps} of {settings.adapt_steps} adaptation steps in {seconds} ({name})"


@on_gpu
def _segment_frames(
    frames: list[actions.Frame], fps: float, settings: VideoSettings, folder: Path
) -> tuple[actions.VideoResult, int] | None:
    """The result and the adaptation steps taken, or None where the visitor stopped the job."""
    progress = gr.Progress()

    def report(share: float, text: str) -> None:
        if (folder / "stop").exists():
            raise VisitorStoppedError
        progress(share, desc=text)

    model, processor = load_model(settings.model_name)
    num_steps = 0
    try:
        if settings.adapt_steps:
            adapted = adaptation.adapt(
                model, processor, frames, settings.adapt_steps, settings.objective, report
            )
            model, num_steps = adapted.model, adapted.num_steps
        result = actions.write_video_result(
            model, processor, frames, fps, settings.threshold, folder, report
        )
    except VisitorStoppedError:
        return None
    return result, num_steps


def give_back_memory() -> None:
    """Returns freed memory to the system: glibc would keep 300 MB for every thread that adapted."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):  # another system or C library
        return


def stop_video(request: gr.Request) -> str:
    """Ends the visitor's running video job."""
    return "Stopping ..." if JOBS.stop(_visitor(request)) else "Nothing is running."


def forget_visitor(request: gr.Request) -> None:
    """Ends the job of a visitor who left the page."""
    JOBS.stop(_visitor(request))


def _visitor(request: gr.Request | None) -> str:
    return (request.session_hash if request is not None else None) or ""
