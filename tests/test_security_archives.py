"""Archives, manifests and links cannot reach outside or never end (SECURITY.md)."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from amd_hf.data.fbms import open_fbms59_test
from amd_hf.data.frame_pairs import open_source
from amd_hf.training.checkpointing import CheckpointError, verify_checkpoint


def header(name: str, size: int, kind: bytes) -> bytes:
    """A tar header with a right checksum; negative sizes as the base-256 extension writes them."""
    field = b"%011o\0" % size if size >= 0 else b"\xff" * 4 + struct.pack(">q", size)
    text = name.encode().ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + field
    text += b"00000000000\0" + b" " * 8 + kind + b"target".ljust(100, b"\0") + b"ustar\x0000"
    text = text.ljust(512, b"\0")
    return text[:148] + b"%06o\0 " % sum(text) + text[156:]


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        (tarfile.SYMTYPE, 0, "a link or a device"),
        (tarfile.LNKTYPE, 0, "a link or a device"),
        (tarfile.CHRTYPE, 0, "a link or a device"),
        (tarfile.BLKTYPE, 0, "a link or a device"),
        (tarfile.FIFOTYPE, 0, "a link or a device"),
        (tarfile.GNUTYPE_SPARSE, 0, "a link or a device"),
        # Sizes that send a reader back to where it was, for ever (CVE-2025-8194).
        (tarfile.REGTYPE, -1024, "damaged header"),
        (tarfile.REGTYPE, -1, "damaged header"),
        (tarfile.GNUTYPE_LONGNAME, -512, "damaged header|no uncompressed tar"),
        (tarfile.XHDTYPE, -1536, "damaged header|no uncompressed tar"),
    ],
)
def test_members_that_are_no_files_are_refused(
    tmp_path: Path, kind: bytes, size: int, message: str
) -> None:
    path = tmp_path / "shard.tar"
    path.write_bytes(
        header("a.f0.jpg", 0, tarfile.REGTYPE) + header("a.f1.jpg", size, kind) + bytes(10240)
    )
    with pytest.raises(ValueError, match=message) as caught:
        open_source(path)
    assert "shard.tar" in str(caught.value)


def test_endless_extended_headers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    path.write_bytes(header("x", 0, tarfile.GNUTYPE_LONGNAME) * 3000 + bytes(1024))
    with pytest.raises(ValueError, match=r"shard\.tar"):
        open_source(path)


def test_a_damaged_header_does_not_hide_the_rest(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    photo = io.BytesIO()
    Image.new("RGB", (16, 16), (9, 99, 9)).save(photo, "PNG")
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for clip in "abc":
            for number in range(2):
                info = tarfile.TarInfo(f"{clip}.f{number}.png")
                info.size = len(photo.getvalue())
                archive.addfile(info, io.BytesIO(photo.getvalue()))
    data = bytearray(buffer.getvalue())
    data[data.index(b"b.f1.png") + 150] ^= 0x55  # the checksum
    path = tmp_path / "shard.tar"
    path.write_bytes(data)
    source = open_source(path)
    assert source.left_out["incomplete"][0] == 1
    assert "damaged header" in source.left_out["incomplete"][1]
    assert [source.clip(index).key for index in range(len(source))] == ["a"]


def test_compressed_tars_are_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar.gz"
    with tarfile.open(path, "w:gz"):
        pass
    with pytest.raises(ValueError, match="compressed tars must be decompressed first"):
        open_source(path)
    with pytest.raises(ValueError, match="is no uncompressed tar"):
        open_source(path.rename(tmp_path / "shard.tar"))


def test_a_definition_cannot_point_outside_of_its_folder(tmp_path: Path) -> None:
    sequence = tmp_path / "Testset" / "cars1"
    (sequence / "GroundTruth").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(sequence / "cars1_01.png")
    lines = ["Total number of regions:", "1", "0", "File name:", "../../../secret.ppm"]
    (sequence / "GroundTruth/cars1Def.dat").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="is not the name of a file beside it"):
        open_fbms59_test(tmp_path)


def test_a_manifest_cannot_point_outside_of_its_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    checkpoint = tmp_path / "step_1"
    checkpoint.mkdir()
    entry = {
        "size": 1,
        "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
    }
    (checkpoint / "manifest.json").write_text(json.dumps({"../secret": entry}))
    with pytest.raises(CheckpointError, match="lists no file of it"):
        verify_checkpoint(checkpoint)


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
        Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / name / "1.png")
        for other in ("up", "again"):
            (tmp_path / name / other).symlink_to(tmp_path, target_is_directory=True)
    assert len(open_source(tmp_path)) == 3
