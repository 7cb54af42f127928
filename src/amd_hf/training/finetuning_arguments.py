"""The options of a fine-tuning run for semantic segmentation.

The defaults are the published schedule: 40,000 steps of 16 crops of 512x512, SGD with learning rate
0.01, momentum 0.9 and weight decay 5e-4, poly 0.9 down to 1e-4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from amd_hf.training.finetuning_engine import EngineArguments, parse_into
from amd_hf.training.options import check_schedule, option, parse_sides

MODES = ("full", "frozen", "head")
OPTIMIZERS = ("sgd", "adamw")


@dataclass(kw_only=True)
class FinetuningArguments(EngineArguments):
    """Options of a fine-tuning run; defaults are those of the published schedule.

    Raises:
        ValueError: If a value is out of range or two options exclude each other.

    Source: AMD paper (40K iterations, batch 16, learning rate 0.01, poly 0.9, FCN head); what it
        leaves open follows the standard FCN schedule of MMSegmentation for VOC 2012.
    """

    dataset_name: str = option(
        "", "folder (VOC 2012 layout, or images/ and masks/), or a Hub data set id"
    )
    dataset_config_name: str | None = option(None, "configuration of the Hub data set")
    train_split: str | None = option(None, "default: train_aug where there is one, else train")
    validation_split: str | None = option(None, "default: val, else test, else held out of train")
    validation_fraction: float = option(
        0.1, "share of the training images that is held out where there is no other split"
    )
    image_column: str | None = option(None, "column of the images in a Hub data set")
    mask_column: str | None = option(None, "column of the masks in a Hub data set")
    image_folder: str | None = option(None, "folder of the images below the data set's")
    mask_folder: str | None = option(None, "folder of the masks below the data set's")
    mask_suffix: str = option("", "what the names of the masks have in addition, e.g. _mask")
    class_names: str | None = option(None, "name,name,... or a file with one per line or JSON")
    ignore_index: int = option(255, "id of unlabelled pixels in the masks; -1 = there are none")
    do_reduce_labels: bool = option(False, "id 0 is `other`: ignore it and move all ids down")

    model_name_or_path: str | None = option(
        None, "start: an AMD, MoCo or ResNet checkpoint; default: random weights of config_name"
    )
    mode: str = option("full", "full; frozen: not the backbone; head: the classifier only")
    reset_head: bool = option(False, "take only the backbone of the start, not its dilated head")
    ignore_mismatched_sizes: bool = option(
        False, "replace a classifier of other classes by a new one"
    )

    crop_size: str = option("512", "side of the square crops in pixels, or HEIGHTxWIDTH")
    short_side: int = option(512, "short side at scale 1, in training and evaluation")
    min_scale: float = option(0.5, "smallest scale of a training image")
    max_scale: float = option(2.0, "largest scale of a training image")
    max_class_share: float = option(0.75, "redraw crops in which one class covers more")
    flip: float = option(0.5, "probability of a horizontal flip")
    color_jitter: float = option(1.0, "strength of the color changes; 0 = none")
    per_device_train_batch_size: int = option(16, "crops per process and forward pass")

    optimizer: str = option("sgd", "sgd (with momentum) or adamw")
    learning_rate: float = option(0.01, "highest learning rate")
    min_learning_rate: float = option(1e-4, "learning rate at the end of the schedule")
    momentum: float = option(0.9, "momentum of SGD")
    head_lr_scale: float = option(1.0, "learning rate of head and classifier, relative")
    lr_scheduler_type: str = option("poly", "poly, cosine or constant")
    poly_power: float = option(0.9, "power of the poly schedule")
    max_train_steps: int = option(40_000, "optimizer steps of the whole run")
    validation_steps: int = option(4000, "evaluate every N steps; 0 = only at the end")
    max_eval_images: int | None = option(None, "evaluate on N evenly spread images only")
    num_pictures: int = option(4, "validation images that are drawn at every evaluation")

    push_to_hub: bool = option(False, "upload the result to the Hub")
    hub_model_id: str | None = option(None, "repository on the Hub; default: name of output_dir")
    hub_token: str | None = option(None, "token for the Hub; default: the stored one")
    hub_private_repo: bool = option(False, "create the repository as a private one")

    REQUIRED: ClassVar[tuple[str, ...]] = ("dataset_name", "output_dir")
    AT_LEAST_ONE: ClassVar[tuple[str, ...]] = (
        *EngineArguments.AT_LEAST_ONE,
        "per_device_train_batch_size",
        "max_train_steps",
        "max_eval_images",
    )
    AT_LEAST_ZERO: ClassVar[tuple[str, ...]] = (
        *EngineArguments.AT_LEAST_ZERO,
        "min_learning_rate",
        "momentum",
        "head_lr_scale",
        "color_jitter",
        "validation_steps",
        "num_pictures",
    )
    POSITIVE: ClassVar[tuple[str, ...]] = (*EngineArguments.POSITIVE, "learning_rate", "min_scale")
    CHOICES: ClassVar[dict[str, tuple[str | None, ...]]] = {
        **EngineArguments.CHOICES,
        "mode": MODES,
        "optimizer": OPTIMIZERS,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_schedule(self)
        parse_sides("crop_size", self.crop_size)
        if self.short_side < 32:
            raise ValueError(f"`short_side` must be at least 32 pixels, got {self.short_side}.")
        if self.min_scale > self.max_scale:
            raise ValueError(
                f"`min_scale` must not exceed `max_scale`, got {self.min_scale} and "
                f"{self.max_scale}."
            )
        for name in ("flip", "max_class_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must lie in [0, 1], got {getattr(self, name)}.")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"`validation_fraction` must lie between 0 and 1, got {self.validation_fraction}."
            )
        if self.model_name_or_path and self.config_overrides:
            raise ValueError(
                "`config_overrides` and `model_name_or_path` exclude each other; the weights come "
                "with their own configuration."
            )
        if self.ignore_index < -1:
            raise ValueError(f"`ignore_index` must be -1 or an id, got {self.ignore_index}.")

    def crop_height_width(self) -> tuple[int, int]:
        """Height and width of the crops in pixels."""
        return parse_sides("crop_size", self.crop_size)


def parse_finetuning_arguments(argv: Sequence[str] | None = None) -> FinetuningArguments:
    """Arguments from the command line.

    Args:
        argv: The words of the command line; None takes those of the process.

    Raises:
        SystemExit: With status 2 and one sentence on stderr, if a flag or a value is wrong.
    """
    return parse_into(
        FinetuningArguments, "Fine-tune the appearance pathway for semantic segmentation.", argv
    )
