"""Configurations and checkpoints, read as `from_pretrained`, the commands and a resumed run do."""

from __future__ import annotations

import io
import json
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor
from transformers import AutoConfig

from amd_hf import AMDConfig, AMDImageProcessor, AMDModel
from amd_hf.evaluation.progress import EvaluationProgress
from amd_hf.hub.card import read_provenance
from amd_hf.hub.convert_official import convert_official_checkpoint, official_key_table
from amd_hf.training.checkpointing import (
    CheckpointError,
    begin_checkpoint,
    commit_checkpoint,
    latest_checkpoint,
    load_state,
    save_state,
    verify_checkpoint,
)
from amd_hf.training.setup import parse_overrides
from tests.fuzzing import samples
from tests.fuzzing.commands import run_command
from tests.fuzzing.families import Case, Family, Reader, is_one_of_four
from tests.fuzzing.mutations import mutate, mutate_json
from tests.fuzzing.repairs import repair_zip

CONFIG_ERRORS: tuple[type[Exception], ...] = (ValueError, OSError, StrictDataclassError)
# What transformers lets through, before the classes of this package are asked.
UPSTREAM_ERRORS = (*CONFIG_ERRORS, TypeError, AttributeError, KeyError, RecursionError)
# What `from_pretrained` lets through besides.
WEIGHT_ERRORS = (*CONFIG_ERRORS, SafetensorError, RuntimeError)
MOST_BUILT = 64
PROVENANCE: dict[str, object] = {
    "pretrained_inputs": "none",
    "ground_truth": "none",
    "sources": [{"name": "generated", "videos": 1, "clips": 1, "terms": "CC0"}],
    "training": {"steps": 1},
    "weights_license": {"id": "cc0-1.0"},
}


def check_config(config: AMDConfig) -> None:
    """What holds for every accepted configuration: finite numbers, and a model can be built.

    Raises:
        AssertionError: If it does not hold.
    """
    values = [getattr(config, name) for name in AMDConfig.__annotations__]
    numbers = [n for v in values for n in (v if isinstance(v, list) else [v])]
    for number in numbers:
        assert not isinstance(number, float) or math.isfinite(number), f"{number} was accepted"
    architecture = {item.name for item in fields(AMDConfig)} & set(AMDConfig.__annotations__)
    widths = [
        n
        for name in architecture
        if name not in ("motion_size", "image_mean", "image_std")
        for n in (getattr(config, name) if isinstance(getattr(config, name), list) else [])
        + [getattr(config, name)]
        if isinstance(n, int)
    ]
    if max(widths) <= MOST_BUILT and len(config.block_counts) < 6 and sum(config.block_counts) < 9:
        with torch.device("meta"):
            AMDModel(config)


class Configs(Family):
    """`config.json`, `preprocessor_config.json` and overrides of the command line."""

    name = "configs"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        config = AMDConfig.tiny()
        self.config = config.to_json_string(use_diff=False)
        self.short = config.to_json_string()
        processor = AMDImageProcessor.from_model_config(config)
        self.processor = processor.to_json_string()

    def valid(self, folder: Path) -> Iterator[Case]:
        """A tiny configuration with all fields, one with few, and its image processor."""
        yield self._config(folder, self.config.encode(), "config")
        yield self._config(folder, self.short.encode(), "short config")
        yield self._processor(folder, self.processor.encode(), "processor")
        yield self._overrides("num_segments=3,motion_size=[64,64]", "overrides")

    def case(self, random: Random, folder: Path) -> Case:
        """One damaged configuration."""
        kind = random.random()
        if kind < 0.2:
            data, how = mutate_json(random, self.processor)
            return self._processor(folder, data, f"preprocessor_config.json {how}")
        if kind < 0.3:
            text = "num_segments=3,motion_size=[64,64],l1_weight=0.5,normalize_cost_volume=true"
            changed, how = mutate(random, text.encode())
            return self._overrides(changed.decode("utf-8", "replace"), f"overrides {how}")
        data, how = mutate_json(random, random.choice((self.config, self.config, self.short)))
        return self._config(folder, data, f"config.json {how}")

    def _config(self, folder: Path, data: bytes, what: str) -> Case:
        path = folder / "config.json"
        path.write_bytes(data)

        def from_dict() -> None:
            check_config(AMDConfig.from_dict(json.loads(data)))

        def load(kind: Any) -> None:
            config = kind.from_pretrained(folder)
            if isinstance(config, AMDConfig):
                check_config(config)

        readers = [
            Reader("AMDConfig.from_pretrained", partial(load, AMDConfig), CONFIG_ERRORS),
            Reader("AutoConfig.from_pretrained", partial(load, AutoConfig), UPSTREAM_ERRORS),
        ]
        if is_object(data):
            readers.append(Reader("AMDConfig.from_dict", from_dict, CONFIG_ERRORS))
        return Case(what, tuple(readers))

    def _processor(self, folder: Path, data: bytes, what: str) -> Case:
        (folder / "preprocessor_config.json").write_bytes(data)
        read = partial(AMDImageProcessor.from_pretrained, folder)
        return Case(what, (Reader("AMDImageProcessor.from_pretrained", read, CONFIG_ERRORS),))

    def _overrides(self, text: str, what: str) -> Case:
        def read() -> None:
            check_config(AMDConfig.tiny(**parse_overrides(text)))

        return Case(f"{what} {text[:200]!r}", (Reader("overrides", read, CONFIG_ERRORS),))


def is_object(data: bytes) -> bool:
    """Says whether a text is a JSON object."""
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False


class Checkpoints(Family):
    """Weights, published checkpoints, states of runs, and what lies beside them."""

    name = "checkpoints"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        torch.manual_seed(0)
        model = AMDModel(AMDConfig.tiny()).eval()
        self.model = folder / "model"
        model.save_pretrained(self.model)
        AMDImageProcessor.from_model_config(model.config).save_pretrained(self.model)
        self.weights = (self.model / "model.safetensors").read_bytes()
        official = as_published(model)
        self.published = {"a.safetensors": save(official), "a.pth": torch_bytes(official)}
        self.published["b.pth"] = torch_bytes({"state_dict": official, "meta": {"epoch": 1}})
        self.published["legacy.pth"] = torch_bytes(official, _use_new_zipfile_serialization=False)
        self.state = torch_bytes({"step": 3, "random": torch.arange(20), "rates": [0.1, 0.2]})
        self.image = samples.images()["photo.png"]
        self.donors = [self.weights, self.state, self.image, *self.published.values()]

    def valid(self, folder: Path) -> Iterator[Case]:
        """Everything as it is."""
        for name, data in self.published.items():
            yield self._published(folder, name, data, name)
        yield self._weights(folder, self.weights, "weights")
        yield self._state(folder, self.state, "state")
        yield self._manifest(folder, None, "manifest")

    def case(self, random: Random, folder: Path) -> Case:
        """One damaged file."""
        makers: list[tuple[float, Callable[[Random, Path], Case]]] = [
            (0.35, self._damaged_published),
            (0.65, self._damaged_weights),
            (0.8, self._damaged_state),
            (0.92, self._damaged_manifest),
            (1.0, self._damaged_progress),
        ]
        draw = random.random()
        return next(maker for bound, maker in makers if draw < bound)(random, folder)

    def _damaged_published(self, random: Random, folder: Path) -> Case:
        name = random.choice(list(self.published))
        data, how = self._damaged(random, self.published[name], name.endswith(".safetensors"))
        other = random.choice(("c.pth", "c.safetensors", "c.pt"))
        chosen = name if random.random() < 0.9 else other
        return self._published(folder, chosen, data, f"{name} {how}")

    def _damaged_weights(self, random: Random, folder: Path) -> Case:
        data, how = self._damaged(random, self.weights, True)
        return self._weights(folder, data, f"model.safetensors {how}")

    def _damaged_state(self, random: Random, folder: Path) -> Case:
        data, how = self._damaged(random, self.state, False)
        return self._state(folder, data, f"training_state.pt {how}")

    def _damaged_manifest(self, random: Random, folder: Path) -> Case:
        return self._manifest(folder, random, "manifest.json")

    def _damaged_progress(self, random: Random, folder: Path) -> Case:
        path = folder / "result.json.unfinished"
        whole = EvaluationProgress(path, {"a": 1})
        whole.of("model").rows.append({"name": "x", "J": 0.5})
        whole.save()
        data, how = mutate(random, path.read_bytes(), self.donors)
        if random.random() < 0.5:
            data, how = repair_zip(data), f"{how}+repair_zip"
        path.write_bytes(data)
        provenance, _ = mutate_json(random, json.dumps(PROVENANCE))
        (folder / "provenance.json").write_bytes(provenance)
        readers = (
            Reader("unfinished evaluation", partial(EvaluationProgress, path, {"a": 1}), ()),
            Reader("provenance", partial(read_provenance, folder), names=("provenance.json",)),
        )
        return Case(f"{path.name} {how}", readers)

    def _damaged(self, random: Random, data: bytes, is_safetensors: bool) -> tuple[bytes, str]:
        """Damaged bytes; the header of safetensors is also changed as the JSON that it is."""
        if is_safetensors and random.random() < 0.5:
            length = int.from_bytes(data[:8], "little")
            header, how = mutate_json(random, data[8 : 8 + length].decode())
            return struct.pack("<Q", len(header)) + header + data[8 + length :], f"header {how}"
        changed, how = mutate(random, data, self.donors)
        if not is_safetensors and random.random() < 0.4:
            changed, how = repair_zip(changed), f"{how}+repair_zip"
        return changed, how

    def _published(self, folder: Path, name: str, data: bytes, what: str) -> Case:
        path = folder / name
        path.write_bytes(data)
        read = partial(convert_official_checkpoint, path, folder / "converted")
        # Messages about a tensor or a width name it.
        names = (name, "backbone2", "decode_head", "checkpoint", "`")
        return Case(what, (Reader("convert_official_checkpoint", read, (ValueError,), names),))

    def _weights(self, folder: Path, data: bytes, what: str) -> Case:
        for path in self.model.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        (folder / "model.safetensors").write_bytes(data)
        (folder / "photo.png").write_bytes(self.image)
        load = partial(AMDModel.from_pretrained, folder)
        argv = ["segment", str(folder / "photo.png"), "--output", str(folder / "out")]
        argv += ["--model", str(folder), "--device", "cpu"]
        readers = [Reader("AMDModel.from_pretrained", load, WEIGHT_ERRORS)]
        if is_one_of_four(data) or data == self.weights:
            segment = partial(run_command, argv)
            readers.append(Reader("amd-hf segment --model", segment, (ValueError,)))
        return Case(what, tuple(readers))

    def _state(self, folder: Path, data: bytes, what: str) -> Case:
        path = folder / "training_state.pt"
        path.write_bytes(data)
        read = partial(load_state, path)
        return Case(what, (Reader("load_state", read, (CheckpointError,), (path.name,)),))

    def _manifest(self, folder: Path, random: Random | None, what: str) -> Case:
        """Two checkpoints, of which the newer one has a damaged manifest or a damaged file."""
        for step in (1, 2):
            partial_folder = begin_checkpoint(folder, step)
            save_state({"step": step}, partial_folder / "training_state.pt")
            commit_checkpoint(partial_folder)
        newer = folder / "step_2"
        if random is not None:
            manifest = newer / "manifest.json"
            if random.random() < 0.7:
                data, how = mutate_json(random, manifest.read_text())
                manifest.write_bytes(data)
            else:
                state = newer / "training_state.pt"
                data, how = mutate(random, state.read_bytes(), self.donors)
                state.write_bytes(data)
            what = f"{what} {how}"

        def latest() -> None:
            found = latest_checkpoint(folder)
            assert found is not None, "the whole checkpoint before the damaged one is not found"
            assert load_state(found / "training_state.pt")["step"] in (1, 2)

        verify = partial(verify_checkpoint, newer)
        return Case(
            what,
            (
                Reader("verify_checkpoint", verify, (CheckpointError,), ("step_2",)),
                Reader("latest_checkpoint", latest, ()),
            ),
        )


def as_published(model: AMDModel) -> dict[str, Tensor]:
    """The state dict of a model under the names of the published code."""
    ours, official = model.state_dict(), {}
    for name, renamed in official_key_table(model.config).items():
        tensor = ours[renamed].clone()
        is_linear = "predict_flow" in name and name.endswith("weight")
        official[name] = tensor[:, :, None, None].contiguous() if is_linear else tensor
    return official


def torch_bytes(value: Any, **options: Any) -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def npz_bytes(**arrays: Any) -> bytes:
    """What `numpy.savez` writes."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
