"""Validation without labels: the photometric loss of held-out pairs, the monitors, a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from amd_hf.training.monitors import MetricAverager, flatten_metrics
from amd_hf.training.objectives import output_statistics
from amd_hf.visualization import contact_sheet, flow_to_rgb, overlay_segments

MAX_PICTURED_PAIRS = 4
COLUMNS = ("frame 1", "frame 2", "segments", "segment flow", "synthesized frame 1")


@torch.no_grad()
def validate(
    model: Any, batches: Iterable[Mapping[str, Any]], accelerator: Any = None
) -> dict[str, float]:
    """The published objective and the monitored values on held-out pairs.

    Args:
        model: An `AMDModel`; evaluated in eval mode, its mode is left as it was.
        batches: Batches with `pixel_values` of shape (B, 2, 3, H, W).
        accelerator: Its mixed precision is used; None for full precision.

    Returns:
        Means over the batches: `photometric_loss`, `mask_entropy`, `segment_share/k`, ...
    """
    was_training = model.training
    model.eval()
    averager = MetricAverager()
    try:
        for batch in batches:
            pixel_values = batch["pixel_values"].to(model.device)
            if accelerator is None:
                outputs = model(pixel_values=pixel_values)
            else:
                with accelerator.autocast():
                    outputs = model(pixel_values=pixel_values)
            averager.add({"photometric_loss": outputs.loss, **output_statistics(outputs)})
    finally:
        model.train(was_training)
    return flatten_metrics(averager.pop())


@torch.no_grad()
def draw_pairs(model: Any, batch: Mapping[str, Any]) -> np.ndarray:
    """A contact sheet of what the model makes of some pairs.

    Args:
        model: An `AMDModel`.
        batch: Holds `pixel_values` of shape (B, 2, 3, H, W).

    Returns:
        RGB picture, uint8: a row per pair (at most 4) with frame 1, frame 2, the segments over
        frame 1, the segment flow, and frame 1 synthesized from frame 2.
    """
    was_training = model.training
    model.eval()
    try:
        outputs = model(pixel_values=batch["pixel_values"][:MAX_PICTURED_PAIRS].to(model.device))
        frames = model.frames_in_rgb(
            batch["pixel_values"][:MAX_PICTURED_PAIRS].to(model.device).flatten(0, 1)
        )
    finally:
        model.train(was_training)
    frames = frames.unflatten(0, (-1, 2)).cpu()
    masks = F.interpolate(outputs.segment_masks[:, 0].float(), size=frames.shape[-2:])
    rows = []
    for pair in range(len(frames)):
        first, second = (_to_picture(frame) for frame in frames[pair])
        cells = [
            first,
            second,
            overlay_segments(first, masks[pair].cpu().numpy()),
            flow_to_rgb(outputs.segment_flow_12[pair].float().cpu().numpy()),
            _to_picture(outputs.synthesized_1[pair]),
        ]
        rows.append(cells)
    return np.asarray(contact_sheet(rows, column_captions=COLUMNS))


def _to_picture(image: Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] -> (H, W, 3) uint8."""
    pixels = image.float().cpu().clamp(0, 1).mul(255).round().byte()
    return pixels.permute(1, 2, 0).numpy()
