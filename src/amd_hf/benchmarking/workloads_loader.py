"""The data loader against the decoding of the same JPEGs, in as many processes."""

from __future__ import annotations

import io
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from amd_hf.benchmarking.inputs import write_frames
from amd_hf.benchmarking.timing import measure
from amd_hf.benchmarking.workloads import Measurement

# A frame, and the share of its size at which it is wanted.
Encoded = tuple[bytes, float]


class DecodeAlone(IterableDataset[int]):
    """Decodes frames with Pillow again and again and does nothing else; counts pairs.

    Args:
        frames: The frames, two per pair.
        pairs_per_item: Pairs that are decoded before the process hands over their number.
    """

    def __init__(self, frames: list[Encoded], pairs_per_item: int) -> None:
        self.frames = frames
        self.pairs_per_item = pairs_per_item

    def __iter__(self) -> Iterator[int]:
        """Yields `pairs_per_item`, endlessly; every worker begins at another frame."""
        worker = get_worker_info()
        place = 2 * self.pairs_per_item * (worker.id if worker is not None else 0)
        while True:
            for index in range(place, place + 2 * self.pairs_per_item):
                decode(*self.frames[index % len(self.frames)])
            place += 2 * self.pairs_per_item
            yield self.pairs_per_item


def decode(data: bytes, scale: float) -> Image.Image:
    """Decodes one frame at the smallest scale that a JPEG offers and that is not below `scale`."""
    image = Image.open(io.BytesIO(data))
    if scale < 1.0:
        image.draft("RGB", (math.ceil(image.width * scale), math.ceil(image.height * scale)))
    image.load()
    return image


def time_loader(
    num_workers: int = 2,
    num_batches: int = 12,
    batch: int = 8,
    crop: int = 384,
    source: str | None = None,
    rounds: int = 3,
) -> Measurement:
    """Times the stream of frame pairs and, in turns with it, the decoding of the same frames alone.

    Args:
        num_workers: Worker processes of both.
        num_batches: Batches per round.
        batch: Pairs per batch.
        crop: Side of the crops of the published augmentation.
        source: Source of the pairs as `frame_pairs` takes it; None generates frames of 480x854.
        rounds: Rounds that count.

    Returns:
        Timings of `num_batches` batches, pairs per second, the share of the limit, and processor
        time per pair by stage in this process.

    Raises:
        ImportError: If `datasets` is not installed.
    """
    from amd_hf.data.decoding import PairCollator, PairTransform
    from amd_hf.data.frame_pairs import frame_pairs

    transform = PairTransform("published", crop)
    with tempfile.TemporaryDirectory() as folder:
        name = source or "480x854 JPEG"
        if source is None:
            for video in range(2 * max(num_workers, 1)):
                write_frames(Path(folder) / f"video{video}", 8, (480, 854), seed=video)
            source = folder
        raw = list(islice(frame_pairs(source, repeat=True), num_batches * batch))
        frames = _wanted(raw, transform)
        stream = frame_pairs(source, transform=transform, repeat=True)
        collate = PairCollator(transform, normalize=False)
        loader = iter(DataLoader(stream, batch, num_workers=num_workers, collate_fn=collate))
        limits = {
            kind: iter(DataLoader(DecodeAlone(kept, batch), None, num_workers=num_workers))
            for kind, kept in (
                ("decode", frames),
                ("decode in full", [(d, 1.0) for d, _ in frames]),
            )
        }
        work: dict[str, Callable[[], Any]] = {"loader": partial(_take, loader, num_batches)}
        work |= {kind: partial(_take, limit, num_batches) for kind, limit in limits.items()}
        timings = measure(work, rounds)
        del loader, limits, work
        stages = _stages(raw, frames, transform, frame_pairs(source, repeat=True), collate)
    pairs = {kind: num_batches * batch / timing.median for kind, timing in timings.items()}
    return Measurement(
        "data loader",
        f"{num_workers} workers, batches of {batch} pairs, crops of {crop}x{crop} from {name}",
        timings,
        notes={
            "pairs_per_second": pairs,
            "share_of_limit": pairs["loader"] / pairs["decode"],
            "share_of_full_decoding": pairs["loader"] / pairs["decode in full"],
            "milliseconds_per_pair": stages,
            "cores": os.cpu_count() or 1,
        },
    )


def _take(batches: Iterator[Any], count: int) -> None:
    for _ in range(count):
        next(batches)


def _wanted(raw: list[dict[str, Any]], transform: Any) -> list[Encoded]:
    """The frames of the pairs with the scale that their crops ask for."""
    frames = []
    for item in raw:
        width, height = Image.open(io.BytesIO(item["frame_1"])).size
        scale = transform.augmentation.draw_geometry(height, width, item["seed"]).scale
        frames += [(item["frame_1"], scale), (item["frame_2"], scale)]
    return frames


def _stages(
    raw: list[dict[str, Any]], frames: list[Encoded], transform: Any, stream: Any, collate: Any
) -> dict[str, float]:
    """Milliseconds of processor time per pair by stage, one after the other in this process."""
    from amd_hf.data.counting import SkippedPairError

    def seconds(function: Callable[[], Any]) -> float:
        begin = time.process_time()
        function()
        return 1e3 * (time.process_time() - begin) / len(raw)

    def crops(reject_shot_cuts: bool) -> list[dict[str, Any]]:
        items = []
        for item in raw:
            try:
                pixels = transform(
                    item["frame_1"],
                    item["frame_2"],
                    item["seed"],
                    reject_shot_cuts=reject_shot_cuts,
                )
            except SkippedPairError:
                continue
            items.append(item | {"pixel_values": pixels})
        return items

    batches = iter(stream)
    next(batches)
    items = crops(False)
    reading = seconds(lambda: _take(batches, len(raw)))
    decoding = seconds(lambda: [decode(*frame) for frame in frames])
    unscreened, screened = seconds(lambda: crops(False)), seconds(lambda: crops(True))
    return {
        "reading and order": reading,
        "decoding by Pillow": decoding,
        "decoding, resizing and crops": unscreened,
        "screening for cuts": max(screened - unscreened, 0.0),
        "collation": seconds(lambda: collate(items)),
    }
