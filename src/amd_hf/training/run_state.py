"""What a checkpoint of a run holds, and how a run goes on from it.

step_N/config.json, model.safetensors   the weights; `AMDModel.from_pretrained` reads the folder
step_N/ema/...                          the averaged weights, likewise
step_N/training_state.pt                optimizer, schedule, scaler, counters, monitors, averages
step_N/rank_R.pt                        random generators and data position of process R
step_N/run.json                         options, number of processes, versions
step_N/manifest.json                    size and SHA-256 of all of these
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from amd_hf.training.arguments import LATEST, PretrainingArguments
from amd_hf.training.checkpointing import (
    CheckpointError,
    latest_checkpoint,
    list_checkpoints,
    load_state,
    remove_leftovers,
    save_state,
    verify_checkpoint,
    write_checkpoint,
    write_text_atomically,
)
from amd_hf.training.same_run import check_same_run, config_fields, versions
from amd_hf.training.setup import random_state, set_random_state

if TYPE_CHECKING:
    from amd_hf.training.pretraining import PretrainingRun

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
STATE_FILE = "training_state.pt"
WEIGHTS_FILE = "model.safetensors"
EMA_FOLDER = "ema"
TIMES = ("samples_per_second", "data_wait_share")
# Keys hold the names of files, which may be no text in the encoding of this machine.
TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}


@dataclass
class Progress:
    """Counters of a run.

    Attributes:
        step: Optimizer steps done, skipped ones included.
        num_samples: Pairs seen by all processes.
        num_nonfinite_steps: Steps skipped for a non-finite gradient.
        consecutive_nonfinite_steps: Those at the end of the steps so far.
        saved_step: Step of the last checkpoint of this process; None before the first.
    """

    step: int = 0
    num_samples: int = 0
    num_nonfinite_steps: int = 0
    consecutive_nonfinite_steps: int = 0
    saved_step: int | None = None


def prepare_output_dir(args: PretrainingArguments, accelerator: Any) -> Path | None:
    """Makes the folder of the run, clears leftovers, and finds the checkpoint to resume from.

    Args:
        args: The options of the run.
        accelerator: The Accelerator; all processes call this.

    Returns:
        A whole checkpoint, the same in all processes, or None for a fresh start.

    Raises:
        ValueError: If the folder holds a run that would be overwritten, is not a folder, or
            cannot be written.
        CheckpointError: If the named checkpoint is not whole.
    """
    from accelerate.utils import broadcast_object_list

    found: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            found[0] = _find_checkpoint(args)
        except (ValueError, CheckpointError) as error:
            found[1] = error
    broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    return found[0]


def _find_checkpoint(args: PretrainingArguments) -> Path | None:
    output_dir = Path(args.output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"`output_dir` must be a folder, got the file {output_dir}.")
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise ValueError(
            f"`output_dir` {output_dir} cannot be written ({error.strerror}); choose another one."
        ) from error
    leftovers = remove_leftovers(output_dir)
    if leftovers:
        logger.info("Removed what a killed run left half written: %s.", ", ".join(leftovers))
    if args.resume_from_checkpoint is None:
        if list_checkpoints(output_dir):
            raise ValueError(
                f"`output_dir` {output_dir} already holds checkpoints of a run; go on with "
                "--resume_from_checkpoint latest, or choose another folder."
            )
        return None
    if args.resume_from_checkpoint != LATEST:
        checkpoint = Path(args.resume_from_checkpoint)
        _check_is_newest(checkpoint, output_dir)
        verify_checkpoint(checkpoint)
        return checkpoint
    latest = latest_checkpoint(output_dir)
    if latest is None:
        logger.warning("No checkpoint to resume from in %s; starting from step 0.", output_dir)
    return latest


def _check_is_newest(checkpoint: Path, output_dir: Path) -> None:
    """Refuses to leave later checkpoints behind that `latest` would take for those of the new run.

    Raises:
        ValueError: If the folder of the run holds some.
    """
    names = [path.name for path in list_checkpoints(output_dir)]
    if checkpoint.resolve().parent != output_dir.resolve() or checkpoint.name not in names:
        return
    if later := names[names.index(checkpoint.name) + 1 :]:
        raise ValueError(
            f"{output_dir} also holds the later {', '.join(later)}, which `latest` would take for "
            f"those of the run that goes on from {checkpoint.name}; move or delete them, or choose "
            "another --output_dir."
        )


class RunState:
    """Saves and restores all that decides the next step of a run.

    Args:
        run: The run whose objects are saved.
    """

    def __init__(self, run: PretrainingRun) -> None:
        self.run = run
        rank = run.accelerator.process_index
        self._rank_file = f"rank_{rank}.pt"
        self._samples_path = Path(run.args.output_dir) / f"samples_rank_{rank}.txt"

    def save(self) -> Path | None:
        """Writes `step_N`; all processes call it at the same step.

        Returns:
            The folder, or None if it could not be written: the checkpoints before it stay, the run
            goes on, and the next checkpoint tries again.
        """
        run = self.run
        folder = write_checkpoint(
            run.args.output_dir,
            run.progress.step,
            write_shared=self._write_shared,
            write_rank=self._write_rank,
            is_main=run.accelerator.is_main_process,
            all_succeeded=run.all_succeeded,
            limit=run.args.checkpoints_total_limit,
        )
        if folder is None:
            logger.error(
                "No checkpoint at step %d; earlier ones are untouched. Free space on the disk of "
                "%s: the next checkpoint tries again.",
                run.progress.step,
                run.args.output_dir,
            )
        else:
            run.progress.saved_step = run.progress.step
            logger.info("Saved %s.", folder)
        return folder

    def _write_rank(self, folder: Path) -> None:
        state = {"random": random_state(), "stream": self.run.stream.state_dict()}
        # The averages of the logged interval differ from process to process.
        save_state({**state, "averager": self.run.averager.state_dict()}, folder / self._rank_file)

    def _write_shared(self, folder: Path) -> None:
        run = self.run
        save_weights(run.unwrapped_model, folder)
        state = {
            "progress": asdict(run.progress),
            "optimizer": run.optimizer.state_dict(),
            "schedule": run.schedule.state_dict(),
            "collapse": run.collapse.state_dict(),
            # Times would make the states of two equal runs differ.
            "last_metrics": {
                name: value for name, value in run._last_metrics.items() if name not in TIMES
            },
        }
        if run.accelerator.scaler is not None:
            state["scaler"] = run.accelerator.scaler.state_dict()
        if run.ema is not None:
            (folder / EMA_FOLDER).mkdir()
            save_weights(run.ema.module, folder / EMA_FOLDER)
            state["ema_updates"] = run.ema.num_updates
        save_state(state, folder / STATE_FILE)
        record = {
            "options": run.args.to_dict(),
            "config": config_fields(run.config),
            "num_processes": run.accelerator.num_processes,
            "versions": versions(),
        }
        (folder / RUN_FILE).write_text(json.dumps(record, indent=1))

    def load(self, checkpoint: Path) -> None:
        """Restores the run from a whole checkpoint.

        Raises:
            ValueError: If it is of another configuration, of other data or of another number of
                processes; the message says what differs and what to do.
            CheckpointError: If a file of it cannot be read.
        """
        run = self.run
        record = json.loads((checkpoint / RUN_FILE).read_text())
        check_same_run(run.args, run.config, run.accelerator.num_processes, record, checkpoint)
        load_weights(run.unwrapped_model, checkpoint)
        state = load_state(checkpoint / STATE_FILE)
        run.optimizer.load_state_dict(state["optimizer"])
        run.schedule.load_state_dict(state["schedule"])
        run.collapse.load_state_dict(state["collapse"])
        run._last_metrics = state.get("last_metrics", {})
        run.progress = Progress(**{**state["progress"], "saved_step": state["progress"]["step"]})
        if run.accelerator.scaler is not None and "scaler" in state:
            run.accelerator.scaler.load_state_dict(state["scaler"])
        if run.ema is not None:
            self._load_ema(checkpoint, state)
        if run.args.restart_data_stream:
            logger.warning("Fresh order of the data from step %d on.", run.progress.step)
            run.stream.restart(epoch=run.progress.step)
        else:
            rank = load_state(checkpoint / self._rank_file)
            run.stream.load_state_dict(rank["stream"])
            run.averager.load_state_dict(rank["averager"], run.accelerator.device)
            set_random_state(rank["random"])
        logger.info("Resumed from %s.", checkpoint)

    def _load_ema(self, checkpoint: Path, state: Mapping[str, Any]) -> None:
        assert self.run.ema is not None
        if not (checkpoint / EMA_FOLDER).is_dir():
            raise ValueError(
                f"{checkpoint} has no moving average of the weights; resume with --ema_decay 0, or "
                "start a new run."
            )
        weights = load_file(checkpoint / EMA_FOLDER / WEIGHTS_FILE)
        num_updates = torch.tensor(state["ema_updates"])
        self.run.ema.load_state_dict({**weights, "num_updates": num_updates})

    def record_samples(self, batch: Mapping[str, Any]) -> None:
        """Appends the step and the keys of a batch to `samples_rank_R.txt`, if it is asked for."""
        if not self.run.args.record_samples:
            return
        try:
            with self._samples_path.open("a", **TEXT) as stream:
                stream.write(f"{self.run.progress.step}\t{' '.join(batch['key'])}\n")
        except OSError as error:  # a full disk ends no run: its next checkpoint tries again
            logger.error("%s cannot be written: %s.", self._samples_path, error)

    def rewind_samples(self) -> None:
        """Drops the samples after the present step, also those of a run without a checkpoint."""
        if not self.run.args.record_samples or not self._samples_path.is_file():
            return
        lines = self._samples_path.read_text(**TEXT).splitlines()
        seen = [line for line in lines if "\t" in line]
        kept = [line for line in seen if int(line.split("\t")[0]) < self.run.progress.step]
        write_text_atomically(self._samples_path, "".join(f"{line}\n" for line in kept))


def save_weights(model: Any, folder: Path) -> None:
    """Writes `config.json` and `model.safetensors` of an `AMDModel` into an existing folder.

    Raises:
        OSError: If a file cannot be written.
    """
    model.config.to_json_file(folder / "config.json")
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    try:
        save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    except SafetensorError as error:  # so it reports a full disk
        raise OSError(f"{folder / WEIGHTS_FILE} cannot be written: {error}") from error


def load_weights(model: nn.Module, folder: Path) -> None:
    """Reads the weights that `save_weights` wrote.

    Raises:
        ValueError: If they do not fit the model.
    """
    try:
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except RuntimeError as error:
        raise ValueError(f"The weights of {folder} do not fit this model: {error}") from error
