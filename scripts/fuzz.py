"""Feeds damaged and hostile input to the real readers of the package and counts what comes out.

    python scripts/fuzz.py --family images --count 10000 --seed 1 --output_dir runs/fuzz
    python scripts/fuzz.py --count 300                      # all families, a short run
    python scripts/fuzz.py --family images --seed 1 --case 4711   # one case again, with its input

Cases run in a child process with a time limit each. A family passes if nothing but documented
exceptions with the file and the reason in their message comes out, nothing crashes or hangs, and
neither memory nor open files grow. An interrupted run goes on with the same command. Exit code 0:
all families passed; 1: something was found, its input is in OUTPUT_DIR/FAMILY/failures.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the fuzzer is a part of the tests, which are not installed

from tests.fuzzing.families import FAMILY_NAMES  # noqa: E402
from tests.fuzzing.supervisor import Result, read_result, run_family  # noqa: E402


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=FAMILY_NAMES, action="append", help="all if absent")
    parser.add_argument("--count", type=int, default=300, help="cases per family (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the cases (%(default)s)")
    parser.add_argument("--case", type=int, help="run this case only")
    parser.add_argument(
        "--seconds_per_case", type=float, default=20.0, help="computing time (%(default)s)"
    )
    parser.add_argument("--report", action="store_true", help="table of the saved results only")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "fuzz")
    args = parser.parse_args(arguments)
    if args.count < 1 or args.seconds_per_case <= 0 or (args.case is not None and args.case < 0):
        parser.error("`--count`, `--seconds_per_case` and `--case` must not be negative or zero.")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Runs the families one after the other; returns the exit code."""
    args = parse_arguments(arguments)
    if args.report:
        names = args.family or FAMILY_NAMES
        saved = [read_result(args.output_dir / f"{name}.json") for name in names]
        found = [result for result in saved if result is not None]
        print(table(found))
        return 0 if all(result.has_passed for result in found) else 1
    results = []
    for family in args.family or FAMILY_NAMES:
        result = run_family(
            family,
            1 if args.case is not None else args.count,
            args.seed,
            args.output_dir,
            seconds_per_case=args.seconds_per_case,
            first=args.case,
        )
        results.append(result)
        print(describe(result), flush=True)
    print(table(results))
    return 0 if all(result.has_passed for result in results) else 1


def describe(result: Result) -> str:
    """What a run of one family found, with one example of every kind of failure."""
    lines = [f"{result.family}: {'passed' if result.has_passed else 'FAILED'}"]
    kinds: Counter[str] = Counter()
    for failure in result.failures:
        for reader, detail in failure["failures"]:
            kind = f"{reader}: {detail.splitlines()[-1][:160]}"
            if not kinds[kind]:
                lines += [f"  case {failure['case']} ({failure['what']}), {reader}:", detail]
            kinds[kind] += 1
    lines += [f"  {count} x {kind}" for kind, count in kinds.most_common()]
    lines += [
        f"  crash in case {c['case']} (code {c['code']}): {c['stderr']}" for c in result.crashes
    ]
    lines += [f"  hang in case {number}" for number in result.hangs]
    return "\n".join(lines)


def table(results: list[Result]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| family | damaged inputs | reads | accepted | refused | undocumented | crashes | hangs |"
        " memory growth | open files growth | peak memory | slowest case | time |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        accepted, refused = result.verdicts("accepted"), result.verdicts("refused")
        failed = result.verdicts("failed")
        cells = [result.family, f"{result.done:,}", f"{accepted + refused + failed:,}"]
        cells += [f"{accepted:,}", f"{refused:,}", f"{failed:,}", str(len(result.crashes))]
        cells += [str(len(result.hangs)), f"{result.growth_mb:+.1f} MB"]
        cells += [f"{result.grown_files:+.0f}", f"{result.peak_mb:.0f} MB"]
        cells += [f"{result.slowest[0]:.1f} s", f"{result.seconds:.0f} s"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
