"""Packing of folders, zips and video files into shards that the stream reads back."""

from __future__ import annotations

import io
import json
import os
import runpy
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amd_hf.data import frame_pairs
from amd_hf.data.frame_pairs import open_source
from amd_hf.data.packing import INDEX_NAME, pack_clips
from amd_hf.data.packing_clips import PackingSettings, plan_windows
from amd_hf.whole_files import PARTIAL_PREFIX
from tests.video_trees import SIZE, write_video_file, write_videos


def shard_clips(folder: Path) -> dict[str, dict[str, bytes]]:
    """Members of all shards by key and suffix."""
    clips: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for info in archive:
                key, _, suffix = info.name.partition(".")
                file = archive.extractfile(info)
                assert file is not None
                clips.setdefault(key, {})[suffix] = file.read()
    return clips


def test_folder_to_shards_and_back(tmp_path: Path) -> None:
    root = write_videos(tmp_path / "vos", {"alpha": 7, "beta.x": 6, "short": 2})
    settings = PackingSettings(clips_per_shard=3, min_difference=0.0)
    index = pack_clips(open_source(root), tmp_path / "shards", settings)

    assert index["clips"] == 4
    assert index["frames"] == 12
    assert index["videos"] == 2
    assert index["skipped"] == {"too_short": 1}
    assert [shard["clips"] for shard in index["shards"]] == [3, 1]
    assert index == json.loads((tmp_path / "shards" / "index.json").read_text())

    clips = shard_clips(tmp_path / "shards")
    assert sorted(clips) == [
        "alpha__000000",
        "alpha__000003",
        "beta_x__000000",
        "beta_x__000003",
    ]
    for key, members in clips.items():
        assert sorted(members) == ["f0.jpg", "f1.jpg", "f2.jpg", "json"]
        meta = json.loads(members["json"])
        start = int(key.rpartition("__")[2])
        assert (meta["start"], meta["height"], meta["width"]) == (start, *SIZE)
        # Frames that need no new size keep their bytes.
        frames = root / "train" / "JPEGImages" / meta["video"]
        assert members["f1.jpg"] == (frames / f"{start + 1:05d}.jpg").read_bytes()

    streamed = list(frame_pairs(tmp_path / "shards", shuffle=False))
    assert {item["video"] for item in streamed} == {"alpha", "beta.x"}
    assert not list((tmp_path / "shards").glob("parts"))


def test_result_does_not_depend_on_workers_or_source_kind(tmp_path: Path) -> None:
    root = write_videos(tmp_path / "vos", {"a": 6, "b": 6, "c": 9})
    with zipfile.ZipFile(tmp_path / "vos.zip", "w") as archive:
        for path in sorted(root.rglob("*.jpg")):
            archive.write(path, path.relative_to(root).as_posix())
    settings = PackingSettings(clips_per_shard=4, short_side=32, min_difference=0.0)
    for name, source, workers in (("one", root, 0), ("two", tmp_path / "vos.zip", 2)):
        pack_clips(open_source(source), tmp_path / name, settings, num_workers=workers)
    shards = sorted((tmp_path / "one").glob("*.tar"))
    assert len(shards) == 2
    for shard in shards:
        assert shard.read_bytes() == (tmp_path / "two" / shard.name).read_bytes()
    frame = next(iter(shard_clips(tmp_path / "one").values()))["f0.jpg"]
    assert min(Image.open(io.BytesIO(frame)).size) == 32


def test_shards_are_packed_again_with_all_their_clips(tmp_path: Path) -> None:
    """Clips of shards whose source states no frame rate all start at frame 0."""
    root = write_videos(tmp_path / "clips", {"alpha": 9, "beta": 6}, layout=".")
    settings = PackingSettings(min_difference=0.0)
    pack_clips(open_source(root), tmp_path / "first", settings)
    index = pack_clips(open_source(tmp_path / "first"), tmp_path / "again", settings)
    assert index["clips"] == len(open_source(tmp_path / "again")) == 5
    first, again = shard_clips(tmp_path / "first"), shard_clips(tmp_path / "again")

    def frames(clips: dict[str, dict[str, bytes]]) -> list[tuple[bytes, ...]]:
        return sorted(tuple(members[f"f{n}.jpg"] for n in range(3)) for members in clips.values())

    assert frames(first) == frames(again)


def test_video_file_to_shards(tmp_path: Path) -> None:
    frames = write_video_file(tmp_path / "clip.mp4", num_frames=10)
    index = pack_clips(
        open_source(tmp_path / "clip.mp4"),
        tmp_path / "shards",
        PackingSettings(frames_per_clip=5, quality=95, min_difference=0.0),
    )
    assert index["videos_detail"]["clip"]["fps"] == 10.0
    clips = shard_clips(tmp_path / "shards")
    assert sorted(clips) == ["clip__000000", "clip__000005"]
    for key, members in clips.items():
        start = int(key.rpartition("__")[2])
        for number in range(5):
            packed = np.asarray(Image.open(io.BytesIO(members[f"f{number}.jpg"])), dtype=float)
            errors = np.abs(packed - frames.astype(float)).mean(axis=(1, 2, 3))
            assert int(errors.argmin()) == start + number


def test_static_clips_and_cuts_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / "videos"
    generator = np.random.default_rng(0)
    still = generator.integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    dark, light = np.full((*SIZE, 3), 20, np.uint8), np.full((*SIZE, 3), 230, np.uint8)
    for name, frames in {"still": [still] * 3, "cut": [dark, light, light]}.items():
        (root / name).mkdir(parents=True)
        for number, frame in enumerate(frames):
            Image.fromarray(frame).save(root / name / f"{number}.png")
    write_videos(root, {"moving": 3}, layout="")
    index = pack_clips(open_source(root), tmp_path / "shards", PackingSettings())
    assert index["skipped"] == {"static": 1, "shot_cut": 1}
    assert list(index["videos_detail"]) == ["moving"]


def test_unreadable_frames_are_counted(tmp_path: Path) -> None:
    root = write_videos(tmp_path / "vos", {"a": 6})
    (root / "train" / "JPEGImages" / "a" / "00004.jpg").write_bytes(b"no image")
    index = pack_clips(open_source(root), tmp_path / "shards", PackingSettings(min_difference=0.0))
    assert index["clips"] == 1
    assert index["skipped"] == {"unreadable": 1}


def test_windows_are_spread_evenly(tmp_path: Path) -> None:
    root = write_videos(tmp_path / "vos", {"a": 30})
    settings = PackingSettings(frames_per_clip=2, frame_step=2, max_clips_per_video=3)
    [(video, windows)] = plan_windows(open_source(root), settings)
    assert video == "a"
    assert windows == [(0, 0), (0, 12), (0, 24)]


SCRIPT = """
import sys, time
from amd_hf.data import packing, packing_clips
from amd_hf.data.frame_pairs import open_source
settings = packing_clips.PackingSettings(clips_per_shard=5, min_difference=0.0)
def slow(done, total):
    print(done, flush=True)
    time.sleep(0.2)
packing.pack_clips(open_source(sys.argv[1]), sys.argv[2], settings, progress=slow)
"""


def test_killed_packing_goes_on_where_it_stopped(tmp_path: Path) -> None:
    root = write_videos(tmp_path / "vos", {f"video{n}": 6 for n in range(8)})
    settings = PackingSettings(clips_per_shard=5, min_difference=0.0)
    pack_clips(open_source(root), tmp_path / "whole", settings)

    command = [sys.executable, "-c", SCRIPT, str(root), str(tmp_path / "killed")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "3":
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()

    with pytest.raises(ValueError, match="was not packed to the end; run the same packing"):
        open_source(tmp_path / "killed")
    done = sorted((tmp_path / "killed" / "parts").glob("*.json"))
    assert 3 <= len(done) < 8
    stamps = {path.name: path.stat().st_mtime_ns for path in done}
    seen: list[int] = []
    time.sleep(0.01)
    pack_clips(
        open_source(root),
        tmp_path / "killed",
        settings,
        progress=lambda finished, _: seen.append(finished),
    )
    assert seen == list(range(len(stamps) + 1, 9))
    for shard in sorted((tmp_path / "whole").glob("*.tar")):
        assert shard.read_bytes() == (tmp_path / "killed" / shard.name).read_bytes()


def test_other_settings_are_refused(tmp_path: Path) -> None:
    root = write_videos(tmp_path / "vos", {"a": 6})
    source = open_source(root)
    pack_clips(source, tmp_path / "shards", PackingSettings(min_difference=0.0))
    with pytest.raises(ValueError, match="was begun with other settings; choose another folder"):
        pack_clips(source, tmp_path / "shards", PackingSettings(seed=1, min_difference=0.0))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="holds other tars; choose an empty folder"):
        pack_clips(source, tmp_path / "other")


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    root = write_videos(tmp_path / "vos", {"a": 6})
    folder = tmp_path / "shards"
    index = pack_clips(open_source(root), folder, PackingSettings(min_difference=0.0))
    whole = sorted(path.name for path in folder.iterdir())
    for name in ("shard-00000.tar.partial", f"{PARTIAL_PREFIX}{INDEX_NAME}.77"):
        (folder / name).write_bytes(b"half")
    assert pack_clips(open_source(root), folder, PackingSettings(min_difference=0.0)) == index
    assert sorted(path.name for path in folder.iterdir()) == whole


def test_nothing_to_pack(tmp_path: Path) -> None:
    root = write_videos(tmp_path / "vos", {"a": 2})
    with pytest.raises(ValueError, match=r"gave no clip of 3 frames; left out: \{'too_short': 1\}"):
        pack_clips(open_source(root), tmp_path / "shards")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("frames_per_clip", 1, "`frames_per_clip` must be at least 2, got 1"),
        ("quality", 99, "`quality` must be at most 95, got 99"),
        ("seed", -1, "`seed` must be at least 0, got -1"),
    ],
)
def test_settings_are_checked(name: str, value: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackingSettings(**{name: value})


def test_script(
    tmp_path: Path,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = write_videos(tmp_path / "vos", {"a": 6})
    script = repository / "scripts" / "pack_youtube_vos.py"
    main = runpy.run_path(str(script))["main"]
    common = ["--output_dir", str(tmp_path / "shards"), "--num_workers", "0"]
    monkeypatch.setattr(sys, "argv", [script.name, "--source", str(root), *common])
    assert main() == 0
    assert "2 clips of 1 videos in 1 shards" in capsys.readouterr().out
    upload = ["--hub_dataset_id", "no id!"]
    monkeypatch.setattr(sys, "argv", [script.name, "--source", str(root), *common, *upload])
    assert main() == 2
    assert "error: not uploaded to no id!: " in capsys.readouterr().err
    missing = str(tmp_path / "none")
    monkeypatch.setattr(sys, "argv", [script.name, "--source", missing, *common])
    assert main() == 2
    assert (
        capsys.readouterr().err == f"error: `source` {missing!r} does not exist; check the path.\n"
    )
