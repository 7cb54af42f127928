"""Tar shards of clips on the Hub, streamed by `datasets` over real HTTP in a child process."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from amd_hf.data.synthetic_objects import generate_clip
from amd_hf.hub.publish import publish_folder

from .loopback_hub import LoopbackHub

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes")

NUM_SHARDS, CLIPS_PER_SHARD = 2, 3

STREAM = """
import json
from datasets import load_dataset
dataset = load_dataset("org/clips", split="train", streaming=True)
samples = list(dataset.decode(False))
print(json.dumps({
    "shards": dataset.num_shards,
    "keys": [sample["__key__"] for sample in samples],
    "bytes": [len(sample["f0.jpg"]["bytes"]) for sample in samples],
    "videos": sorted({sample["json"]["video"] for sample in samples}),
}))
"""


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path: Path) -> tuple[Path, dict[str, int]]:
    """A folder of tar shards and the size of every first frame by clip."""
    folder = tmp_path / "clips"
    folder.mkdir()
    sizes = {}
    for shard in range(NUM_SHARDS):
        with tarfile.open(folder / f"train-{shard:05d}.tar", "w") as archive:
            for clip in range(CLIPS_PER_SHARD):
                key = f"generated__{shard}__{clip}"
                frames, _ = generate_clip(2, 32, 48, seed=10 * shard + clip)
                for index, frame in enumerate(frames):
                    file = io.BytesIO()
                    Image.fromarray(frame).save(file, "JPEG")
                    add(archive, f"{key}.f{index}.jpg", file.getvalue())
                    sizes.setdefault(key, len(file.getvalue()))
                add(archive, f"{key}.json", json.dumps({"video": f"generated/{shard}"}).encode())
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Clips\n")
    return folder, sizes


def test_shards_are_streamed_whole(
    hub: LoopbackHub, shards: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    folder, sizes = shards
    publish_folder(folder, "org/clips", repo_type="dataset")
    hub.fail("GET .*train-00001.tar", status=503)  # one hiccup, which the client must survive
    environment = {**os.environ, **hub.environment(tmp_path / "child")}
    result = subprocess.run(
        [sys.executable, "-c", STREAM],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["shards"] == NUM_SHARDS
    assert dict(zip(found["keys"], found["bytes"], strict=True)) == sizes
    assert found["videos"] == ["generated/0", "generated/1"]
    assert hub.count("GET .*train-00001.tar") >= 2
