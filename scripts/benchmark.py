"""Measure AMD's speed beside the published computation and the machine's own limits.

    python scripts/benchmark.py                        # the published configuration, all sections
    python scripts/benchmark.py --preset small --sections training inference
    python scripts/benchmark.py --quick                # seconds; checks that everything runs
    python scripts/benchmark.py --into docs/performance.md   # and the tables into a page

Writes benchmark.json, benchmark.md and a figure to `--output`, and into the page, after every
section, and prints the tables.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from amd_hf.benchmarking.report import check_page, markdown, write_into, write_report
from amd_hf.benchmarking.suite import PRESETS, SECTIONS, BenchmarkSettings, run_benchmark


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    defaults = BenchmarkSettings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), help="architecture [official]")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, help=f"rounds of each piece [{defaults.rounds}]")
    parser.add_argument("--crop", type=int, help=f"side of training crops [{defaults.crop}]")
    parser.add_argument("--batch", type=int, help=f"pairs per training step [{defaults.batch}]")
    parser.add_argument("--num_steps", type=int, help="adaptation steps that are timed")
    parser.add_argument("--num_threads", type=int, help="threads of torch [all cores]")
    parser.add_argument("--loader_source", help="frame pairs of the loader [generated 480p JPEGs]")
    parser.add_argument("--no_compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--into", metavar="PAGE.md", help="replace the text between its marks")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; figures mean little")
    parser.add_argument("--output", default="benchmark_output", help="folder of the two files")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    args = parse_arguments(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    for name in ("onnxscript", "onnx_ir", "torch.onnx"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    chosen = {
        name: getattr(args, name)
        for name in ("preset", "device", "rounds", "crop", "batch", "num_steps", "loader_source")
        if getattr(args, name) is not None
    }
    if args.no_compile:
        chosen["compiles"] = False
    base = BenchmarkSettings.quick() if args.quick else BenchmarkSettings()
    try:
        if args.into:
            check_page(args.into)
        settings = replace(base, **chosen)
        sections = tuple(args.sections)
        result = run_benchmark(settings, sections, lambda sofar: _keep(sofar, args))
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for file in _keep(result, args):
        print(f"wrote {file}", file=sys.stderr)
    print(markdown(result))
    return 1 if result["failures"] else 0


def _keep(result: dict[str, Any], args: argparse.Namespace) -> tuple[Path, ...]:
    """Writes what there is so far; returns the files."""
    files = write_report(result, args.output)
    return files + write_into(result, args.into) if args.into else files


if __name__ == "__main__":
    sys.exit(main())
