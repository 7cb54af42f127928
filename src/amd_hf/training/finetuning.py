"""Fine-tuning for semantic segmentation, on the engine of the pre-training loop.

What differs from pre-training: labelled data that are checked as a whole before anything else, the
cross-entropy as the only objective, mean IoU at every evaluation, and the best weights kept.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amd_hf.training.checkpointing import save_final
from amd_hf.training.finetuning_arguments import FinetuningArguments
from amd_hf.training.finetuning_data import SemanticBatches, SemanticData, open_semantic_data
from amd_hf.training.finetuning_loop import EngineRun
from amd_hf.training.finetuning_results import (
    BestWeights,
    build_processor,
    check_hub,
    draw_predictions,
    evaluate_semantic_model,
    named_iou,
    push_result,
    write_results,
)
from amd_hf.training.finetuning_start import (
    build_semantic_model,
    build_semantic_optimizer,
    freeze,
)
from amd_hf.training.interrupts import StopRequest, stop_requests
from amd_hf.training.run_state import RUN_FILE, RunState
from amd_hf.training.setup import preserved_random_state

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


class FinetuningState(RunState):
    """The state of a run, with its own list of exact options."""

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
            if name in saved and saved[name] != now[name]
        ]
        if changed:
            raise ValueError(
                f"{checkpoint} cannot be continued exactly: {'; '.join(changed)}; restore these, "
                "or start a new run from its weights with --model_name_or_path."
            )
        super().load(checkpoint)


class FinetuningRun(EngineRun):
    """The objects of one fine-tuning run in one process.

    Args:
        args: The options of the run.
        stop_request: Tells whether the process was asked to stop.
    """

    state_class = FinetuningState
    subject = "crops"
    data: SemanticData

    def __init__(self, args: FinetuningArguments, stop_request: StopRequest) -> None:
        super().__init__(args, stop_request)
        self.processor = build_processor(args, self.config)
        self.best = BestWeights(args.output_dir)
        if self.checkpoint is None and self.accelerator.is_main_process:
            self.best.clear()  # of a run whose checkpoints are gone
        self._scores: dict[str, Any] = {}
        self._scored_step: int | None = None

    def open_data(self) -> None:
        """Checks data, classes and repository in the main process, and opens the data in all."""
        if self.accelerator.num_processes == 1:
            self.data = open_semantic_data(self.args)
        else:
            labels = self.on_main(lambda: open_semantic_data(self.args).labels)
            self.data = open_semantic_data(self.args, known_labels=labels)
        wants_hub = self.args.push_to_hub
        self.repo_id = self.on_main(lambda: check_hub(self.args)) if wants_hub else None
        logger.info(
            "%d training images, %d for evaluation, %d classes.",
            len(self.data.train),
            len(self.data.validation),
            len(self.data.labels),
        )

    def new_model(self) -> Any:
        """The model at the start, with the parts fixed that the mode does not train."""
        model = build_semantic_model(self.args, self.data.labels)
        self.frozen = freeze(model, self.args.mode)
        return model

    def new_optimizer(self, network: Any) -> torch.optim.Optimizer:
        """SGD as published, or AdamW."""
        return build_semantic_optimizer(self.args, network)

    def new_stream(self) -> Any:
        """The data of this process from the beginning."""
        return SemanticBatches(
            self.args,
            self.data.train,
            self.config.image_mean,
            self.config.image_std,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            self.accelerator.device,
        )

    def objective(
        self, model: nn.Module, batch: Mapping[str, Any], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of a batch; fixed parts keep their batch statistics."""
        for module in self.frozen:
            module.eval()
        outputs = model(pixel_values=batch["pixel_values"], labels=batch["labels"])
        return outputs.loss, {}

    def _validate(self) -> None:
        step, images = self.progress.step, self.data.validation
        with preserved_random_state():
            self._scores, self._scored_step = evaluate_semantic_model(self, images), step
            if self.accelerator.is_main_process:
                self.log.metrics(step, named_iou(self.data, self._scores), "validation")
                if self.args.num_pictures:
                    self.log.picture(step, draw_predictions(self, images), "predictions")
                model = self.unwrapped_model
                if self.best.offer(step, self._scores, model, self.processor):
                    logger.info("Best so far: mean IoU %.4f.", self.best.mean_iou)
        self.accelerator.wait_for_everyone()

    def finish(self, results: dict[str, Any]) -> dict[str, Any]:
        """Scores and writes the last weights, names the best, and pushes the best to the Hub."""
        if self._scored_step != self.progress.step:
            # A run that was killed in its last moments may have logged the same scores.
            self.log.forget(self.progress.step, "validation")
            self._validate()
        results = {
            **results,
            "images_per_step": self.pairs_per_step,
            "num_train_images": len(self.data.train),
            "labels": list(self.data.labels),
            "scores": self._scores,
            "best_scores": self.best.scores,
            "best_step": self.best.step,
        }
        if self.accelerator.is_main_process:
            output_dir = Path(self.args.output_dir)
            best = self.best.finish()
            save_final(self.unwrapped_model, self.processor, output_dir)
            write_results(output_dir, results)
            logger.info(
                "Wrote the final weights to %s (mean IoU %.4f) and the best to %s (%.4f, step %s).",
                output_dir,
                self._scores["mean_iou"],
                best,
                self.best.mean_iou,
                self.best.step,
            )
            if self.repo_id is not None:
                push_result(self.args, best or output_dir, self.repo_id, results)
        self.accelerator.wait_for_everyone()
        return results
