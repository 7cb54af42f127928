"""The engine of pre-training, for runs with another model, other data and another objective."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amd_hf.training.interrupts import StopRequest
from amd_hf.training.monitors import BufferGuard, CollapseMonitor, MetricAverager
from amd_hf.training.pretraining import MAX_STEPS, TIME_LIMIT, PretrainingRun, SpeedMeter
from amd_hf.training.run_state import Progress, RunState, prepare_output_dir
from amd_hf.training.same_run import versions
from amd_hf.training.schedules import build_schedule
from amd_hf.training.setup import build_accelerator, convert_batch_norm, seed_process
from amd_hf.training.trackers import RunLog

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OnlyStage:
    """The one stage of such a run, in the form that the engine steps through."""

    name: str
    objective: Callable[[nn.Module, Mapping[str, Any], int], tuple[Tensor, dict[str, Tensor]]]
    until_step: int | None = None


class EngineRun(PretrainingRun, ABC):
    """A run on the engine: subclasses bring data, model, objective and results.

    Args:
        args: The options of the run.
        stop_request: Tells whether the process was asked to stop.
    """

    # The engine reads the options that all kinds of runs have.
    args: Any
    stages: Any
    state_class: type[RunState] = RunState
    subject: str = "samples"

    def __init__(self, args: Any, stop_request: StopRequest) -> None:
        self.args = args
        self.stop_request = stop_request
        self.stages = [OnlyStage(type(self).__name__, self.objective)]
        self.accelerator = build_accelerator(args, has_unused_parameters=False)
        self.open_data()
        torch.manual_seed(args.seed)
        network = self.new_model()
        self.config = network.config
        self.checkpoint = prepare_output_dir(args, self.accelerator)
        self.model = self._prepare(network)
        self.stream = self.new_stream()
        self.log = RunLog(args.output_dir, self.accelerator, self.accelerator.is_main_process)
        self.averager = MetricAverager()
        self.collapse = CollapseMonitor(patience=1)
        self.progress = Progress()
        self.state = self.state_class(self)
        self._held_out = []
        self._last_metrics: dict[str, float] = {}
        self._speed = SpeedMeter()

    def _prepare(self, network: Any) -> nn.Module:
        args = self.args
        network = convert_batch_norm(network, self.accelerator)
        if args.channels_last:
            network = network.to(memory_format=torch.channels_last)
        network.to(self.accelerator.device)
        self.ema = None
        optimizer = self.new_optimizer(network)
        self.schedule = build_schedule(
            args.lr_scheduler_type,
            optimizer,
            num_train_steps=args.max_train_steps,
            num_warmup_steps=args.num_warmup_steps,
            min_learning_rate=args.min_learning_rate,
            poly_power=args.poly_power,
        )
        prepared, self.optimizer = self.accelerator.prepare(network, optimizer)
        self.guard = BufferGuard(network)
        return prepared

    @abstractmethod
    def open_data(self) -> None:
        """Checks and opens the input; nothing is written before."""

    @abstractmethod
    def new_model(self) -> Any:
        """A network with a `config`; new weights follow from the seed."""

    @abstractmethod
    def new_optimizer(self, network: Any) -> torch.optim.Optimizer:
        """The optimizer of a network that is not wrapped."""

    @abstractmethod
    def objective(
        self, model: nn.Module, batch: Mapping[str, Any], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and values to log."""

    @abstractmethod
    def finish(self, results: dict[str, Any]) -> dict[str, Any]:
        """Writes the result of a run that has ended; all processes call it."""

    def on_main(self, action: Callable[[], Any]) -> Any:
        """The result of the main process in all of them; its input errors too."""
        from accelerate.utils import broadcast_object_list

        found: list[Any] = [None, None]
        if self.accelerator.is_main_process:
            try:
                found[0] = action()
            except (ValueError, ImportError, OSError) as error:
                found[1] = error
        broadcast_object_list(found)
        if found[1] is not None:
            raise found[1]
        return found[0]

    def run(self) -> dict[str, Any]:
        """Trains to the end or to a stop, and writes the results."""
        args = self.args
        seed_process(args.seed, self.accelerator.process_index)
        if self.checkpoint is not None:
            self.state.load(self.checkpoint)
        self.state.rewind_samples()
        self.log.rewind(self.progress.step)
        if args.with_tracking:
            self.accelerator.init_trackers(Path(args.output_dir).name, args.to_dict())
        logger.info(
            "Training from step %d to %d in %d process(es), %d %s per step.",
            self.progress.step,
            args.max_train_steps,
            self.accelerator.num_processes,
            self.pairs_per_step,
            self.subject,
        )
        reason = self._train()
        if self.progress.step != self.progress.saved_step:
            self.state.save()
        self.stream.close()
        results = self._results(reason)
        if reason in (MAX_STEPS, TIME_LIMIT):
            results = self.finish(results)
        else:
            logger.warning(
                "Stopped by %s at step %d; go on with --resume_from_checkpoint latest.",
                reason,
                self.progress.step,
            )
        self.accelerator.end_training()
        return results

    def _results(self, reason: str) -> dict[str, Any]:
        return {
            "step": self.progress.step,
            "num_samples": self.progress.num_samples,
            "num_nonfinite_steps": self.progress.num_nonfinite_steps,
            "end": reason,
            "num_processes": self.accelerator.num_processes,
            "skipped": self.stream.skipped(),
            "metrics": self._last_metrics,
            "options": self.args.to_dict(),
            "versions": versions(),
            **self._speed.metrics(),
        }
