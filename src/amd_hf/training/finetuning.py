"""Fine-tuning for semantic segmentation, on the engine of the pre-training loop.

What differs from pre-training: labelled data that are checked as a whole before anything else, the
cross-entropy as the only objective, mean IoU at every evaluation, and the best weights kept.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amd_hf.training.checkpointing import list_checkpoints
from amd_hf.training.data_stream import EndlessBatches
from amd_hf.training.finetuning_arguments import FinetuningArguments
from amd_hf.training.finetuning_data import SemanticBatches, SemanticData, open_semantic_data
from amd_hf.training.finetuning_results import (
    BEST_FOLDER,
    BestWeights,
    build_processor,
    check_hub,
    draw_predictions,
    evaluate_semantic_model,
    named_iou,
    push_result,
    save_final,
    write_results,
)
from amd_hf.training.finetuning_start import (
    build_semantic_model,
    build_semantic_optimizer,
    freeze,
)
from amd_hf.training.interrupts import StopRequest, stop_requests
from amd_hf.training.monitors import BufferGuard, CollapseMonitor, MetricAverager
from amd_hf.training.pretraining import MAX_STEPS, TIME_LIMIT, PretrainingRun, SpeedMeter
from amd_hf.training.run_state import RUN_FILE, Progress, RunState, prepare_output_dir, versions
from amd_hf.training.schedules import build_schedule
from amd_hf.training.setup import (
    build_accelerator,
    convert_batch_norm,
    preserved_random_state,
    seed_process,
)
from amd_hf.training.trackers import RunLog

logger = logging.getLogger(__name__)

# Options that decide the samples, the classes or what is trained: a change breaks exact resume.
EXACT_OPTIONS = (
    "dataset_name",
    "dataset_config_name",
    "train_split",
    "validation_split",
    "validation_fraction",
    "class_names",
    "ignore_index",
    "do_reduce_labels",
    "mode",
    "optimizer",
    "crop_size",
    "short_side",
    "min_scale",
    "max_scale",
    "max_class_share",
    "flip",
    "color_jitter",
    "seed",
    "per_device_train_batch_size",
)


def finetune(args: FinetuningArguments) -> dict[str, Any]:
    """Runs fine-tuning from the first or the next step to the end.

    Args:
        args: The options of the run.

    Returns:
        The results that are also in `OUTPUT_DIR/all_results.json`: steps, why the run ended,
        `scores` of the last weights and `best_scores`, `best_step`, labels. A run that was asked to
        stop by a signal returns after its checkpoint, without final weights.

    Raises:
        ImportError: If the `train` extra is not installed.
        ValueError: If the options, the data or the start cannot be used; raised before training.
        RuntimeError: If too many steps in a row were non-finite, or the result cannot be written.
    """
    with stop_requests() as stop_request:
        return FinetuningRun(args, stop_request).run()


@dataclass(frozen=True)
class Objective:
    """The one stage of a run, in the form that the engine steps through."""

    objective: Callable[[nn.Module, Mapping[str, Any], int], tuple[Tensor, dict[str, Tensor]]]
    name: str = "semantic"
    until_step: int | None = None


class FinetuningState(RunState):
    """The state of a run, with the number of classes and its own list of exact options."""

    def load(self, checkpoint: Path) -> None:
        """Restores the run from a whole checkpoint.

        Raises:
            ValueError: If it is of other data, classes or options; the message says what differs.
            CheckpointError: If a file of it cannot be read.
        """
        saved = json.loads((checkpoint / RUN_FILE).read_text())["options"]
        now = self.run.args.to_dict()
        changed = [
            f"{name} was {saved[name]!r}, is {now[name]!r}"
            for name in EXACT_OPTIONS
            if name in saved and name in now and saved[name] != now[name]
        ]
        if changed:
            raise ValueError(
                f"{checkpoint} cannot be continued exactly: {'; '.join(changed)}; restore these, "
                "or start a new run from its weights with --model_name_or_path."
            )
        super().load(checkpoint)


class FinetuningRun(PretrainingRun):
    """The objects of one fine-tuning run in one process.

    Args:
        args: The options of the run.
        stop_request: Tells whether the process was asked to stop.
    """

    # The engine reads the options that both kinds of runs have.
    args: Any
    stages: Any

    def __init__(self, args: FinetuningArguments, stop_request: StopRequest) -> None:
        self.args = args
        self.stop_request = stop_request
        self.stages = [Objective(self._objective)]
        self.accelerator = build_accelerator(self.args, has_unused_parameters=False)
        self.data = self._open_data()
        self.repo_id = self._check_hub()
        # Built before the folder of the run is touched: a wrong start is an input error too.
        model = build_semantic_model(args, self.data.labels)
        self.checkpoint = prepare_output_dir(self.args, self.accelerator)
        self.model = self._prepare(model)
        self.stream = self.new_stream()
        self.log = RunLog(args.output_dir, self.accelerator, self.accelerator.is_main_process)
        self.averager = MetricAverager()
        self.collapse = CollapseMonitor(patience=1)
        self.progress = Progress()
        self.state = FinetuningState(self)
        self.best = BestWeights(args.output_dir)
        if self.checkpoint is None and self.accelerator.is_main_process:
            self.best.clear()  # of a run whose checkpoints are gone
        self._last_scores: dict[str, Any] = {}
        self._scored_step: int | None = None
        self._last_metrics: dict[str, float] = {}
        self._speed = SpeedMeter()

    def _on_main(self, action: Callable[[], Any]) -> Any:
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

    def _open_data(self) -> SemanticData:
        if self.accelerator.num_processes == 1:
            return open_semantic_data(self.args)
        labels = self._on_main(lambda: open_semantic_data(self.args).labels)
        return open_semantic_data(self.args, known_labels=labels)

    def _check_hub(self) -> str | None:
        return self._on_main(lambda: check_hub(self.args)) if self.args.push_to_hub else None

    def _prepare(self, model: Any) -> nn.Module:
        args = self.args
        self.frozen = freeze(model, args.mode)
        converted: Any = convert_batch_norm(model, self.accelerator)
        if args.channels_last:
            converted = converted.to(memory_format=torch.channels_last)
        converted.to(self.accelerator.device)
        self.config = converted.config
        self.ema = None
        self.processor = build_processor(args, self.config)
        optimizer = build_semantic_optimizer(args, converted)
        self.schedule = build_schedule(
            args.lr_scheduler_type,
            optimizer,
            num_train_steps=args.max_train_steps,
            num_warmup_steps=args.num_warmup_steps,
            min_learning_rate=args.min_learning_rate,
            poly_power=args.poly_power,
        )
        prepared, self.optimizer = self.accelerator.prepare(converted, optimizer)
        self.guard = BufferGuard(converted)
        return prepared

    def _objective(
        self, model: nn.Module, batch: Mapping[str, Any], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of a batch; fixed parts keep their batch statistics."""
        for module in self.frozen:
            module.eval()
        outputs = model(pixel_values=batch["pixel_values"], labels=batch["labels"])
        return outputs.loss, {}

    def new_stream(self) -> EndlessBatches:
        """The data of this process from the beginning."""
        stream: Any = SemanticBatches(
            self.args,
            self.data.train,
            self.config.image_mean,
            self.config.image_std,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            self.accelerator.device,
        )
        return stream

    def run(self) -> dict[str, Any]:
        """Trains to the end or to a stop, and writes the results."""
        args = self.args
        seed_process(args.seed, self.accelerator.process_index)
        if self.checkpoint is not None:
            self.state.load(self.checkpoint)
        self.log.rewind(self.progress.step)
        if args.with_tracking:
            self.accelerator.init_trackers(Path(args.output_dir).name, args.to_dict())
        logger.info(
            "Fine-tuning on %d images of %d classes (%d for evaluation) from step %d to %d, %d "
            "crops per step.",
            len(self.data.train),
            len(self.data.labels),
            len(self.data.validation),
            self.progress.step,
            args.max_train_steps,
            self.pairs_per_step,
        )
        reason = self._train()
        if self.progress.step != self.progress.saved_step:
            self.state.save()
        self.stream.close()
        if reason in (MAX_STEPS, TIME_LIMIT):
            results = self._finish(reason)
        else:
            results = self._results(reason)
            logger.warning(
                "Stopped by %s at step %d; go on with --resume_from_checkpoint latest.",
                reason,
                self.progress.step,
            )
        self.accelerator.end_training()
        return results

    def _validate(self) -> None:
        with preserved_random_state():
            scores = evaluate_semantic_model(self, self.data.validation)
            self._last_scores, self._scored_step = scores, self.progress.step
            if self.accelerator.is_main_process:
                values = named_iou(self.data, scores)
                self.log.metrics(self.progress.step, values, "validation")
                if self.args.num_pictures:
                    sheet = draw_predictions(self, self.data.validation)
                    self.log.picture(self.progress.step, sheet, "predictions")
                model = self.unwrapped_model
                if self.best.offer(self.progress.step, scores, model, self.processor):
                    logger.info("Best so far: mean IoU %.4f.", scores["mean_iou"])
        self.accelerator.wait_for_everyone()

    def _finish(self, reason: str) -> dict[str, Any]:
        if self._scored_step != self.progress.step:
            self._validate()
        results = self._results(reason)
        if self.accelerator.is_main_process:
            output_dir = Path(self.args.output_dir)
            best = self.best.finish()
            save_final(self.unwrapped_model, self.processor, output_dir)
            write_results(output_dir, results)
            logger.info(
                "Wrote the final weights to %s (mean IoU %.4f) and the best to %s (%.4f, step %s).",
                output_dir,
                results["scores"]["mean_iou"],
                output_dir / BEST_FOLDER,
                self.best.mean_iou,
                self.best.step,
            )
            if self.repo_id is not None:
                push_result(self.args, best or output_dir, self.repo_id, results)
        self.accelerator.wait_for_everyone()
        return results

    def _results(self, reason: str) -> dict[str, Any]:
        return {
            "step": self.progress.step,
            "num_samples": self.progress.num_samples,
            "images_per_step": self.pairs_per_step,
            "num_nonfinite_steps": self.progress.num_nonfinite_steps,
            "end": reason,
            "num_processes": self.accelerator.num_processes,
            "num_train_images": len(self.data.train),
            "labels": list(self.data.labels),
            "scores": self._last_scores,
            "best_scores": self.best.scores,
            "best_step": self.best.step,
            "metrics": self._last_metrics,
            "options": self.args.to_dict(),
            "versions": versions(),
            **self._speed.metrics(),
        }


def has_finished(output_dir: str | Path) -> bool:
    """Whether a folder holds a run that has ended."""
    return (Path(output_dir) / "all_results.json").is_file()


def has_begun(output_dir: str | Path) -> bool:
    """Whether a folder holds checkpoints of a run."""
    return bool(list_checkpoints(output_dir))
