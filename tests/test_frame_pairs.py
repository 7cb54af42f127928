"""Streams of frame pairs: sources, which pairs are drawn, order and sharing out."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from amd_hf.data import PairCollator, PairTransform, SkipCounter, frame_pairs, skip_counter
from amd_hf.data.annotations import image_files
from amd_hf.data.frame_pairs import open_source
from amd_hf.data.packing import pack_clips
from amd_hf.data.packing_clips import PackingSettings
from amd_hf.data.sampling import PairSampler
from amd_hf.data.sources import Clip
from amd_hf.data.sources_hub import _parse_row
from amd_hf.data.sources_video import video_files
from amd_hf.data.synthetic_objects import generate_clip
from amd_hf.image_io_amd import IMAGE_SUFFIXES, list_images
from amd_hf.video_amd import VIDEO_SUFFIXES
from tests.video_trees import SIZE, write_video_file, write_videos

VIDEOS = {f"video{number}": 6 for number in range(7)}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("tree"), VIDEOS)


@pytest.fixture(scope="module")
def shards(tree: Path) -> Path:
    folder = tree.parent / f"{tree.name}_shards"
    settings = PackingSettings(clips_per_shard=5, min_difference=0.0)
    pack_clips(open_source(tree), folder, settings)
    return folder


def zip_of(tree: Path) -> Path:
    path = tree.parent / f"{tree.name}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number, file in enumerate(sorted(tree.rglob("*.jpg"))):
            method = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
            name = f"ytvos/{file.relative_to(tree).as_posix()}"
            archive.write(file, name, compress_type=method)
        archive.writestr("ytvos/train/Annotations/video0/00000.png", b"a mask, not a frame")
        archive.writestr("ytvos/valid/JPEGImages/other/00000.jpg", b"another split")
    return path


def plain_tar_of(tree: Path) -> Path:
    path = tree.parent / f"{tree.name}.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(tree / "train", "./train")
    return path


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("kind", ["folder", "JPEGImages", "zip", "plain tar"])
def test_youtube_vos_in_every_container(tree: Path, kind: str) -> None:
    source = {
        "folder": lambda: tree,
        "JPEGImages": lambda: tree / "train" / "JPEGImages",
        "zip": lambda: zip_of(tree),
        "plain tar": lambda: plain_tar_of(tree),
    }[kind]()
    items = list(frame_pairs(source, frame_gap=(1, 3), seed=5))
    assert sorted(item["video"] for item in items) == sorted(VIDEOS)
    for item in items:
        assert set(item) == {"frame_1", "frame_2", "key", "video", "fps", "gap", "seed"}
        key, _, pair = item["key"].rpartition("/")
        first, second = (int(number) for number in pair.split("-"))
        assert key == item["video"]
        assert second - first == item["gap"]
        assert item["fps"] == 30.0
        folder = tree / "train" / "JPEGImages" / item["video"]
        assert item["frame_1"] == (folder / f"{first:05d}.jpg").read_bytes()
        assert item["frame_2"] == (folder / f"{second:05d}.jpg").read_bytes()
    if kind != "folder":
        expected = {item["key"] for item in frame_pairs(tree, frame_gap=(1, 3), seed=5)}
        assert {item["key"] for item in items} == expected


def test_all_frames_are_preferred(tmp_path: Path) -> None:
    write_videos(tmp_path, {"a": 3}, layout="train/JPEGImages", step=5)
    write_videos(tmp_path, {"a": 11}, layout="train_all_frames/JPEGImages")
    assert open_source(tmp_path).clip(0).num_frames == 11
    assert open_source(tmp_path / "train").clip(0).numbers == (0, 5, 10)


def test_davis_layout_counts_every_video_once(tmp_path: Path) -> None:
    for folder in ("480p", "Full-Resolution"):
        write_videos(tmp_path, {"bear": 3, "camel": 3}, layout=f"JPEGImages/{folder}")
    write_videos(tmp_path, {"bear": 3}, layout="Annotations/480p")
    source = open_source(tmp_path)
    assert [source.video(index) for index in range(len(source))] == ["bear", "camel"]
    assert source.clip(0).fps is None
    assert len(list(frame_pairs(tmp_path))) == 2


def test_shards_of_clips(shards: Path) -> None:
    items = list(frame_pairs(shards))
    assert len(items) == 14  # 7 videos of 6 frames are 2 clips of 3 each
    assert Counter(item["video"] for item in items) == dict.fromkeys(VIDEOS, 2)
    one = list(frame_pairs(sorted(shards.glob("*.tar"))[0]))
    assert len(one) == 5
    listed = list(frame_pairs([str(path) for path in sorted(shards.glob("*.tar"))], seed=0))
    assert [item["key"] for item in listed] == [item["key"] for item in items]


def test_clips_of_different_lengths_share_a_shard(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "mixed.tar", "w") as archive:
        for length in (2, 5, 1):
            for number in range(length):
                buffer = io.BytesIO()
                Image.new("RGB", (32, 32), (number * 20, length * 20, 0)).save(buffer, "JPEG")
                info = tarfile.TarInfo(f"clip_{length}.f{number}.jpg")
                info.size = len(buffer.getvalue())
                archive.addfile(info, io.BytesIO(buffer.getvalue()))
    counter = SkipCounter()
    items = list(frame_pairs(tmp_path / "mixed.tar", frame_gap=(1, 9), counter=counter))
    assert sorted(item["key"].split("/")[0] for item in items) == ["clip_2", "clip_5"]
    assert counter.as_dict()["too_short"] == 1


def test_frame_rates_of_an_index_beside_the_shards(shards: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name in ("x__a__000.f0.jpg", "x__a__000.f1.jpg", "x__a__000.json"):
            data = json.dumps({"video": "x/a", "start": 0}).encode() if "json" in name else b"jpeg"
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert open_source(tmp_path).clip(0).fps is None
    details = {"x/a": {"fps": 30.0, "frame_step": 5}}
    (tmp_path / "index.json").write_text(json.dumps({"videos_detail": details}))
    assert open_source(tmp_path).clip(0).fps == 6.0
    assert open_source(shards).clip(0).fps == 30.0


def test_video_files(tmp_path: Path) -> None:
    frames = write_video_file(tmp_path / "one.mp4", num_frames=30)
    write_video_file(tmp_path / "two.mp4", num_frames=5)
    dataset = frame_pairs(tmp_path, target_dt=0.2, temporal_order="forward", pairs_per_clip=3)
    items = list(dataset)
    # Clips of 24 frames and one shared border frame: two of the first file, one of the second.
    assert Counter(item["video"] for item in items) == {"one": 6, "two": 3}
    for item in items:
        assert item["fps"] == 10.0
        assert item["gap"] == 2
        if item["video"] == "two":
            continue
        clip, _, pair = item["key"].rpartition("/")
        start = int(clip.rpartition("__")[2]) + int(pair.split("-")[0])
        errors = np.abs(pixels(item["frame_1"]) - frames.astype(float)).mean(axis=(1, 2, 3))
        assert int(errors.argmin()) == start
        errors = np.abs(pixels(item["frame_2"]) - frames.astype(float)).mean(axis=(1, 2, 3))
        assert int(errors.argmin()) == start + 2


def test_generated_objects() -> None:
    items = list(frame_pairs("generated:3"))
    assert len({item["key"] for item in items}) == 3
    first, second = pixels(items[0]["frame_1"]), pixels(items[0]["frame_2"])
    assert first.shape == second.shape == (192, 256, 3)
    assert not np.array_equal(first, second)


def test_a_list_mixes_sources(tree: Path, shards: Path) -> None:
    items = list(frame_pairs([tree, "generated:2", *sorted(shards.glob("*.tar"))]))
    assert len(items) == 7 + 2 + 14


def test_gaps_and_both_orders(tree: Path) -> None:
    dataset = frame_pairs(tree, frame_gap=(1, 3), pairs_per_clip=60)
    gaps = Counter(item["gap"] for item in dataset)
    assert set(gaps) == {-3, -2, -1, 1, 2, 3}  # never 0: no frame is paired with itself
    assert min(gaps.values()) > 420 / 6 * 0.6
    starts = {item["key"].split("/")[1] for item in frame_pairs(tree, pairs_per_clip=200)}
    assert starts == {f"{a}-{b}" for a in range(6) for b in range(6) if abs(a - b) == 1}


@pytest.mark.parametrize(("order", "sign"), [("forward", 1), ("backward", -1)])
def test_one_order(tree: Path, order: str, sign: int) -> None:
    items = frame_pairs(tree, temporal_order=order, pairs_per_clip=5)  # type: ignore[arg-type]
    assert {item["gap"] for item in items} == {sign}


@pytest.mark.parametrize("numbers", [None, tuple(range(0, 60, 5)), (0, 1, 2, 8, 9, 10, 30, 31)])
@pytest.mark.parametrize("wanted", [0.05, 0.2, 0.5])
def test_target_dt_takes_the_nearest_frame(numbers: tuple[int, ...] | None, wanted: float) -> None:
    length = 12 if numbers is None else len(numbers)
    clip = Clip("c", "c", length, 20.0, numbers)
    times = [clip.frame_number(index) / 20.0 for index in range(length)]
    sampler = PairSampler(target_dt=wanted, temporal_order="forward")
    for seed in range(60):
        pair = sampler.draw(clip, np.random.default_rng(seed))
        assert pair is not None
        first, second = pair
        errors = [abs(times[other] - times[first] - wanted) for other in range(first + 1, length)]
        assert abs(times[second] - times[first] - wanted) == pytest.approx(min(errors))


def test_target_dt_needs_a_long_enough_clip() -> None:
    sampler = PairSampler(target_dt=1.0)
    generator = np.random.default_rng(0)
    assert sampler.draw(Clip("c", "c", 6, 20.0), generator) is None
    assert sampler.draw(Clip("c", "c", 16, 20.0), generator) is not None
    # Without a stated rate the assumed one counts: 24 frames/s.
    unstated = PairSampler(target_dt=1 / 12, temporal_order="forward")
    first, second = unstated.draw(Clip("c", "c", 9), generator) or (0, 0)
    assert second - first == 2


def test_weights_by_the_longest_prefix(tree: Path) -> None:
    weights = {"video": 0.5, "video1": 3.0, "video2": 0.0}
    counts: Counter[str] = Counter()
    for epoch in range(40):
        dataset = frame_pairs(tree, weights=weights)
        dataset.set_epoch(epoch)
        counts.update(item["video"] for item in dataset)
    assert counts["video1"] == 120
    assert counts["video2"] == 0
    assert 10 <= counts["video0"] <= 30


def keys(dataset: Iterator[dict] | object) -> list[str]:
    return [item["key"] for item in dataset]  # type: ignore[attr-defined]


def test_order_follows_from_seed_and_epoch(tree: Path) -> None:
    first = keys(frame_pairs(tree, seed=1))
    assert keys(frame_pairs(tree, seed=1)) == first
    assert keys(frame_pairs(tree, seed=2)) != first
    dataset = frame_pairs(tree, seed=1)
    dataset.set_epoch(1)
    second = keys(dataset)
    assert second != first
    assert sorted(key.split("/")[0] for key in second) == sorted(VIDEOS)
    dataset.set_epoch(0)
    assert keys(dataset) == first


def test_without_shuffling_the_source_decides(tree: Path) -> None:
    videos = [item["video"] for item in frame_pairs(tree, shuffle=False, num_shards=1)]
    assert videos == sorted(VIDEOS)


def test_repeat_gives_new_permutations(tree: Path) -> None:
    items = keys(frame_pairs(tree, repeat=True).take(21))
    rounds = [items[start : start + 7] for start in (0, 7, 14)]
    for part in rounds:
        assert sorted(key.split("/")[0] for key in part) == sorted(VIDEOS)
    assert len({tuple(part) for part in rounds}) == 3


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("epoch", [0, 3])
def test_processes_share_the_clips_out(shards: Path, world: int, epoch: int) -> None:
    """Both ways of splitting: that of `accelerate` (shard) and `split_dataset_by_node`."""
    from datasets.distributed import split_dataset_by_node

    whole = frame_pairs(shards, num_shards=12)
    whole.set_epoch(epoch)
    expected = sorted(keys(whole))
    for way in ("shard", "node"):
        parts = []
        for rank in range(world):
            dataset = frame_pairs(shards, num_shards=12)
            if way == "shard":
                part = dataset.shard(num_shards=world, index=rank)
            else:
                part = split_dataset_by_node(dataset, rank=rank, world_size=world)
            part.set_epoch(epoch)
            parts.append(keys(part))
            assert len(parts[-1]) >= 14 // world - 2
        assert sorted(key for part in parts for key in part) == expected


def test_workers_share_the_clips_out(shards: Path) -> None:
    transform = PairTransform("none", crop_size=16)
    dataset = frame_pairs(shards, transform=transform)
    expected = sorted(item["key"] for item in dataset)
    loader = DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=PairCollator(transform))
    batches = list(loader)
    assert sorted(key for batch in batches for key in batch["key"]) == expected
    assert batches[0]["pixel_values"].shape == (4, 2, 3, 16, 16)
    assert batches[0]["pixel_values"].dtype == torch.float32


def test_collator_normalizes_the_decoded_pair(tree: Path) -> None:
    transform = PairTransform("none", crop_size=48)
    [item] = frame_pairs(tree, transform=transform, shuffle=False, temporal_order="forward").take(1)
    folder = tree / "train" / "JPEGImages" / item["video"]
    first = int(item["key"].split("/")[1].split("-")[0])
    frame = np.asarray(Image.open(folder / f"{first:05d}.jpg"))[:, 8:56]  # the middle of 48 x 64
    assert np.abs(item["pixel_values"][0].permute(1, 2, 0).numpy() - frame.astype(int)).max() <= 1
    batch = PairCollator(transform)([item])
    red = (item["pixel_values"][0, 0].float() - 123.675) / 58.395
    torch.testing.assert_close(batch["pixel_values"][0, 0, 0], red)
    late = PairCollator(transform, normalize=False)([item])
    assert late["pixel_values"].dtype == torch.uint8
    finished = transform.finish(late["pixel_values"], late["seed"])
    torch.testing.assert_close(finished, batch["pixel_values"])
    with pytest.raises(ValueError, match="give `frame_pairs` a `transform`"):
        PairCollator()([{"frame_1": b"", "frame_2": b""}])


@pytest.mark.parametrize(
    "context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)], ids=["fork", "spawn"]
)
def test_same_crops_in_workers_and_here(shards: Path, context: str) -> None:
    transform = PairTransform("heavy", crop_size=24)
    dataset = frame_pairs(shards, transform=transform, num_shards=2)
    here = {item["key"]: item["pixel_values"] for item in dataset}
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=context)
    there = {item["key"]: item["pixel_values"] for item in loader}
    assert here.keys() == there.keys()
    assert all(torch.equal(here[key], there[key]) for key in here)


def test_stream_maps_filters_and_keeps_its_counter(tree: Path) -> None:
    counter = SkipCounter()
    dataset = frame_pairs(tree, counter=counter)
    derived = dataset.map(lambda item: {"length": len(item["frame_1"])}).filter(
        lambda item: item["gap"] > 0
    )
    assert all(item["length"] == len(item["frame_1"]) for item in derived)
    assert skip_counter(derived) is counter
    assert dataset.column_names is None or "frame_1" in dataset.column_names


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.delitem(sys.modules, "amd_hf.data.stream", raising=False)
    with pytest.raises(ImportError, match=r'needs `datasets`; run pip install "amd-hf\[train\]"'):
        frame_pairs("generated")


def test_shared_training_shards(shared_dir: Path) -> None:
    """The real clips: all 2420, each once, frames of one size, at the published gap."""
    source = open_source(shared_dir / "data" / "train")
    assert len(source) == 2420
    items = list(frame_pairs(source, frame_gap=(1, 2)))
    assert len({item["key"].split("/")[0] for item in items}) == len(items) == 2420
    assert {abs(item["gap"]) for item in items} == {1, 2}
    transform = PairTransform("published", crop_size=128)
    dataset = frame_pairs(source, transform=transform, min_difference=0.5).take(40)
    assert all(item["pixel_values"].shape == (2, 3, 128, 128) for item in dataset)


def test_every_video_that_is_segmented_is_trained_on(tmp_path: Path) -> None:
    for suffix in VIDEO_SUFFIXES:
        (tmp_path / f"clip{suffix.upper()}").touch()
    assert len(video_files([tmp_path])) == len(VIDEO_SUFFIXES)


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_image_that_is_segmented_is_trained_on(suffix: str, tmp_path: Path) -> None:
    frames = write_frames(tmp_path / "video", suffix)
    transform = PairTransform("none", crop_size=16)
    counter = SkipCounter()
    (item,) = frame_pairs(tmp_path, transform=transform, reject_shot_cuts=False, counter=counter)
    assert item["video"] == "video"
    assert item["pixel_values"].float().std() > 5
    assert counter.total == 0
    assert list_images(tmp_path / "video") == frames == list(image_files(frames[0].parent).values())
    # As members of a shard and as columns of a Hub data set.
    with tarfile.open(tmp_path / "clips.tar", "w") as archive:
        for number, clip in enumerate("ab"):
            for index, frame in enumerate(frames[number:]):
                archive.add(frame, f"{clip}.f{index}{suffix.upper()}")
    source = open_source(tmp_path / "clips.tar")
    assert [source.clip(index).num_frames for index in range(len(source))] == [3, 2]
    assert source.read(1, [1]) == [frames[2].read_bytes()]
    _, row = _parse_row(
        "a", {f"f{index}{suffix}": frame for index, frame in enumerate([b"1", b"2"])}
    )
    assert row == [b"1", b"2"]


def write_frames(folder: Path, suffix: str) -> list[Path]:
    """Writes a video of three frames in the format of `suffix`."""
    folder.mkdir(parents=True)
    paths = [folder / f"{number}{suffix}" for number in range(3)]
    mode = {".pbm": "1", ".pgm": "L"}.get(suffix, "RGB")
    for path, frame in zip(paths, generate_clip(3, *SIZE, seed=0)[0], strict=True):
        Image.fromarray(frame).convert(mode).save(path)
    return paths


def test_tiff_frames_of_16_bits_train_like_those_of_8(tmp_path: Path) -> None:
    frames = [np.asarray(Image.open(path)) for path in write_frames(tmp_path / "8", ".pgm")]
    crops = []
    for name, dtype in {"8": "u1", "16": "<u2", "16 big-endian": ">u2"}.items():
        (tmp_path / name).mkdir(exist_ok=True)
        for path, frame in zip(list_images(tmp_path / "8"), frames, strict=True):
            if name != "8":
                mode = "I;16" if dtype == "<u2" else "I;16B"
                deep = (frame.astype(dtype) * 257).astype(dtype)
                image = Image.frombytes(mode, frame.shape[::-1], deep.tobytes())
                image.save(tmp_path / name / f"{path.stem}.tiff")
        transform = PairTransform("light", crop_size=16)
        (item,) = frame_pairs(tmp_path / name, transform=transform, reject_shot_cuts=False)
        crops.append(item["pixel_values"])
    assert crops[0].float().std() > 5
    assert crops[1].equal(crops[0])
    assert crops[2].equal(crops[0])


def test_masks_of_fbms_are_no_frames(tmp_path: Path) -> None:
    write_videos(tmp_path, {"cats01": 3}, layout="Trainingset")
    masks = tmp_path / "Trainingset" / "cats01" / "GroundTruth"
    write_frames(masks, ".pgm")
    source = open_source(tmp_path)
    assert [source.video(index) for index in range(len(source))] == ["Trainingset/cats01"]


def test_fractional_weights_leave_shards_for_all_processes(tmp_path: Path) -> None:
    tree = write_videos(tmp_path / "tree", {f"v{number}": 3 for number in range(8)})
    stream = frame_pairs(tree, weights={"v": 0.5}, repeat=True, shuffle=False)
    assert stream.num_shards == 4
    # One of four processes: in some rounds it has no clip at all.
    alone = iter(stream.shard(num_shards=4, index=3))
    assert len({next(alone)["key"] for _ in range(12)}) > 2
