"""Tests of what the training scripts share: flags of a dataclass, errors and exit codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from amd_hf.data.frame_pairs import open_source
from amd_hf.data.semantic_images import parse_label_names
from amd_hf.training.arguments import PretrainingArguments
from amd_hf.training.checkpointing import CheckpointError
from amd_hf.training.command_line import run_command
from amd_hf.training.data_stream import source_of
from amd_hf.training.finetuning_arguments import FinetuningArguments
from amd_hf.training.interrupts import DataStreamError, RunError
from amd_hf.training.options import option, parser_for


@dataclass(kw_only=True)
class Options:
    """One option of every kind."""

    number: int = option(3, "a number")
    share: float | None = option(None, "a share")
    name: str = option("a", "a name")
    fast: bool = option(False, "a switch")


def raising(error: Exception) -> Callable[[], Mapping[str, Any]]:
    def action() -> Mapping[str, Any]:
        raise error

    return action


@pytest.mark.parametrize(
    ("end", "code"), [("max_train_steps", 0), ("collapse", 0), ("SIGTERM", 143), ("SIGINT", 130)]
)
def test_the_exit_code_says_why_a_run_ended(end: str, code: int) -> None:
    assert run_command(lambda: {"end": end}) == code


@pytest.mark.parametrize("kind", [ValueError, ImportError, CheckpointError])
def test_an_input_error_is_one_sentence(
    kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(raising(kind("`x` must be 1, got 2."))) == 2
    assert capsys.readouterr().err == "error: `x` must be 1, got 2.\n"


def test_data_that_end_have_a_code_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(raising(DataStreamError("The data cannot be read any further."))) == 1
    assert capsys.readouterr().err == "error: The data cannot be read any further.\n"


def test_a_run_that_cannot_go_on_says_why_in_one_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command(raising(RunError("2 steps had no finite gradient; lower the rate."))) == 1
    assert capsys.readouterr().err == "error: 2 steps had no finite gradient; lower the rate.\n"


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError()))


def test_every_field_is_a_flag() -> None:
    parser = parser_for(Options, "Options.")
    assert Options(**vars(parser.parse_args([]))) == Options()
    words = ["--number", "4", "--share", "0.5", "--name", "b", "--fast"]
    assert Options(**vars(parser.parse_args(words))) == Options(
        number=4, share=0.5, name="b", fast=True
    )
    assert parser.parse_args(["--fast", "no"]).fast is False
    assert "a share" in parser.format_help()


@pytest.mark.parametrize("words", [["--fast", "perhaps"], ["--number", "x"], ["--num", "4"]])
def test_a_wrong_flag_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parser_for(Options, "Options.").parse_args(words)
    assert "error:" in capsys.readouterr().err


TOO_LONG = "x" * 300  # no file can have this name


@pytest.mark.parametrize("option_name", ["config_name", "resume_from_checkpoint"])
@pytest.mark.parametrize(
    ("kind", "required"),
    [
        (PretrainingArguments, {"dataset": "generated"}),
        (FinetuningArguments, {"dataset_name": "folder"}),
    ],
)
def test_names_that_no_file_can_have_are_refused(
    kind: type[Any], required: dict[str, str], option_name: str
) -> None:
    with pytest.raises(ValueError, match=f"`{option_name}` must be"):
        kind(**required, output_dir="out", **{option_name: TOO_LONG})


def test_sources_that_no_file_can_be_are_refused() -> None:
    assert source_of(f"{TOO_LONG},generated") == [TOO_LONG, "generated"]
    with pytest.raises(ValueError, match="does not exist; check the path"):
        open_source(f"{TOO_LONG}.zip")


def test_many_class_names_are_no_file() -> None:
    names = [f"class number {number}" for number in range(150)]
    assert list(parse_label_names(",".join(names))) == names
