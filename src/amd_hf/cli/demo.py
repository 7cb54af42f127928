"""`amd-hf demo`: the page of the Space, on this machine."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

EXAMPLE_SIZE = (270, 480)
EXAMPLE_FRAMES = 36
EXAMPLE_SEEDS = (2, 22)


def add_parser(subparsers: Any) -> None:
    """Adds `demo` to the commands of `amd-hf`.

    Args:
        subparsers: What `argparse.ArgumentParser.add_subparsers` returned.
    """
    parser = subparsers.add_parser(
        "demo",
        help="open the demo in the browser: images and videos, all segments, what moved",
        description="Serves the demo page on this machine until Ctrl+C.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on (%(default)s)")
    parser.add_argument("--port", type=int, default=None, help="port; the first free one from 7860")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="ID",
        help="also offer this Hub id or folder; may be given several times",
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def run(args: argparse.Namespace) -> int:
    """Serves the page until it is interrupted.

    Args:
        args: The parsed arguments of `amd-hf demo`.

    Returns:
        The exit code: 0, or 2 where the page cannot be served.
    """
    with tempfile.TemporaryDirectory(prefix="amd-demo-") as folder:
        # Everything that is written goes with this folder, however the process is asked to end.
        tempfile.tempdir = folder
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        # Read by Gradio when it is imported.
        os.environ.setdefault("GRADIO_TEMP_DIR", str(Path(folder) / "files"))
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        try:
            import gradio  # noqa: F401 - only to tell a missing extra from an error of ours
        except ImportError:
            print('The demo needs Gradio: pip install "amd-hf[demo]"', file=sys.stderr)  # noqa: T201
            return 2
        from amd_hf.cli.demo_app import LAUNCH, build_app

        images, videos = make_examples(Path(folder) / "examples")
        app = build_app(args.model, images, videos)
        try:
            app.launch(server_name=args.host, server_port=args.port, inbrowser=args.open, **LAUNCH)
            end_connections(app)
        except OSError as error:
            print(f"The demo cannot be served: {error}", file=sys.stderr)  # noqa: T201
            return 2
    return 0


def end_connections(app: Any) -> None:
    """Lets the server go although pages are open; each of them holds a connection for ever.

    Args:
        app: The page, after it was interrupted.
    """
    server = getattr(app, "server", None)
    if server is not None:
        server.force_exit = True
        server.thread.join(timeout=10)


def make_examples(folder: Path) -> tuple[list[Path], list[Path]]:
    """Writes generated clips, and one frame of each, for visitors without a file at hand.

    Args:
        folder: Folder to create.

    Returns:
        The images and the videos.
    """
    from amd_hf.data.synthetic_objects import generate_clip
    from amd_hf.video_amd import VideoWriter

    folder.mkdir(parents=True, exist_ok=True)
    images, videos = [], []
    for seed in EXAMPLE_SEEDS:
        frames, _ = generate_clip(EXAMPLE_FRAMES, *EXAMPLE_SIZE, seed)
        images.append(folder / f"generated_{seed}.jpg")
        Image.fromarray(frames[0]).save(images[-1], quality=92)
        videos.append(folder / f"generated_{seed}.mp4")
        with VideoWriter(videos[-1], fps=12) as writer:
            for frame in frames:
                writer.write(frame)
    return images, videos
