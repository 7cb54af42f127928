"""What `amd-hf segment` says about values that are no numbers of the wanted kind."""

from __future__ import annotations

import argparse

import pytest

from amd_hf.cli.segment_options import add_segment_options


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_segment_options(parser)
    return parser.parse_args(["photo.jpg", "--output", "out", *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--adapt-steps", "many"), "must be a whole number from 0 on, got 'many'"),
        (("--seed=-1",), "must be a whole number from 0 on, got '-1'"),
        (("--fps", "fast"), "must be a positive number, got 'fast'"),
        (("--adapt-seconds", "0"), "must be a positive number, got '0'"),
        (("--threshold", "half"), "must be a number in [0, 1), got 'half'"),
        (("--threshold", "1"), "must be a number in [0, 1), got '1'"),
    ],
)
def test_wrong_numbers(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(*words)
    assert message in capsys.readouterr().err


def test_right_numbers() -> None:
    args = parse("--adapt-steps", "3", "--fps", "12.5", "--threshold", "0")
    assert (args.adapt_steps, args.fps, args.threshold) == (3, 12.5, 0.0)
