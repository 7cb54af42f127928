"""Entry point of `amd-hf segment | evaluate | report | demo`.

Only the module of the command that is called gets imported, so that `amd-hf segment` works without
the extras of the others.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from importlib import import_module

from amd_hf._version import __version__

COMMANDS = ("segment", "evaluate", "report", "demo")
INTERRUPTED = 130


def build_parser(commands: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """The argument parser with the given commands; each module adds its own."""
    parser = argparse.ArgumentParser(
        prog="amd-hf",
        description="Unsupervised object segmentation of images and videos.",
    )
    parser.add_argument("--version", action="version", version=f"amd-hf {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in commands:
        import_module(f"amd_hf.cli.{command}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 all done, 2 wrong arguments or a failed input.

    Args:
        argv: Arguments without the program's name; None takes those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files may have no letters in the encoding of the terminal.
        sys.stdout.reconfigure(errors="backslashreplace")
    called = [argument for argument in arguments[:1] if argument in COMMANDS]
    args = build_parser(called or COMMANDS).parse_args(arguments)
    try:
        return int(import_module(f"amd_hf.cli.{args.command}").run(args))
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted.\n")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
