"""Controls: what a method must beat before its score means anything."""

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from amd_hf.data.annotations import AnnotatedFrame, AnnotatedSequence, read_reference
from amd_hf.evaluation.predictors import Prediction
from amd_hf.modeling_amd import AMDModel

# Semi-axes as shares of the frame's sides; chosen on the development sets.
ELLIPSE_SEMI_AXES = (0.3, 0.3)
# PyTorch's generator is one for all threads: two that draw weights at once would mix their draws.
_DRAWING = threading.Lock()


def center_ellipse(height: int, width: int) -> NDArray[np.float32]:
    """A soft ellipse in the middle of the frame that looks at nothing.

    Args:
        height: Height of the frame in pixels.
        width: Width of the frame in pixels.

    Returns:
        Array of shape (H, W) in [0, 1]: 1 in the middle, 0.5 on the ellipse, 0 far out.
    """
    y = (np.arange(height) + 0.5) / height - 0.5
    x = (np.arange(width) + 0.5) / width - 0.5
    vertical, horizontal = ELLIPSE_SEMI_AXES
    squared = (y[:, None] / vertical) ** 2 + (x[None, :] / horizontal) ** 2
    return np.exp2(-squared).astype(np.float32)


class CenterEllipsePredictor:
    """The center ellipse for every frame."""

    num_segments = 1
    selected = 0

    def predict(
        self, sequence: AnnotatedSequence, frames: Sequence[AnnotatedFrame]
    ) -> Iterator[Prediction]:
        """The same ellipse at the size of every reference."""
        for frame in frames:
            reference = read_reference(frame)
            yield Prediction(frame, center_ellipse(*reference.shape)[None], reference)


def random_model(model: AMDModel, seed: int) -> AMDModel:
    """A freshly initialized model of the same configuration, device and dtype.

    Args:
        model: The model whose architecture is copied.
        seed: Seed of the initialization; the caller's random state is left as it was.

    Returns:
        The untrained model in eval mode.
    """
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(model)(model.config)
    torch.nn.Module.to(fresh, device=model.device, dtype=model.dtype)
    return fresh.eval()
