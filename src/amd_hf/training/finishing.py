"""The end of a run: final weights, the object segment, the speed report, the Hub."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from amd_hf.configuration_amd import AMDConfig
from amd_hf.evaluation.object_segment import choose_object_segment, store_object_segment
from amd_hf.image_processing_amd import AMDImageProcessor
from amd_hf.modeling_amd import AMDModel
from amd_hf.training.arguments import PretrainingArguments
from amd_hf.training.checkpointing import save_final, write_text_atomically
from amd_hf.training.data_stream import build_transform, fixed_batches
from amd_hf.training.interrupts import RunError
from amd_hf.training.provenance import PROVENANCE_FILE, build_provenance
from amd_hf.training.run_state import EMA_FOLDER
from amd_hf.training.same_run import versions
from amd_hf.training.setup import preserved_random_state
from amd_hf.training.speed_report import decode_limit, describe_speed, model_limit

if TYPE_CHECKING:
    from amd_hf.training.pretraining import PretrainingRun

logger = logging.getLogger(__name__)

RESULTS_FILE = "all_results.json"


def finish_run(run: PretrainingRun, results: dict[str, Any]) -> dict[str, Any]:
    """Writes the results of a run that has ended; all processes call it.

    Args:
        run: The run.
        results: What is known so far.

    Returns:
        The results, with the object segment and the speed limits; the main process has also
        written them to `OUTPUT_DIR/all_results.json`.

    Raises:
        CheckpointError: If the weights cannot be written; the last checkpoint holds them.
    """
    run.stream.close()
    if run.accelerator.is_main_process:
        output_dir = Path(run.args.output_dir)
        models = {"": run.unwrapped_model}
        if run.ema is not None:
            models[EMA_FOLDER] = run.ema.module
        with preserved_random_state():
            results = {**results, "object_segment": _choose_object_segments(run, models)}
        results |= {"options": run.args.to_dict(), "versions": versions()}
        for folder, model in models.items():
            processor = final_processor(run.args, model.config)
            save_final(model, processor, output_dir / folder)
        provenance = json.dumps(build_provenance(run, results), indent=1)
        write_text_atomically(output_dir / PROVENANCE_FILE, provenance)
        logger.info("Wrote the final weights to %s.", output_dir)
        results |= _report_speed(run, results)
        write_text_atomically(output_dir / RESULTS_FILE, json.dumps(results, indent=1))
        if run.args.push_to_hub:
            _push(run)
    run.accelerator.wait_for_everyone()
    return results


def _choose_object_segments(run: PretrainingRun, models: dict[str, Any]) -> dict[str, Any]:
    args = run.args
    if not args.num_object_segment_pairs:
        return {}
    source = args.validation_dataset or args.dataset
    num_batches = -(-args.num_object_segment_pairs // args.per_device_eval_batch_size)
    choices = {}
    for name, model in models.items():
        choice = choose_object_segment(
            model,
            fixed_batches(args, run.config, source, num_batches),
            num_pairs=args.num_object_segment_pairs,
        )
        store_object_segment(model.config, choice)
        choices[name or "model"] = choice.to_dict()
        logger.info(
            "Object segment%s: %d (confidence %.2f, chosen without labels from %d pairs).\n%s",
            f" of {name}" if name else "",
            choice.index,
            choice.confidence,
            choice.num_pairs,
            choice.table(),
        )
    return choices


def final_processor(args: PretrainingArguments, config: AMDConfig) -> AMDImageProcessor:
    """The image processor that belongs to the final weights.

    Args:
        args: The options of the run.
        config: The configuration of the trained model, with its object segment.

    Returns:
        That of the starting weights where they have one, with the new object segment; else one
        that shows whole frames at the scale of the training crops.
    """
    if args.model_name_or_path:
        try:
            return AMDImageProcessor.from_pretrained(
                args.model_name_or_path, object_segment=config.object_segment
            )
        except OSError:
            logger.info("%s has no image processor.", args.model_name_or_path)
    augmentation = build_transform(args, config, is_training=True).augmentation
    size = {"shortest_edge": augmentation.frame_short_side}
    return AMDImageProcessor.from_model_config(config, size=size)


def _report_speed(run: PretrainingRun, results: dict[str, Any]) -> dict[str, float]:
    args, speed = run.args, results.get("samples_per_second")
    if not args.speed_report_seconds or not speed:
        return {}
    stream = run.new_stream()
    batch = next(stream)
    decode = decode_limit(stream, args.speed_report_seconds, args.per_device_train_batch_size)
    stream.close()
    # A fresh model: measuring must not move the statistics of the trained one, and the trained one
    # may share its batch norm with processes that are not here. They wait, so the limits of one
    # process are multiplied by their number.
    count = run.accelerator.num_processes
    fresh = AMDModel(run.config).to(run.accelerator.device)
    if args.channels_last:
        fresh.to(memory_format=torch.channels_last)
    model = model_limit(fresh, batch, args.speed_report_seconds, run.accelerator)
    logger.info(describe_speed(speed, decode * count, model * count))
    return {"decode_limit": decode * count, "model_limit": model * count}


def _push(run: PretrainingRun) -> None:
    """Uploads the averaged weights if there are any, the raw ones otherwise, with a filled card."""
    from amd_hf.hub import export_repository, fill_model_card, publish_folder, read_provenance

    args, output_dir = run.args, Path(run.args.output_dir)
    folder = output_dir / EMA_FOLDER if run.ema is not None else output_dir
    repo_id = args.hub_model_id or output_dir.resolve().name
    model = AMDModel.from_pretrained(folder)
    try:
        card = fill_model_card(
            args.model_card_template,
            repo_id=repo_id,
            model=model,
            provenance=read_provenance(output_dir),
        )
        with tempfile.TemporaryDirectory() as parent:
            repository = export_repository(
                model,
                Path(parent) / "repository",
                image_processor=AMDImageProcessor.from_pretrained(folder),
                card=card,
                companions_from=output_dir,
            )
            commit = publish_folder(
                repository, repo_id, private=args.hub_private_repo or None, token=args.hub_token
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise RunError(
            f"The run is complete in {output_dir}, but could not be pushed to {repo_id}: {error}; "
            "push it again with scripts/push_to_hub.py."
        ) from error
    logger.info("Pushed to %s (%s).", repo_id, commit.oid)
