"""What is scored: anything that gives K soft masks per frame of a sequence, frame by frame."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amd_hf.data.annotations import (
    AnnotatedFrame,
    AnnotatedSequence,
    read_frame,
    read_reference,
)
from amd_hf.evaluation.settings import EvaluationSettings
from amd_hf.image_processing_amd import AMDImageProcessor
from amd_hf.modeling_amd import AMDModel


@dataclass(frozen=True)
class Prediction:
    """Soft masks of one frame and its reference.

    Attributes:
        frame: The frame.
        soft_masks: Probabilities of shape (K, H, W), float32, at the size of the reference.
        reference: Boolean mask of shape (H, W).
    """

    frame: AnnotatedFrame
    soft_masks: NDArray[np.float32]
    reference: NDArray[np.bool_]


class Predictor(Protocol):
    """Anything that can be scored.

    Attributes:
        num_segments: Number K of soft masks per frame.
        selected: Index of the one that is read as the object.
    """

    num_segments: int
    selected: int

    def predict(
        self, sequence: AnnotatedSequence, frames: Sequence[AnnotatedFrame]
    ) -> Iterator[Prediction]:
        """Predictions for the given annotated frames of a sequence, in order."""


class ModelPredictor:
    """An `AMDModel`, per image or adapted to each sequence first.

    Args:
        model: The model; it is not changed.
        processor: Its image processor.
        settings: Settings of the evaluation.
    """

    def __init__(
        self, model: AMDModel, processor: AMDImageProcessor, settings: EvaluationSettings
    ) -> None:
        """Takes the object segment from the settings, or else from the configuration."""
        self.model = model
        self.processor = processor
        self.settings = settings
        self.num_segments = model.config.num_segments
        chosen = settings.object_segment
        self.selected = model.config.object_segment if chosen is None else chosen
        if not 0 <= self.selected < self.num_segments:
            raise ValueError(
                f"`object_segment` must lie in 0..{self.num_segments - 1} for this model, got "
                f"{self.selected}."
            )

    def predict(
        self, sequence: AnnotatedSequence, frames: Sequence[AnnotatedFrame]
    ) -> Iterator[Prediction]:
        """Predictions in order; with adaptation, one adapted copy per sequence or chunk."""
        for part in self._parts(sequence):
            wanted = [frame for frame in frames if frame.name in part]
            if not wanted:
                continue
            model = self._adapted(part)
            model.eval()
            yield from self._segment(model, sequence, wanted)

    def _parts(self, sequence: AnnotatedSequence) -> list[dict[str, AnnotatedFrame]]:
        """The sequence cut into the runs of frames that share one adapted copy."""
        length = len(sequence.frames)
        chunk = self.settings.adapt_chunk
        if not self.settings.adapt_steps or chunk is None or chunk >= length:
            return [{frame.name: frame for frame in sequence.frames}]
        # Equal parts: a short last chunk would adapt to a handful of frames.
        edges = np.linspace(0, length, -(-length // chunk) + 1).round().astype(int)
        return [
            {frame.name: frame for frame in sequence.frames[start:stop]}
            for start, stop in pairwise(edges)
        ]

    def _adapted(self, part: dict[str, AnnotatedFrame]) -> AMDModel:
        """The model, or its copy adapted to the frames of `part`."""
        if not self.settings.adapt_steps:
            return self.model
        from amd_hf.adaptation_amd import adapt_to_video, adaptation_scale

        # Adapt at the size and in the precision in which is segmented.
        side = self.settings.short_side
        scale = adaptation_scale(self.processor if side is None else _resizing_to(side))
        defaults: dict[str, Any] = {"seed": self.settings.seed, **scale}
        if self.settings.autocast is not None:
            defaults["autocast_dtype"] = getattr(torch, self.settings.autocast)
        given = dict(self.settings.adapt_settings)
        if isinstance(given.get("objective"), str):
            from amd_hf.training.video_masks import adaptation_preset

            objective = given.pop("objective")
            defaults |= adaptation_preset(objective, scale["short_side"], self.selected)
        settings = {**defaults, **given}
        return adapt_to_video(
            self.model,
            (read_frame(frame.image) for frame in part.values()),
            num_steps=self.settings.adapt_steps,
            **settings,
        )

    def _segment(
        self, model: AMDModel, sequence: AnnotatedSequence, frames: Sequence[AnnotatedFrame]
    ) -> Iterator[Prediction]:
        """Predictions of one model, refined as the settings say."""
        if self.settings.refinements:
            from amd_hf.evaluation.refinement import refined_predictions

            yield from refined_predictions(self, model, sequence, frames)
            return
        for batch, pixels in self.batches(frames):
            yield from self.predictions(batch, self.segment_masks(model, pixels))

    def batches(
        self, frames: Sequence[AnnotatedFrame]
    ) -> Iterator[tuple[list[AnnotatedFrame], Tensor]]:
        """Frames and their `pixel_values` (B, 3, H, W), at most `batch_size` of one size."""
        waiting: list[AnnotatedFrame] = []
        pixels: list[Tensor] = []
        for frame in frames:
            current = self.pixel_values(frame)
            if pixels and (
                len(pixels) == self.settings.batch_size or current.shape != pixels[0].shape
            ):
                yield waiting, torch.cat(pixels)
                waiting, pixels = [], []
            waiting.append(frame)
            pixels.append(current)
        if pixels:
            yield waiting, torch.cat(pixels)

    def pixel_values(self, frame: AnnotatedFrame, short_side: int | None = None) -> Tensor:
        """Model input (1, 3, H, W) of one frame on the model's device."""
        side = short_side or self.settings.short_side
        options: dict[str, Any] = {} if side is None else {"size": {"shortest_edge": side}}
        image = read_frame(frame.image)
        return self.processor(image, return_tensors="pt", **options)["pixel_values"].to(
            self.model.device, self.model.dtype
        )

    @torch.inference_mode()
    def segment_masks(self, model: AMDModel, pixels: Tensor) -> Tensor:
        """Segment masks (B, K, h, w) in float32."""
        with self.autocast():
            return model(pixel_values=pixels).segment_masks.float()

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision as the settings say."""
        if self.settings.autocast is None:
            return nullcontext()
        dtype = getattr(torch, self.settings.autocast)
        return torch.autocast(self.model.device.type, dtype=dtype)

    def predictions(self, frames: Sequence[AnnotatedFrame], masks: Tensor) -> Iterator[Prediction]:
        """Predictions at the size of the references from segment masks (B, K, h, w)."""
        for frame, mask in zip(frames, masks, strict=True):
            reference = read_reference(frame)
            yield Prediction(frame, self.enlarge(mask, reference.shape), reference)

    def enlarge(self, masks: Tensor, size: tuple[int, ...]) -> NDArray[np.float32]:
        """Soft masks (K, H, W) from masks (K, h, w), enlarged by the processor as everywhere."""
        # The segments become a batch of one-segment outputs, so that one call enlarges them all.
        outputs = SimpleNamespace(segment_masks=masks[:, None])
        soft = self.processor.post_process_object_segmentation(
            outputs,
            target_sizes=[(size[0], size[1])] * len(masks),
            object_segment=0,
            return_soft_masks=True,
        )
        return torch.stack(soft).clamp(0, 1).cpu().numpy()


def _resizing_to(short_side: int) -> Any:
    """What `adaptation_scale` reads of a processor, for another short side."""
    return SimpleNamespace(size=SimpleNamespace(shortest_edge=short_side))
