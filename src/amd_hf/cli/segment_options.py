"""The options of `amd-hf segment`."""

from __future__ import annotations

import argparse

from amd_hf.cli.adaptation_objectives import SEGMENT_FLOW, VIDEO_MASK


def add_segment_options(parser: argparse.ArgumentParser) -> None:
    """Adds inputs and options to the parser of the command."""
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="image, video or folder")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--model", metavar="ID", help="Hub id or folder; the bundled checkpoint")
    parser.add_argument(
        "--adapt-steps",
        type=_count,
        default=0,
        metavar="N",
        help="adapt the model to each video for N steps first (100 in the paper); 0",
    )
    parser.add_argument(
        "--adapt-seconds", type=_positive, metavar="S", help="stop adapting to a video after S s"
    )
    parser.add_argument(
        "--adapt-objective",
        choices=(VIDEO_MASK, SEGMENT_FLOW),
        help="video_mask: what moves and stands out in the whole video (needs the train, eval or "
        "demo extra); segment_flow: the published loss; video_mask where it can run",
    )
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, mps, ...; the best one")
    parser.add_argument(
        "--threshold",
        type=_probability,
        default=0.5,
        metavar="P",
        help="a pixel is object above this probability; %(default)s",
    )
    parser.add_argument(
        "--object-segment", type=_count, metavar="K", help="segment to read; that of the model"
    )
    parser.add_argument(
        "--short-side",
        type=_count,
        metavar="PX",
        help="short side of the model's input, also of the adaptation: larger is finer and slower; "
        "that of the checkpoint",
    )
    parser.add_argument(
        "--refine", choices=("guided-filter",), help="let mask edges follow those of the image"
    )
    parser.add_argument(
        "--fps", type=_positive, metavar="F", help="frame rate of overlays; the video's, or 24"
    )
    parser.add_argument(
        "--batch-size", type=_count, metavar="B", help="frames at once; 1 on a CPU, else 8"
    )
    parser.add_argument("--seed", type=_count, default=0, metavar="N", help="of the adaptation; 0")
    parser.add_argument("--json", action="store_true", help="one JSON object per line on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress bars and no notes")


def _count(text: str) -> int:
    """Argument type: an integer from 0."""
    if not text.strip().isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on, got {text!r}")
    return int(text)


def _positive(text: str) -> float:
    """Argument type: a positive number."""
    value = _number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return value


def _probability(text: str) -> float:
    """Argument type: a number in [0, 1)."""
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be a number in [0, 1), got {text!r}")
    return value


def _number(text: str) -> float:
    """The number that a text stands for; NaN, which lies in no range, where it is none."""
    try:
        return float(text)
    except ValueError:
        return float("nan")
