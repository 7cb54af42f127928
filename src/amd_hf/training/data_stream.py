"""The endless batches of a training process, with an exact position, and fixed batches to look at.

The order of the pairs, their crops and their colors follow from seeds alone (see
`amd_hf.data.frame_pairs`), so the position of the stream is all that a checkpoint needs.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader

from amd_hf.configuration_amd import AMDConfig
from amd_hf.data.decoding import PairCollator, PairTransform
from amd_hf.data.frame_pairs import frame_pairs, open_source, skip_counter
from amd_hf.data.object_masks import ObjectMasks
from amd_hf.data.sampling import PairSampler
from amd_hf.data.sources import ClipSource
from amd_hf.training.arguments import PretrainingArguments

logger = logging.getLogger(__name__)

# The objective that needs masks beside the frames.
MASK_STAGE = "pseudo_mask"
# Where a position says which order of the pairs it is in, unless it is the first.
EPOCH = "epoch_of_the_stream"


def source_of(text: str) -> str | list[str]:
    """The source that an option names: a path or Hub id, or several separated by commas."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return text if os.path.exists(text) or len(parts) < 2 else parts


def build_transform(
    args: PretrainingArguments, config: AMDConfig, is_training: bool
) -> PairTransform:
    """Decoding, crops and colors of training pairs, or plain center crops of held-out ones."""
    return PairTransform(
        args.augmentation if is_training else "none",
        args.crop_height_width(),
        flip=args.flip if is_training else None,
        image_mean=config.image_mean,
        image_std=config.image_std,
    )


def with_known_steps(args: PretrainingArguments, num_processes: int) -> PretrainingArguments:
    """The options with the number of steps that `num_train_epochs` asks for, rounded up.

    Pairs that are left out while reading (damaged, still, across a cut) count as seen.

    Args:
        args: The options of the run; without `num_train_epochs` they come back as they are.
        num_processes: Number of processes, which share the pairs.

    Raises:
        ValueError: If the source is streamed, so that its length is unknown, empty or missing, or
            the steps do not fit another option.
    """
    if args.num_train_epochs is None:
        return args
    source = open_source(source_of(args.dataset))
    if not isinstance(source, ClipSource):
        raise ValueError(
            f"`num_train_epochs` needs a data set of known length; {args.dataset!r} is streamed "
            "from the Hub: pass --max_train_steps instead."
        )
    sampler = PairSampler(pairs_per_clip=args.pairs_per_clip, weights=args.source_weights())
    expected = sampler.expected_visits(source)
    num_pairs = len(source) * args.pairs_per_clip if expected is None else float(expected.sum())
    pairs_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
    # A rounding error must not add a step.
    num_steps = math.ceil(
        args.num_train_epochs * num_pairs / (pairs_per_step * num_processes) - 1e-9
    )
    logger.info("%g epochs of %g pairs are %d steps.", args.num_train_epochs, num_pairs, num_steps)
    return replace(args, max_train_steps=max(num_steps, 1))


def build_dataset(
    args: PretrainingArguments,
    source: str,
    transform: PairTransform,
    *,
    is_training: bool,
    seed: int,
) -> Any:
    """The stream of pairs of a source: endless for training, one pass otherwise.

    Raises:
        ValueError: If the source is empty or missing.
    """
    return frame_pairs(
        source_of(source),
        transform=transform,
        frame_gap=args.frame_gap_range(),
        target_dt=args.target_dt_range(),
        pairs_per_clip=args.pairs_per_clip if is_training else 1,
        weights=args.source_weights() if is_training else None,
        min_difference=args.min_difference,
        shuffle=args.shuffle or not is_training,
        repeat=is_training,
        seed=seed,
    )


class EndlessBatches:
    """Batches of this process for ever, and the exact position in them.

    Args:
        args: The options of the run: `PretrainingArguments`, or those of a subclass.
        config: The configuration of the model.
        rank: Index of this process.
        num_processes: Number of processes, which read disjoint pairs.
        device: Batches arrive here, normalized.

    Raises:
        ValueError: If the source is empty or missing, or has fewer shards than processes.
    """

    def __init__(
        self,
        args: Any,
        config: AMDConfig,
        rank: int = 0,
        num_processes: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        from datasets.distributed import split_dataset_by_node
        from torchdata.stateful_dataloader import StatefulDataLoader

        self.device = torch.device(device)
        self.transform = self.new_transform(args, config)
        dataset = self.new_dataset(args)
        self._counter = skip_counter(dataset)
        self.masks = ObjectMasks(args.dataset) if MASK_STAGE in args.stages else None
        if num_processes > 1:
            if dataset.num_shards < num_processes:
                raise ValueError(
                    f"`dataset` has {dataset.num_shards} shard(s) for {num_processes} processes; "
                    "pack it into at least one shard per process, or start fewer processes."
                )
            dataset = split_dataset_by_node(dataset, rank, num_processes, strategy="shards")
        self.dataset = dataset
        with warnings.catch_warnings():
            # torchdata marks its loader with a call that PyTorch has deprecated.
            warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
            self.loader: Any = StatefulDataLoader(
                dataset,
                batch_size=args.per_device_train_batch_size,
                num_workers=min(args.dataloader_num_workers, dataset.num_shards),
                # Colors and normalization follow on the device: a quarter of the bytes to move.
                collate_fn=PairCollator(self.transform, normalize=False),
                pin_memory=self.device.type == "cuda",
                # A generator of its own: starting workers must not advance that of the run.
                generator=torch.Generator().manual_seed(args.seed),
            )
        self._iterator: Iterator[dict[str, Any]] | None = None
        self._last_position: dict[str, Any] | None = None
        self._epoch = 0

    def new_transform(self, args: Any, config: AMDConfig) -> PairTransform:
        """What turns a pair of encoded frames into a sample; subclasses bring another one."""
        return build_transform(args, config, is_training=True)

    def new_dataset(self, args: Any) -> Any:
        """The endless stream of samples of `transform`; subclasses draw in another way."""
        return build_dataset(args, args.dataset, self.transform, is_training=True, seed=args.seed)

    def __iter__(self) -> EndlessBatches:
        return self

    def __next__(self) -> dict[str, Any]:
        """The next batch; where reading it fails, `state_dict` gives the position before it."""
        if self._iterator is None:
            self._iterator = iter(self.loader)
        if not self.loader.num_workers:
            # Read in this process, half a batch would have moved the position already.
            self._last_position = self.loader.state_dict()
        batch = next(self._iterator)
        self._last_position = None
        pixels = batch["pixel_values"].to(self.device, non_blocking=True)
        batch = {**batch, "pixel_values": self.transform.finish(pixels, batch["seed"])}
        if self.masks is None:
            return batch
        seeds = batch["seed"].tolist()
        crops = self.masks.crops(batch["key"], seeds, self.transform.augmentation)
        return batch | {name: values.to(self.device) for name, values in crops.items()}

    def skipped(self) -> dict[str, int]:
        """Clips and pairs that this process had to leave out, by reason."""
        return {name: count for name, count in self._counter.as_dict().items() if count}

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was handed out."""
        position: dict[str, Any] = {}
        if self._last_position is not None:
            position = self._last_position
        elif self._iterator is not None:
            position = self.loader.state_dict()
        return {**position, EPOCH: self._epoch} if self._epoch else position

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a position that `state_dict` gave; call it before the first batch."""
        position = dict(state)
        # `datasets` begins anew, without a word, where the position is of another epoch.
        self.restart(position.pop(EPOCH, 0))
        if position:
            self.loader.load_state_dict(position)

    def restart(self, epoch: int) -> None:
        """Starts another order of the pairs; call it before the first batch."""
        self._epoch = epoch
        self.dataset.set_epoch(epoch)

    def close(self) -> None:
        """Ends the worker processes; the stream cannot be used any more."""
        self._iterator = None
        self.loader._iterator = None


def fixed_batches(
    args: PretrainingArguments, config: AMDConfig, source: str, num_batches: int
) -> Iterator[dict[str, Any]]:
    """The first batches of a source in an order that is the same in every run.

    Args:
        args: The options of the run.
        config: The configuration of the model.
        source: What to read; one pair per clip, center crops.
        num_batches: Number of batches at most; a short source gives fewer.

    Yields:
        Batches with normalized `pixel_values` on the CPU.

    Raises:
        ValueError: If the source is empty or missing.
    """
    transform = build_transform(args, config, is_training=False)
    dataset = build_dataset(args, source, transform, is_training=False, seed=0)
    loader = DataLoader(
        dataset,
        batch_size=args.per_device_eval_batch_size,
        collate_fn=PairCollator(transform),
        generator=torch.Generator(),
    )
    for index, batch in enumerate(loader):
        if index == num_batches:
            return
        yield batch
