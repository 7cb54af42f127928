"""What the comparators of AMD share: options, optimizer, loop and result of a backbone alone.

A comparator is a self-supervised objective of the backbone on the same clips (MoCo v2, TimeCycle).
Its result is a start for fine-tuning.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from amd_hf.data.augmentation import AUGMENTATION_PRESETS
from amd_hf.image_processing_amd import AMDImageProcessor
from amd_hf.training.checkpointing import save_final
from amd_hf.training.comparator_data import ComparatorBatches
from amd_hf.training.finetuning_engine import EngineArguments
from amd_hf.training.finetuning_loop import EngineRun
from amd_hf.training.finetuning_results import write_results
from amd_hf.training.options import check_schedule, option, parse_sides
from amd_hf.training.setup import build_config

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class ComparatorArguments(EngineArguments):
    """Options that all comparators have; crops and augmentation are those of AMD's pre-training.

    Raises:
        ValueError: If a value is out of range.
    """

    dataset: str = option("", "as in pretrain.py: folder, tar shards, videos, Hub id, generated")
    augmentation: str = option("heavy", f"one of {', '.join(AUGMENTATION_PRESETS)}")
    crop_size: str = option("384", "side of the square crops in pixels, or HEIGHTxWIDTH")
    per_device_train_batch_size: int = option(32, "images or pairs per process and step")

    learning_rate: float = option(0.03, "highest learning rate; scale it with the batch / 256")
    min_learning_rate: float = option(0.0, "learning rate at the end of the schedule")
    momentum: float = option(0.9, "momentum of SGD")
    weight_decay: float = option(1e-4, "weight decay of all parameters")
    lr_scheduler_type: str = option("cosine", "poly, cosine or constant")
    poly_power: float = option(0.9, "power of the poly schedule")
    max_train_steps: int = option(100_000, "optimizer steps of the whole run")

    # Read by engine and stream, without meaning here.
    validation_steps: ClassVar[int] = 0
    stages: ClassVar[str] = ""
    REQUIRED: ClassVar[tuple[str, ...]] = ("dataset", "output_dir")
    AT_LEAST_ONE: ClassVar[tuple[str, ...]] = (
        *EngineArguments.AT_LEAST_ONE,
        "per_device_train_batch_size",
        "max_train_steps",
    )
    AT_LEAST_ZERO: ClassVar[tuple[str, ...]] = (
        *EngineArguments.AT_LEAST_ZERO,
        "min_learning_rate",
        "momentum",
    )
    POSITIVE: ClassVar[tuple[str, ...]] = (
        *EngineArguments.POSITIVE,
        "learning_rate",
    )
    CHOICES: ClassVar[dict[str, tuple[str | None, ...]]] = {
        **EngineArguments.CHOICES,
        "augmentation": tuple(AUGMENTATION_PRESETS),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_schedule(self)
        parse_sides("crop_size", self.crop_size)

    def crop_height_width(self) -> tuple[int, int]:
        """Height and width of the crops in pixels."""
        return parse_sides("crop_size", self.crop_size)


class ComparatorRun(EngineRun):
    """One comparator's run in one process; subclasses bring network, batches and objective.

    Args:
        args: The options of the run.
        stop_request: Tells whether the process was asked to stop.
    """

    batches: ClassVar[type[ComparatorBatches]] = ComparatorBatches

    def open_data(self) -> None:
        """Opens the source once, before the folder of the run is touched."""
        self.config = build_config(self.args)
        self.new_stream().close()

    def new_stream(self) -> ComparatorBatches:
        """The data of this process from the beginning."""
        accelerator = self.accelerator
        return self.batches(
            self.args,
            self.config,
            accelerator.process_index,
            accelerator.num_processes,
            accelerator.device,
        )

    def new_optimizer(self, network: Any) -> torch.optim.Optimizer:
        """SGD on everything that has a gradient."""
        return torch.optim.SGD(
            [parameter for parameter in network.parameters() if parameter.requires_grad],
            lr=self.args.learning_rate,
            momentum=self.args.momentum,
            weight_decay=self.args.weight_decay,
        )

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
