"""The options of a pre-training run, as a dataclass and as command-line flags.

Flags follow the `no_trainer` examples of transformers. `--recipe` changes the defaults; every flag
that is given wins over the recipe.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from amd_hf.training.options import (
    check_finite,
    check_schedule,
    option,
    parse_sides,
    parser_for,
)
from amd_hf.training.recipes import RECIPES, recipe_options

CONFIG_NAMES = ("official", "small", "tiny")
OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("poly", "cosine", "constant")
PRECISIONS = ("no", "bf16", "fp16")
LATEST = "latest"
LEAST_VALUES = {
    1: (
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "pairs_per_clip",
        "max_train_steps",
        "logging_steps",
        "collapse_patience",
        "max_nonfinite_steps",
    ),
    0: (
        "num_validation_batches",
        "dataloader_num_workers",
        "min_difference",
        "min_learning_rate",
        "motion_lr_scale",
        "weight_decay",
        "max_grad_norm",
        "num_warmup_steps",
        "motion_warmup_steps",
        "seed",
        "checkpointing_steps",
        "validation_steps",
        "num_object_segment_pairs",
        "speed_report_seconds",
    ),
}
POSITIVE = ("learning_rate", "num_train_epochs", "max_train_minutes", "checkpoints_total_limit")


@dataclass(kw_only=True)
class PretrainingArguments:
    """Options of a pre-training run; defaults are those of the published recipe.

    Raises:
        ValueError: If a value is out of range or two options exclude each other.
    """

    dataset: str = option(
        "",
        "folder (YouTube-VOS layout, tar shards, video files), zip, Hub data set id, or generated",
    )
    output_dir: str = option("", "folder of the weights, the step_N checkpoints and the logs")
    recipe: str = option("published", f"defaults to start from: {', '.join(sorted(RECIPES))}")

    config_name: str = option("official", "official, small, tiny, or a folder with a config.json")
    config_overrides: str = option("", "changes to the configuration: name=value,name=value")
    model_name_or_path: str | None = option(None, "start from these weights, not from scratch")

    validation_dataset: str | None = option(None, "source of the held-out clips")
    num_validation_batches: int = option(8, "batches of held-out pairs per validation")
    augmentation: str = option("published", "augmentation preset of the training pairs")
    crop_size: str = option("384", "side of the square crops in pixels, or HEIGHTxWIDTH")
    flip: float | None = option(None, "probability of a horizontal flip, if not the preset's")
    frame_gap: str = option("1", "frames between the two of a pair: N or MIN-MAX")
    target_dt: str | None = option(None, "seconds between the two frames instead: S or MIN-MAX")
    pairs_per_clip: int = option(1, "pairs drawn from a clip in one pass")
    dataset_weights: str = option("", "how often videos are drawn: name-prefix=factor,...")
    min_difference: float = option(0.0, "leave out pairs that differ by fewer gray levels")
    shuffle: bool = option(True, "permute shards and clips anew in every epoch")
    per_device_train_batch_size: int = option(2, "pairs per process and forward pass")
    per_device_eval_batch_size: int = option(2, "pairs per forward pass of the validation")
    dataloader_num_workers: int = option(2, "processes that decode, per training process")

    optimizer: str = option("adam", "adam (weight decay as L2, as published) or adamw")
    learning_rate: float = option(1e-4, "highest learning rate")
    min_learning_rate: float = option(1e-6, "learning rate at the end of the schedule")
    weight_decay: float = option(1e-6, "weight decay of all parameters")
    adam_beta1: float = option(0.9, "decay of Adam's first moment")
    adam_beta2: float = option(0.999, "decay of Adam's second moment")
    adam_epsilon: float = option(1e-8, "epsilon of Adam")
    motion_lr_scale: float = option(1.0, "learning rate of the motion pathway, relative")
    max_grad_norm: float = option(0.0, "clip the gradient norm at this value; 0 = never")
    gradient_accumulation_steps: int = option(1, "forward passes per optimizer step")
    lr_scheduler_type: str = option("poly", f"one of {', '.join(SCHEDULES)}")
    poly_power: float = option(0.9, "power of the poly schedule")
    num_warmup_steps: int = option(0, "steps of linear learning-rate warm-up")
    max_train_steps: int = option(100_000, "optimizer steps of the whole run")
    num_train_epochs: float | None = option(
        None, "passes over the data; with it, max_train_steps follows from the size of the data"
    )
    max_train_minutes: float | None = option(None, "stop this process after so many minutes")
    ema_decay: float = option(0.0, "decay of the moving average of the weights; 0 = none")

    stages: str = option("segment_flow", "objectives in turn: name:steps,name:steps,name")
    motion_warmup_steps: int = option(0, "first train the motion pathway alone for N steps")

    seed: int = option(42, "seed of the weights, the order of the data and the augmentation")
    mixed_precision: str | None = option(None, "no, bf16 or fp16; default: accelerate's setting")
    channels_last: bool = option(False, "channels-last memory format (faster on GPUs)")
    checkpointing_steps: int = option(
        1000, "save the full state every N steps; 0 = only at the end"
    )
    checkpoints_total_limit: int | None = option(3, "keep the newest N checkpoints")
    resume_from_checkpoint: str | None = option(None, "`latest`, or a step_N folder")
    restart_data_stream: bool = option(
        False, "on resume start a fresh order of the data (needed after a change of world size)"
    )
    record_samples: bool = option(False, "write the keys of all samples to samples_rank_R.txt")
    logging_steps: int = option(50, "log every N steps")
    validation_steps: int = option(1000, "validate and draw pictures every N steps; 0 = never")
    with_tracking: bool = option(False, "send values and pictures to the trackers")
    report_to: str = option("tensorboard", "trackers: tensorboard, trackio, all, ...")

    collapse_patience: int = option(1000, "steps in a collapsed state before a warning")
    stop_on_collapse: bool = option(False, "end the run when it has collapsed")
    max_nonfinite_steps: int = option(100, "give up after so many non-finite steps in a row")
    num_object_segment_pairs: int = option(
        256, "pairs from which the object segment is chosen after training; 0 = do not choose"
    )
    speed_report_seconds: float = option(5.0, "time for each of the two limits at the end; 0 = off")

    push_to_hub: bool = option(False, "upload the result to the Hub")
    hub_model_id: str | None = option(None, "repository on the Hub; default: name of output_dir")
    hub_token: str | None = option(None, "token for the Hub; default: the stored one")
    hub_private_repo: bool = option(False, "create the repository as a private one")
    model_card_template: str = option("model_card.md", "template of the model card")
    dataset_terms: str = option("see the source", "terms of use of the videos, for the card")
    weights_license: str = option("unknown", "license id of the weights, for the card")

    def __post_init__(self) -> None:
        check_finite(self)
        self._check_choices()
        self._check_ranges()
        self._check_combinations()

    def _check_choices(self) -> None:
        choices = {
            "recipe": tuple(sorted(RECIPES)),
            "optimizer": OPTIMIZERS,
            "lr_scheduler_type": SCHEDULES,
            "mixed_precision": (*PRECISIONS, None),
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                names = ", ".join(choice for choice in allowed if choice)
                raise ValueError(f"`{name}` must be one of {names}, got {value!r}.")

    def _check_ranges(self) -> None:
        for name in ("dataset", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` is required; pass --{name}.")
        for least, names in LEAST_VALUES.items():
            for name in names:
                if getattr(self, name) < least:
                    raise ValueError(
                        f"`{name}` must be at least {least}, got {getattr(self, name)}."
                    )
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"`{name}` must be positive and finite, got {value}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"`ema_decay` must be in [0, 1), got {self.ema_decay}.")
        self.frame_gap_range()
        self.target_dt_range()
        self.crop_height_width()
        self.source_weights()

    def _check_combinations(self) -> None:
        if self.target_dt is not None and self.frame_gap_range() != (1, 1):
            raise ValueError(
                "`target_dt` and `frame_gap` exclude each other; give the distance of the two "
                "frames either in seconds or in frames."
            )
        check_schedule(self)
        check_start(self)
        if self.model_name_or_path and self.config_overrides:
            raise ValueError(
                "`config_overrides` and `model_name_or_path` exclude each other; the weights come "
                "with their own configuration."
            )
        if self.push_to_hub and not os.path.isfile(self.model_card_template):
            raise ValueError(
                "`push_to_hub` needs `model_card_template`, got "
                f"{self.model_card_template!r}, which is no file; pass the one of the repository."
            )

    def frame_gap_range(self) -> tuple[int, int]:
        """The smallest and the largest distance of the two frames of a pair, in frames.

        Raises:
            ValueError: If `frame_gap` is neither `N` nor `MIN-MAX` with 1 <= MIN <= MAX.
        """
        parts = self.frame_gap.split("-")
        if len(parts) <= 2 and all(part.strip().isdecimal() for part in parts):
            least, most = int(parts[0]), int(parts[-1])
            if 1 <= least <= most:
                return least, most
        raise ValueError(
            f"`frame_gap` must be N or MIN-MAX with 1 <= MIN <= MAX, got {self.frame_gap!r}."
        )

    def target_dt_range(self) -> tuple[float, float] | None:
        """The shortest and the longest time between the two frames in seconds, if it is given.

        Raises:
            ValueError: If `target_dt` is neither `S` nor `MIN-MAX` with 0 < MIN <= MAX.
        """
        if self.target_dt is None:
            return None
        try:
            seconds = [float(part) for part in self.target_dt.split("-")]
        except ValueError:
            seconds = []
        if len(seconds) in (1, 2) and 0 < seconds[0] <= seconds[-1] < math.inf:
            return seconds[0], seconds[-1]
        raise ValueError(
            f"`target_dt` must be S or MIN-MAX with 0 < MIN <= MAX, got {self.target_dt!r}."
        )

    def crop_height_width(self) -> tuple[int, int]:
        """Height and width of the crops in pixels.

        Raises:
            ValueError: If `crop_size` is neither `N` nor `HEIGHTxWIDTH` of at least 32.
        """
        return parse_sides("crop_size", self.crop_size)

    def source_weights(self) -> dict[str, float]:
        """Factor by the beginning of a video's name.

        Raises:
            ValueError: If `dataset_weights` is not `name=factor,name=factor`.
        """
        weights = {}
        for entry in filter(None, self.dataset_weights.split(",")):
            name, _, factor = entry.partition("=")
            try:
                weights[name.strip()] = float(factor)
            except ValueError:
                raise ValueError(
                    f"`dataset_weights` must be name=factor,name=factor, got {entry!r}."
                ) from None
            if not 0 <= weights[name.strip()] < math.inf:
                raise ValueError(
                    f"`dataset_weights` must not be negative or infinite, got {entry!r}."
                )
        return weights

    def to_dict(self) -> dict[str, Any]:
        """All options by name, without the token of the Hub."""
        options = asdict(self)
        options.pop("hub_token")
        return options

    @classmethod
    def from_recipe(cls, recipe: str, **options: Any) -> PretrainingArguments:
        """Arguments with the defaults of a recipe.

        Args:
            recipe: Name of the recipe.
            **options: Fields that win over the recipe.

        Raises:
            ValueError: If there is no such recipe, or a value is wrong.
        """
        return cls(**{**recipe_options(recipe), "recipe": recipe, **options})


def check_start(args: Any) -> None:
    """Checks where a run starts from.

    Args:
        args: Has `config_name`, `resume_from_checkpoint` and `restart_data_stream`.

    Raises:
        ValueError: If a folder is missing, or the options contradict each other.
    """
    if args.config_name not in CONFIG_NAMES and not os.path.isdir(args.config_name):
        raise ValueError(
            f"`config_name` must be one of {', '.join(CONFIG_NAMES)} or a folder with a "
            f"config.json, got {args.config_name!r}, which is neither."
        )
    if args.restart_data_stream and not args.resume_from_checkpoint:
        raise ValueError(
            "`restart_data_stream` needs `resume_from_checkpoint`; a fresh run has no stream "
            "to restart."
        )
    resumed = args.resume_from_checkpoint
    if resumed not in (None, LATEST) and not os.path.isdir(str(resumed)):
        raise ValueError(
            f"`resume_from_checkpoint` must be `latest` or an existing step_N folder, got "
            f"{resumed!r}."
        )


def build_parser() -> argparse.ArgumentParser:
    """The parser of `scripts/pretrain.py`: one flag per field of `PretrainingArguments`."""
    return parser_for(PretrainingArguments, "Pre-train AMD from unlabelled video.")


def parse_arguments(argv: Sequence[str] | None = None) -> PretrainingArguments:
    """Arguments from the command line.

    Args:
        argv: The words of the command line; None takes those of the process.

    Returns:
        The checked arguments.

    Raises:
        SystemExit: With status 2 and one sentence on stderr, if a flag or a value is wrong.
    """
    parser = build_parser()
    chosen = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chosen.add_argument("--recipe", default="published")
    chosen.add_argument("--max_train_steps")
    chosen.add_argument("--num_train_epochs")
    given = chosen.parse_known_args(argv)[0]
    recipe = given.recipe
    try:
        parser.set_defaults(**recipe_options(recipe))
        if given.max_train_steps is not None and given.num_train_epochs is not None:
            raise ValueError(
                "`num_train_epochs` and `max_train_steps` exclude each other; give one of them."
            )
        return PretrainingArguments(**vars(parser.parse_args(argv)))
    except ValueError as error:
        parser.error(str(error))
