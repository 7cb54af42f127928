"""The pre-training loop: pairs in, weights out, exact across interruptions.

One optimizer step = `gradient_accumulation_steps` batches of the endless data stream, one backward
pass each, the gradient norm (non-finite: the step is skipped and counted), the optimizer, the
schedule, the moving average. Everything that decides the next step is part of a checkpoint; see
`amd_hf.training.run_state`.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import amd_hf.training.moving_objects
import amd_hf.training.pseudo_masks  # noqa: F401  (both register their objectives)
from amd_hf.training.arguments import PretrainingArguments
from amd_hf.training.data_stream import EndlessBatches, fixed_batches, with_known_steps
from amd_hf.training.ema import ExponentialMovingAverage
from amd_hf.training.finishing import finish_run
from amd_hf.training.interrupts import (
    DataStreamError,
    RunError,
    StopRequest,
    children_end_quietly,
    stop_requests,
)
from amd_hf.training.monitors import (
    BufferGuard,
    CollapseMonitor,
    MetricAverager,
    flatten_metrics,
)
from amd_hf.training.objectives import Stage, parse_stages, stage_at
from amd_hf.training.run_state import Progress, RunState, prepare_output_dir
from amd_hf.training.schedules import build_schedule
from amd_hf.training.setup import (
    build_accelerator,
    build_model,
    build_optimizer,
    convert_batch_norm,
    preserved_random_state,
    seed_process,
)
from amd_hf.training.trackers import RunLog
from amd_hf.training.validation import draw_pairs, validate

logger = logging.getLogger(__name__)

MAX_STEPS, TIME_LIMIT, COLLAPSE = "max_train_steps", "max_train_minutes", "collapse"


def pretrain(args: PretrainingArguments) -> dict[str, Any]:
    """Runs pre-training from the first or the next step to the end.

    Args:
        args: The options of the run.

    Returns:
        The results that are also in `OUTPUT_DIR/all_results.json`: steps, samples, why the run
        ended, speeds, last metrics, object segment. A run that was asked to stop by a signal
        returns after its checkpoint, without final weights.

    Raises:
        ImportError: If the `train` extra is not installed.
        ValueError: If the options or the data cannot be used, or a checkpoint is of another run.
        RuntimeError: If too many steps in a row were non-finite, or the result cannot be written.
        DataStreamError: If the data cannot be read any further; the state was saved before.
    """
    with stop_requests() as stop_request:
        return PretrainingRun(args, stop_request).run()


class PretrainingRun:
    """The objects of one run in one process.

    Args:
        args: The options of the run.
        stop_request: Tells whether the process was asked to stop.
    """

    def __init__(self, args: PretrainingArguments, stop_request: StopRequest) -> None:
        self.stop_request = stop_request
        self.stages = parse_stages(args.stages, args.motion_warmup_steps)
        has_unused = any(stage.name != "segment_flow" for stage in self.stages)
        self.accelerator = build_accelerator(args, has_unused)
        self.args = args = with_known_steps(args, self.accelerator.num_processes)
        self.checkpoint = prepare_output_dir(args, self.accelerator)
        self.model = self._prepare_model()
        self.stream = self.new_stream()
        self.log = RunLog(args.output_dir, self.accelerator, self.accelerator.is_main_process)
        self.averager = MetricAverager()
        self.collapse = CollapseMonitor(args.collapse_patience)
        self.progress = Progress()
        self.state = RunState(self)
        self._held_out: list[dict[str, Any]] | None = None
        self._last_metrics: dict[str, float] = {}
        self._speed = SpeedMeter()

    def _prepare_model(self) -> nn.Module:
        args = self.args
        built = build_model(args)
        self.config = built.config
        model = convert_batch_norm(built, self.accelerator)
        if args.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.to(self.accelerator.device)
        self.ema = ExponentialMovingAverage(model, args.ema_decay) if args.ema_decay else None
        optimizer = build_optimizer(args, model)
        self.schedule = build_schedule(
            args.lr_scheduler_type,
            optimizer,
            num_train_steps=args.max_train_steps,
            num_warmup_steps=args.num_warmup_steps,
            min_learning_rate=args.min_learning_rate,
            poly_power=args.poly_power,
        )
        prepared, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.guard = BufferGuard(model)
        return prepared

    @property
    def unwrapped_model(self) -> Any:
        """The `AMDModel` itself, without the wrappers of Accelerate."""
        return self.accelerator.unwrap_model(self.model)

    def new_stream(self) -> EndlessBatches:
        """The data of this process from the beginning."""
        accelerator = self.accelerator
        return EndlessBatches(
            self.args,
            self.config,
            accelerator.process_index,
            accelerator.num_processes,
            accelerator.device,
        )

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
            "Training from step %d to %d in %d process(es), %d pairs per step.",
            self.progress.step,
            args.max_train_steps,
            self.accelerator.num_processes,
            self.pairs_per_step,
        )
        if not args.validation_dataset and args.validation_steps:
            logger.info("No --validation_dataset: no validation and no pictures.")
        reason = self._train()
        if self.progress.step != self.progress.saved_step:
            self.state.save()
        results = self._results(reason)
        if reason in (MAX_STEPS, TIME_LIMIT, COLLAPSE):
            results = finish_run(self, results)
        else:
            logger.warning(
                "Stopped by %s at step %d; go on with --resume_from_checkpoint latest.",
                reason,
                self.progress.step,
            )
        self.stream.close()
        self.accelerator.end_training()
        return results

    @property
    def pairs_per_step(self) -> int:
        """Pairs of all processes in one optimizer step."""
        per_process = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        return per_process * self.accelerator.num_processes

    def _train(self) -> str:
        self._speed.start()
        reason = self._stop_reason(None)
        while reason is None:
            stage = stage_at(self.stages, self.progress.step)
            try:
                self._step(stage)
            except DataStreamError as error:
                raise self._without_data(error) from error
            step = self.progress.step
            advice = self._log() if step % self.args.logging_steps == 0 else None
            if self._is_due(self.args.validation_steps):
                self._validate()
            reason = self._stop_reason(advice)
            if self._is_due(self.args.checkpointing_steps):
                self.state.save()
        return reason

    def _without_data(self, error: DataStreamError) -> DataStreamError:
        """Saves the state after the last step, if the others can still be asked to; one sentence.

        Several processes cannot: only some of them miss their data, and all must save together.
        Nor can a step that has computed some of its gradients already.
        """
        is_between_steps = all(p.grad is None for p in self.unwrapped_model.parameters())
        is_alone = self.accelerator.num_processes == 1
        if is_alone and is_between_steps and self.progress.step != self.progress.saved_step:
            self.state.save()
        saved = self.progress.saved_step
        place = "nothing is saved yet" if saved is None else f"step_{saved} is saved"
        return DataStreamError(
            f"The data cannot be read any further after step {self.progress.step} ({error}); "
            f"{place}: go on with --resume_from_checkpoint latest when the source is back."
        )

    def _is_due(self, every: int) -> bool:
        return bool(every) and self.progress.step % every == 0

    def _stop_reason(self, collapse_advice: str | None) -> str | None:
        if collapse_advice is not None and self.args.stop_on_collapse:
            return COLLAPSE
        if self.progress.step >= self.args.max_train_steps:
            return MAX_STEPS
        minutes, limit = self._speed.seconds / 60, self.args.max_train_minutes
        is_late = limit is not None and minutes >= limit
        # All processes stop at the same step, whichever of them was asked.
        late, asked = self._count_over_processes([is_late, bool(self.stop_request)])
        if asked:
            return self.stop_request.signal_name or "a signal to another process"
        return TIME_LIMIT if late else None

    def _count_over_processes(self, flags: list[bool]) -> list[int]:
        if self.accelerator.num_processes == 1:
            return [int(flag) for flag in flags]
        counts = torch.tensor(flags, dtype=torch.int32, device=self.accelerator.device)
        return self.accelerator.reduce(counts, "sum").tolist()

    def all_succeeded(self, succeeded: bool) -> bool:
        """Whether all processes succeeded; all of them must ask."""
        return self._count_over_processes([not succeeded]) == [0]

    def _step(self, stage: Stage) -> None:
        self.model.train()
        self.guard.remember()
        logs: list[dict[str, Tensor]] = []
        for part in range(self.args.gradient_accumulation_steps):
            is_last = part == self.args.gradient_accumulation_steps - 1
            batch = self._next_batch()
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                loss, values = stage.objective(self.model, batch, self.progress.step)
                self.accelerator.backward(loss / self.args.gradient_accumulation_steps)
            logs.append({"loss": loss, **values})
        norm = self.accelerator.clip_grad_norm_(
            self.model.parameters(), self.args.max_grad_norm or math.inf
        )
        # All processes decide alike, or their weights would drift apart.
        if self.all_succeeded(math.isfinite(float(norm)) and _all_finite(logs)):
            self.progress.consecutive_nonfinite_steps = 0
            for values in logs:
                self.averager.add(values)
            self.averager.add({"gradient_norm": torch.as_tensor(norm)})
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update(self.unwrapped_model)
        else:
            self._skip_step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        self.progress.step += 1
        self.progress.num_samples += self.pairs_per_step
        self._speed.count(self.pairs_per_step)

    def _skip_step(self) -> None:
        self.guard.restore()
        self.progress.num_nonfinite_steps += 1
        self.progress.consecutive_nonfinite_steps += 1
        if self.accelerator.scaler is not None:
            self.optimizer.step()  # skipped by the scaler, which lowers its scale
        if self.progress.consecutive_nonfinite_steps >= self.args.max_nonfinite_steps:
            raise RunError(
                f"{self.progress.consecutive_nonfinite_steps} steps in a row had a non-finite "
                "gradient; lower --learning_rate, set --max_grad_norm 1, or use bf16 instead of "
                "fp16, and resume from the last checkpoint."
            )

    def _next_batch(self) -> dict[str, Any]:
        begin = time.perf_counter()
        try:
            with children_end_quietly():
                batch = next(self.stream)
        except Exception as error:  # whatever skipping a sample does not cure
            raise DataStreamError.caused_by(error) from error
        self._speed.data_seconds += time.perf_counter() - begin
        self.state.record_samples(batch)
        return batch

    def _log(self) -> str | None:
        means = self.averager.pop()
        metrics = flatten_metrics(means)
        if self.accelerator.num_processes > 1 and metrics:
            values = torch.tensor(list(metrics.values()), device=self.accelerator.device)
            reduced = self.accelerator.reduce(values, "mean").tolist()
            metrics = dict(zip(metrics, reduced, strict=True))
        step = self.progress.step
        advice = self.collapse.update(step, metrics)
        metrics |= {
            "learning_rate": float(self.schedule.get_last_lr()[0]),
            "nonfinite_steps": float(self.progress.num_nonfinite_steps),
            **self._speed.metrics(),
        }
        self._last_metrics = metrics
        self.log.metrics(step, metrics)
        if advice is not None:
            logger.warning(advice)
        return advice

    def held_out(self) -> list[dict[str, Any]]:
        """The held-out batches, the same at every validation; empty without a source of them."""
        if self._held_out is None:
            source, count = self.args.validation_dataset, self.args.num_validation_batches
            with preserved_random_state():
                has_source = bool(source) and count > 0
                self._held_out = (
                    list(fixed_batches(self.args, self.config, str(source), count))
                    if has_source
                    else []
                )
        return self._held_out

    def _validate(self) -> None:
        if self.accelerator.is_main_process and self.held_out():
            with preserved_random_state():
                models: dict[str, Any] = {"validation": self.unwrapped_model}
                if self.ema is not None:
                    models["validation_ema"] = self.ema.module
                for split, model in models.items():
                    metrics = validate(model, self.held_out(), self.accelerator)
                    self.log.metrics(self.progress.step, metrics, split)
                picture = draw_pairs(list(models.values())[-1], self.held_out()[0])
                self.log.picture(self.progress.step, picture)
        self.accelerator.wait_for_everyone()

    def _results(self, reason: str) -> dict[str, Any]:
        return {
            "step": self.progress.step,
            "num_samples": self.progress.num_samples,
            "num_nonfinite_steps": self.progress.num_nonfinite_steps,
            "end": reason,
            "num_processes": self.accelerator.num_processes,
            "skipped": self.stream.skipped(),
            "stages": [[stage.name, stage.until_step] for stage in self.stages],
            "metrics": self._last_metrics,
            **self._speed.metrics(),
        }


def _all_finite(logs: list[dict[str, Tensor]]) -> bool:
    values = [value.detach().isfinite().all() for step in logs for value in step.values()]
    return bool(torch.stack(values).all())


class SpeedMeter:
    """Samples per second of all processes, and how much of its time this one waited for data."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._num_samples = 0
        self.data_seconds = 0.0

    def start(self) -> None:
        """Starts the clock."""
        self._begin = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._begin

    def count(self, num_samples: int) -> None:
        """Counts samples."""
        self._num_samples += num_samples

    def metrics(self) -> dict[str, float]:
        """`samples_per_second` and `data_wait_share` since the start; empty before a sample."""
        if not self._num_samples:
            return {}
        return {
            "samples_per_second": self._num_samples / self.seconds,
            "data_wait_share": self.data_seconds / self.seconds,
        }
