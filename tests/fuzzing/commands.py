"""The words of the command lines: `amd-hf ...` and the scripts."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

from amd_hf.cli.main import build_parser, main
from tests.fuzzing import samples
from tests.fuzzing.families import Case, Family, Reader
from tests.fuzzing.mutations import mutate

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"
# Nothing here leads to a place outside of the folder of the case: some words become outputs.
WORDS = (
    *("", " ", "-", "--", "---", "-1", "0", "1", "2", "3.5", "1e3", "1e999", "nan", "inf", "-inf"),
    *(
        "1" * 5000,
        "99999999999",
        "x",
        "true",
        "false",
        "none",
        "null",
        "²",
        "١٢",
        "é",
        "\U0001f3a5",
    ),
    *(
        "a" * 300,
        "a\nb",
        "a b",
        "=",
        ",",
        ",,",
        "=1",
        "a=b",
        "a=",
        "1-2",
        "2-1",
        "0x10",
        "10x",
        "x10",
    ),
    *("32x32", "[", "[[", "{}", "%s", "{0}", "missing.png", "missing/", "photo.png", "clip.mp4"),
    *("--help", "--version", "--json", "--quiet", "--model", "--data", "--seed", "@file", "*", "?"),
    *(
        "cpu",
        "cuda:9",
        "meta",
        "mps",
        "/dev/null/x",
        "photo.png/x",
        "result.json",
        "latest",
        "tiny",
    ),
)
COMMANDS: dict[str, list[str]] = {
    "segment": [
        *("segment", "photo.png", "--output", "out", "--model", "model", "--threshold", "0.4"),
        *("--object-segment", "1", "--batch-size", "2", "--seed", "3", "--adapt-steps", "2"),
        *("--fps", "10", "--device", "cpu", "--json"),
    ],
    "evaluate": [
        *("evaluate", "ecssd", "--data", "ecssd", "--model", "model", "--output", "result2.json"),
        *("--threshold", "0.5", "--object-segment", "0", "--bootstrap", "10", "--stride", "1"),
        *("--limit-frames", "1", "--short-side", "32", "--batch-size", "1", "--device", "cpu"),
        *("--adapt-set", "learning_rate=1e-4", "--quiet", "--json"),
    ],
    "report": ["report", "result.json", "--output", "report.md", "--e2e", "yes", "--flow", "none"],
}
PARSED: dict[str, list[str]] = {
    "demo": ["--host", "127.0.0.1", "--port", "7860", "--model", "model"],
    "pretrain": [
        *("--dataset", "synthetic", "--output_dir", "out", "--crop_size", "64x64", "--flip", "0.5"),
        *(
            "--frame_gap",
            "1-2",
            "--learning_rate",
            "1e-4",
            "--max_train_steps",
            "10",
            "--seed",
            "1",
        ),
        *("--config_name", "tiny", "--ema_decay", "0.9", "--dataset_weights", "a=1,b=0.5"),
        *("--target_dt", "0.1", "--max_grad_norm", "1", "--adam_beta1", "0.9", "--shuffle", "true"),
    ],
    "finetune_semantic": [
        *("--dataset_name", "data", "--output_dir", "out", "--crop_size", "64", "--mode", "full"),
        *(
            "--learning_rate",
            "0.01",
            "--max_scale",
            "2.0",
            "--ignore_index",
            "255",
            "--flip",
            "0.5",
        ),
        *("--class_names", "a,b", "--validation_fraction", "0.1", "--color_jitter", "1.0"),
    ],
    "pretrain_moco": [
        *("--dataset", "generated", "--output_dir", "out", "--learning_rate", "0.03"),
        *("--max_train_steps", "5", "--crop_size", "64", "--seed", "0"),
    ],
    "compare_initializations": [
        *("--dataset_name", "data", "--output_dir", "out", "--start", "scratch=random"),
        *("--start", "amd=model", "--seeds", "0,1", "--max_train_steps", "10"),
    ],
    "benchmark": ["--preset", "small", "--sections", "training", "--rounds", "2", "--quick"],
    "export_model": ["--model", "model", "--formats", "onnx", "--rounds", "1"],
    "push_to_hub": ["org/name", "--model", "model", "--dry-run", "out"],
}
RUN_SCRIPTS: dict[str, list[str]] = {
    "convert_official_checkpoint": ["model/model.safetensors", "out", "--object_segment", "1"],
    "pack_youtube_vos": [
        *("--source", "frames", "--output_dir", "out", "--num_workers", "0", "--short_side", "16"),
        *("--frames_per_clip", "2", "--min_difference", "0", "--quality", "90", "--seed", "1"),
    ],
}
# Values that a run would take at their word: how many repetitions to do, and how large.
COSTLY = ("--bootstrap", "--batch-size", "--adapt-steps", "--short-side", "--num_workers")
# Not to be called with other words: they would send something or start a server.
FORBIDDEN = ("--hub_dataset_id", "--baseline", "--controls")


class ArgumentError(ValueError):
    """A command refused its arguments or an input with exit code 2; the message is its stderr."""


def run_command(argv: Sequence[str], call: Callable[[Sequence[str]], Any] = main) -> None:
    """Calls a command in this process.

    Args:
        argv: Its words.
        call: What takes them and returns the exit code, or an object once they are parsed.

    Raises:
        ArgumentError: If it ended with 2, as documented.
        AssertionError: If it ended with another code, or refused without saying why.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            result = call(list(argv))
            code = result if isinstance(result, int) else 0
        except SystemExit as end:
            code = 0 if end.code is None else end.code if isinstance(end.code, int) else 1
            result = None
    assert code in (0, 2), f"exit code {code}: {err.getvalue()[-500:]}"
    assert "Traceback" not in err.getvalue(), err.getvalue()[-800:]
    if code == 2:
        assert err.getvalue().strip(), "exit code 2 without a word"
        raise ArgumentError(err.getvalue())
    check_finite(result)


def check_finite(options: Any) -> None:
    """No accepted option of a run is NaN or infinite."""
    for name, value in vars(options).items() if hasattr(options, "__dict__") else ():
        if isinstance(value, float):
            assert math.isfinite(value), f"`{name}` was accepted as {value}"


@cache
def script(name: str) -> ModuleType:
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(f"fuzzed_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parser_of(name: str) -> Callable[[Sequence[str]], Any]:
    """What parses and checks the words of a command without running it."""
    if name == "demo":
        return lambda argv: build_parser(("demo",)).parse_args(["demo", *argv])
    if name == "pretrain":
        from amd_hf.training.arguments import parse_arguments

        return parse_arguments
    if name == "finetune_semantic":
        from amd_hf.training.finetuning_arguments import parse_finetuning_arguments

        return parse_finetuning_arguments
    if name == "pretrain_moco":
        from amd_hf.training.moco_training import parse_moco_arguments

        return parse_moco_arguments
    if name == "compare_initializations":
        from amd_hf.training.comparison import parse_comparison_arguments

        return parse_comparison_arguments
    parse: Callable[[Sequence[str]], Any] = (
        script(name).parse_args if name == "push_to_hub" else script(name).parse_arguments
    )
    return parse


def run_script(name: str) -> Callable[[Sequence[str]], Any]:
    """What runs a script; some read the words of the process."""

    def call(argv: Sequence[str]) -> Any:
        before = sys.argv
        sys.argv = [f"{name}.py", *argv]
        try:
            return script(name).main()
        finally:
            sys.argv = before

    return call


class Arguments(Family):
    """Command lines with words changed, left out, doubled and exchanged."""

    name = "arguments"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from tests.fuzzing.documents import Checkpoints

        self.files = Checkpoints(folder / "weights").model
        self.result = json.dumps({"benchmark": "ecssd", "model": "m", "kind": "image", "rows": []})

    def valid(self, folder: Path) -> Iterator[Case]:
        """Every command as it is; evaluation and conversion only as far as their checks."""
        for name in (*COMMANDS, *PARSED, *RUN_SCRIPTS):
            if name in ("report", "convert_official_checkpoint", "pretrain"):
                continue  # the samples are refused on purpose: see `_case`
            place = folder / name
            place.mkdir()
            yield self._case(place, name, self._words(name), name)

    def case(self, random: Random, folder: Path) -> Case:
        """One changed command line."""
        name = random.choice((*COMMANDS, *PARSED, *RUN_SCRIPTS))
        words = self._words(name)
        for _ in range(random.choice((1, 1, 1, 2, 4))):
            words = changed(random, words)
        result = mutate(random, self.result.encode())[0]
        words = [word for word in words if word not in FORBIDDEN]
        words = bounded(words)
        return self._case(folder, name, words, f"{name} {words}", result)

    def _words(self, name: str) -> list[str]:
        return list({**COMMANDS, **PARSED, **RUN_SCRIPTS}[name])

    def _case(
        self, folder: Path, name: str, words: list[str], what: str, result: bytes = b"{}"
    ) -> Case:
        self._write_files(folder, result)
        if name in COMMANDS:
            call: Callable[[Sequence[str]], Any] = main
            # The command itself stays, or another one would be called with these words.
            words = [name, *(words[1:] if words[:1] == [name] else words)]
        else:
            call = parser_of(name) if name in PARSED else run_script(name)
        run = partial(inside, folder, partial(run_command, words, call))
        return Case(what[:400], (Reader(f"{name}", run, (ArgumentError,)),))

    def _write_files(self, folder: Path, result: bytes) -> None:
        """What the words name: an image, a video, a model, a benchmark, frames and a result."""
        photo = samples.images()["photo.png"]
        for path in ("photo.png", "ecssd/images/a.png", "frames/v/0.png", "frames/v/1.png"):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(photo)
        (folder / "ecssd/ground_truth_mask").mkdir()
        (folder / "ecssd/ground_truth_mask/a.png").write_bytes(samples.masks()["binary.png"])
        (folder / "clip.mp4").write_bytes(b"no video")
        (folder / "result.json").write_bytes(result)
        os.symlink(self.files, folder / "model")


def changed(random: Random, words: list[str]) -> list[str]:
    """The words with one of them replaced, left out, doubled, moved or damaged."""
    words = list(words)
    place = random.randrange(len(words)) if words else 0
    kind = random.randrange(9)
    if kind == 0 or not words:
        words.insert(place, random.choice(WORDS))
    elif kind == 1:
        del words[place]
    elif kind == 2:
        other = random.randrange(len(words))
        words[place], words[other] = words[other], words[place]
    elif kind == 3:
        data, _ = mutate(random, words[place].encode("utf-8", "replace"))
        word = data.decode("utf-8", "replace").replace("\0", "0").replace("/", "_")[:300]
        words[place] = word
    else:
        # Mostly the value of an option: a wrong name of an option ends every command at once.
        values = [i for i, word in enumerate(words) if i and words[i - 1].startswith("--")]
        words[random.choice(values or [place])] = random.choice(WORDS)
    return words


def bounded(words: list[str]) -> list[str]:
    """The words without huge numbers behind options that are taken at their word."""
    kept = list(words)
    for place, word in enumerate(words[1:], start=1):
        is_costly = words[place - 1] in COSTLY
        if is_costly and word.lstrip("+-").isdecimal() and len(word) > 2:
            kept[place] = "7"
    return kept


def inside(folder: Path, call: Callable[[], None]) -> None:
    """Calls something with another working folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        call()
    finally:
        os.chdir(before)
