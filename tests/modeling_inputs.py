"""Inputs of the models and names of their outputs, for the tests of the models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

IMAGE_FIELDS = {"segment_logits", "segment_masks"}
PAIR_FIELDS = {
    "loss",
    *IMAGE_FIELDS,
    *(f"{name}_{way}" for name in ("segment_motion", "segment_flow") for way in ("12", "21")),
    *(f"{name}_{frame}" for name in ("synthesized", "visibility") for frame in (1, 2)),
}


def random_pair(batch: int = 1, height: int = 48, width: int = 64) -> Tensor:
    return torch.randn(batch, 2, 3, height, width)


def set_statistics(model: nn.Module) -> None:
    """Gives batch normalization running statistics other than those of initialization."""
    for name, buffer in model.named_buffers():
        if not name.endswith("num_batches_tracked"):
            buffer.copy_(torch.rand(buffer.shape) + 0.5)
