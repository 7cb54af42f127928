"""Draws the figures of README and model card from this package's own outputs.

    python scripts/make_figures.py --output docs/figures

`overview.png` (frame, segments, object, segment flow, synthesized frame), `photos.png` (photos in
the public domain and the objects found in them) and `clip.gif`. Everything shown may be passed on:
the clips are generated, the photos are those of `spaces/examples`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from amd_hf import DEFAULT_CHECKPOINT, AMDImageProcessor, AMDModel
from amd_hf.adaptation_amd import adaptation_scale
from amd_hf.data.synthetic_objects import generate_clip
from amd_hf.hub.pictures import photo_sheet
from amd_hf.image_processing_amd import resize_masks
from amd_hf.pipeline_amd import TASK, ZeroShotObjectSegmentationPipeline
from amd_hf.training import adapt_to_video
from amd_hf.training.video_masks import adaptation_preset
from amd_hf.visualization import (
    contact_sheet,
    flow_to_rgb,
    most_likely,
    overlay_object,
    overlay_segments,
)

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = ROOT / "spaces" / "examples"
CLIP_SIZE = (270, 480)
GIF_WIDTH = 320

Picture = NDArray[np.uint8]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=DEFAULT_CHECKPOINT, help="checkpoint folder or Hub id")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "figures")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 22], help="generated clips")
    parser.add_argument("--adapt-steps", type=int, default=0, help="adapt to each clip first")
    parser.add_argument("--frames", type=int, default=24, help="frames of the GIF")
    return parser.parse_args(argv)


class Painter:
    """Draws what a model sees.

    Args:
        model: The model, in eval mode.
        processor: Its image processor.
    """

    def __init__(self, model: AMDModel, processor: AMDImageProcessor) -> None:
        self.model = model
        self.processor = processor

    @torch.inference_mode()
    def pair(self, frame: Picture, next_frame: Picture) -> list[Picture]:
        """Returns frame, segments, object, segment flow and synthesized frame, all of one size."""
        frames: Any = [[frame, next_frame]]
        outputs = self.model(**self.processor(frames, return_tensors="pt").to(self.model.device))
        soft = resize_masks(outputs.segment_masks[:, 0], [frame.shape[:2]])[0].cpu().numpy()
        flow = flow_to_rgb(outputs.segment_flow_12[0].float().cpu().numpy())
        synthesized = outputs.synthesized_1[0].float().clamp(0, 1).cpu().numpy()
        synthesized = np.rint(synthesized.transpose(1, 2, 0) * 255).astype(np.uint8)
        chosen, size = self.model.config.object_segment, frame.shape[:2]
        return [
            frame,
            overlay_segments(frame, most_likely(soft), chosen),
            overlay_object(frame, soft[chosen] > 0.5),
            resized(flow, size),
            resized(synthesized, size),
        ]


def resized(picture: Picture, size: tuple[int, ...]) -> Picture:
    """Returns the picture at (height, width)."""
    height, width = size
    image = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image)


def draw_overview(painters: Sequence[Painter], clips: Sequence[Picture]) -> Image.Image:
    """One row per clip: what goes in, what the two pathways find, what the loss compares."""
    rows = [painter.pair(clip[0], clip[1]) for painter, clip in zip(painters, clips, strict=True)]
    captions = ["frame 1", "segments", "object", "segment flow", "synthesized frame 1"]
    return contact_sheet(rows, column_captions=captions, tile_height=150)


def write_gif(painter: Painter, clip: Picture, file: Path) -> None:
    """Writes frame, object and segment flow side by side as an animation."""
    pictures = []
    for frame, next_frame in pairwise(clip):
        views = painter.pair(frame, next_frame)
        sheet = Image.fromarray(np.hstack([views[0], views[2], views[3]]))
        height = round(sheet.height * 3 * GIF_WIDTH / sheet.width)
        pictures.append(sheet.resize((3 * GIF_WIDTH, height), Image.Resampling.LANCZOS))
    colors = pictures[0].quantize(96)  # one palette for all frames, so that colors do not flicker
    frames = [picture.quantize(palette=colors, dither=Image.Dither.NONE) for picture in pictures]
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=90, loop=0)


def main(argv: Sequence[str] | None = None) -> None:
    """Draws all figures."""
    args = parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    model = AMDModel.from_pretrained(args.model).eval()
    processor = AMDImageProcessor.from_pretrained(args.model)
    clips = [generate_clip(args.frames + 1, *CLIP_SIZE, seed)[0] for seed in args.seeds]
    painter = Painter(model, processor)
    painters = [painter] * len(clips)
    if args.adapt_steps:
        painters = [
            Painter(
                adapt_to_video(
                    model,
                    clip,
                    args.adapt_steps,
                    progress=True,
                    **adaptation_preset("video_mask", adaptation_scale(processor)["short_side"]),
                ),
                processor,
            )
            for clip in clips
        ]
    draw_overview(painters, clips).save(args.output / "overview.png", optimize=True)
    pipe = ZeroShotObjectSegmentationPipeline(model=model, image_processor=processor, task=TASK)
    photos = [file for file in PHOTOS.glob("*.jpg") if not file.name.startswith("generated")]
    photo_sheet(pipe, sorted(photos)).save(args.output / "photos.png", optimize=True)
    write_gif(painters[0], clips[0], args.output / "clip.gif")
    for file in sorted(args.output.iterdir()):
        print(f"{file}  {file.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    main()
