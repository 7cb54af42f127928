"""Tar and zip shards with their JSON, read as training and packing read them."""

from __future__ import annotations

import io
import json
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from amd_hf.data.counting import SkipCounter
from amd_hf.data.decoding import PairTransform
from amd_hf.data.frame_pairs import frame_pairs, open_source
from amd_hf.data.packing import pack_clips
from amd_hf.data.packing_clips import PackingSettings
from amd_hf.data.sources import ClipSource
from amd_hf.data.sources_hub import HubClips
from tests.fuzzing import samples
from tests.fuzzing.families import Case, Family, Reader, is_one_of_four
from tests.fuzzing.mutations import HOSTILE_TEXTS, hostile_value, mutate, mutate_json
from tests.fuzzing.repairs import repair_tar, repair_zip

NUM_CLIPS, FRAMES_PER_CLIP = 2, 3
CLIP_JSON = {"video": "v", "start": 0, "height": 32, "width": 48, "fps": 25.0, "numbers": [0, 1, 2]}
INDEX_JSON = {
    "description": "clips",
    "videos_detail": {"v": {"clips": 2, "fps": 25.0, "frame_step": 1, "height": 32, "width": 48}},
}
MEMBER_KINDS = (
    *(tarfile.REGTYPE, tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE),
    *(tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE, tarfile.XGLTYPE, b"Z"),
)


class RefusedError(ValueError):
    """A documented end of a stream that holds no usable pair, with what was left out and why."""


class Shards(Family):
    """Archives of clips: damaged bytes, hostile members, and JSON that makes no sense."""

    name = "shards"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        frames = [samples.images()["photo.jpg"], samples.images()["progressive.jpg"]]
        self.frames = [frames[number % 2] for number in range(FRAMES_PER_CLIP)]
        self.tar = self.make_tar(json.dumps(CLIP_JSON).encode())
        self.zip = self.make_zip(zipfile.ZIP_STORED)
        self.deflated = self.make_zip(zipfile.ZIP_DEFLATED)
        self.donors = [self.tar, self.zip, *samples.images().values()]
        self.transform = PairTransform("none", 16)

    def make_tar(self, meta: bytes, kind: int = tarfile.GNU_FORMAT) -> bytes:
        """A shard whose clips have this JSON."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
            for clip in range(NUM_CLIPS):
                for number, frame in enumerate(self.frames):
                    add(archive, tarfile.TarInfo(f"clip{clip}.f{number}.jpg"), frame)
                add(archive, tarfile.TarInfo(f"clip{clip}.json"), meta)
        return buffer.getvalue()

    def make_zip(self, compression: int) -> bytes:
        """A zip of two folders of frames."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", compression) as archive:
            for clip in range(NUM_CLIPS):
                for number, frame in enumerate(self.frames):
                    archive.writestr(f"train/JPEGImages/clip{clip}/{number:05d}.jpg", frame)
        return buffer.getvalue()

    def valid(self, folder: Path) -> Iterator[Case]:
        """A tar in both usual forms, and a stored and a deflated zip."""
        meta = json.dumps(CLIP_JSON).encode()
        yield self._case(folder / "gnu", "shard.tar", self.tar, "tar")
        pax = self.make_tar(meta, tarfile.PAX_FORMAT)
        yield self._case(folder / "pax", "shard.tar", pax, "pax tar")
        yield self._case(folder / "stored", "shard.zip", self.zip, "zip")
        yield self._case(folder / "deflated", "shard.zip", self.deflated, "deflated zip")
        yield self._indexed(folder / "indexed", json.dumps(INDEX_JSON).encode(), "index")
        yield self._row(dict(CLIP_JSON), "row")

    def case(self, random: Random, folder: Path) -> Case:
        """One damaged archive."""
        makers: list[tuple[float, Callable[[Random, Path], Case]]] = [
            (0.3, self._damaged_tar),
            (0.5, self._damaged_zip),
            (0.65, self._hostile_tar),
            (0.7, self._hostile_zip),
            (0.85, self._changed_json),
            (0.93, self._changed_index),
            (1.0, self._changed_row),
        ]
        draw = random.random()
        maker = next(maker for bound, maker in makers if draw < bound)
        return maker(random, folder)

    def _damaged_tar(self, random: Random, folder: Path) -> Case:
        data, how = mutate(random, self.tar, self.donors)
        if random.random() < 0.6:
            data, how = repair_tar(data), f"{how}+repair_tar"
        return self._case(folder, "shard.tar", data, f"tar {how}")

    def _damaged_zip(self, random: Random, folder: Path) -> Case:
        data, how = mutate(random, random.choice((self.zip, self.deflated)), self.donors)
        if random.random() < 0.5:
            data, how = repair_zip(data), f"{how}+repair_zip"
        return self._case(folder, "shard.zip", data, f"zip {how}")

    def _hostile_tar(self, random: Random, folder: Path) -> Case:
        """Headers of any kind, name and size; chains of extended headers."""
        data = bytearray()
        for _ in range(random.choice((1, 2, 3, 6, 2000 if random.random() < 0.02 else 4))):
            content = random.choice((self.frames[0], b"", b"12 path=x\n", b"11 size=-1\n"))
            data += hostile_header(random, len(content)) + content
            data += bytes(-len(data) % 512)
        if random.random() < 0.5:
            data = bytearray(self.tar[: random.randrange(len(self.tar) // 512) * 512]) + data
        return self._case(folder, "shard.tar", bytes(data) + bytes(1024), "hostile tar")

    def _hostile_zip(self, random: Random, folder: Path) -> Case:
        """Members of any name and mode."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(random.randint(1, 4)):
                name = f"{hostile_name(random)[:200]}/{number}.jpg"
                info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode())
                mode = random.choice((stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFBLK))
                info.external_attr = (mode | 0o777) << 16
                archive.writestr(info, random.choice((self.frames[0], b"", bytes(100_000))))
        return self._case(folder, "shard.zip", buffer.getvalue(), "hostile zip")

    def _changed_json(self, random: Random, folder: Path) -> Case:
        meta, how = mutate_json(random, json.dumps(CLIP_JSON))
        return self._case(folder, "shard.tar", self.make_tar(meta), f"clip JSON {how}")

    def _changed_index(self, random: Random, folder: Path) -> Case:
        data, how = mutate_json(random, json.dumps(INDEX_JSON))
        return self._indexed(folder, data, f"index JSON {how}")

    def _changed_row(self, random: Random, folder: Path) -> Case:
        row: dict[str, Any] = {**CLIP_JSON}
        for _ in range(random.randint(1, 3)):
            row[random.choice(list(row))] = hostile_value(random)
        if random.random() < 0.3:
            row["frames"] = hostile_value(random)
        return self._row(row, "row")

    def _case(self, folder: Path, name: str, data: bytes, what: str) -> Case:
        folder.mkdir(exist_ok=True)
        path = folder / name
        path.write_bytes(data)
        return Case(
            what,
            self._readers(path, (name, "clip", "pairs", "the last one was"), is_one_of_four(data)),
        )

    def _indexed(self, folder: Path, data: bytes, what: str) -> Case:
        folder.mkdir(exist_ok=True)
        plain = json.dumps({"video": "v"}).encode()
        (folder / "shard.tar").write_bytes(self.make_tar(plain))
        (folder / "index.json").write_bytes(data)
        return Case(
            what,
            self._readers(
                folder, ("index.json", "shard.tar", "the last one was"), is_one_of_four(data)
            ),
        )

    def _readers(self, path: Path, names: tuple[str, ...], is_packed: bool) -> tuple[Reader, ...]:
        """Packing waits for the disk several times, so it gets a part of the cases only."""
        readers = (
            Reader("frame_pairs", partial(streamed, path, None), names=names),
            Reader(
                "frame_pairs in seconds",
                partial(streamed, path, self.transform, 0.04),
                (ValueError, OSError),
                names,
            ),
        )
        if not is_packed:
            return readers
        pack = partial(packed, path, path.parent / "packed")
        return (*readers, Reader("pack_clips", pack, names=(*names, "left out", "clip of")))

    def _row(self, row: dict[str, Any], what: str) -> Case:
        """A row of a streamed data set, as `datasets` hands it over."""
        cells = {f"f{number}.jpg": {"bytes": frame} for number, frame in enumerate(self.frames)}
        meta = {name: value for name, value in row.items() if name != "frames"}
        rows: dict[str, Any] = {"__key__": "clip0", **cells, "json": meta}
        if "frames" in row:
            rows["frames"] = row["frames"]

        def parse() -> None:
            clips = HubClips.__new__(HubClips)
            clips.name, clips.counter = "rows", SkipCounter()
            parsed = clips._parse("clip0", rows)
            if parsed is None and clips.counter.total != 1:
                raise AssertionError("a row was left out and not counted")
            if parsed is not None:
                [parsed[0].frame_number(index) for index in range(parsed[0].num_frames)]

        return Case(f"{what} {str(row)[:200]}", (Reader("Hub row", parse, ()),))


def streamed(path: Path, transform: PairTransform | None, seconds: float | None = None) -> None:
    """Takes all pairs of a source; a stream without one ends with its documented error."""
    counter = SkipCounter()
    stream = frame_pairs(path, transform=transform, target_dt=seconds, counter=counter)
    try:
        num_items = sum(1 for _ in stream)
    except RuntimeError as error:
        if not str(error).startswith("No pair could be taken") or not counter.total:
            raise
        raise RefusedError(str(error)) from error
    if num_items + counter.total == 0:
        raise AssertionError("nothing was read and nothing was counted")


def packed(path: Path, folder: Path) -> None:
    """Packs a source into shards."""
    source = open_source(path)
    assert isinstance(source, ClipSource)
    settings = PackingSettings(frames_per_clip=2, min_difference=0.0, reject_shot_cuts=False)
    pack_clips(source, folder, settings)


def add(archive: tarfile.TarFile, info: tarfile.TarInfo, data: bytes) -> None:
    """Adds a member."""
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def hostile_name(random: Random) -> str:
    """A name that leads out of an archive, or hardly is a name, or looks like a frame."""
    if random.random() < 0.4:
        return f"clip{random.randrange(3)}.f{random.randrange(4)}.jpg"
    return random.choice(HOSTILE_TEXTS) + random.choice(("", ".f0.jpg", "/x.jpg", ".json"))


def hostile_header(random: Random, size: int) -> bytes:
    """A tar header of any kind with a right checksum."""
    name = hostile_name(random).encode("utf-8", "replace")[:100]
    sizes = (size, size, size, 0, -1, -512, -1024, 2**33, 2**62)
    stated = random.choice(sizes)
    is_octal = 0 <= stated < 8**11
    field = (
        b"%011o\0" % stated
        if is_octal
        else b"\xff" + struct.pack(">q", stated).rjust(11, b"\xff" if stated < 0 else b"\0")
    )
    if not is_octal and stated >= 0:
        field = b"\x80" + field[1:]
    header = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + field
    header += b"%011o\0" % random.choice((0, 8**11 - 1)) + b" " * 8
    header += random.choice(MEMBER_KINDS) + b"/etc/passwd".ljust(100, b"\0") + b"ustar\x0000"
    header = header.ljust(512, b"\0")
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]
