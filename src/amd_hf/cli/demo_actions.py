"""What the demo computes: segments of an image, masks of a video, what moved in it.

Nothing here knows about the page; `demo_handlers` connects these functions to its buttons.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from amd_hf import AMDImageProcessor, AMDModel
from amd_hf.image_processing_amd import resize_masks
from amd_hf.video_amd import VideoWriter
from amd_hf.visualization import (
    MIN_MOTION_SCALE,
    most_likely,
    overlay_object,
    overlay_segments,
    relative_motion_to_rgb,
)

Frame = NDArray[np.uint8]
SoftMasks = NDArray[np.float32]
# Called with the share done in [0, 1] and a sentence; raises an exception to stop the work.
Report = Callable[[float, str], None]


@dataclass(frozen=True)
class VideoResult:
    """Files of a segmented video.

    Args:
        object_video: H.264 video, each frame beside its copy with the object in color.
        segment_video: H.264 video, all segments beside the segment flow against its median.
        masks: ZIP archive of one PNG mask (0 or 255) per frame.
        object_share: Mean share of the pixels that belong to the object, in [0, 1].
    """

    object_video: Path
    segment_video: Path
    masks: Path
    object_share: float


@torch.inference_mode()
def soft_segments(model: AMDModel, processor: AMDImageProcessor, frame: Frame) -> SoftMasks:
    """Returns the probability of every segment at every pixel.

    Args:
        model: The model, or its copy adapted to the video.
        processor: Its image processor.
        frame: RGB image of shape (H, W, 3), uint8.

    Returns:
        Soft masks of shape (K, H, W), float32 in [0, 1].
    """
    outputs = model(**processor(frame, return_tensors="pt").to(model.device))
    return _soft_masks(outputs, [frame])[0]


@torch.inference_mode()
def segment_pair(
    model: AMDModel, processor: AMDImageProcessor, frame: Frame, next_frame: Frame
) -> tuple[list[SoftMasks], list[NDArray[np.float32]]]:
    """Returns the segments of two adjacent frames and the forward motion on both grids.

    Args:
        model: The model, or its copy adapted to the video.
        processor: Its image processor.
        frame: RGB image of shape (H, W, 3), uint8.
        next_frame: The following frame, of the same shape.

    Returns:
        Two soft masks of shape (K, H, W), float32 in [0, 1], and two flows (u, v) of shape
        (2, Hm, Wm) in pixels of the model's motion size: the segment flow from the first frame to
        the second, and that from the second to the first with its sign turned.
    """
    pair: Any = [[frame, next_frame]]
    outputs = model(**processor(pair, return_tensors="pt").to(model.device))
    flows = outputs.segment_flow_12[0], -outputs.segment_flow_21[0]
    masks = _soft_masks(outputs, [frame, next_frame])
    return masks, [flow.float().cpu().numpy() for flow in flows]


def _soft_masks(outputs: Any, frames: Sequence[Frame]) -> list[SoftMasks]:
    masks = outputs.segment_masks.flatten(0, -4)  # (B, K, h, w), pairs as two images
    sizes = [(frame.shape[0], frame.shape[1]) for frame in frames]
    return [soft.cpu().numpy() for soft in resize_masks(masks, sizes)]


def write_video_result(
    model: AMDModel,
    processor: AMDImageProcessor,
    frames: list[Frame],
    fps: float,
    threshold: float,
    folder: Path,
    report: Report,
) -> VideoResult:
    """Segments every frame and writes the two videos and the archive of masks.

    Args:
        model: The model, or its copy adapted to the video.
        processor: Its image processor.
        frames: At least two RGB frames of shape (H, W, 3), uint8.
        fps: Frames per second of the results.
        threshold: Probability in [0, 1) above which a pixel belongs to the object.
        folder: Existing folder for the results.
        report: Hears about the progress.
    """
    paths = folder / "object.mp4", folder / "segments.mp4", folder / "masks.zip"
    chosen = model.config.object_segment
    shares, scale = [], MIN_MOTION_SCALE
    with (
        VideoWriter(paths[0], fps) as objects,
        VideoWriter(paths[1], fps) as segments,
        zipfile.ZipFile(paths[2], "w") as archive,
    ):
        for index, frame, soft, flow in _segmented_frames(model, processor, frames, report):
            mask = soft[chosen] > threshold
            objects.write(np.hstack([frame, overlay_object(frame, mask)]))
            colors = overlay_segments(frame, most_likely(soft), chosen)
            motion, scale = relative_motion_to_rgb(flow, scale)
            segments.write(np.hstack([colors, _resize(motion, frame.shape[:2])]))
            shares.append(float(mask.mean()))
            with archive.open(f"{index:05d}.png", "w") as file:
                Image.fromarray(mask.astype(np.uint8) * 255).save(file, format="PNG")
    return VideoResult(*paths, object_share=float(np.mean(shares)))


def _segmented_frames(
    model: AMDModel, processor: AMDImageProcessor, frames: list[Frame], report: Report
) -> Iterator[tuple[int, Frame, SoftMasks, NDArray[np.float32]]]:
    """Number, picture, segments and flow of every frame; frames go through the model in pairs."""
    for index in range(0, len(frames), 2):
        report(index / len(frames), f"Segmenting frame {index + 1} of {len(frames)}")
        first = min(index, len(frames) - 2)  # an odd last frame joins the one before it again
        pair = frames[first : first + 2]
        masks, flows = segment_pair(model, processor, *pair)
        for at in range(index - first, 2):
            yield first + at, pair[at], masks[at], flows[at]


def _resize(image: Frame, size: tuple[int, ...]) -> Frame:
    height, width = size
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
