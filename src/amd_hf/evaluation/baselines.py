"""Classical baselines under the same command as the model.

Of the first table of the AMD paper: RBD, HS, MC and DSR, each from its paper. DRFI is a regression
forest trained on labeled images, so it has no place beside methods without labels.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from amd_hf.data.annotations import (
    AnnotatedFrame,
    AnnotatedSequence,
    BenchmarkKind,
    read_frame,
    read_reference,
)
from amd_hf.evaluation.motion_baseline import motion_saliency
from amd_hf.evaluation.predictors import Prediction
from amd_hf.saliency import (
    hierarchical_saliency,
    markov_chain_saliency,
    reconstruction_saliency,
    robust_background_saliency,
)

WORKING_LONG_SIDE = 400
IMAGE_BASELINES: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.float32]]] = {
    "rbd": robust_background_saliency,
    "hs": hierarchical_saliency,
    "mc": markov_chain_saliency,
    "dsr": reconstruction_saliency,
}
BASELINE_NAMES = (*IMAGE_BASELINES, "motion")


def make_baseline(name: str, kind: BenchmarkKind) -> "ImageBaseline | MotionBaseline":
    """A baseline by name.

    Args:
        name: `rbd`, `hs`, `mc`, `dsr` or `motion`.
        kind: Kind of the benchmark; `motion` needs videos.

    Returns:
        The predictor.

    Raises:
        ValueError: If the name is unknown, or the baseline cannot run on this kind.
    """
    if name in IMAGE_BASELINES:
        return ImageBaseline(IMAGE_BASELINES[name])
    if name != "motion":
        raise ValueError(f"Unknown baseline {name!r}; choose from {', '.join(BASELINE_NAMES)}.")
    if kind != "video":
        raise ValueError(
            "The baseline 'motion' needs a video benchmark; use one of "
            f"{', '.join(IMAGE_BASELINES)} here."
        )
    return MotionBaseline()


def _working_copy(frame: AnnotatedFrame) -> NDArray[np.uint8]:
    """The frame with its long side cut down to 400 pixels, as the classical methods were tuned."""
    image = read_frame(frame.image)
    scale = min(1.0, WORKING_LONG_SIDE / max(image.size))
    size = (max(16, round(image.width * scale)), max(16, round(image.height * scale)))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


def _prediction(frame: AnnotatedFrame, soft_mask: NDArray[np.float32]) -> Prediction:
    """The soft mask at the size of the reference."""
    reference = read_reference(frame)
    size = (reference.shape[1], reference.shape[0])
    enlarged = np.asarray(Image.fromarray(soft_mask).resize(size, Image.Resampling.BILINEAR))
    return Prediction(frame, np.clip(enlarged, 0, 1)[None], reference)


class ImageBaseline:
    """A saliency method that looks at one image.

    Args:
        method: Maps an RGB image (H, W, 3) to a soft mask (H, W) in [0, 1].
    """

    num_segments = 1
    selected = 0

    def __init__(self, method: Callable[[NDArray[np.uint8]], NDArray[np.float32]]) -> None:
        """Takes the method."""
        self.method = method

    def predict(
        self, sequence: AnnotatedSequence, frames: Sequence[AnnotatedFrame]
    ) -> Iterator[Prediction]:
        """The method's soft mask for every frame."""
        for frame in frames:
            yield _prediction(frame, self.method(_working_copy(frame)))


class MotionBaseline:
    """Deviation from the dominant motion between neighboring frames."""

    num_segments = 1
    selected = 0

    def predict(
        self, sequence: AnnotatedSequence, frames: Sequence[AnnotatedFrame]
    ) -> Iterator[Prediction]:
        """Every frame against the next one; the last against the one before."""
        positions = {frame.name: index for index, frame in enumerate(sequence.frames)}
        last = len(sequence.frames) - 1
        for frame in frames:
            position = positions[frame.name]
            other = sequence.frames[position + 1 if position < last else max(0, last - 1)]
            yield _prediction(frame, motion_saliency(_working_copy(frame), _working_copy(other)))
