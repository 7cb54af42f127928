"""MoCo-v2 pre-training on the engine of AMD's own: options, optimizer, loop."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from amd_hf.data.augmentation import AUGMENTATION_PRESETS
from amd_hf.image_processing_amd import AMDImageProcessor
from amd_hf.training.finetuning_engine import (
    EngineArguments,
    check_schedule,
    parse_into,
    parse_sides,
)
from amd_hf.training.finetuning_loop import EngineRun
from amd_hf.training.finetuning_results import save_final, write_results
from amd_hf.training.interrupts import stop_requests
from amd_hf.training.moco import MomentumContrast
from amd_hf.training.moco_data import TwoViewBatches
from amd_hf.training.options import option
from amd_hf.training.setup import build_config

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class MocoArguments(EngineArguments):
    """Options of a MoCo-v2 run; defaults are those of MoCo v2.

    Raises:
        ValueError: If a value is out of range.

    Source: MoCo v2 (SGD 0.03 for 256 images, momentum 0.9, weight decay 1e-4, cosine); crops and
        the two strengths of augmentation as in AMD's pre-training, so that the comparison differs
        in the objective only.
    """

    dataset: str = option("", "as in pretrain.py: folder, tar shards, videos, Hub id, generated")
    augmentation: str = option("heavy", f"one of {', '.join(AUGMENTATION_PRESETS)}")
    crop_size: str = option("384", "side of the square crops in pixels, or HEIGHTxWIDTH")
    per_device_train_batch_size: int = option(32, "images (two views each) per process and step")

    dimension: int = option(128, "length of the compared vectors")
    queue_size: int = option(65_536, "number of keys that are remembered")
    key_momentum: float = option(0.999, "share of the key network that a step keeps")
    temperature: float = option(0.2, "temperature of the contrastive loss")
    num_key_groups: int = option(4, "groups of keys with batch statistics of their own")

    learning_rate: float = option(0.03, "highest learning rate; scale it with the batch / 256")
    min_learning_rate: float = option(0.0, "learning rate at the end of the schedule")
    momentum: float = option(0.9, "momentum of SGD")
    weight_decay: float = option(1e-4, "weight decay of all parameters")
    lr_scheduler_type: str = option("cosine", "poly, cosine or constant")
    poly_power: float = option(0.9, "power of the poly schedule")
    max_train_steps: int = option(100_000, "optimizer steps of the whole run")

    validation_steps: ClassVar[int] = 0
    REQUIRED: ClassVar[tuple[str, ...]] = ("dataset", "output_dir")
    AT_LEAST_ONE: ClassVar[tuple[str, ...]] = (
        *EngineArguments.AT_LEAST_ONE,
        "per_device_train_batch_size",
        "max_train_steps",
        "dimension",
        "queue_size",
        "num_key_groups",
    )
    AT_LEAST_ZERO: ClassVar[tuple[str, ...]] = (
        *EngineArguments.AT_LEAST_ZERO,
        "min_learning_rate",
        "momentum",
        "key_momentum",
    )
    POSITIVE: ClassVar[tuple[str, ...]] = (
        *EngineArguments.POSITIVE,
        "learning_rate",
        "temperature",
    )
    CHOICES: ClassVar[dict[str, tuple[str | None, ...]]] = {
        **EngineArguments.CHOICES,
        "augmentation": tuple(AUGMENTATION_PRESETS),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_schedule(self)
        parse_sides("crop_size", self.crop_size)
        if self.key_momentum >= 1:
            raise ValueError(f"`key_momentum` must be below 1, got {self.key_momentum}.")
        if self.per_device_train_batch_size > self.queue_size:
            raise ValueError(
                f"`queue_size` must be at least the batch, got {self.queue_size} and "
                f"{self.per_device_train_batch_size}."
            )

    def crop_height_width(self) -> tuple[int, int]:
        """Height and width of the crops in pixels."""
        return parse_sides("crop_size", self.crop_size)


def parse_moco_arguments(argv: Sequence[str] | None = None) -> MocoArguments:
    """Arguments from the command line.

    Raises:
        SystemExit: With status 2 and one sentence on stderr, if a flag or a value is wrong.
    """
    return parse_into(MocoArguments, "Pre-train the backbone with MoCo v2 on video frames.", argv)


def pretrain_moco(args: MocoArguments) -> dict[str, Any]:
    """Runs MoCo-v2 pre-training from the first or the next step to the end.

    Args:
        args: The options of the run.

    Returns:
        The results that are also in `OUTPUT_DIR/all_results.json`. `OUTPUT_DIR` itself holds the
        backbone, a start for fine-tuning. A run that was asked to stop by a signal returns after
        its checkpoint.

    Raises:
        ImportError: If the `train` extra is not installed.
        ValueError: If the options or the data cannot be used, or a checkpoint is of another run.
        RuntimeError: If too many steps in a row were non-finite, or the result cannot be written.
    """
    with stop_requests() as stop_request:
        return MocoRun(args, stop_request).run()


class MocoRun(EngineRun):
    """The objects of one MoCo run in one process.

    Args:
        args: The options of the run.
        stop_request: Tells whether the process was asked to stop.
    """

    subject = "images"

    def open_data(self) -> None:
        """Opens the source once, before the folder of the run is touched."""
        self.config = build_config(self.args)
        self.new_stream().close()

    def new_model(self) -> MomentumContrast:
        """The two networks and the queue."""
        args = self.args
        return MomentumContrast(
            self.config,
            dimension=args.dimension,
            queue_size=args.queue_size,
            momentum=args.key_momentum,
            temperature=args.temperature,
            num_key_groups=args.num_key_groups,
        )

    def new_optimizer(self, network: Any) -> torch.optim.Optimizer:
        """SGD on the query network; the key network only follows."""
        return torch.optim.SGD(
            [parameter for parameter in network.parameters() if parameter.requires_grad],
            lr=self.args.learning_rate,
            momentum=self.args.momentum,
            weight_decay=self.args.weight_decay,
        )

    def new_stream(self) -> TwoViewBatches:
        """The data of this process from the beginning."""
        accelerator = self.accelerator
        return TwoViewBatches(
            self.args,
            self.config,
            accelerator.process_index,
            accelerator.num_processes,
            accelerator.device,
        )

    def objective(
        self, model: nn.Module, batch: Mapping[str, Any], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The contrastive loss of a batch."""
        loss, accuracy = model(batch["pixel_values"])
        return loss, {"contrast_accuracy": accuracy}

    def finish(self, results: dict[str, Any]) -> dict[str, Any]:
        """Writes the backbone, a start for fine-tuning, and the results."""
        if self.accelerator.is_main_process:
            output_dir = Path(self.args.output_dir)
            processor = AMDImageProcessor.from_model_config(self.config)
            save_final(self.unwrapped_model, processor, output_dir)
            write_results(output_dir, results)
            logger.info("Wrote the backbone to %s.", output_dir)
        self.accelerator.wait_for_everyone()
        return results
