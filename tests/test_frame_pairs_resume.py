"""Exact resumption: on its own, through StatefulDataLoader and through accelerate."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from torchdata.stateful_dataloader import StatefulDataLoader

from amd_hf.data import PairCollator, PairTransform, frame_pairs
from amd_hf.data.frame_pairs import open_source
from amd_hf.data.packing import pack_clips
from amd_hf.data.packing_clips import PackingSettings
from tests.video_trees import write_videos

# torchdata 0.11 calls a function that torch 2.13 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")

NUM_CLIPS = 18


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("resume")
    write_videos(root / "vos", {f"video{n}": 6 for n in range(NUM_CLIPS // 2)})
    settings = PackingSettings(clips_per_shard=5, min_difference=0.0)
    pack_clips(open_source(root / "vos"), root / "shards", settings)
    return root / "shards"


def hub_like(shards: Path) -> IterableDataset:
    from datasets import load_dataset

    files = [str(path) for path in sorted(shards.glob("*.tar"))]
    return load_dataset("webdataset", data_files={"train": files}, split="train", streaming=True)


def stream(shards: Path, kind: str, **options: Any) -> IterableDataset:
    source = shards if kind == "indexed" else hub_like(shards)
    return frame_pairs(source, block_clips=3, **options)


@pytest.mark.parametrize("kind", ["indexed", "streamed"])
def test_state_at_every_position(shards: Path, kind: str) -> None:
    dataset = stream(shards, kind, pairs_per_clip=2)
    dataset.set_epoch(2)
    keys, states = [], [dataset.state_dict()]
    for item in dataset:
        keys.append(item["key"])
        states.append(json.loads(json.dumps(dataset.state_dict())))  # it is plain data
    assert len(keys) == 2 * NUM_CLIPS
    for position, state in enumerate(states):
        resumed = stream(shards, kind, pairs_per_clip=2)
        resumed.set_epoch(2)
        resumed.load_state_dict(state)
        assert [item["key"] for item in resumed] == keys[position:]


@pytest.mark.parametrize("kind", ["indexed", "streamed"])
def test_endless_stream_resumes_in_a_later_round(shards: Path, kind: str) -> None:
    whole = [item["key"] for item in stream(shards, kind, repeat=True).take(70)]
    assert len(set(whole)) > NUM_CLIPS
    dataset = stream(shards, kind, repeat=True)
    for _ in islice(dataset, 45):
        state = dataset.state_dict()
    resumed = stream(shards, kind, repeat=True)
    resumed.load_state_dict(state)
    assert [item["key"] for item in islice(resumed, 25)] == whole[45:]


@pytest.mark.parametrize("rank", [0, 1])
def test_every_process_resumes_its_own_part(shards: Path, rank: int) -> None:
    def part() -> IterableDataset:
        return split_dataset_by_node(stream(shards, "indexed", repeat=True), rank, 2)

    whole = [item["key"] for item in islice(part(), 40)]
    dataset = part()
    for _ in islice(dataset, 23):
        state = dataset.state_dict()
    resumed = part()
    resumed.load_state_dict(state)
    assert [item["key"] for item in islice(resumed, 17)] == whole[23:]


def loader_of(shards: Path, kind: str, num_workers: int) -> StatefulDataLoader:
    transform = PairTransform("heavy", crop_size=16)
    dataset = stream(shards, kind, transform=transform, repeat=True, frame_gap=(1, 2))
    return StatefulDataLoader(
        dataset, batch_size=4, num_workers=num_workers, collate_fn=PairCollator(transform)
    )


@pytest.mark.parametrize("kind", ["indexed", "streamed"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_stateful_loader_continues_with_the_same_batches(
    shards: Path, kind: str, num_workers: int
) -> None:
    batches = []
    loader = loader_of(shards, kind, num_workers)
    for batch in loader:
        batches.append(batch)
        if len(batches) == 6:
            state = loader.state_dict()
        if len(batches) == 14:
            break
    resumed = loader_of(shards, kind, num_workers)
    resumed.load_state_dict(state)
    for expected, batch in zip(batches[6:], resumed, strict=False):
        assert batch["key"] == expected["key"]
        assert batch["pixel_values"].equal(expected["pixel_values"])
    if num_workers:
        del resumed  # ends its workers while the interpreter can still do so


@pytest.mark.parametrize("num_workers", [0, 2])
def test_accelerate_saves_and_resumes_the_stream(
    shards: Path, tmp_path: Path, num_workers: int
) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from accelerate.utils import DataLoaderConfiguration

    def prepared() -> tuple[Accelerator, Any]:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        configuration = DataLoaderConfiguration(
            use_stateful_dataloader=True, dispatch_batches=False
        )
        accelerator = Accelerator(cpu=True, dataloader_config=configuration)
        return accelerator, accelerator.prepare(loader_of(shards, "indexed", num_workers))

    accelerator, loader = prepared()
    keys = []
    for batch in loader:
        keys.append(batch["key"])
        if len(keys) == 5:
            accelerator.save_state(str(tmp_path / "state"))
        if len(keys) == 12:
            break
    accelerator, loader = prepared()
    accelerator.load_state(str(tmp_path / "state"))
    resumed = [batch["key"] for batch in islice(loader, 7)]
    assert resumed == keys[5:]


def test_damaged_frames_do_not_shift_a_resume(shards: Path, tmp_path: Path) -> None:
    """Items that are skipped are part of the position, so nothing comes twice or is left out."""
    for path in shards.glob("*"):
        data = bytearray(path.read_bytes())
        if path.name == "shard-00001.tar":
            source = open_source(path)
            entry = source._first[1]  # type: ignore[attr-defined]
            for place in range(entry, entry + 3):
                offset = source._offset[place]  # type: ignore[attr-defined]
                data[offset : offset + 64] = bytes(64)
        (tmp_path / path.name).write_bytes(data)
    transform = PairTransform("none", crop_size=16)

    def make() -> IterableDataset:
        return frame_pairs(tmp_path, transform=transform, seed=3)

    dataset = make()
    keys, states = [], []
    for item in dataset:
        keys.append(item["key"])
        states.append(dataset.state_dict())
    assert len(keys) == NUM_CLIPS - 1
    for position, state in enumerate(states):
        resumed = make()
        resumed.load_state_dict(state)
        assert [item["key"] for item in resumed] == keys[position + 1 :]
