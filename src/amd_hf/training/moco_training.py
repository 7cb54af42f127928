"""MoCo-v2 pre-training on the engine of AMD's own: options, network, objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from amd_hf.training.comparator_training import ComparatorArguments, ComparatorRun
from amd_hf.training.finetuning_engine import parse_into
from amd_hf.training.interrupts import stop_requests
from amd_hf.training.moco import MomentumContrast
from amd_hf.training.moco_data import TwoViewBatches
from amd_hf.training.options import option


@dataclass(kw_only=True)
class MocoArguments(ComparatorArguments):
    """Options of a MoCo-v2 run; defaults are those of MoCo v2.

    Raises:
        ValueError: If a value is out of range.

    Source: MoCo v2 (SGD 0.03 for 256 images, momentum 0.9, weight decay 1e-4, cosine); crops and
        the two strengths of augmentation as in AMD's pre-training, so that the comparison differs
        in the objective only.
    """

    dimension: int = option(128, "length of the compared vectors")
    queue_size: int = option(65_536, "number of keys that are remembered")
    key_momentum: float = option(0.999, "share of the key network that a step keeps")
    temperature: float = option(0.2, "temperature of the contrastive loss")
    num_key_groups: int = option(4, "groups of keys with batch statistics of their own")

    AT_LEAST_ONE: ClassVar[tuple[str, ...]] = (
        *ComparatorArguments.AT_LEAST_ONE,
        "dimension",
        "queue_size",
        "num_key_groups",
    )
    AT_LEAST_ZERO: ClassVar[tuple[str, ...]] = (*ComparatorArguments.AT_LEAST_ZERO, "key_momentum")
    POSITIVE: ClassVar[tuple[str, ...]] = (*ComparatorArguments.POSITIVE, "temperature")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.key_momentum >= 1:
            raise ValueError(f"`key_momentum` must be below 1, got {self.key_momentum}.")
        if self.per_device_train_batch_size > self.queue_size:
            raise ValueError(
                f"`queue_size` must be at least the batch, got {self.queue_size} and "
                f"{self.per_device_train_batch_size}."
            )


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


class MocoRun(ComparatorRun):
    """The objects of one MoCo run in one process.

    Args:
        args: The options of the run.
        stop_request: Tells whether the process was asked to stop.
    """

    subject = "images"
    batches = TwoViewBatches

    def new_model(self) -> MomentumContrast:
        """The two networks and the queue; the key network only follows."""
        args = self.args
        return MomentumContrast(
            self.config,
            dimension=args.dimension,
            queue_size=args.queue_size,
            momentum=args.key_momentum,
            temperature=args.temperature,
            num_key_groups=args.num_key_groups,
        )

    def objective(
        self, model: nn.Module, batch: Mapping[str, Any], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The contrastive loss of a batch."""
        loss, accuracy = model(batch["pixel_values"])
        return loss, {"contrast_accuracy": accuracy}
