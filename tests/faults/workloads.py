"""The five kinds of work that are killed: their commands, and what must be equal afterwards.

Every workload makes its own small input, so a run needs neither network nor data sets.
`differences` compares a finished output with that of an uninterrupted run, bit by bit;
`half_written` looks at the output of a killed run for anything that would be taken for whole and
is not.
"""

from __future__ import annotations

import json
import tarfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from amd_hf import AMDConfig, AMDImageProcessor, AMDModel
from amd_hf.data.frame_pairs import open_source
from amd_hf.training.checkpointing import CheckpointError, list_checkpoints, verify_checkpoint
from tests.evaluation_data import write_davis
from tests.semantic_trees import write_pairs
from tests.video_trees import write_videos

REPOSITORY = Path(__file__).resolve().parent.parent.parent
# What differs between two runs of the same work, killed or not.
TIMES = {
    "samples_per_second",
    "data_wait_share",
    "decode_limit",
    "model_limit",
    "seconds",
    "created",
    "commit",
    "output_dir",
    "resume_from_checkpoint",
}


def write_clips(folder: Path, num_videos: int = 23, num_frames: int = 3) -> Path:
    """Writes videos of 84x72 pixels: a window that slides over a texture; returns the folder."""
    generator = np.random.default_rng(1)
    for video in range(num_videos):
        (folder / f"video{video:02d}").mkdir(parents=True)
        noise = generator.integers(0, 255, (9, 12, 3), dtype=np.uint8)
        texture = Image.fromarray(noise).resize((96, 72), Image.Resampling.BICUBIC)
        for frame in range(num_frames):
            view = texture.crop((3 * frame, 0, 3 * frame + 84, 72))
            view.save(folder / f"video{video:02d}" / f"{frame:05d}.jpg")
    return folder


def write_checkpoint(folder: Path) -> Path:
    """Writes a tiny model with its image processor; returns the folder."""
    torch.manual_seed(0)
    config = AMDConfig.tiny(zero_init_residual=False)
    model = AMDModel(config)
    model.train()
    with torch.no_grad():
        for _ in range(10):
            model(pixel_values=torch.randn(4, 3, 64, 64))
        model.segment_classifier.weight.mul_(5)
    model.eval().save_pretrained(folder)
    AMDImageProcessor.from_model_config(config, size={"shortest_edge": 48}).save_pretrained(folder)
    return folder


class Workload(ABC):
    """One kind of work on generated input in `folder`.

    Args:
        folder: Where the input is made, on first use.
    """

    name: str

    def __init__(self, folder: Path) -> None:
        self.input = folder / "input"
        if not self.input.exists():
            self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Makes the input."""

    @abstractmethod
    def command(self, output: Path) -> list[str]:
        """The script and its words, with the documented way to go on after an interruption."""

    @abstractmethod
    def differences(self, whole: Path, killed: Path) -> list[str]:
        """What is not the same in two finished outputs; empty if nothing."""

    @abstractmethod
    def half_written(self, whole: Path, killed: Path) -> list[str]:
        """What of a killed output would be taken for whole and is not; empty if nothing."""


class TrainingWorkload(Workload):
    """A run of the training engine: checkpoints, samples, log, final weights, results."""

    script: str
    options: dict[str, Any]
    weight_folders: tuple[str, ...]

    def command(self, output: Path) -> list[str]:
        """The script, always with `--resume_from_checkpoint latest`."""
        options = {**self.options, "output_dir": output, "resume_from_checkpoint": "latest"}
        return [str(REPOSITORY / "scripts" / self.script)] + [
            word for name, value in options.items() for word in (f"--{name}", str(value))
        ]

    def differences(self, whole: Path, killed: Path) -> list[str]:
        """Weights, optimizer, order of the samples, log and results."""
        last = list_checkpoints(whole)[-1].name
        names = [f"{folder}model.safetensors" for folder in (*self.weight_folders, f"{last}/")]
        names += ["samples_rank_0.txt", "config.json", "preprocessor_config.json"]
        found = different_files(whole, killed, names)
        for name in ("training_state.pt", "rank_0.pt"):
            states = [
                without_times(torch.load(root / last / name, weights_only=True))
                for root in (whole, killed)
            ]
            if name == "rank_0.pt":  # the position counts what was fetched ahead, too
                states = [{"random": state["random"]} for state in states]
            if not same(*states):
                found.append(f"{last}/{name}")
        for name in ("all_results.json", "log.jsonl"):
            values = [
                [without_times(json.loads(line)) for line in lines_of(root / name)]
                for root in (whole, killed)
            ]
            if values[0] != values[1]:
                found.append(name)
        return found

    def half_written(self, whole: Path, killed: Path) -> list[str]:
        """Checkpoints that are not whole, final weights that are not the final ones."""
        found = []
        for folder in list_checkpoints(killed):
            try:
                verify_checkpoint(folder)
                load_file(folder / "model.safetensors")
            except (CheckpointError, OSError, ValueError) as error:
                found.append(f"{folder.name}: {error}")
        names = [f"{folder}model.safetensors" for folder in self.weight_folders]
        present = [name for name in names if (killed / name).exists()]
        return found + different_files(whole, killed, present)


class Pretraining(TrainingWorkload):
    """`scripts/pretrain.py`: 30 steps of the tiny model, a checkpoint every second one."""

    name = "pretraining"
    script = "pretrain.py"
    weight_folders = ("", "ema/")

    def prepare(self) -> None:
        """Videos of textures that move."""
        write_clips(self.input)

    @property
    def options(self) -> dict[str, Any]:  # type: ignore[override]
        """A small run with everything on that a checkpoint has to hold."""
        return {
            "dataset": self.input,
            "config_name": "tiny",
            "crop_size": 64,
            "augmentation": "heavy",
            "max_train_steps": 30,
            "motion_warmup_steps": 10,
            "per_device_train_batch_size": 2,
            "dataloader_num_workers": 1,
            "checkpointing_steps": 2,
            "logging_steps": 5,
            "ema_decay": 0.9,
            "num_object_segment_pairs": 4,
            "speed_report_seconds": 0,
            "record_samples": True,
        }


class Finetuning(TrainingWorkload):
    """`scripts/finetune_semantic.py`: 24 steps, evaluated every third one."""

    name = "finetuning"
    script = "finetune_semantic.py"
    weight_folders = ("", "best/")

    def prepare(self) -> None:
        """Pictures of plain boxes with a class per pixel."""
        write_pairs(self.input, {"train": 9, "val": 3})

    @property
    def options(self) -> dict[str, Any]:  # type: ignore[override]
        """A small run with evaluations and pictures."""
        return {
            "dataset_name": self.input,
            "config_name": "tiny",
            "crop_size": 64,
            "short_side": 64,
            "per_device_train_batch_size": 2,
            "max_train_steps": 24,
            "validation_steps": 3,
            "num_pictures": 1,
            "dataloader_num_workers": 1,
            "checkpointing_steps": 2,
            "logging_steps": 4,
            "record_samples": True,
        }


class Packing(Workload):
    """`scripts/pack_youtube_vos.py`: 40 videos in two worker processes, run again to go on."""

    name = "packing"

    def prepare(self) -> None:
        """Videos of moving objects in the layout of YouTube-VOS."""
        write_videos(self.input, {f"video{number:02d}": 9 for number in range(40)})

    def command(self, output: Path) -> list[str]:
        """The same command every time."""
        words = ["--source", self.input, "--output_dir", output, "--clips_per_shard", 10]
        words += ["--short_side", 32, "--num_workers", 2, "--min_difference", 0]
        return [str(REPOSITORY / "scripts" / "pack_youtube_vos.py"), *map(str, words)]

    def differences(self, whole: Path, killed: Path) -> list[str]:
        """All files; the card names its folder."""
        names = sorted(path.name for path in whole.iterdir() if path.name != "README.md")
        extra = {path.name for path in killed.iterdir()} - {*names, "README.md"}
        return different_files(whole, killed, names) + [f"{name} is left over" for name in extra]

    def half_written(self, whole: Path, killed: Path) -> list[str]:
        """Shards and parts that are not whole, or a folder that opens before it is finished."""
        found = different_files(whole, killed, [p.name for p in killed.glob("shard-*.tar")])
        if (killed / "index.json").is_file():  # of a finished folder, only parts may be left
            return found + different_files(whole, killed, ["index.json"])
        for report in killed.glob("parts/*.json"):
            num_clips = json.loads(report.read_text())["clips"]
            with tarfile.open(report.with_suffix(".tar")) as archive:
                num_found = sum(name.endswith(".json") for name in archive.getnames())
            if num_found != num_clips:
                found.append(f"{report.name} counts {num_clips} clips, its tar holds {num_found}")
        try:
            open_source(killed)
        except ValueError:
            return found
        return [*found, "the unfinished folder opens as a data set"]


class Evaluation(Workload):
    """`amd-hf evaluate` with adaptation and a control: 16 videos, run again to go on."""

    name = "evaluation"

    def prepare(self) -> None:
        """A benchmark in the layout of DAVIS-2016, and a tiny model."""
        from amd_hf.data.davis import VALIDATION_FRAMES

        write_davis(self.input / "davis", tuple(sorted(VALIDATION_FRAMES))[:16], 3)
        write_checkpoint(self.input / "model")

    def command(self, output: Path) -> list[str]:
        """The same command every time."""
        words = ["davis2016", "--data", self.input / "davis", "--model", self.input / "model"]
        words += ["--adapt-steps", 2, "--adapt-set", "crop_size=32", "--bootstrap", 20]
        words += ["--adapt-set", "short_side=48", "--controls", "--quiet", "--device", "cpu"]
        words += ["--output", output / "result.json", "--rows", output / "rows.csv"]
        words += ["--contact-sheet", output / "sheet.png"]
        return [str(REPOSITORY / "scripts" / "evaluate.py"), *map(str, words)]

    def differences(self, whole: Path, killed: Path) -> list[str]:
        """The result, the rows, the picture, and nothing left over."""
        names = sorted(path.name for path in whole.iterdir())
        extra = sorted({path.name for path in killed.iterdir()} - set(names))
        found = different_files(whole, killed, [n for n in names if n != "result.json"])
        results = [json.loads((root / "result.json").read_text()) for root in (whole, killed)]
        if without_times(results[0]) != without_times(results[1]):
            found.append("result.json")
        return found + [f"{name} is left over" for name in extra]

    def half_written(self, whole: Path, killed: Path) -> list[str]:
        """A result, table or picture under its final name that is not the final one."""
        found = different_files(
            whole, killed, [n for n in ("rows.csv", "sheet.png") if (killed / n).exists()]
        )
        if (killed / "result.json").exists():
            try:
                result = json.loads((killed / "result.json").read_text())
            except ValueError:
                return [*found, "result.json is torn"]
            if without_times(result) != without_times(
                json.loads((whole / "result.json").read_text())
            ):
                found.append("result.json")
        return found


class Export(Workload):
    """`scripts/export_model.py`: ONNX, int8 ONNX and a program, run again to go on."""

    name = "export"

    def prepare(self) -> None:
        """A tiny model."""
        write_checkpoint(self.input / "model")

    def command(self, output: Path) -> list[str]:
        """The same command every time."""
        words = ["--model", self.input / "model", "--output", output, "--rounds", 1]
        words += ["--formats", "onnx", "int8-dynamic", "program", "--image_size", 64, 64]
        return [str(REPOSITORY / "scripts" / "export_model.py"), *map(str, words)]

    def differences(self, whole: Path, killed: Path) -> list[str]:
        """All files, and nothing left over."""
        names = sorted(path.name for path in whole.iterdir())
        extra = sorted({path.name for path in killed.iterdir()} - set(names))
        return different_files(whole, killed, names) + [f"{name} is left over" for name in extra]

    def half_written(self, whole: Path, killed: Path) -> list[str]:
        """Files under their final names that are not the final ones."""
        if not killed.exists():
            return []
        names = [path.name for path in whole.iterdir() if (killed / path.name).exists()]
        return different_files(whole, killed, names)


WORKLOADS = {kind.name: kind for kind in (Pretraining, Finetuning, Packing, Evaluation, Export)}


def different_files(one: Path, other: Path, names: list[str]) -> list[str]:
    """Those of `names` whose bytes are not the same below two folders."""
    return [
        name
        for name in names
        if not (other / name).is_file() or (one / name).read_bytes() != (other / name).read_bytes()
    ]


def lines_of(path: Path) -> list[str]:
    """The lines of a file of JSON lines; a JSON file as one line."""
    text = path.read_text()
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def without_times(value: Any) -> Any:
    """The value without what differs between any two runs: times, and the folder written to."""
    if isinstance(value, dict):
        return {name: without_times(part) for name, part in value.items() if name not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def same(one: Any, other: Any) -> bool:
    """Whether two states of tensors, containers and plain values are equal bit by bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
