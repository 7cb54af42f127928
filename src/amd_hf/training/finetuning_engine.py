"""Options that every supervised or contrastive run shares, and their command-line parser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeVar

from amd_hf.training.arguments import PRECISIONS, SCHEDULES, check_start
from amd_hf.training.options import check_finite, option, parser_for

Arguments = TypeVar("Arguments", bound="EngineArguments")


@dataclass(kw_only=True)
class EngineArguments:
    """What the training engine reads; `PretrainingArguments` has the same names.

    Raises:
        ValueError: If a value is out of range.
    """

    output_dir: str = option("", "folder of the weights, the step_N checkpoints and the logs")

    config_name: str = option("official", "official, small, tiny, or a folder with a config.json")
    config_overrides: str = option("", "changes to the configuration: name=value,name=value")

    dataloader_num_workers: int = option(2, "processes that decode, per training process")
    weight_decay: float = option(5e-4, "weight decay of all parameters")
    max_grad_norm: float = option(0.0, "clip the gradient norm at this value; 0 = never")
    gradient_accumulation_steps: int = option(1, "forward passes per optimizer step")
    num_warmup_steps: int = option(0, "steps of linear learning-rate warm-up")
    max_train_minutes: float | None = option(None, "stop this process after so many minutes")

    seed: int = option(42, "seed of the new weights, the order of the data and the augmentation")
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
    with_tracking: bool = option(False, "send values and pictures to the trackers")
    report_to: str = option("tensorboard", "trackers: tensorboard, trackio, all, ...")
    max_nonfinite_steps: int = option(100, "give up after so many non-finite steps in a row")

    # Read by the engine, without meaning outside of pre-training.
    ema_decay: ClassVar[float] = 0.0
    stop_on_collapse: ClassVar[bool] = False
    validation_dataset: ClassVar[str | None] = None
    REQUIRED: ClassVar[tuple[str, ...]] = ("output_dir",)
    AT_LEAST_ONE: ClassVar[tuple[str, ...]] = (
        "gradient_accumulation_steps",
        "logging_steps",
        "max_nonfinite_steps",
    )
    AT_LEAST_ZERO: ClassVar[tuple[str, ...]] = (
        "dataloader_num_workers",
        "weight_decay",
        "max_grad_norm",
        "num_warmup_steps",
        "seed",
        "checkpointing_steps",
    )
    POSITIVE: ClassVar[tuple[str, ...]] = ("max_train_minutes", "checkpoints_total_limit")
    CHOICES: ClassVar[dict[str, tuple[str | None, ...]]] = {
        "lr_scheduler_type": SCHEDULES,
        "mixed_precision": (*PRECISIONS, None),
    }

    def __post_init__(self) -> None:
        check_finite(self)
        for name in self.REQUIRED:
            if not getattr(self, name):
                raise ValueError(f"`{name}` is required; pass --{name}.")
        for name, allowed in self.CHOICES.items():
            if getattr(self, name) not in allowed:
                names = ", ".join(choice for choice in allowed if choice)
                raise ValueError(f"`{name}` must be one of {names}, got {getattr(self, name)!r}.")
        for least, names_of_least in ((1, self.AT_LEAST_ONE), (0, self.AT_LEAST_ZERO)):
            for name in names_of_least:
                value = getattr(self, name)
                if value is not None and value < least:
                    raise ValueError(f"`{name}` must be at least {least}, got {value}.")
        for name in self.POSITIVE:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"`{name}` must be positive, got {value}.")
        check_start(self)

    def to_dict(self) -> dict[str, Any]:
        """All options by name, without the token of the Hub."""
        options = asdict(self)
        options.pop("hub_token", None)
        return options


def parse_into(
    kind: type[Arguments], description: str, argv: Sequence[str] | None = None
) -> Arguments:
    """Arguments of a class from the command line.

    Args:
        kind: The class of arguments.
        description: First line of the help.
        argv: The words of the command line; None takes those of the process.

    Raises:
        SystemExit: With status 2 and one sentence on stderr, if a flag or a value is wrong.
    """
    parser = parser_for(kind, description)
    try:
        return kind(**vars(parser.parse_args(argv)))
    except ValueError as error:
        parser.error(str(error))
