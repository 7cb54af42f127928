#!/usr/bin/env python
"""Converts a checkpoint of the published AMD code for `AMDModel.from_pretrained`.

Example:
    python scripts/convert_official_checkpoint.py amd_pretrained.pth converted/
"""

from __future__ import annotations

import argparse
import sys

from amd_hf.hub.convert_official import convert_official_checkpoint, format_key_table


def main(arguments: list[str] | None = None) -> int:
    """Runs the conversion; returns 0, or 2 with one sentence on stderr where it is refused."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help=".pth, .pt or .safetensors file of the published code")
    parser.add_argument("output_dir", help="folder to write")
    parser.add_argument(
        "--object_segment",
        type=int,
        default=0,
        help="segment that is the object (the published README says 0, its code reads 1)",
    )
    parser.add_argument("--quiet", action="store_true", help="print no key table")
    options = parser.parse_args(arguments)
    try:
        report = convert_official_checkpoint(
            options.checkpoint, options.output_dir, options.object_segment
        )
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    if not options.quiet:
        print(format_key_table(report.rows))
    for name in report.extra_keys:
        print(f"left out, not part of the model: {name}")
    print(
        f"{len(report.rows)} tensors ({report.num_parameters:,} parameters) converted, "
        f"{len(report.extra_keys)} left out; object segment {report.config.object_segment}; "
        f"written to {report.output_dir}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
