"""Bad input: one clear sentence where nothing can be done, else skipped, counted and reported."""

from __future__ import annotations

import io
import logging
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from amd_hf.data import PairCollator, PairTransform, SkipCounter, frame_pairs
from amd_hf.data.frame_pairs import open_source
from amd_hf.data.packing import pack_clips
from amd_hf.data.packing_clips import PackingSettings
from amd_hf.data.synthetic_objects import generate_clip
from tests.video_trees import SIZE, write_video_file, write_videos


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_videos(tmp_path / "tree", {"a": 6, "b": 6, "c": 6})


@pytest.fixture
def shard(tree: Path, tmp_path: Path) -> Path:
    settings = PackingSettings(min_difference=0.0)
    pack_clips(open_source(tree), tmp_path / "shards", settings)
    return tmp_path / "shards" / "shard-00000.tar"


def decoded(source: Any, counter: SkipCounter, **options: Any) -> list[dict[str, Any]]:
    transform = PairTransform("none", crop_size=16)
    return list(frame_pairs(source, transform=transform, counter=counter, **options))


def test_missing_and_empty_sources(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no video")
    with pytest.raises(ValueError, match="does not exist; check the path"):
        frame_pairs(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"'a/b/c\.tar' does not exist; check the path"):
        frame_pairs("a/b/c.tar")
    with pytest.raises(ValueError, match="holds no video of at least two frames; expected"):
        frame_pairs(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"must be a folder, \.tar, \.zip or video file"):
        frame_pairs(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="is an empty list; give at least one path"):
        frame_pairs([])
    with pytest.raises(ValueError, match="got int"):
        frame_pairs(5)
    with pytest.raises(ValueError, match="must be 'generated' or 'generated:N' with N >= 1"):
        frame_pairs("generated:many")


@pytest.mark.parametrize(
    ("name", "is_id"),
    [("org/clips", True), ("org/clips-1.5", True), ("org/clips.zip", False), ("a/b/c", False)],
)
def test_what_is_taken_for_the_id_of_a_hub_data_set(
    name: str, is_id: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(name: str, split: str) -> Any:
        raise ValueError(f"asked for {name}")

    monkeypatch.setattr("amd_hf.data.sources_hub._load", opened)
    with pytest.raises(ValueError, match="asked for" if is_id else "does not exist"):
        open_source(name)


def test_unreachable_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="'no/such-clips' is no folder, archive or video here"):
        frame_pairs("no/such-clips")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame_gap": 0}, "`frame_gap` must be a number of at least 1 or a range"),
        ({"frame_gap": (3, 2)}, r"`frame_gap` must be .*got \(3, 2\)"),
        ({"target_dt": 0.0}, "`target_dt` must be positive seconds or a range"),
        ({"temporal_order": "up"}, "`temporal_order` must be one of both, forward, backward"),
        ({"pairs_per_clip": 0}, "`pairs_per_clip` must be at least 1, got 0"),
        ({"assumed_fps": 0.0}, "`assumed_fps` must be positive, got 0.0"),
        ({"weights": {"a": -1.0}}, "`weights` must not be negative"),
        ({"weights": {"": 0.0}}, "`weights` leave out every video of `source`"),
        ({"seed": -1}, "`seed` must not be negative, got -1"),
        ({"num_shards": 99}, "`num_shards` must be from 1 to the 3 pairs of a pass, got 99"),
        ({"min_difference": 1.0}, "look at decoded frames; give a `transform`"),
        ({"reject_shot_cuts": True}, "look at decoded frames; give a `transform`"),
    ],
)
def test_wrong_arguments(tree: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frame_pairs(tree, **options)


def test_videos_of_one_frame(tree: Path, tmp_path: Path) -> None:
    write_videos(tree, {"single": 1})
    counter = SkipCounter()
    assert len(decoded(tree, counter)) == 3
    assert counter.as_dict()["too_short"] == 1
    write_videos(tmp_path / "lonely", {"single": 1})
    with pytest.raises(ValueError, match="holds no video of at least two frames"):
        frame_pairs(tmp_path / "lonely")


def test_gap_beyond_every_clip_ends_with_a_reason(tree: Path) -> None:
    with pytest.raises(RuntimeError, match=r"No pair could be taken.*too_short=3"):
        list(frame_pairs(tree, frame_gap=9))
    with pytest.raises(RuntimeError, match=r"No pair could be taken"):
        list(frame_pairs(tree, frame_gap=9, repeat=True))


def test_frames_of_different_sizes(tree: Path) -> None:
    folder = tree / "train" / "JPEGImages" / "a"
    for number in (1, 3, 5):
        path = folder / f"{number:05d}.jpg"
        Image.open(path).resize((20, 20)).save(path)
    counter = SkipCounter()
    items = decoded(tree, counter)
    assert {item["video"] for item in items} == {"b", "c"}
    assert counter.as_dict()["sizes_differ"] == 1


def test_damaged_frames_are_counted_across_workers(
    tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tree / "train" / "JPEGImages"
    for path in sorted((folder / "a").glob("*.jpg")):
        path.write_bytes(path.read_bytes()[:300])  # cut off
    for path in sorted((folder / "b").glob("*.jpg")):
        path.write_bytes(b"<html>not an image</html>")
    counter = SkipCounter()
    transform = PairTransform("none", crop_size=16)
    dataset = frame_pairs(tree, transform=transform, counter=counter, pairs_per_clip=4)
    loader = DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=PairCollator(transform))
    keys = [key for batch in loader for key in batch["key"]]
    assert len(keys) == 4
    assert all(key.startswith("c/") for key in keys)
    assert counter.as_dict()["unreadable"] == counter.total == 8
    assert "unreadable=8" in repr(counter)
    with caplog.at_level(logging.WARNING, logger="amd_hf.data.counting"):
        list(frame_pairs(tree, transform=transform, pairs_per_clip=4))
    assert 1 <= len(caplog.records) <= 5  # the first few are named, the rest only counted
    assert "Skipped (unreadable): " in caplog.text


def test_tiff_frames_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    for name in ("whole", "cut", "depth", "animated"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        frames = [Image.fromarray(frame) for frame in generate_clip(3, *SIZE, seed=0)[0]]
        for number, frame in enumerate(frames):
            path = tmp_path / "tree" / name / f"{number}.tiff"
            if name == "animated":
                frame.save(path.with_suffix(".gif"), save_all=True, append_images=frames)
            elif name == "depth":  # meters, no gray levels
                Image.fromarray(np.full(SIZE, 1e4, dtype=np.float32)).save(path)
            else:
                frame.save(path)
            if name == "cut":
                path.write_bytes(path.read_bytes()[:300])
    counter = SkipCounter()
    items = decoded(tmp_path / "tree", counter, reject_shot_cuts=False)
    assert [item["video"] for item in items] == ["whole"]
    assert counter.as_dict()["unreadable"] == counter.total == 3
    settings = PackingSettings(min_difference=0.0, reject_shot_cuts=False, short_side=32)
    index = pack_clips(open_source(tmp_path / "tree"), tmp_path / "shards", settings)
    assert list(index["videos_detail"]) == ["whole"]
    assert index["skipped"] == {"unreadable": 3}


def test_a_frame_that_vanishes_is_counted(tree: Path) -> None:
    counter = SkipCounter()
    dataset = frame_pairs(tree, counter=counter)
    for path in (tree / "train" / "JPEGImages" / "b").glob("*.jpg"):
        path.unlink()
    assert {item["video"] for item in dataset} == {"a", "c"}
    assert counter.as_dict()["unreadable"] == 1


def test_static_pairs_and_cuts(tmp_path: Path) -> None:
    root = write_videos(tmp_path, {"moving": 4}, layout="")
    still = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    for name, frames in {
        "still": [still, still],
        "cut": [np.full((*SIZE, 3), 10, np.uint8), np.full((*SIZE, 3), 240, np.uint8)],
    }.items():
        (root / name).mkdir()
        for number, frame in enumerate(frames):
            Image.fromarray(frame).save(root / name / f"{number}.png")
    counter = SkipCounter()
    assert [item["video"] for item in decoded(root, counter, min_difference=1.0)] == ["moving"]
    assert counter.as_dict() | {"static": 1, "shot_cut": 1} == counter.as_dict()
    kept = decoded(root, SkipCounter(), reject_shot_cuts=False)
    assert {item["video"] for item in kept} == {"moving", "still", "cut"}


@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_shard_cut_in_the_middle(shard: Path, share: float) -> None:
    whole = {item["key"].split("/")[0] for item in frame_pairs(shard)}
    data = shard.read_bytes()
    shard.write_bytes(data[: int(len(data) * share)])
    counter = SkipCounter()
    items = decoded(shard, counter)
    found = {item["key"].split("/")[0] for item in items}
    assert 1 <= len(found) < len(whole)
    assert found < whole
    assert counter.as_dict()["incomplete"] == 1
    assert counter.as_dict()["unreadable"] == 0


def test_unreadable_tars_and_zips(shard: Path, tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_bytes(b"this is no tar at all" * 100)
    with pytest.raises(ValueError, match="is no uncompressed tar"):
        frame_pairs(tmp_path / "text.tar")
    (tmp_path / "none.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no uncompressed tar|holds no clip"):
        frame_pairs(tmp_path / "none.tar")
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ValueError, match="is no complete zip"):
        frame_pairs(tmp_path / "cut.zip")
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    with pytest.raises(ValueError, match=r"holds no readable video .*\(1 video files found\)"):
        frame_pairs(tmp_path / "bad.mp4")


def test_damaged_video_beside_a_good_one(tmp_path: Path) -> None:
    write_video_file(tmp_path / "good.mp4", num_frames=5)
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    counter = SkipCounter()
    assert [item["video"] for item in frame_pairs(tmp_path, counter=counter)] == ["good"]
    assert counter.as_dict()["unreadable"] == 1


def test_damaged_zip_member_is_counted(tree: Path, tmp_path: Path) -> None:
    path = tmp_path / "vos.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(tree.rglob("*.jpg")):
            archive.write(file, file.relative_to(tree).as_posix())
        damaged = [info.header_offset for info in archive.infolist() if "/a/" in info.filename]
    data = bytearray(path.read_bytes())
    for offset in damaged:
        data[offset + 120 : offset + 160] = bytes(40)
    path.write_bytes(data)
    counter = SkipCounter()
    assert {item["video"] for item in frame_pairs(path, counter=counter)} == {"b", "c"}
    assert counter.as_dict()["unreadable"] == 1


def tar_with(path: Path, info: tarfile.TarInfo, data: bytes = b"") -> Path:
    with tarfile.open(path, "w") as archive:
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", ["../../etc/x.f0.jpg", "/etc/x.f0.jpg", "a/../../x.f0.jpg"])
def test_paths_that_leave_the_archive(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="holds the unsafe path"):
        open_source(tar_with(tmp_path / "evil.tar", tarfile.TarInfo(name), b"x"))
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(ValueError, match="holds the unsafe path"):
        open_source(tmp_path / "evil.zip")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_tars(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("clip.f0.jpg")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(ValueError, match="which is a link or a device; only regular files"):
        open_source(tar_with(tmp_path / "evil.tar", info))


def test_links_in_zips(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("train/JPEGImages/a/00000.jpg")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ValueError, match="holds the link"):
        open_source(tmp_path / "evil.zip")


def test_zip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amd_hf.data.archives.MAX_MEMBER_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(2):
            archive.writestr(f"train/JPEGImages/a/{number:05d}.jpg", bytes(1_000_000))
    counter = SkipCounter()
    with pytest.raises(RuntimeError, match="unreadable=1"):
        list(frame_pairs(tmp_path / "bomb.zip", counter=counter))


def test_a_clip_that_is_in_a_shard_twice_is_counted(shard: Path, tmp_path: Path) -> None:
    double = tmp_path / "double.tar"
    with tarfile.open(shard) as source, tarfile.open(double, "w") as archive:
        members = source.getmembers()
        for info in [*members, members[0]]:
            archive.addfile(info, source.extractfile(info))
    counter = SkipCounter()
    streamed = list(frame_pairs(double, shuffle=False, counter=counter))
    assert len(streamed) == len(list(frame_pairs(shard, shuffle=False)))
    assert counter.as_dict()["unreadable"] == 1
    assert f"{members[0].name} is in double.tar twice" in counter.latest


def test_broken_json_of_a_clip(shard: Path) -> None:
    data = shard.read_bytes()
    position = data.index(b'{"video"')
    shard.write_bytes(data[:position] + b"[" + data[position + 1 :])
    counter = SkipCounter()
    assert len(decoded(shard, counter)) == 5
    assert counter.as_dict()["unreadable"] == 1


def test_a_video_whose_name_is_no_text(shard: Path, tmp_path: Path) -> None:
    """Half of a surrogate pair: JSON can say it, no file can be named by it."""
    data = shard.read_bytes()
    name = b'{"video": "a", '
    assert data.count(name) == 2
    position = data.index(name)
    broken = name.replace(b'"a"', b'"\\ud800"')
    rest = data[position + len(name) :].replace(b" ", b"", len(broken) - len(name))
    shard.write_bytes(data[:position] + broken + rest[: len(data) - position - len(broken)])
    counter = SkipCounter()
    assert len(decoded(shard, counter)) == 5
    assert counter.as_dict()["unreadable"] == 1
    assert r"its video is named '\ud800', which is no Unicode text" in counter.latest
    pack_clips(open_source(shard), tmp_path / "again", PackingSettings(min_difference=0.0))
    assert len(open_source(tmp_path / "again")) == 5
