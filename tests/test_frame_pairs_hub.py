"""Pairs streamed from a Hub data set over real HTTP (a loopback server), in a child process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, Image, List, Value, load_dataset

from amd_hf.data import SkipCounter, frame_pairs
from amd_hf.data.frame_pairs import open_source
from amd_hf.data.packing import pack_clips
from amd_hf.data.packing_clips import PackingSettings
from amd_hf.data.sources_hub import HubClips
from amd_hf.hub.publish import publish_folder
from tests.loopback_hub import LoopbackHub
from tests.video_trees import write_videos

NUM_VIDEOS, NUM_CLIPS = 6, 12

STREAM = """
import json, resource
from itertools import islice
from amd_hf.data import PairTransform, frame_pairs, skip_counter

def make(**options):
    return frame_pairs("org/clips", block_clips=4, **options)

def names(dataset):
    return [item["key"] for item in dataset]

dataset = make(seed=1)
first = names(dataset)
dataset.set_epoch(1)
second = names(dataset)
dataset = make(seed=1)
for _ in islice(dataset, 5):
    state = dataset.state_dict()
resumed = make(seed=1)
resumed.load_state_dict(state)

transform = PairTransform("light", crop_size=32)
endless = iter(make(transform=transform, repeat=True))
peaks = []
for _ in range(4):
    shapes = {tuple(item["pixel_values"].shape) for item in islice(endless, 120)}
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps({
    "num_shards": dataset.num_shards, "first": first, "second": second,
    "resumed": names(resumed), "shapes": sorted(shapes), "peaks": peaks,
}))
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    write_videos(root / "vos", {f"video{n}": 6 for n in range(NUM_VIDEOS)})
    settings = PackingSettings(clips_per_shard=5, min_difference=0.0)
    pack_clips(open_source(root / "vos"), root / "clips", settings)
    return root / "clips"


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes")
def test_packed_shards_stream_from_a_hub_id(hub: LoopbackHub, packed: Path, tmp_path: Path) -> None:
    publish_folder(packed, "org/clips", repo_type="dataset")
    hub.fail("GET .*shard-00001.tar", status=503)  # one hiccup, which the client survives
    environment = {**os.environ, **hub.environment(tmp_path / "child")}
    done = subprocess.run(
        [sys.executable, "-c", STREAM], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    clips = {item["key"].split("/")[0] for item in frame_pairs(packed)}
    assert found["num_shards"] == 3
    for epoch in ("first", "second"):
        assert len(found[epoch]) == NUM_CLIPS
        assert {key.split("/")[0] for key in found[epoch]} == clips
    assert found["first"] != found["second"]
    assert found["resumed"] == found["first"][5:]
    assert found["shapes"] == [[2, 3, 32, 32]]
    # Ten passes each; after the first ones nothing accumulates (ru_maxrss is in KiB).
    assert found["peaks"][3] - found["peaks"][1] < 4096
    assert hub.count("GET .*shard-0000") >= 3


def rows_of(num_rows: int, num_frames: int) -> Any:
    """A streamed data set in Parquet's layout: a list of encoded images and a rate per row."""
    generator = np.random.default_rng(0)

    def image() -> dict[str, Any]:
        import io

        from PIL import Image as PillowImage

        buffer = io.BytesIO()
        pixels = generator.integers(0, 255, (24, 32, 3), dtype=np.uint8)
        PillowImage.fromarray(pixels).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    features = Features(
        {"video": Value("string"), "fps": Value("float32"), "frames": List(Image())}
    )
    rows = [
        {"video": f"v{n}", "fps": 12.0, "frames": [image() for _ in range(num_frames + n % 2)]}
        for n in range(num_rows)
    ]
    table = {name: [row[name] for row in rows] for name in features}
    return Dataset.from_dict(table, features=features).to_iterable_dataset(num_shards=2)


def test_rows_with_lists_of_frames() -> None:
    items = list(frame_pairs(rows_of(6, 3), target_dt=1 / 6))
    assert sorted(item["video"] for item in items) == [f"v{n}" for n in range(6)]
    assert {abs(item["gap"]) for item in items} == {2}
    assert {item["fps"] for item in items} == {12.0}
    assert all(item["frame_1"].startswith(b"\x89PNG") for item in items)


def test_block_order_is_permuted_and_complete(packed: Path) -> None:
    files = [str(path) for path in sorted(packed.glob("*.tar"))]
    streamed = load_dataset(
        "webdataset", data_files={"train": files}, split="train", streaming=True
    )
    source = HubClips(streamed, block_clips=2)
    blocks = [
        [clip.key for clip, _ in block]
        for shard in range(source.num_shards)
        for _, block in source.blocks(shard, None)
    ]
    assert max(len(block) for block in blocks) == 2
    straight = [key for block in blocks for key in block]
    keys = [item["key"].split("/")[0] for item in frame_pairs(streamed, block_clips=2, seed=1)]
    assert sorted(keys) == sorted(straight)
    assert keys != straight
    ordered = frame_pairs(streamed, shuffle=False)
    assert [item["key"].split("/")[0] for item in ordered] == straight


def test_shard_cut_in_the_middle(packed: Path, tmp_path: Path) -> None:
    files = []
    for path in sorted(packed.glob("*.tar")):
        data = path.read_bytes()
        files.append(str(tmp_path / path.name))
        is_cut = path.name == "shard-00001.tar"
        Path(files[-1]).write_bytes(data[: len(data) // 2] if is_cut else data)
    streamed = load_dataset(
        "webdataset", data_files={"train": files}, split="train", streaming=True
    )
    counter = SkipCounter()
    items = list(frame_pairs(streamed, counter=counter, block_clips=2))
    assert 7 < len(items) < NUM_CLIPS  # 5 and 2 of the whole shards, some of the other
    assert counter.as_dict()["incomplete"] == 1


def test_rows_that_make_no_sense() -> None:
    rows = {"json": ['{"video": "a"}', "no json"], "f0.jpg": [b"", b""], "f1.jpg": [b"", b""]}
    counter = SkipCounter()
    dataset = frame_pairs(Dataset.from_dict(rows).to_iterable_dataset(), counter=counter)
    assert len(list(dataset)) == 1
    assert counter.as_dict()["unreadable"] == 1


def test_columns_that_hold_no_frames() -> None:
    table = Dataset.from_dict({"text": ["a", "b"]}).to_iterable_dataset()
    with pytest.raises(ValueError, match=r"must have columns f0\.jpg, f1\.jpg, .* got text; pack"):
        frame_pairs(table)


def test_options_that_need_an_index() -> None:
    with pytest.raises(ValueError, match="`weights` need an indexed source"):
        frame_pairs(rows_of(2, 2), weights={"v": 2.0})
    with pytest.raises(ValueError, match=r"is its number of files \(2\), got 7; leave it out"):
        frame_pairs(rows_of(2, 2), num_shards=7)
    with pytest.raises(ValueError, match="`block_clips` must be at least 1, got 0"):
        frame_pairs(rows_of(2, 2), block_clips=0)
