"""A bounded cache of the frames of one video, from which pairs of crops are drawn."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from .image_io_amd import MIN_SIDE, resize_image, resized_size
from .video_amd import FrameStream

logger = logging.get_logger(__name__)

# Long videos are cached in runs of this many adjacent frames, so that pairs survive the thinning.
RUN_LENGTH = 8
# No cached frame gets longer than this multiple of its short side.
MAX_ASPECT = 4


class FrameCache:
    """Frames of one video, decoded and resized once.

    Memory is bounded by `max_frames` frames (about 0.9 MB each for 16:9 and a short side of 400
    pixels). While a video is longer than that, every other run of adjacent frames is dropped, so
    that what is kept spreads evenly.

    Attributes:
        frames: Frame number -> uint8 tensor of shape (3, H, W).
        pairs: Numbers of the two frames of every pair that can be drawn.

    Args:
        source: A video as `FrameStream` takes it; frames of one size in temporal order.
        short_side: Short side of the kept frames in pixels.
        gaps: Distances that the two frames of a pair may have.
        max_frames: Most frames that are kept.
        deadline: `time.monotonic()` at which reading stops, or None to read all.

    Raises:
        ValueError: If the frames cannot be read, differ in size, or are too few for one pair. A
            video that breaks off after some frames is used up to there, with a warning.
    """

    def __init__(
        self,
        source: Any,
        *,
        short_side: int = 400,
        gaps: Sequence[int] = (1,),
        max_frames: int = 256,
        deadline: float | None = None,
    ) -> None:
        self.short_side = short_side
        self.frames: dict[int, Tensor] = {}
        self._run_length = min(max(RUN_LENGTH, max(gaps) + 1), max_frames // 2)
        # One pair at least must come of it: reading goes on until there can be one.
        self._least_frames = min(gaps) + 1
        self._read(FrameStream(source), max_frames, deadline)
        self.pairs = [
            (first, first + gap)
            for gap in gaps
            for first in self.frames
            if first + gap in self.frames
        ]
        if not self.pairs:
            raise ValueError(
                f"A video must have at least {min(gaps) + 1} frames to adapt to it, got "
                f"{len(self.frames)}; segment it without adaptation."
            )

    def _read(self, stream: FrameStream, max_frames: int, deadline: float | None) -> None:
        """Fills the cache in one pass."""
        stride = 1
        for number, frame in enumerate(self._readable(stream)):
            is_late = deadline is not None and time.monotonic() > deadline
            if is_late and number >= self._least_frames:
                logger.warning(f"Using the first {number} frames only: reading took too long.")
                break
            if (number // self._run_length) % stride:
                continue
            self._add(number, frame)
            if len(self.frames) > max_frames:
                stride *= 2
                self.frames = {
                    kept: tensor
                    for kept, tensor in self.frames.items()
                    if (kept // self._run_length) % stride == 0
                }

    def _readable(self, stream: FrameStream) -> Iterator[Any]:
        """The frames up to the end, or to where a damaged video breaks off."""
        frames = iter(stream)
        while True:
            try:
                frame = next(frames, None)
            except ValueError as error:
                if len(self.frames) < self._least_frames:
                    raise
                logger.warning(f"Using the readable part only: {error}")
                return
            if frame is None:
                return
            yield frame

    def _add(self, number: int, frame: Any) -> None:
        """Resizes and keeps one uint8 (H, W, 3) frame."""
        height, width = frame.shape[:2]
        size = resized_size(height, width, self.short_side, MAX_ASPECT * self.short_side)
        tensor = torch.from_numpy(frame).permute(2, 0, 1)
        resized = resize_image(tensor[None], size)[0].to(torch.uint8)
        first = next(iter(self.frames.values()), resized)
        if first.shape != resized.shape:
            raise ValueError(
                "All frames of a video must have the same size and shape, but frame "
                f"{number} is {width} x {height} pixels, unlike the first; adapt to one video at "
                "a time."
            )
        self.frames[number] = resized

    def sample_pair(
        self,
        generator: torch.Generator,
        crop_size: int = 384,
        short_side_range: tuple[float, float] = (0.96, 1.0),
    ) -> Tensor:
        """A random pair of crops, float32 of shape (2, 3, h, w) with values 0..255.

        Both frames share the crop and the scale, so that only the scene moves between them.

        Args:
            generator: Source of randomness.
            crop_size: Side of the square crop, cut down to the frame where that is smaller.
            short_side_range: Range of the factor by which the short side is reduced first.

        Source: the published training pipeline: short side int(400 r) with r in [0.96, 1), crops of
        384. There the full frame is resized for every sample; here the frames are resized once and
        the window of the crop a second time, which is the same up to interpolation.
        """
        index = int(torch.randint(len(self.pairs), (), generator=generator))
        pair = torch.stack([self.frames[number] for number in self.pairs[index]])
        height, width = pair.shape[-2:]
        low, high = short_side_range
        crop = [min(crop_size, max(int(side * low + 0.5), MIN_SIDE)) for side in (height, width)]
        draw, y, x = torch.rand(3, generator=generator).tolist()
        scale = int(self.short_side * (low + (high - low) * draw)) / self.short_side
        window = [
            min(round(length / scale), full)
            for length, full in zip(crop, (height, width), strict=True)
        ]
        top, left = int(y * (height - window[0] + 1)), int(x * (width - window[1] + 1))
        cut = pair[..., top : top + window[0], left : left + window[1]]
        return resize_image(cut, (crop[0], crop[1]))


__all__ = ["FrameCache"]
