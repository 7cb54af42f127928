"""The comparison of the paper's last table: fine-tuning from several starts, at an equal budget.

Every start is fine-tuned with the same options and the same seeds, so only the start differs. Runs
lie in `OUTPUT_DIR/runs/START/seed_N`; the same command again goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, ResNetConfig

from amd_hf.configuration_amd import AMDConfig
from amd_hf.training.checkpointing import list_checkpoints, write_text_atomically
from amd_hf.training.finetuning_arguments import FinetuningArguments
from amd_hf.training.finetuning_results import RESULTS_FILE
from amd_hf.training.finetuning_start import amd_config_of_resnet
from amd_hf.training.options import parser_for

logger = logging.getLogger(__name__)

RANDOM = "random"
COMPARISON_FILE = "comparison.json"
# VOC 2012 val mean IoU after 40,000 steps of batch 16, in percent (AMD paper, last table).
PUBLISHED = {
    "scratch": 48.0,
    "timecycle": 52.8,
    "simsiam-light": 57.7,
    "simsiam-heavy": 59.4,
    "moco-light": 61.5,
    "moco-heavy": 62.8,
    "amd-light": 62.0,
    "amd-heavy": 62.1,
}
# Fields that must agree, or the starts would be different networks.
ARCHITECTURE = (
    "stem_channels",
    "base_channels",
    "bottleneck_expansion",
    "block_counts",
    "block_strides",
    "block_dilations",
    "head_channels",
    "num_head_convs",
    "head_dilation",
    "head_dropout",
)
# Options that belong to one run and not to the comparison, or do not change its result.
OWN_OPTIONS = frozenset(
    {
        "output_dir",
        "resume_from_checkpoint",
        "dataloader_num_workers",
        "checkpointing_steps",
        "checkpoints_total_limit",
        "logging_steps",
        "with_tracking",
        "report_to",
        "num_pictures",
        "max_train_minutes",
        "record_samples",
    }
)


@dataclass(frozen=True)
class Start:
    """A start of the comparison: its name in the table, and a checkpoint or `random`."""

    name: str
    source: str

    @property
    def is_random(self) -> bool:
        """Whether the weights are random."""
        return self.source == RANDOM


@dataclass(frozen=True)
class ComparisonArguments:
    """What is compared.

    Attributes:
        starts: The starts, in the order of the table; the first is the reference.
        seeds: Seeds of every start: new weights, order of the data and augmentation.
        options: Options of every run; `output_dir` is the folder of the comparison.

    Raises:
        ValueError: If there is no start or no seed, or one occurs twice, or the runs are limited by
            time and not by steps.
    """

    starts: tuple[Start, ...]
    seeds: tuple[int, ...]
    options: FinetuningArguments

    def __post_init__(self) -> None:
        names = [start.name for start in self.starts]
        for what, entries in (("starts", names), ("seeds", list(self.seeds))):
            if not entries or len(set(entries)) != len(entries):
                raise ValueError(
                    f"`{what}` must be different and at least one, got {entries or 'none'}."
                )
        if self.options.max_train_minutes is not None:
            raise ValueError(
                "`max_train_minutes` gives every run another number of steps; use "
                "--max_train_steps."
            )


def parse_start(text: str) -> Start:
    """A start from `NAME=CHECKPOINT` or `NAME=random`.

    Raises:
        ValueError: If it is not of this form, or the name is no name of a folder.
    """
    name, equals, source = text.partition("=")
    if not equals or not source or not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(
            f"`start` must be NAME=CHECKPOINT or NAME=random with a name of letters, digits, '-' "
            f"and '_', got {text!r}."
        )
    return Start(name, source)


def parse_comparison_arguments(argv: Sequence[str] | None = None) -> ComparisonArguments:
    """Arguments from the command line: starts, seeds, and all flags of fine-tuning.

    Args:
        argv: The words of the command line; None takes those of the process.

    Raises:
        SystemExit: With status 2 and one sentence on stderr, if a flag or a value is wrong.
    """
    parser = parser_for(FinetuningArguments, "Fine-tune from several starts and compare.")
    parser.add_argument(
        "--start",
        action="append",
        metavar="NAME=CHECKPOINT",
        help="a start, or NAME=random; repeat it. Known names get their published row",
    )
    parser.add_argument("--seeds", default="0,1,2", help="seeds of every start: N,N,...")
    parser.add_argument(
        "--transfer",
        choices=("backbone", "appearance"),
        default="backbone",
        help="what a start brings: the backbone only (all starts alike), or AMD's head as well",
    )
    # The comparison sets these itself.
    parser.set_defaults(reset_head=None, model_name_or_path=None, checkpoints_total_limit=1)
    return _from_namespace(parser, parser.parse_args(argv))


def _from_namespace(
    parser: argparse.ArgumentParser, values: argparse.Namespace
) -> ComparisonArguments:
    options = vars(values)
    starts, seeds = options.pop("start") or [], options.pop("seeds")
    transfer = options.pop("transfer")
    try:
        if options["model_name_or_path"] is not None or options["reset_head"] is not None:
            raise ValueError(
                "`model_name_or_path` and `reset_head` belong to one run; use --start and "
                "--transfer."
            )
        options["reset_head"] = transfer == "backbone"
        if not all(part.strip().isdecimal() for part in seeds.split(",")):
            raise ValueError(f"`seeds` must be N,N,... of numbers from 0 on, got {seeds!r}.")
        return ComparisonArguments(
            tuple(parse_start(text) for text in starts),
            tuple(int(part) for part in seeds.split(",")),
            FinetuningArguments(**options),
        )
    except ValueError as error:
        parser.error(str(error))


def start_config(start: Start, token: str | None = None) -> AMDConfig:
    """The configuration of the checkpoint of a start.

    Raises:
        ValueError: If it cannot be loaded or is neither AMD nor a ResNet.
    """
    try:
        config = AutoConfig.from_pretrained(start.source, token=token)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"`start` {start.name}: {start.source!r} cannot be loaded: {error}"
        ) from error
    if isinstance(config, ResNetConfig):
        return amd_config_of_resnet(config)
    if not isinstance(config, AMDConfig):
        raise ValueError(
            f"`start` {start.name} must be an AMD or a ResNet checkpoint, got the kind "
            f"`{config.model_type}`."
        )
    return config


def common_config(args: ComparisonArguments) -> AMDConfig | None:
    """The one architecture of all checkpoints; None if every start is random.

    Raises:
        ValueError: If two checkpoints are of different architectures.
    """
    found: tuple[Start, AMDConfig] | None = None
    for start in args.starts:
        if start.is_random:
            continue
        config = start_config(start, args.options.hub_token)
        if found is None:
            found = (start, config)
            continue
        differing = [
            f"{name} {getattr(found[1], name)} and {getattr(config, name)}"
            for name in ARCHITECTURE
            if getattr(found[1], name) != getattr(config, name)
        ]
        if differing:
            raise ValueError(
                f"The starts {found[0].name} and {start.name} are of different architectures: "
                f"{'; '.join(differing)}; compare starts of one architecture."
            )
    return found[1] if found is not None else None


def run_folder(args: ComparisonArguments, start: Start, seed: int) -> Path:
    """The folder of one run."""
    return Path(args.options.output_dir) / "runs" / start.name / f"seed_{seed}"


def run_options(
    args: ComparisonArguments, start: Start, seed: int, config_folder: Path | None
) -> FinetuningArguments:
    """The options of one run: those of the comparison with this start and this seed."""
    changes: dict[str, Any] = {
        "output_dir": str(run_folder(args, start, seed)),
        "seed": seed,
        "push_to_hub": False,
    }
    if start.is_random:
        # Nothing to reset; the same architecture as the checkpoints.
        changes["reset_head"] = False
        if config_folder is not None:
            changes |= {"config_name": str(config_folder), "config_overrides": ""}
    else:
        changes |= {"model_name_or_path": start.source, "config_overrides": ""}
        if Path(start.source).is_dir():
            changes["model_name_or_path"] = str(Path(start.source).resolve())
    if list_checkpoints(run_folder(args, start, seed)):
        changes["resume_from_checkpoint"] = "latest"
    return replace(args.options, **changes)


def compare(args: ComparisonArguments) -> dict[str, Any]:
    """Runs what is missing and writes the report.

    Args:
        args: What is compared.

    Returns:
        The report that is also in `OUTPUT_DIR/comparison.json`; its `end` is "complete", or the
        signal that stopped a run.

    Raises:
        ImportError: If the `train` extra is not installed.
        ValueError: If a start, the data or an option cannot be used, or a finished run in the
            folder had other options; raised before the first run.
    """
    from accelerate import PartialState

    from amd_hf.training.comparison_report import write_report
    from amd_hf.training.finetuning import finetune
    from amd_hf.training.finetuning_data import open_semantic_data

    config = common_config(args)
    open_semantic_data(args.options)
    output_dir = Path(args.options.output_dir)
    config_folder = None
    if config is not None:
        config_folder = output_dir / "config"
        config_folder.mkdir(parents=True, exist_ok=True)
        AMDConfig(
            **{name: getattr(config, name) for name in ARCHITECTURE},
            image_mean=config.image_mean,
            image_std=config.image_std,
        ).save_pretrained(config_folder)
    plan = [(start, seed) for seed in args.seeds for start in args.starts]
    finished = {}
    for start, seed in plan:
        results = finished_run(run_options(args, start, seed, config_folder))
        if results is not None:
            finished[start.name, seed] = results
    end = "complete"
    for number, (start, seed) in enumerate(plan, start=1):
        if (start.name, seed) in finished:
            continue
        logger.info("Run %d of %d: %s, seed %d.", number, len(plan), start.name, seed)
        results = finetune(run_options(args, start, seed, config_folder))
        if not (run_folder(args, start, seed) / RESULTS_FILE).is_file():
            end = str(results["end"])
            break
        finished[start.name, seed] = results
    report = {"end": end, **summarize(args, finished)}
    if finished and PartialState().is_main_process:
        write_text_atomically(output_dir / COMPARISON_FILE, json.dumps(report, indent=1))
        write_report(args, report)
    return report


def finished_run(options: FinetuningArguments) -> dict[str, Any] | None:
    """The results of a run that has ended; None if it has not.

    Raises:
        ValueError: If it was run with other options.
    """
    path = Path(options.output_dir) / RESULTS_FILE
    if not path.is_file():
        return None
    results: dict[str, Any] = json.loads(path.read_text())
    wanted = {name: v for name, v in options.to_dict().items() if name not in OWN_OPTIONS}
    changed = [
        f"{name} was {results['options'].get(name)!r}, is {value!r}"
        for name, value in wanted.items()
        if results["options"].get(name) != value
    ]
    if changed:
        raise ValueError(
            f"{path.parent} holds a run with other options: {'; '.join(changed)}; choose another "
            "--output_dir, or remove the run."
        )
    return results


def summarize(
    args: ComparisonArguments, finished: dict[tuple[str, int], dict[str, Any]]
) -> dict[str, Any]:
    """Mean and standard deviation over the seeds of every start.

    Args:
        args: What is compared.
        finished: Results by name of the start and seed.

    Returns:
        `starts`: a row per start with `mean_iou` (a value per seed, of the last weights), `mean`,
        `standard_deviation` (of the sample; None for one seed), `best_mean` (of the best evaluation
        of each run), `gain` over the first start and `published`; `num_images` that were scored;
        and the settings.
    """
    rows: list[dict[str, Any]] = []
    for start in args.starts:
        runs = {seed: finished.get((start.name, seed)) for seed in args.seeds}
        values = {seed: run["scores"]["mean_iou"] for seed, run in runs.items() if run}
        best = [run["best_scores"]["mean_iou"] for run in runs.values() if run]
        mean = statistics.fmean(values.values()) if values else None
        reference = rows[0]["mean"] if rows else mean
        rows.append(
            {
                "name": start.name,
                "source": start.source,
                "mean_iou": values,
                "mean": mean,
                "standard_deviation": statistics.stdev(values.values())
                if len(values) > 1
                else None,
                "best_mean": statistics.fmean(best) if best else None,
                "gain": mean - reference if mean is not None and reference is not None else None,
                "published": PUBLISHED.get(start.name),
            }
        )
    return {
        "starts": rows,
        "seeds": list(args.seeds),
        "num_images": max((run["scores"]["num_images"] for run in finished.values()), default=0),
        "num_missing": len(args.starts) * len(args.seeds) - len(finished),
        "options": args.options.to_dict(),
    }
