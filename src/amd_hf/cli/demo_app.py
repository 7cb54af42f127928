"""The page of the demo: an image tab and a video tab, in Gradio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from amd_hf.cli import demo_handlers as handlers
from amd_hf.cli.demo_adaptation import (
    MAX_ADAPT_SECONDS,
    MAX_ADAPT_STEPS,
    OBJECTIVES,
    WITHOUT_OPENCV,
    offered_objectives,
)
from amd_hf.cli.demo_cache import keep_pictures_whole
from amd_hf.cli.demo_models import offer_models
from amd_hf.cli.demo_theme import COLORS, INTRO, STYLE, THEME, TITLE
from amd_hf.cli.demo_uploads import DELETE_CACHE, LIMITS, MAX_UPLOAD_MEGABYTES

LAUNCH: dict[str, Any] = {
    "theme": THEME,
    "css": STYLE,
    "max_file_size": f"{MAX_UPLOAD_MEGABYTES}mb",
    "footer_links": ["api"],
    "ssr_mode": False,
    "show_error": False,
}
"""Arguments for `launch`: looks, limits, and nothing of an exception shown but our messages."""


def build_app(
    models: Sequence[str] = (), images: Sequence[Path] = (), videos: Sequence[Path] = ()
) -> gr.Blocks:
    """Returns the page; start it with `.launch(**LAUNCH)`.

    Args:
        models: Hub ids or folders that the chooser offers besides the bundled checkpoint.
        images: Example images that visitors can try with one click.
        videos: Example videos that visitors can try with one click.
    """
    keep_pictures_whole()
    labels = offer_models(models)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=DELETE_CACHE) as app:
        with gr.Row(equal_height=False):
            with gr.Column(scale=3):
                gr.Markdown(INTRO, elem_id="intro")
            with gr.Column(scale=1, min_width=240):
                model_name = gr.Dropdown(labels, value=labels[0], label="Model")
        with gr.Tab("Image"):
            _image_tab(model_name, images)
        with gr.Tab("Video"):
            _video_tab(model_name, videos)
        gr.Markdown(LIMITS, elem_id="limits")
        app.unload(handlers.forget_visitor)
    return app.queue(default_concurrency_limit=1, max_size=20)


def _image_tab(model_name: gr.Dropdown, examples: Sequence[Path]) -> None:
    with gr.Row():
        with gr.Column(scale=2):
            image = _as_path(
                gr.Image(label="Your image", type="filepath", sources=["upload"], elem_id="photo")
            )
            threshold = _threshold()
            run = gr.Button("Find the object", variant="primary")
            shown = gr.Column(visible=bool(examples))
        with gr.Column(scale=3):
            pair = gr.ImageSlider(label="Image | object", interactive=False, elem_id="pair")
            note = gr.Markdown(elem_id="image-note", elem_classes="note")
            segments = gr.AnnotatedImage(label="All segments", color_map=COLORS, elem_id="segments")
            mask = gr.DownloadButton("Download the mask (PNG)", size="sm")
    inputs, outputs = [image, threshold, model_name], [pair, segments, note, mask]
    run.click(
        handlers.segment_image, inputs, outputs, api_name="segment_image", scroll_to_output=True
    )
    threshold.release(handlers.segment_image, inputs, outputs, api_visibility="private")
    with shown:
        _examples(examples, image, handlers.segment_image, outputs)


def _video_tab(model_name: gr.Dropdown, examples: Sequence[Path]) -> None:
    with gr.Row():
        with gr.Column(scale=2):
            video = gr.Video(label="Your video", sources=["upload"])
            steps = gr.Slider(
                0,
                MAX_ADAPT_STEPS,
                value=0,
                step=5,
                label="Adaptation steps",
                info="0: every frame on its own. More: a copy of the model learns from this video, "
                f"for at most {MAX_ADAPT_SECONDS:.0f} s.",
            )
            objective = _objective()
            threshold = _threshold()
            with gr.Row():
                run = gr.Button("Find the object", variant="primary", scale=3, min_width=160)
                stop = gr.Button("Stop", variant="stop", scale=1, min_width=80)
            shown = gr.Column(visible=bool(examples))
        with gr.Column(scale=3):
            objects = gr.Video(label="Video | object", autoplay=True, loop=True, elem_id="objects")
            note = gr.Markdown(elem_id="video-note", elem_classes="note")
            flow = gr.Video(label="Segments | motion", autoplay=True, loop=True)
            masks = gr.DownloadButton("Download the masks (ZIP of PNGs)", size="sm")
    inputs = [video, steps, threshold, model_name, objective]
    outputs = [objects, flow, masks, note]
    run.click(
        handlers.segment_video, inputs, outputs, api_name="segment_video", scroll_to_output=True
    )
    stop.click(handlers.stop_video, None, note, queue=False, api_name="stop_video")
    with shown:
        _examples(examples, video, handlers.segment_video, outputs)


def _threshold() -> gr.Slider:
    info = "Lower: more of the picture counts as object."
    return gr.Slider(0.05, 0.95, value=0.5, step=0.05, label="Threshold", info=info)


def _objective() -> gr.Radio:
    """The choice of what the copy learns; a choice of one says why there is no other."""
    offered = offered_objectives()
    choices = [(OBJECTIVES[name][0], name) for name in offered]
    info = " ".join(f"{OBJECTIVES[name][0]}: {OBJECTIVES[name][1]}." for name in offered)
    if len(offered) < len(OBJECTIVES):
        info = WITHOUT_OPENCV
    radio = gr.Radio(
        choices, value=offered[0], label="Adaptation objective", info=info, elem_id="objective"
    )
    # Our own check tells a caller of the API why a choice is missing.
    radio.preprocess = lambda payload: payload  # type: ignore[method-assign]
    return radio


def _examples(
    files: Sequence[Path], component: Any, function: Callable[..., Any], outputs: list[Any]
) -> None:
    if files:
        rows = [[str(file)] for file in files]
        gr.Examples(
            rows,
            [component],
            outputs,
            function,
            cache_examples=False,
            run_on_click=True,
            api_visibility="private",
        )


def _as_path(image: gr.Image) -> gr.Image:
    """Hands the upload over unopened, so that our limits hold before anything is decoded."""

    def path_of(payload: Any) -> str | None:
        return payload and payload.path

    image.preprocess = path_of  # type: ignore[method-assign]
    return image
