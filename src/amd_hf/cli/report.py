"""`amd-hf report`: result files in, Markdown tables out."""

import argparse
import sys
from pathlib import Path
from typing import Any

EXIT_WRONG_INPUT = 2


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the command to `subparsers`.

    Args:
        subparsers: What `ArgumentParser.add_subparsers` returned.

    Returns:
        The parser of the command.
    """
    parser = subparsers.add_parser(
        "report",
        help="render results as Markdown",
        description="Renders result files of `amd-hf evaluate` as Markdown tables.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE.json", type=Path, help="result files")
    parser.add_argument("--output", metavar="FILE.md", type=Path, help="write here, not to stdout")
    parser.add_argument(
        "--into",
        action="append",
        default=[],
        metavar="FILE.md",
        type=Path,
        help="put the tables between the result marks of this file; may be repeated",
    )
    facts = parser.add_argument_group("how the evaluated model was trained (video tables)")
    facts.add_argument("--e2e", default="-", help="yes or no: end to end")
    facts.add_argument("--supervision", default="-", help="labels it saw, such as none")
    facts.add_argument("--flow", default="-", help="dense flow it was given, such as none")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Args:
        args: Parsed arguments.

    Returns:
        0 when done, 2 when a file is missing or no result.
    """
    from amd_hf.evaluation.report import insert_report, load_result, render_report

    try:
        report = render_report(
            [load_result(path) for path in args.files], (args.e2e, args.supervision, args.flow)
        )
        for path in args.into:
            insert_report(path, report)
        if args.output is not None:
            args.output.write_text(report, encoding="utf-8")
        elif not args.into:
            sys.stdout.write(report)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"amd-hf report: {' '.join(str(error).split())}\n")
        return EXIT_WRONG_INPUT
    return 0
