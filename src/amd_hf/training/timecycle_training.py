"""TimeCycle pre-training on the engine of AMD's own: options, stream, optimizer, objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from amd_hf.training.comparator_training import ComparatorArguments, ComparatorRun
from amd_hf.training.finetuning_engine import parse_into
from amd_hf.training.interrupts import stop_requests
from amd_hf.training.options import option
from amd_hf.training.timecycle import TimeCycle


@dataclass(kw_only=True)
class TimeCycleArguments(ComparatorArguments):
    """Options of a TimeCycle run; defaults are those of the released TimeCycle.

    Raises:
        ValueError: If a value is out of range.

    Source: released TimeCycle (Adam, learning rate 2e-4, first moment 0.5, no weight decay, batch
        36, gradient norm 10, cycle weight 0.1, temperature 512 ** -0.5); crops and augmentation as
        in AMD's pre-training.
    """

    per_device_train_batch_size: int = option(36, "pairs per process and step")
    temperature: float = option(512**-0.5, "temperature of the affinity")
    alignment_weight: float = option(0.1, "weight of the cycle beside the similarity")

    learning_rate: float = option(2e-4, "highest learning rate")
    momentum: float = option(0.5, "decay of Adam's first moment")
    weight_decay: float = option(0.0, "weight decay of all parameters")
    max_grad_norm: float = option(10.0, "clip the gradient norm at this value; 0 = never")
    lr_scheduler_type: str = option("constant", "poly, cosine or constant")

    AT_LEAST_ZERO: ClassVar[tuple[str, ...]] = (
        *ComparatorArguments.AT_LEAST_ZERO,
        "alignment_weight",
    )
    POSITIVE: ClassVar[tuple[str, ...]] = (*ComparatorArguments.POSITIVE, "temperature")


def parse_timecycle_arguments(argv: Sequence[str] | None = None) -> TimeCycleArguments:
    """Arguments from the command line.

    Raises:
        SystemExit: With status 2 and one sentence on stderr, if a flag or a value is wrong.
    """
    return parse_into(
        TimeCycleArguments, "Pre-train the backbone with TimeCycle on video frames.", argv
    )


def pretrain_timecycle(args: TimeCycleArguments) -> dict[str, Any]:
    """Runs TimeCycle pre-training from the first or the next step to the end.

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
        return TimeCycleRun(args, stop_request).run()


class TimeCycleRun(ComparatorRun):
    """The objects of one TimeCycle run in one process.

    Args:
        args: The options of the run.
        stop_request: Tells whether the process was asked to stop.
    """

    subject = "pairs"

    def new_model(self) -> TimeCycle:
        """The backbone and the tracker."""
        args = self.args
        return TimeCycle(
            self.config,
            args.crop_height_width(),
            temperature=args.temperature,
            alignment_weight=args.alignment_weight,
        )

    def new_optimizer(self, network: Any) -> torch.optim.Optimizer:
        """Adam, as released."""
        return torch.optim.Adam(
            network.parameters(),
            lr=self.args.learning_rate,
            betas=(self.args.momentum, 0.999),
            weight_decay=self.args.weight_decay,
        )

    def objective(
        self, model: nn.Module, batch: Mapping[str, Any], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch of pairs."""
        loss, distance, similarity = model(batch["pixel_values"])
        return loss, {"cycle_distance": distance, "patch_similarity": similarity}
