"""Frames of videos, folders and lists on demand, and H.264 writing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from amd_hf import video_amd
from amd_hf.video_amd import FrameStream, VideoWriter, is_video

HEIGHT, WIDTH, NUM_FRAMES = 48, 64, 12


def _frames(count: int = NUM_FRAMES, height: int = HEIGHT, width: int = WIDTH) -> list[np.ndarray]:
    """Smooth frames that survive compression: brightness tells the number, a corner the side up."""
    frames = []
    for number in range(count):
        frame = np.full((height, width, 3), 40 + 10 * number, dtype=np.uint8)
        frame[: height // 4, : width // 4] = 250
        frames.append(frame)
    return frames


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, 12.5) as writer:
        for frame in _frames():
            writer.write(frame)
    return path


def test_written_video_is_read_back(video: Path) -> None:
    stream = FrameStream(video)
    assert stream.fps == 12.5
    assert stream.num_frames == NUM_FRAMES
    frames = list(stream)
    assert len(frames) == NUM_FRAMES
    for read, written in zip(frames, _frames(), strict=True):
        assert read.shape == (HEIGHT, WIDTH, 3)
        assert read.dtype == np.uint8
        assert np.abs(read.astype(int) - written)[4:8, 4:8].max() < 12
        assert np.abs(read.astype(int) - written)[30:, 30:].max() < 12


def test_stream_can_be_read_twice(video: Path) -> None:
    stream = FrameStream(str(video))
    assert not stream.is_single_pass
    assert all(np.array_equal(a, b) for a, b in zip(stream, stream, strict=True))


def test_written_video_plays_in_browsers(video: Path) -> None:
    with av.open(str(video)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
    data = video.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "it must start to play while it loads"


@pytest.mark.parametrize(("height", "width"), [(1, 1), (33, 47), (2, 300)])
def test_odd_sizes_are_padded(height: int, width: int, tmp_path: Path) -> None:
    path = tmp_path / "odd.mp4"
    with VideoWriter(path) as writer:
        for frame in _frames(3, height, width):
            writer.write(frame)
    read = list(FrameStream(path))
    assert len(read) == 3
    assert read[0].shape == (height + height % 2, width + width % 2, 3)
    assert FrameStream(path).fps == 24.0


def test_writer_leaves_nothing_unfinished(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    writer = VideoWriter(path)
    writer.write(_frames(1)[0])
    assert not path.exists()
    writer.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.mp4"]
    with VideoWriter(tmp_path / "empty.mp4"):
        pass
    assert not (tmp_path / "empty.mp4").exists()


def test_writer_gives_up_with_the_block(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(b"the video of an earlier run")

    def interrupted() -> None:
        with VideoWriter(path) as writer:
            writer.write(_frames(1)[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.mp4"]
    assert path.read_bytes() == b"the video of an earlier run"


def test_writer_leaves_nothing_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = VideoWriter(tmp_path / "v.mp4")
    writer.write(_frames(1)[0])

    class Full:
        def encode(self) -> list[object]:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_stream", Full())
    with pytest.raises(OSError, match="No space left"):
        writer.close()
    assert not list(tmp_path.iterdir())
    writer.close()  # nothing more to do


def test_writer_refuses_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`fps` must be positive, got 0"):
        VideoWriter(tmp_path / "v.mp4", 0)
    with VideoWriter(tmp_path / "v.mp4") as writer:
        writer.write(_frames(1)[0])
        with pytest.raises(ValueError, match=r"must be \(48, 64\), got \(10, 10\)"):
            writer.write(np.zeros((10, 10, 3), dtype=np.uint8))


# The matrix of the track header as phones write it: the stored picture is turned clockwise.
ONE = (1 << 16).to_bytes(4, "big", signed=True)
MINUS = (-(1 << 16)).to_bytes(4, "big", signed=True)
ZERO = bytes(4)
TURNS = {
    0: ONE + ZERO + ZERO + ZERO + ONE,
    90: ZERO + ONE + ZERO + MINUS + ZERO,
    180: MINUS + ZERO + ZERO + ZERO + MINUS,
    270: ZERO + MINUS + ZERO + ONE + ZERO,
}


@pytest.mark.parametrize("clockwise", TURNS)
def test_rotated_videos_come_upright(video: Path, clockwise: int) -> None:
    data = bytearray(video.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes of fields
    assert data[start : start + 20] == TURNS[0]
    data[start : start + 20] = TURNS[clockwise]
    video.write_bytes(data)
    frame = next(iter(FrameStream(video)))
    stored = _frames(1)[0]
    expected = np.rot90(stored, -clockwise // 90)
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected)[2:6, 2:6].max() < 12
    assert np.abs(frame.astype(int) - expected).mean() < 6


def test_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    for number in (2, 10, 1):
        Image.fromarray(_frames(11)[number]).save(tmp_path / f"f{number}.png")
    stream = FrameStream(tmp_path)
    assert stream.num_frames == 3
    assert [path.name for path in stream.paths or ()] == ["f1.png", "f2.png", "f10.png"]
    assert [int(frame[-1, -1, 0]) for frame in stream] == [50, 60, 140]


def test_lists_arrays_tensors_and_iterators() -> None:
    frames = _frames(3)
    array = np.stack(frames)
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    pictures = [Image.fromarray(frame) for frame in frames]
    for source in (frames, tuple(frames), array, tensor, pictures, iter(frames)):
        stream = FrameStream(source)
        assert stream.is_single_pass == isinstance(source, Iterator)
        assert np.array_equal(np.stack(list(stream)), array)


def test_frames_are_decoded_on_demand(video: Path) -> None:
    taken = []

    def source() -> Iterator[np.ndarray]:
        for number, frame in enumerate(_frames()):
            taken.append(number)
            yield frame

    frames = iter(FrameStream(source()))
    next(frames)
    assert taken == [0]


def test_which_inputs_are_videos(tmp_path: Path) -> None:
    assert is_video("a/B.MP4")
    assert is_video(tmp_path)
    assert is_video("https://example.org/clip.webm?x=1")
    assert not is_video("photo.jpg")
    assert not is_video("https://example.org/photo.jpg")
    assert not is_video(np.zeros((2, 2, 3)))


def _damaged(path: Path, kind: str) -> str:
    data = path.read_bytes()
    index = data.index(b"mdat")
    if kind == "empty":
        path.write_bytes(b"")
        return "not a readable video"
    if kind == "noise":
        path.write_bytes(bytes(range(256)) * 8)
        return "not a readable video"
    # The index of the frames stays whole, most of the pictures are gone.
    path.write_bytes(data[: index + (len(data) - index) // 3])
    return "is cut off|is damaged after frame"


@pytest.mark.parametrize("kind", ["empty", "noise", "cut"])
def test_damaged_videos_give_one_sentence(video: Path, kind: str) -> None:
    text = _damaged(video, kind)
    with pytest.raises(ValueError, match=rf"clip\.mp4.*({text})") as caught:
        list(FrameStream(video))
    assert "\n" not in str(caught.value)


def test_frames_before_the_damage_are_usable(tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    generator = np.random.default_rng(0)
    with VideoWriter(path) as writer:
        for _ in range(30):
            writer.write(generator.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    _damaged(path, "cut")
    read: list[np.ndarray] = []
    with pytest.raises(ValueError, match=r"long\.mp4"):
        read.extend(FrameStream(path))
    assert 0 < len(read) < 30


def test_video_without_pictures(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound) + stream.encode())
    with pytest.raises(ValueError, match=r"sound\.mp4.*no video stream"):
        FrameStream(path)


def test_bad_sources(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no file .*nothing\.mp4"):
        FrameStream(tmp_path / "nothing.mp4")
    with pytest.raises(ValueError, match="holds no image"):
        FrameStream(tmp_path)
    with pytest.raises(ValueError, match=r"shape \(T, H, W, 3\).*got \(4, 4, 3\)"):
        FrameStream(np.zeros((4, 4, 3), dtype=np.uint8))
    with pytest.raises(TypeError, match="got int"):
        FrameStream(3)
    with pytest.raises(TypeError, match="got Image"):
        FrameStream(Image.new("RGB", (4, 4)))


def test_without_pyav(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_amd, "av", None)
    with pytest.raises(ValueError, match="needs PyAV: pip install av"):
        FrameStream(video)
    with pytest.raises(ValueError, match="needs PyAV: pip install av"):
        VideoWriter(tmp_path / "v.mp4")
    assert len(list(FrameStream(_frames(2)))) == 2
