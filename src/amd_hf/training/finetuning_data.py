"""Data of a fine-tuning run: checked splits, scaled and cropped training images, endless batches.

What a training sample looks like follows from the seed of the run and the number of the sample
alone, so the number of batches is all that a checkpoint needs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from amd_hf.data.annotations import shown
from amd_hf.data.augmentation import change_colors
from amd_hf.data.semantic_folders import available_splits, open_semantic_folder
from amd_hf.data.semantic_hub import open_semantic_hub
from amd_hf.data.semantic_images import (
    IGNORED,
    LabelledImages,
    MaskCoding,
    check_masks,
    infer_num_labels,
    parse_label_names,
    scan_masks,
)
from amd_hf.training.finetuning_arguments import FinetuningArguments

logger = logging.getLogger(__name__)

MAX_ASPECT = 4  # the long side is at most 4 short sides: the standard scale is 2048 x 512
CROP_TRIES = 10
HELD_OUT_SEED = 0  # the same images whatever the seed of the run, so that runs can be compared
# Largest changes of brightness, contrast, saturation (relative) and hue (share of the circle), each
# made with probability 1/2: the usual photometric distortion of supervised segmentation.
COLOR_CHANGES = (0.125, 0.5, 0.5, 0.1)


@dataclass(frozen=True)
class SemanticData:
    """The checked data of a run.

    Attributes:
        train: Training images.
        validation: Images for evaluation, none of them in `train`.
        labels: Names of the classes.
    """

    train: LabelledImages
    validation: LabelledImages
    labels: tuple[str, ...]


def open_semantic_data(
    args: FinetuningArguments, known_labels: Sequence[str] | None = None
) -> SemanticData:
    """Opens both splits and reads every mask once, before anything else happens.

    Args:
        args: The options of the run.
        known_labels: Classes that another process has found after checking; skips the check.

    Returns:
        The data.

    Raises:
        ImportError: If a Hub data set is named and `datasets` is not installed.
        ValueError: If a split is missing or empty, names or sizes do not match, or a mask holds an
            id outside of the classes.
    """
    train, validation = _open_splits(args)
    if known_labels is not None:
        return SemanticData(train, validation, tuple(known_labels))
    scans = {images.title: scan_masks(images) for images in (train, validation)}
    train_scan = scans[train.title]
    if args.class_names:
        labels = parse_label_names(args.class_names)
    elif train.labels is not None:
        labels = train.labels
    else:
        count = infer_num_labels(train_scan, train.title)
        labels = tuple(f"class_{index}" for index in range(count))
        logger.warning(
            "The classes have no names: %d were told from the masks; name them with --class_names.",
            count,
        )
    if not 2 <= len(labels) <= IGNORED:
        raise ValueError(f"`class_names` must be 2 to {IGNORED} names, got {len(labels)}.")
    for title, scan in scans.items():
        check_masks(scan, title, len(labels))
    unseen = [name for index, name in enumerate(labels) if index not in train_scan.pixels]
    if unseen:
        logger.warning("%s has no pixel of the classes %s.", train.title, shown(unseen))
    return SemanticData(train, validation, labels)


def _open_splits(args: FinetuningArguments) -> tuple[LabelledImages, LabelledImages]:
    coding = MaskCoding(
        args.ignore_index if args.ignore_index >= 0 else None, args.do_reduce_labels
    )
    is_folder = os.path.isdir(args.dataset_name)
    train, validation = (_folder_splits if is_folder else _hub_splits)(args, coding)
    if validation is not None:
        return train, validation
    if len(train) < 2:
        raise ValueError(
            f"{train.title} has {len(train)} image(s) and there is no other split; evaluation "
            "needs at least one image that is not trained on."
        )
    order = np.random.default_rng(HELD_OUT_SEED).permutation(len(train))
    num_held_out = min(max(round(args.validation_fraction * len(train)), 1), len(train) - 1)
    logger.warning(
        "There is no validation split: %d of %d training images are held out.",
        num_held_out,
        len(train),
    )
    held_out, kept = sorted(order[:num_held_out]), sorted(order[num_held_out:])
    return train.subset(kept, train.title), train.subset(held_out, f"{train.title} (held out)")


def _folder_splits(
    args: FinetuningArguments, coding: MaskCoding
) -> tuple[LabelledImages, LabelledImages | None]:
    folders = {"image_folder": args.image_folder, "mask_folder": args.mask_folder}
    splits = available_splits(args.dataset_name, **folders)
    options: dict[str, Any] = {**folders, "coding": coding, "mask_suffix": args.mask_suffix}
    train_split = args.train_split or ("train_aug" if "train_aug" in splits else "train")
    train = open_semantic_folder(args.dataset_name, train_split, **options)
    others = [name for name in ("val", "test") if name in splits]
    validation_split = args.validation_split or (others[0] if others else None)
    if validation_split is None:
        return train, None
    return train, open_semantic_folder(args.dataset_name, validation_split, **options)


def _hub_splits(
    args: FinetuningArguments, coding: MaskCoding
) -> tuple[LabelledImages, LabelledImages | None]:
    def open_split(name: str) -> LabelledImages | None:
        return open_semantic_hub(
            args.dataset_name,
            name,
            config_name=args.dataset_config_name,
            image_column=args.image_column,
            mask_column=args.mask_column,
            coding=coding,
            token=args.hub_token,
        )

    train = open_split(args.train_split or "train")
    validation = None
    for name in (args.validation_split,) if args.validation_split else ("val", "test"):
        validation = validation or open_split(name)
    if train is None or (args.validation_split and validation is None):
        wanted = args.validation_split if train is not None else args.train_split or "train"
        raise ValueError(f"The data set {args.dataset_name} has no split `{wanted}`.")
    return train, validation


class CropTransform:
    """Scales, crops and flips an image and its mask alike; the draw follows from a seed.

    Args:
        args: The options of the run.
        image_mean: Color of what lies outside of the image, on the 0..255 scale.
    """

    def __init__(self, args: FinetuningArguments, image_mean: Sequence[float]) -> None:
        self.args = args
        self.crop_size = args.crop_height_width()
        self.fill = tuple(round(value) for value in image_mean)

    def __call__(
        self, image: Image.Image, mask: NDArray[np.int64], seed: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Returns the crop, uint8 (3, h, w), and its class ids, uint8 (h, w), 255 = ignored."""
        generator = np.random.default_rng([*seed, 0])
        stored = Image.fromarray(mask.astype(np.uint8))
        scale = self._scale(image.height, image.width, generator)
        is_flipped = bool(generator.random() < self.args.flip)
        for _ in range(CROP_TRIES):
            box = self._box(image.height, image.width, scale, generator)
            labels = self._cut(stored, box, Image.Resampling.NEAREST, IGNORED)
            if self._is_varied(labels):
                break
        pixels = self._cut(image, box, Image.Resampling.BILINEAR, self.fill)
        if is_flipped:
            pixels, labels = pixels[:, ::-1], labels[:, ::-1]
        return (
            torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).contiguous(),
            torch.from_numpy(np.ascontiguousarray(labels)),
        )

    def _scale(self, height: int, width: int, generator: np.random.Generator) -> float:
        short = self.args.short_side * generator.uniform(self.args.min_scale, self.args.max_scale)
        return min(short / min(height, width), MAX_ASPECT * short / max(height, width))

    def _box(
        self, height: int, width: int, scale: float, generator: np.random.Generator
    ) -> tuple[float, float, float, float]:
        """Left, top, right and bottom in pixels of the image; may reach beyond it."""
        starts = []
        for side, crop in ((width, self.crop_size[1]), (height, self.crop_size[0])):
            spare = max(round(side * scale) - crop, 0)
            starts.append(int(generator.integers(0, spare + 1)) / scale)
        left, top = starts
        return (left, top, left + self.crop_size[1] / scale, top + self.crop_size[0] / scale)

    def _cut(
        self,
        picture: Image.Image,
        box: tuple[float, float, float, float],
        resample: Image.Resampling,
        fill: int | tuple[int, ...],
    ) -> NDArray[np.uint8]:
        # Sampled as the image processor does at evaluation: bilinear, without antialiasing.
        size = (self.crop_size[1], self.crop_size[0])
        cut = picture.transform(size, Image.Transform.EXTENT, box, resample, fillcolor=fill)
        return np.array(cut)

    def _is_varied(self, labels: NDArray[np.uint8]) -> bool:
        counts = np.bincount(labels.ravel(), minlength=IGNORED + 1)[:IGNORED]
        return bool((counts > 0).sum() > 1) and bool(
            counts.max() < self.args.max_class_share * counts.sum()
        )


def draw_color_changes(seeds: Tensor, strength: float) -> Tensor:
    """Color changes for `change_colors`, shape (B, 5), each made with probability 1/2.

    Args:
        seeds: Seeds of the samples, shape (B, S).
        strength: Factor of the largest changes.
    """
    changes = []
    for seed in seeds.tolist():
        generator = np.random.default_rng([*seed, 1])
        draws = generator.uniform(-1, 1, 4) * np.asarray(COLOR_CHANGES) * strength
        draws *= generator.random(4) < 0.5
        changes.append([*(1 + draws[:3]), draws[3], 0.0])
    return torch.tensor(changes, dtype=torch.float32)


class _Samples(Dataset[dict[str, Any]]):
    """Training samples by number: number n is image `order(epoch of n)[place of n]`."""

    def __init__(
        self, images: LabelledImages, transform: CropTransform, seed: Sequence[int]
    ) -> None:
        self.images = images
        self.transform = transform
        self.seed = list(seed)
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def __getitem__(self, number: int) -> dict[str, Any]:
        epoch, place = divmod(number, len(self.images))
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng([*self.seed, epoch]).permutation(len(self.images))
            self._order = (epoch, order)
        index = int(self._order[1][place])
        seed = [*self.seed, number]
        pixels, labels = self.transform(
            self.images.load_image(index), self.images.load_mask(index), seed
        )
        return {"pixels": pixels, "labels": labels, "key": self.images.key(index), "seed": seed}


def _collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "pixel_values": torch.stack([sample["pixels"] for sample in samples]),
        "labels": torch.stack([sample["labels"] for sample in samples]),
        "seed": torch.tensor([sample["seed"] for sample in samples]),
        "key": [sample["key"] for sample in samples],
    }


class SemanticBatches:
    """Batches of this process for ever, and the exact position in them.

    Args:
        args: The options of the run.
        images: Training images.
        image_mean: Mean of red, green and blue on the scale 0..255.
        image_std: Standard deviation of red, green and blue on the scale 0..255.
        rank: Index of this process.
        num_processes: Number of processes, which read disjoint samples.
        device: Batches arrive here, normalized.
    """

    def __init__(
        self,
        args: FinetuningArguments,
        images: LabelledImages,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        rank: int = 0,
        num_processes: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.args = args
        self.images = images
        self.transform = CropTransform(args, image_mean)
        self.mean, self.std = (
            torch.tensor(list(values), device=device).view(3, 1, 1)
            for values in (image_mean, image_std)
        )
        self.rank, self.num_processes = rank, num_processes
        self.device = torch.device(device)
        self._position, self._round = 0, 0
        self._iterator: Iterator[dict[str, Any]] | None = None

    def __iter__(self) -> SemanticBatches:
        return self

    def __next__(self) -> dict[str, Any]:
        """`pixel_values` (B, 3, h, w) normalized, `labels` (B, h, w) int64, and `key`."""
        if self._iterator is None:
            self._iterator = iter(self._loader())
        batch = next(self._iterator)
        self._position += 1
        pixels = batch["pixel_values"].to(self.device, non_blocking=True).float()
        if self.args.color_jitter > 0:
            changes = draw_color_changes(batch["seed"], self.args.color_jitter)
            pixels = change_colors(pixels.unsqueeze(1), changes).squeeze(1)
        labels = batch["labels"].to(self.device, non_blocking=True).long()
        return {
            "pixel_values": (pixels - self.mean) / self.std,
            "labels": labels,
            "key": batch["key"],
        }

    def _loader(self) -> DataLoader[dict[str, Any]]:
        num_workers = self.args.dataloader_num_workers
        return DataLoader(
            _Samples(self.images, self.transform, [self.args.seed, self._round]),
            batch_sampler=self._numbers(self._position),
            num_workers=num_workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            # A generator of its own: starting workers must not advance that of the run.
            generator=torch.Generator().manual_seed(self.args.seed),
        )

    def _numbers(self, position: int) -> Iterator[list[int]]:
        """The numbers of the samples of each batch of this process, for ever."""
        size = self.args.per_device_train_batch_size
        while True:
            first = (position * self.num_processes + self.rank) * size
            yield list(range(first, first + size))
            position += 1

    def skipped(self) -> dict[str, int]:
        """Nothing is ever left out: a file that cannot be read ends the run."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was handed out."""
        return {"position": self._position, "round": self._round}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a position that `state_dict` gave; call it before the first batch."""
        self._position, self._round = int(state["position"]), int(state["round"])

    def restart(self, epoch: int) -> None:
        """Starts another order of the samples; call it before the first batch."""
        self._position, self._round = 0, epoch

    def close(self) -> None:
        """Ends the worker processes."""
        self._iterator = None
