"""Kills work at random moments and checks that nothing is lost and nothing is half.

    python scripts/fault_injection.py --kills 10                      # all five kinds of work
    python scripts/fault_injection.py --work packing export --kills 4 --seed 7

Each kind of work runs once undisturbed. Then it is run into another folder, gets SIGKILL at random
changes of that folder (a file opened, renamed or deleted, so also within a checkpoint) or by the
clock, alone or with its worker processes, and is started again with the documented command to go
on, until the wanted number of kills. After every kill, whatever has its final name must be whole;
at the end, everything must be what the undisturbed run wrote, bit by bit. Prints one JSON object;
exit code 1 if anything was not so.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.faults.killing import Campaign  # noqa: E402
from tests.faults.workloads import WORKLOADS  # noqa: E402


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Returns the arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted(WORKLOADS)
    parser.add_argument("--work", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--kills", type=int, default=10, help="kills of each kind of work")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--folder", type=Path, default=Path("runs/faults"), help="for the outputs")
    arguments = parser.parse_args(words)
    if arguments.kills < 1:
        parser.error(f"`--kills` must be at least 1, got {arguments.kills}.")
    return arguments


def main(words: list[str] | None = None) -> int:
    """Runs the campaigns one after the other; returns the exit code."""
    arguments = parse_arguments(words)
    results = {}
    for name in arguments.work:
        folder = (arguments.folder / name).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            report = Campaign(WORKLOADS[name](folder), folder, arguments.seed).run(arguments.kills)
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        results[name] = report.as_dict()
        print(f"{name}: {json.dumps(results[name])}", file=sys.stderr)
    print(json.dumps({"seed": arguments.seed, **results}, indent=2))
    return 1 if any(result["problems"] for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
