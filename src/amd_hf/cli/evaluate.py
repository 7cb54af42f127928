"""`amd-hf evaluate`: score a model on a benchmark, write JSON."""

import argparse
import csv
import json
import logging
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from amd_hf.cli.adaptation_objectives import SEGMENT_FLOW, offered_objectives
from amd_hf.whole_files import written_aside

PROGRAM = "amd-hf evaluate"
EXIT_WRONG_INPUT = 2
EXIT_INTERRUPTED = 130
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
NESTED_COLUMNS = ("per_segment",)
# Options that belong to the record of a result, with their defaults.
RECORDED_OPTIONS: dict[str, Any] = {
    "adapt_steps": 0,
    "adapt_objective": None,
    "adapt_set": [],
    "adapt_chunk": None,
    "threshold": 0.5,
    "object_segment": None,
    "controls": False,
    "baseline": [],
    "refine": [],
    "stretch": False,
    "strict": False,
    "bootstrap": 1000,
    "seed": 0,
    "batch_size": 1,
    "autocast": None,
    "short_side": None,
    "sequences": None,
    "limit_frames": None,
    "stride": 1,
}


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the command to `subparsers`.

    Args:
        subparsers: What `ArgumentParser.add_subparsers` returned.

    Returns:
        The parser of the command.
    """
    parser = subparsers.add_parser(
        "evaluate",
        help="score a model on a benchmark",
        description="Scores a model on a benchmark and writes the result as JSON.",
        epilog=(
            "Benchmarks: davis2016, segtrackv2, fbms59, fbms59-test, duts-te, ecssd, pascal-s, "
            "dut-omron, hku-is, voc2012 (class segmentation of a fine-tuned model), duts-tr-dev. "
            "Over several processes: torchrun --nproc_per_node N -m amd_hf.cli evaluate ..."
        ),
    )
    parser.add_argument("benchmark", help="name of the benchmark, such as davis2016")
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument("--model", metavar="ID", help="Hub id or folder (default: bundled)")
    parser.add_argument("--device", metavar="D", help="such as cpu, cuda or mps (default: best)")
    parser.add_argument("--output", metavar="FILE.json", type=Path, help="result file to write")
    parser.add_argument("--rows", metavar="FILE.csv", type=Path, help="rows as CSV, too")
    parser.add_argument(
        "--contact-sheet", metavar="FILE.png", type=Path, help="best, median and worst results"
    )
    parser.add_argument("--json", action="store_true", help="print the result on stdout as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    _add_protocol(parser.add_argument_group("protocol"))
    _add_subset(parser.add_argument_group("quick looks (marked as a subset in the result)"))
    parser.set_defaults(run=run)
    return parser


def _add_protocol(group: Any) -> None:
    """Options that define the protocol."""
    group.add_argument("--adapt-steps", type=int, default=0, help="adapt to each video first")
    group.add_argument(
        "--adapt-objective",
        metavar="NAME",
        help="video_mask (masks of the whole video; the default), segment_flow (the published "
        "loss), or another training objective",
    )
    group.add_argument(
        "--adapt-set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="further setting of the adaptation, such as learning_rate=3e-4; may be repeated",
    )
    group.add_argument("--adapt-chunk", type=int, metavar="N", help="frames per adapted copy")
    group.add_argument("--threshold", type=float, default=0.5, help="of the soft mask")
    group.add_argument("--object-segment", type=int, metavar="K", help="default: the model's")
    group.add_argument("--controls", action="store_true", help="center ellipse, random init")
    group.add_argument(
        "--baseline", action="append", default=[], metavar="NAME", help="rbd, hs, mc, dsr or motion"
    )
    group.add_argument(
        "--refine",
        action="append",
        default=[],
        metavar="NAME",
        help="flips, scales, common-motion, temporal or guided-filter; may be repeated",
    )
    group.add_argument("--stretch", action="store_true", help="stretch soft masks to [0, 1]")
    group.add_argument("--strict", action="store_true", help="refuse an incomplete data set")
    group.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="resamples")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--batch-size", type=int, default=1)
    group.add_argument("--autocast", choices=("bfloat16", "float16"), help="mixed precision")
    group.add_argument("--short-side", type=int, metavar="PX", help="of the model's input")


def _add_subset(group: Any) -> None:
    """Options that leave something out."""
    group.add_argument("--sequences", metavar="A,B,C", help="score these sequences only")
    group.add_argument("--limit-frames", type=int, metavar="N", help="per sequence; images in all")
    group.add_argument("--stride", type=int, default=1, metavar="N", help="every n-th frame")


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Args:
        args: Parsed arguments.

    Returns:
        0 when done, 2 when something the user gave is wrong, 130 when interrupted.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        result = _evaluate_together(args)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        sys.stderr.write(f"{PROGRAM}: {_one_line(error)}\n")
        return EXIT_WRONG_INPUT
    except KeyboardInterrupt:
        again = " Run the same command again to go on." if args.output else ""
        sys.stderr.write(f"{PROGRAM}: interrupted.{again}\n")
        return EXIT_INTERRUPTED
    if not result:  # the main process tells
        return 0
    if args.json:
        sys.stdout.write(json.dumps(result) + "\n")
    else:
        from amd_hf.evaluation.report import summary_text

        sys.stdout.write(summary_text(result) + "\n")
    return 0


def _evaluate_together(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluates with the other processes of a launcher, if there is one."""
    from amd_hf.data.ranks import Ranks

    with Ranks.from_environment() as ranks:
        return _evaluate(args, ranks)


def _evaluate(args: argparse.Namespace, ranks: Any) -> dict[str, Any]:
    """Checks the arguments, evaluates and writes the files; empty but in the main process."""
    from amd_hf.data.benchmarks import open_benchmark
    from amd_hf.evaluation import EvaluationSettings, evaluate_benchmark

    args.adapt_objective = _objective(args)
    settings = EvaluationSettings(
        threshold=args.threshold,
        object_segment=args.object_segment,
        adapt_steps=args.adapt_steps,
        adapt_settings=_adapt_settings(args),
        adapt_chunk=args.adapt_chunk,
        refinements=tuple(args.refine),
        sequences=None if args.sequences is None else tuple(args.sequences.split(",")),
        limit_frames=args.limit_frames,
        stride=args.stride,
        short_side=args.short_side,
        batch_size=args.batch_size,
        autocast=args.autocast,
        stretch=args.stretch,
        num_bootstrap=args.bootstrap,
        seed=args.seed,
    )
    # Everything that can be wrong is found before the first forward pass.
    for path in (args.output, args.rows, args.contact_sheet) if ranks.is_main else ():
        _check_writable(path)
    if args.contact_sheet is not None and args.contact_sheet.suffix.lower() not in PICTURE_SUFFIXES:
        raise ValueError(
            f"`--contact-sheet` must end in {' or '.join(PICTURE_SUFFIXES)}, got "
            f"{args.contact_sheet.name!r}."
        )
    benchmark = open_benchmark(
        args.benchmark, args.data, sequences=settings.sequences, strict=args.strict
    )
    model, processor, name = load_model(
        args.model,
        args.device or ranks.device(_best_device()),
        is_semantic=benchmark.kind == "semantic",
    )
    result = evaluate_benchmark(
        model,
        processor,
        benchmark,
        settings=settings,
        controls=args.controls,
        baselines=args.baseline,
        resume_file=None if args.output is None else Path(f"{args.output}.unfinished"),
        contact_sheet=args.contact_sheet,
        model_name=name,
        progress=not args.quiet and ranks.is_main,
        ranks=ranks,
    )
    if not ranks.is_main:
        return {}
    result["command"] = command_line(args)
    if args.output is not None:
        write_json(args.output, result)
    if args.rows is not None:
        write_csv(args.rows, result["rows"])
    return result


def command_line(args: argparse.Namespace) -> str:
    """The command as others would type it: without the places of this machine.

    Args:
        args: Parsed arguments.

    Returns:
        One line: the data folder is `DIR`, an absolute model path its last part, and what only
        says where to write or how to show progress is left out.
    """
    parts = ["amd-hf", "evaluate", args.benchmark, "--data", "DIR"]
    if args.model is not None:
        path = Path(args.model)
        parts += ["--model", path.name if path.is_absolute() else args.model]
    for name, default in RECORDED_OPTIONS.items():
        value = getattr(args, name)
        option = f"--{name.replace('_', '-')}"
        if value is True:
            parts.append(option)
        elif isinstance(value, list):
            parts += [part for entry in value for part in (option, entry)]
        elif value != default:
            parts += [option, str(value)]
    return shlex.join(parts)


def _objective(args: argparse.Namespace) -> str | None:
    """The objective of the adaptation; None without adaptation, or where `--adapt-set` names it."""
    named = any(text.startswith("objective=") for text in args.adapt_set)
    if named and args.adapt_objective is not None:
        raise ValueError("Give the objective once: `--adapt-objective` or `--adapt-set`, not both.")
    if named or not args.adapt_steps:
        return args.adapt_objective
    return args.adapt_objective or offered_objectives()[0]


def _adapt_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of the adaptation; the published objective is the one without a name."""
    settings = dict(_setting(text) for text in args.adapt_set)
    if args.adapt_objective not in (None, SEGMENT_FLOW):
        settings["objective"] = args.adapt_objective
    return settings


def _setting(text: str) -> tuple[str, Any]:
    """`name=value` as a pair; the value is JSON where it parses, else text."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ValueError(
            f"`--adapt-set` takes NAME=VALUE, got {text!r}; for example learning_rate=3e-4."
        )
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _check_writable(path: Path | None) -> None:
    """Raises OSError where a file cannot be written."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file to write.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        with path.open("ab"):
            pass
    # Not by a file of that name: killed here, an empty one would be left to be taken for a result.
    with tempfile.TemporaryFile(dir=path.parent):
        pass


def load_model(model: str | None, device: str | None, *, is_semantic: bool) -> tuple[Any, Any, str]:
    """A model with its processor, and its name for the report.

    Args:
        model: Hub id or folder; None takes the bundled checkpoint.
        device: Torch device; None takes CUDA, else MPS, else the CPU.
        is_semantic: Whether to load the class segmentation model.

    Returns:
        Model in eval mode, image processor and name.

    Raises:
        OSError: If there is no such model.
        ValueError: If it is another kind of model, or the device is unknown.
    """
    import torch

    from amd_hf import (
        DEFAULT_CHECKPOINT,
        AMDConfig,
        AMDForSemanticSegmentation,
        AMDImageProcessor,
        AMDModel,
    )
    from amd_hf.cli.checkpoints import LOAD_ERRORS, unusable_checkpoint

    source = model or DEFAULT_CHECKPOINT
    try:
        target = torch.device(device or _best_device())
        torch.zeros(1, device=target)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`--device` must name a torch device, got {device!r}.") from error
    kind: Any = AMDForSemanticSegmentation if is_semantic else AMDModel
    try:
        loaded = kind.from_pretrained(source)
        processor = AMDImageProcessor.from_pretrained(source)
    except LOAD_ERRORS as error:
        raise unusable_checkpoint(str(source), error) from error
    if not isinstance(loaded.config, AMDConfig):
        raise ValueError(f"{source} is a {loaded.config.model_type} model; an AMD model is needed.")
    name = f"bundled {Path(source).name}" if model is None else model
    return loaded.to(target).eval(), processor, name


def _best_device() -> str:
    """CUDA, else MPS, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _one_line(error: BaseException) -> str:
    """The message of an error on one line."""
    text = " ".join(str(error).split())
    return text or type(error).__name__


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Writes a result by rename, so that a crash leaves no half file."""
    with written_aside(path) as partial:
        partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the plain columns of the rows, by rename."""
    columns = [key for key in rows[0] if key not in NESTED_COLUMNS]
    with written_aside(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
