"""`scripts/train_bundled.sh`: wrong calls, the recorded recipe, and all of it from end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from amd_hf import AMDImageProcessor, AMDModel
from amd_hf.data.synthetic_objects import generate_clip
from amd_hf.hub import read_provenance
from amd_hf.training.arguments import PretrainingArguments, parse_arguments
from tests.faults.workloads import write_clips

RUNS = {"motion": 13, "round1": 8, "round2": 5, "joint": 2}
# Stands in for Python: notes its words, and makes what the script looks for afterwards.
RECORDER = """#!{python} -S
import json, os, sys
words = sys.argv[1:]
with open({record!r}, "a") as stream:
    stream.write(json.dumps(words) + "\\n")
if words[0] != "-":
    folder = words[words.index("--output_dir") + 1]
    os.makedirs(folder)
    for name in ("all_results.json", "index.json", "shard-00000.tar"):
        open(os.path.join(folder, name), "w").close()
"""


def _environment(**variables: str) -> dict[str, str]:
    names = ("STEP_UNIT", "CONFIG", "FIRST_SETS", "NUM_WORKERS", "PYTHON", "CDPATH")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    return clean | {"PYTHON": sys.executable} | variables


def _command(repository: Path, *words: object) -> list[str]:
    return ["bash", str(repository / "scripts" / "train_bundled.sh"), *map(str, words)]


def _run(
    repository: Path, *words: object, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    command = _command(repository, *words)
    environment = _environment(**variables)
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=cwd
    )


def _write_objects(folder: Path, first: int, count: int = 5) -> Path:
    """Writes clips of moving objects; those of every folder have the same names."""
    for number in range(count):
        video = folder / f"video{number:02d}"
        video.mkdir(parents=True)
        for index, pixels in enumerate(generate_clip(3, 96, 128, first + number)[0]):
            Image.fromarray(pixels).save(video / f"{index:05d}.jpg", quality=95)
    return folder


@pytest.mark.parametrize(
    ("words", "variables", "reason"),
    [
        ((), {}, "got 0 argument(s)"),
        (("clips",), {}, "expected scripts/train_bundled.sh CLIPS [CLIPS ...] OUTPUT"),
        (("clips", "missing", "out"), {}, "CLIPS 'missing' does not exist"),
        (("clips", "a,b", "out"), {}, "must not hold a comma"),
        (("a,b", "clips/out"), {"STEP_UNIT": "0.5"}, "STEP_UNIT must be a whole number"),
        (("clips", "out"), {"STEP_UNIT": "0"}, "STEP_UNIT must be a whole number"),
        (("clips", "out"), {"CONFIG": "official"}, "CONFIG must be small or tiny"),
        (("clips", "out"), {"NUM_WORKERS": "two"}, "NUM_WORKERS must be a whole number"),
        (("clips", "out"), {"FIRST_SETS": "2"}, "from 1 to the number of CLIPS, 1"),
        (("clips", "out"), {"PYTHON": "no-such-python"}, "'no-such-python' is not found"),
        (("clips", "full"), {}, "holds other files"),
        (("clips", "file"), {}, "must be a folder"),
        (("empty", "out"), {}, "holds no video of at least two frames"),
        (("clips", "clips/out"), {}, "must lie outside of the CLIPS"),
    ],
)
def test_wrong_call_is_one_sentence(
    repository: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    variables: dict[str, str],
    reason: str,
) -> None:
    write_clips(tmp_path / "clips", 1)
    for name in ("a,b", "empty", "full/other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file").touch()
    done = _run(repository, *words, cwd=tmp_path, **variables)
    assert done.returncode == 2
    assert reason in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "clips" / "out").exists()


def test_python_without_the_package_is_one_sentence(repository: Path, tmp_path: Path) -> None:
    write_clips(tmp_path / "clips", 1)
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    done = _run(repository, tmp_path / "clips", tmp_path / "out", PYTHON=str(bare))
    assert done.returncode == 2
    assert "lacks what training needs" in done.stderr
    assert 'pip install "amd-hf[train]"' in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def _recorded(
    repository: Path, folder: Path, *words: object, **variables: str
) -> tuple[dict[str, PretrainingArguments], dict[str, list[str]]]:
    """The options of the runs, and the words of the other commands by script."""
    record, python = folder / "record.jsonl", folder / "python"
    python.write_text(RECORDER.format(python=sys.executable, record=str(record)))
    python.chmod(0o755)
    done = _run(repository, *words, cwd=folder, PYTHON=str(python), **variables)
    assert done.returncode == 0, done.stderr
    runs, others = {}, {}
    for line in record.read_text().splitlines():
        script, *options = json.loads(line)
        if Path(script).name == "pretrain.py":
            parsed = parse_arguments(options)
            runs[Path(parsed.output_dir).name] = parsed
        else:
            others[Path(script).stem] = options
    return runs, others


def test_defaults_are_the_recorded_recipe(repository: Path, tmp_path: Path) -> None:
    """The figures are those of the table in docs/training_log.md."""
    first, second = (write_clips(tmp_path / name, 1) for name in ("first", "second"))
    output = tmp_path / "out"
    runs, others = _recorded(repository, tmp_path, first, second, "out", FIRST_SETS="1")
    names = (
        *("stages", "max_train_steps", "per_device_train_batch_size", "crop_size"),
        *("learning_rate", "seed", "num_warmup_steps", "ema_decay", "model_name_or_path"),
    )
    merged = str(output / "round2+motion_step_2000")
    early = str(output / "round1" / "step_800" / "ema")
    assert {run: [getattr(args, name) for name in names] for run, args in runs.items()} == {
        "motion": ["classical_flow", 2600, 4, "128x192", 6e-4, 0, 60, 0.99, None],
        "round1": ["pseudo_mask", 1600, 16, "128x192", 2e-3, 0, 60, 0.995, None],
        "round2": ["pseudo_mask", 1000, 16, "160x240", 1.5e-3, 2, 40, 0.995, early],
        "joint": ["segment_flow_pseudo_mask", 200, 8, "160x240", 3e-4, 4, 20, 0.97, merged],
    }
    assert {run: args.dataset for run, args in runs.items()} == {
        "motion": str(first),
        "round1": str(output / "masks1"),
        "round2": str(output / "masks1-2"),
        "joint": str(output / "masks1-2"),
    }
    for args in runs.values():
        assert args.recipe == "moving_objects"
        assert args.config_name == "small"
        assert args.augmentation == "medium"
        assert args.mixed_precision == "bf16"
        assert args.checkpointing_steps == 200
        assert args.logging_steps == 50
        assert args.resume_from_checkpoint == "latest"
    assert str(output / "motion" / "step_2000" / "ema") in others["merge_pathways"]
    assert str(output / "round2" / "ema") in others["merge_pathways"]
    assert str(output / "joint" / "ema") in others["bundle_checkpoint"]
    assert f"{first},{second}" in others["bundle_checkpoint"]
    bundling = " ".join(others["bundle_checkpoint"])
    assert "--short_side 176 --significant_bits 5" in bundling
    assert "--use_saliency" in others["make_pseudo_masks"]
    assert sorted(path.name for path in (output / "masks1-2").iterdir()) == [
        "set1-shard-00000.tar",
        "set2-shard-00000.tar",
    ]


def test_all_sets_are_seen_by_all_runs_unless_told_otherwise(
    repository: Path, tmp_path: Path
) -> None:
    sets = [write_clips(tmp_path / f"set {number}", 1) for number in range(3)]
    runs, _ = _recorded(repository, tmp_path, *sets, "out", STEP_UNIT="10", CONFIG="tiny")
    masks = str(tmp_path / "out" / "masks1-3")
    assert runs["motion"].dataset == ",".join(map(str, sets))
    assert {runs[name].dataset for name in ("round1", "round2", "joint")} == {masks}
    steps = {name: (run.max_train_steps, run.num_warmup_steps) for name, run in runs.items()}
    assert steps == {"motion": (130, 3), "round1": (80, 3), "round2": (50, 2), "joint": (10, 1)}
    assert {run.checkpointing_steps for run in runs.values()} == {10}
    assert {runs[name].config_name for name in ("motion", "round1")} == {"tiny"}
    assert str(runs["round2"].model_name_or_path).endswith("round1/step_40/ema")


def test_other_settings_are_refused(repository: Path, tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "clips", 1)
    _recorded(repository, tmp_path, clips, "out", CONFIG="tiny")
    done = _run(repository, clips, tmp_path / "out")
    assert done.returncode == 2
    assert "was begun with other clips or variables" in done.stderr


def _interrupted(
    command: list[str],
    environment: dict[str, str],
    awaited: Path,
    strike: Callable[[subprocess.Popen[str]], None],
) -> tuple[int, str]:
    """Ends a call by `strike` once a path exists; returns its exit code and what it printed."""
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 400
        while not awaited.exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, f"{awaited} was not written"
            time.sleep(0.05)
        strike(process)
        printed = process.communicate(timeout=120)[0]
        return process.returncode, printed


def _kill_all(process: subprocess.Popen[str]) -> None:
    """Nothing of it has a chance to answer."""
    import psutil

    for victim in [process, *psutil.Process(process.pid).children(recursive=True)]:
        victim.kill()


def _times(folder: Path, pattern: str) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob(pattern)}


def _logged_steps(run: Path) -> list[Any]:
    lines = (run / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


@pytest.mark.slow
def test_from_end_to_end_with_interruptions(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("psutil")
    root = tmp_path / "a folder"
    sets = [_write_objects(root / f"set {number}", 20 * number) for number in range(2)]
    output = root / "the output"
    command = _command(repository, *sets, output)
    variables = {"STEP_UNIT": "1", "CONFIG": "tiny", "NUM_WORKERS": "1", "OMP_NUM_THREADS": "1"}
    environment = _environment(**variables)

    # A request to stop reaches training, which writes a checkpoint.
    code, printed = _interrupted(
        command,
        environment,
        output / "motion" / "step_3",
        lambda process: os.kill(process.pid, signal.SIGTERM),
    )
    assert code == 143, printed
    assert "the same call goes on from here" in printed
    assert not (output / "round1").exists()
    before = _times(output, "masks*/*.tar") | _times(output, "motion/step_[123]/*")
    assert len(before) > 3

    # Killed without a word in the second round.
    code, printed = _interrupted(command, environment, output / "round2" / "step_2", _kill_all)
    assert code == -signal.SIGKILL
    assert "Pseudo-masks of" not in printed
    assert _times(output, "masks?/*.tar") | _times(output, "motion/step_[123]/*") == before
    assert not (output / "bundle").exists()

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Run motion" not in done.stdout
    for name, steps in RUNS.items():
        assert _logged_steps(output / name) == list(range(1, steps + 1)), name
    _check_bundle(output / "bundle")

    # Nothing is left to do.
    every = _times(output, "**/*")
    start = time.monotonic()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert again.stdout.startswith("Finished before: ")
    assert time.monotonic() - start < 5
    assert _times(output, "**/*") == every


def _check_bundle(bundle: Path) -> None:
    model = AMDModel.from_pretrained(bundle).eval()
    processor = AMDImageProcessor.from_pretrained(bundle)
    assert dict(processor.size) == {"shortest_edge": 176}
    assert model.config.object_segment in range(model.config.num_segments)
    assert processor.object_segment == model.config.object_segment
    image = Image.fromarray(generate_clip(1, 96, 128, 3)[0][0])
    with torch.no_grad():
        masks = model(**processor(image, return_tensors="pt")).segment_masks
    assert bool(torch.isfinite(masks).all())
    provenance = read_provenance(bundle)
    assert provenance["pretrained_inputs"] == provenance["ground_truth"] == "none"
    assert [(source["name"], source["clips"]) for source in provenance["sources"]] == [
        ("set 0", 5),
        ("set 1", 5),
    ]
    stages = provenance["training"]["stages"]
    assert "round2 (from round1/step_4/ema)" in stages
    assert "joint (from round2+motion_step_10)" in stages
    assert "STEP_UNIT=1 CONFIG=tiny" in provenance["reproduce"]
