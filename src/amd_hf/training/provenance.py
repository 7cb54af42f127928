"""What the weights of a run were made from, in the form that the model card reads."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from amd_hf.data.frame_pairs import GENERATED, open_source
from amd_hf.training.arguments import PretrainingArguments
from amd_hf.training.data_stream import source_of
from amd_hf.training.recipes import recipe_options
from amd_hf.training.setup import parse_overrides

if TYPE_CHECKING:
    from amd_hf.training.pretraining import PretrainingRun

PROVENANCE_FILE = "provenance.json"
NONE = "none"
# What `join_provenance` reads of the record of a run.
RECORD_KEYS = {"pretrained_inputs", "ground_truth", "training", "weights_license", "reproduce"}
LAST_KEYS = ("recipe", "precision", "hardware", "versions")
TRAINING_KEYS = {
    "configuration",
    "stages",
    "pairs per step",
    "crops",
    "optimizer",
    "seed",
    *LAST_KEYS,
}


def build_provenance(run: PretrainingRun, results: dict[str, Any]) -> dict[str, Any]:
    """The entries of `provenance.json`: inputs, data with counts, training, license.

    Args:
        run: The run.
        results: Its results.

    Returns:
        Plain values, for JSON.
    """
    args = run.args
    changed = {name: str(value) for name, value in parse_overrides(args.config_overrides).items()}
    stages = ", ".join(
        f"{name} to step {until or results['step']}" for name, until in results["stages"]
    )
    return {
        "pretrained_inputs": args.model_name_or_path or NONE,
        "ground_truth": NONE,
        "sources": describe_sources(args.dataset, args.dataset_terms),
        "training": {
            "recipe": args.recipe,
            "configuration": args.config_name
            + "".join(f", {name}={value}" for name, value in changed.items()),
            "stages": stages,
            "steps": f"{results['step']} (end: {results['end']})",
            "pairs seen": str(results["num_samples"]),
            "pairs per step": str(run.pairs_per_step),
            "crops": f"{args.crop_size} pixels, augmentation {args.augmentation}",
            "frame distance": f"{args.target_dt} s" if args.target_dt else args.frame_gap,
            "optimizer": f"{args.optimizer}, learning rate {args.learning_rate}, "
            f"{args.lr_scheduler_type}",
            "precision": args.mixed_precision or run.accelerator.mixed_precision,
            "seed": str(args.seed),
            "hardware": f"{run.accelerator.num_processes} x {describe_device(run)}",
            "versions": ", ".join(f"{k} {v}" for k, v in results["versions"].items()),
        },
        "weights_license": {"id": args.weights_license},
        "reproduce": reproduce_command(args),
    }


def join_provenance(
    folders: Sequence[str | os.PathLike[str]], sources: list[dict[str, Any]], reproduce: str = ""
) -> dict[str, Any]:
    """The entries of `provenance.json` for weights that several runs made one after the other.

    Args:
        folders: All folders that the weights come from, in order: runs, and models that were made
            from their weights. Those without a `provenance.json` only count as known.
        sources: The videos; see `describe_sources`.
        reproduce: The command that made all of it; else the commands of the runs.

    Returns:
        Plain values, for JSON. `pretrained_inputs` are those that lie in none of the folders.

    Raises:
        ValueError: If no folder has a `provenance.json`, or one is damaged.
    """
    known = [Path(folder).resolve() for folder in folders]
    runs = {path: _read_record(path) for path in known if (path / PROVENANCE_FILE).is_file()}
    if not runs:
        names = ", ".join(map(str, known))
        raise ValueError(
            f"`folders` must hold at least one run with a {PROVENANCE_FILE}, got {names}."
        )
    starts = {path: _start_of(record, known) for path, record in runs.items()}
    outside = [start for start, is_known in starts.values() if not is_known]
    stages = [_describe_run(path, starts[path][0], runs[path]) for path in runs]
    last = next(reversed(runs.values()))
    truths = {record["ground_truth"] for record in runs.values()} - {NONE}
    commands = [record["reproduce"] for record in runs.values()]
    return {
        "pretrained_inputs": ", ".join(dict.fromkeys(outside)) or NONE,
        "ground_truth": ", ".join(sorted(truths)) or NONE,
        "sources": sources,
        "training": {
            "configuration": next(iter(runs.values()))["training"]["configuration"],
            "stages": "; ".join(stages),
            **{name: last["training"][name] for name in LAST_KEYS},
        },
        "weights_license": last["weights_license"],
        "reproduce": reproduce or "\n".join(commands),
    }


def _start_of(record: dict[str, Any], known: list[Path]) -> tuple[str, bool]:
    """What a run started from, and whether that is nothing or in one of the known folders."""
    start = str(record["pretrained_inputs"])
    if start == NONE:
        return "scratch", True
    place = Path(start).resolve()
    folder = next((one for one in known if place.is_relative_to(one)), None)
    return (start, False) if folder is None else (str(place.relative_to(folder.parent)), True)


def _describe_run(path: Path, start: str, record: dict[str, Any]) -> str:
    """One run in a few words."""
    training = record["training"]
    return (
        f"{path.name} (from {start}): {training['stages']}, {training['pairs per step']} pairs per "
        f"step, {training['crops']}, {training['optimizer']}, seed {training['seed']}"
    )


def _read_record(run: Path) -> dict[str, Any]:
    """What a run wrote about itself.

    Raises:
        ValueError: If it is not what `build_provenance` gives.
    """
    path = run / PROVENANCE_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        is_whole = record.keys() >= RECORD_KEYS and record["training"].keys() >= TRAINING_KEYS
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); run the training again.") from error
    if not is_whole:
        raise ValueError(f"{path} is not of a run of scripts/pretrain.py.")
    return dict(record)


def reproduce_command(args: PretrainingArguments) -> str:
    """The command of a run: its recipe and all options that differ from it, without secrets."""
    places = {
        "output_dir",
        "recipe",
        "resume_from_checkpoint",
        "validation_dataset",
        "model_card_template",
        "push_to_hub",
        "hub_model_id",
        "hub_private_repo",
    }
    defaults = {item.name: item.default for item in fields(args)} | recipe_options(args.recipe)
    # A path of this machine is nobody's business.
    names = ",".join(source["name"] for source in describe_sources(args.dataset, ""))
    flags = [
        f"--{name} {shlex.quote(str(value))}"
        for name, value in (args.to_dict() | {"dataset": names}).items()
        if name not in places and value is not None and value != defaults[name]
    ]
    start = f"accelerate launch scripts/pretrain.py --recipe {args.recipe} --output_dir runs/new"
    return " ".join([start, *flags])


def describe_sources(dataset: str, terms: str) -> list[dict[str, Any]]:
    """Name, number of videos and clips, and terms of each source; None where not countable."""
    source = source_of(dataset)
    described = []
    for name in [source] if isinstance(source, str) else source:
        is_local = os.path.exists(Path(name).expanduser()) or name.partition(":")[0] == GENERATED
        clips = open_source(name) if is_local else None  # a Hub data set would be streamed again
        videos = {clips.video(index) for index in range(len(clips))} if clips is not None else None
        described.append(
            {
                "name": Path(name).name if is_local else name,
                "videos": len(videos) if videos is not None else None,
                "clips": len(clips) if clips is not None else None,
                "terms": terms,
            }
        )
    return described


def describe_device(run: PretrainingRun) -> str:
    """The name of the device that a process of the run used."""
    if run.accelerator.device.type == "cuda":
        return torch.cuda.get_device_name(run.accelerator.device)
    return f"{run.accelerator.device.type} ({platform.machine()})"
