"""Pictures and videos that are bombs, or that name other files or programs (SECURITY.md)."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from amd_hf.cli.demo_uploads import read_uploaded_image
from amd_hf.data.annotations import read_frame, read_labels, read_object_mask
from amd_hf.data.counting import SkippedPairError
from amd_hf.data.decoding import PairTransform
from amd_hf.data.frame_pairs import frame_pairs
from amd_hf.data.sources_video import VideoFileSource
from amd_hf.image_io_amd import read_image
from amd_hf.training.moco_data import TwoViewTransform
from amd_hf.video_amd import FrameStream

# Bombs.


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of 100 megapixels in a few kilobytes."""
    path = tmp_path_factory.mktemp("bomb") / "bomb.png"
    Image.new("1", (10_000, 10_000)).save(path)
    assert path.stat().st_size < 20_000
    return path


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "reader", [read_image, read_frame, read_labels, read_object_mask, read_uploaded_image]
)
def test_image_bombs_are_refused(bomb: Path, reader: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match=r"bomb\.png.* pixels|bomb\.png.*megapixels"):
        reader(str(bomb) if reader is read_uploaded_image else bomb)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", [PairTransform, TwoViewTransform])
def test_image_bombs_in_streams_are_refused(bomb: Path, kind: type[PairTransform]) -> None:
    data = bomb.read_bytes()
    with pytest.raises(SkippedPairError, match="more than the limit of 89478485"):
        kind("none", 32)(data, data, 0)


def test_image_bombs_are_refused_where_warnings_are_errors(bomb: Path) -> None:
    with pytest.raises(ValueError, match="more pixels than the limit"):  # warnings are errors here
        read_image(bomb)


def motion_jpeg(path: Path, frames: list[bytes]) -> Path:
    """An AVI of ready JPEGs, whose header states 64 x 64 pixels."""
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height = 64, 64
        stream.pix_fmt = "yuvj420p"
        for number, data in enumerate(frames):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts = stream, number, number
            packet.time_base = Fraction(1, 10)
            container.mux(packet)
    return path


@cache
def jpeg(width: int, height: int) -> bytes:
    """A gray JPEG."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (90, 90, 90)).save(buffer, "JPEG", quality=5)
    return buffer.getvalue()


def test_a_video_that_grows_is_refused(tmp_path: Path) -> None:
    frames = [jpeg(64, 64), jpeg(64, 64), jpeg(10_000, 10_000), jpeg(64, 64)]
    path = motion_jpeg(tmp_path / "grows.avi", frames)
    stream = iter(FrameStream(path))
    assert next(stream).shape == (64, 64, 3)
    with pytest.raises(ValueError, match=r"grows\.avi"):
        assert {frame.shape for frame in stream} == {(64, 64, 3)}


def test_a_video_of_too_large_frames_is_refused(tmp_path: Path) -> None:
    path = motion_jpeg(tmp_path / "large.avi", [jpeg(10_000, 10_000)] * 3)
    with pytest.raises(ValueError, match=r"large\.avi.* more than the limit of 89478485"):
        FrameStream(path)
    with pytest.raises(ValueError, match=r"large\.avi.* more than the limit of 89478485"):
        VideoFileSource([path])


def test_a_header_that_promises_billions_of_frames_is_refused(tmp_path: Path) -> None:
    from amd_hf.video_amd import VideoWriter

    path = tmp_path / "clip.mp4"
    with VideoWriter(path, 10) as writer:
        for level in range(5):
            writer.write(np.full((32, 48, 3), 40 * level, np.uint8))
    data = bytearray(path.read_bytes())
    place = data.index(b"stts") + 12
    data[place : place + 4] = struct.pack(">I", 2**31 - 1)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"more than the file has bytes|no readable video"):
        VideoFileSource([path])


# Formats that read other files or start programs.


def test_postscript_under_the_name_of_a_photo_is_not_interpreted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with Image.open(path) as image:
        assert image.format == "EPS", "Pillow itself would start Ghostscript on loading"

    def ghostscript(*args: Any, **options: Any) -> None:
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    with pytest.raises(ValueError, match=r"photo\.jpg' is not a readable image"):
        read_image(path)
    with pytest.raises(ValueError, match=r"photo\.jpg"):
        read_frame(path)
    with pytest.raises(SkippedPairError):
        PairTransform("none", 32)(path.read_bytes(), path.read_bytes(), 0)


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nsecret.mp4\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile secret.mp4\n",
        "[playlist]\nFile1=secret.mp4\n",
    ],
    ids=["m3u8", "concat", "pls"],
)
def test_playlists_do_not_read_other_files(tmp_path: Path, text: str) -> None:
    from amd_hf.video_amd import VideoWriter

    with VideoWriter(tmp_path / "secret.mp4", 10) as writer:
        for level in range(5):
            writer.write(np.full((32, 48, 3), 40 * level, np.uint8))
    path = tmp_path / "list.mp4"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"list\.mp4"):
        list(FrameStream(path))
    with pytest.raises(ValueError, match=r"list\.mp4"):
        VideoFileSource([path])
    with pytest.raises(ValueError, match=r"list\.mp4"):
        frame_pairs(path)


def test_names_that_look_like_protocols_are_files(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    name = "concat:a.mp4"
    Path(name).write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"concat:a\.mp4' is not a readable video"):
        FrameStream(name)
    with pytest.raises(ValueError, match="There is no file"):
        FrameStream("subfile:secret.mp4")
