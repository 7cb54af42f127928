"""What the weights of a run were made from, in the form that the model card reads."""

from __future__ import annotations

import os
import platform
import shlex
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
