"""What the demo computes and what it refuses to open, without the page."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from amd_hf import DEFAULT_CHECKPOINT, AMDConfig, AMDImageProcessor, AMDModel
from amd_hf.cli import demo_actions as actions
from amd_hf.cli import demo_models as models
from amd_hf.cli import demo_uploads as uploads
from amd_hf.data.synthetic_objects import generate_clip
from amd_hf.video_amd import FrameStream, VideoWriter


def write_video(path: Path, frames: np.ndarray, fps: float = 12) -> Path:
    with VideoWriter(path, fps) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def silent(share: float, text: str) -> None:
    assert 0 <= share <= 1
    assert text


@pytest.fixture
def processor(tiny_model: AMDModel) -> AMDImageProcessor:
    return AMDImageProcessor.from_model_config(tiny_model.config, size={"shortest_edge": 64})


# Uploads


def test_an_image_comes_upright_and_not_too_large(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: shown 3000 high
    Image.new("RGB", (3000, 1000), (255, 0, 0)).save(path, exif=exif)
    image = uploads.read_uploaded_image(str(path))
    assert image.shape == (uploads.MAX_RESULT_SIDE, 533, 3)
    assert image.dtype == np.uint8


@pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_every_promised_format_opens(tmp_path: Path, form: str) -> None:
    path = tmp_path / "upload"
    Image.new("L", (40, 50), 7).save(path, form)
    assert uploads.read_uploaded_image(str(path)).shape == (50, 40, 3)


@pytest.mark.parametrize(
    "content",
    [b"", b"plain text", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, b"%!PS-Adobe-3.0 EPSF-3.0\n%%EOF"],
)
def test_what_is_no_image_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "holiday.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^holiday\.jpg is no image") as caught:
        uploads.read_uploaded_image(str(path))
    assert str(tmp_path) not in str(caught.value)


def test_a_cut_off_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "holiday.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ValueError, match=r"^holiday\.jpg is damaged") as caught:
        uploads.read_uploaded_image(str(path))
    assert str(tmp_path) not in str(caught.value)


def test_a_video_named_jpg_is_sent_to_the_other_tab(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", generate_clip(2, 32, 32, 0)[0])
    video = video.rename(tmp_path / "clip.jpg")
    with pytest.raises(ValueError, match="is a video; use the Video tab"):
        uploads.read_uploaded_image(str(video))


@pytest.mark.parametrize("side", [5001, 20000])
def test_an_image_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (side, side)).save(path)  # a few kilobytes that decode to many megabytes
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"^bomb\.png has more than 25 megapixels"):
        uploads.read_uploaded_image(str(path))


@pytest.mark.parametrize("read", [uploads.read_uploaded_image, uploads.read_uploaded_video])
def test_nothing_chosen_too_large_or_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: object
) -> None:
    assert callable(read)
    with pytest.raises(ValueError, match=r"^Choose an? (image|video) first"):
        read(None)
    with pytest.raises(ValueError, match="no longer there"):
        read(str(tmp_path / "gone.mp4"))
    (tmp_path / "big.mp4").write_bytes(b"x" * 2048)
    monkeypatch.setattr(uploads, "MAX_UPLOAD_MEGABYTES", 1 / 1024)
    with pytest.raises(ValueError, match=r"^big\.mp4 is larger than"):
        read(str(tmp_path / "big.mp4"))


def test_a_video_is_read_at_the_stated_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4", generate_clip(6, 64, 96, 0)[0], fps=8)
    monkeypatch.setattr(uploads, "VIDEO_SHORT_SIDE", 32)
    monkeypatch.setattr(uploads, "MAX_VIDEO_FRAMES", 4)
    frames, fps = uploads.read_uploaded_video(str(path))
    assert [frame.shape for frame in frames] == [(32, 48, 3)] * 4
    assert fps == pytest.approx(8)


@pytest.mark.parametrize(
    "content",
    [
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"GIF89a" + b"\0" * 20,
        b"",
    ],
)
def test_playlists_never_reach_the_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the decoder must not see this file")

    monkeypatch.setattr(uploads, "FrameStream", refuse)
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^clip\.mp4 is not an MP4"):
        uploads.read_uploaded_video(str(path))


def test_a_broken_video_is_refused_by_name(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", generate_clip(3, 32, 32, 0)[0])
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"clip\.mp4") as caught:
        uploads.read_uploaded_video(str(path))
    assert str(tmp_path) not in str(caught.value)


def test_limits_of_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = generate_clip(4, 32, 48, 0)[0]
    path = write_video(tmp_path / "clip.mp4", clip, fps=2)
    monkeypatch.setattr(uploads, "MAX_VIDEO_SECONDS", 1)
    with pytest.raises(ValueError, match=r"lasts 2 s, more than 1 s"):
        uploads.read_uploaded_video(str(path))
    monkeypatch.undo()
    monkeypatch.setattr(uploads, "MAX_VIDEO_MEGAPIXELS", 0.001)
    with pytest.raises(ValueError, match="frames of 48 x 32 pixels"):
        uploads.read_uploaded_video(str(path))
    monkeypatch.undo()
    single = write_video(tmp_path / "single.mp4", clip[:1])
    with pytest.raises(ValueError, match="single frame; use the Image tab"):
        uploads.read_uploaded_video(str(single))


# Computations


def test_segments_of_a_pair_are_those_of_its_frames(
    tiny_model: AMDModel, processor: AMDImageProcessor
) -> None:
    first, second = generate_clip(2, 64, 96, 0)[0]
    masks, flows = actions.segment_pair(tiny_model, processor, first, second)
    for frame, soft in zip((first, second), masks, strict=True):
        assert soft.shape == (5, 64, 96)
        np.testing.assert_allclose(soft.sum(axis=0), 1, atol=1e-5)
        alone = actions.soft_segments(tiny_model, processor, frame)
        np.testing.assert_allclose(soft, alone, atol=1e-5)
    backward = actions.segment_pair(tiny_model, processor, second, first)[1]
    np.testing.assert_allclose(flows[0], -backward[1], atol=1e-5)
    np.testing.assert_allclose(flows[1], -backward[0], atol=1e-5)


@pytest.mark.parametrize("num_frames", [2, 5])
def test_the_result_has_every_frame_once_and_in_order(
    tiny_model: AMDModel, processor: AMDImageProcessor, tmp_path: Path, num_frames: int
) -> None:
    frames = list(generate_clip(num_frames, 64, 96, 0)[0])
    result = actions.write_video_result(tiny_model, processor, frames, 12, 0.15, tmp_path, silent)
    with zipfile.ZipFile(result.masks) as archive:
        assert archive.namelist() == [f"{index:05d}.png" for index in range(num_frames)]
        masks = [np.asarray(Image.open(io.BytesIO(archive.read(n)))) for n in archive.namelist()]
    chosen = tiny_model.config.object_segment
    for frame, mask in zip(frames, masks, strict=True):
        soft = actions.soft_segments(tiny_model, processor, frame)
        assert np.array_equal(mask, (soft[chosen] > 0.15) * np.uint8(255))
    assert result.object_share == pytest.approx(np.mean(masks) / 255)
    for video in (result.object_video, result.segment_video):
        assert [f.shape for f in FrameStream(video)] == [(64, 192, 3)] * num_frames


def test_the_chooser_offers_labels_not_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_MODELS", dict(models._MODELS))
    AMDModel(AMDConfig.tiny()).save_pretrained(tmp_path / "mine")
    AMDImageProcessor().save_pretrained(tmp_path / "mine")
    labels = models.offer_models([str(tmp_path / "mine"), "org/amd-ytvos"])
    assert labels == [models.BUNDLED, "mine", "org/amd-ytvos"]
    assert not any("/tmp" in label or DEFAULT_CHECKPOINT in label for label in labels)
    assert isinstance(models.load_model("mine")[0], AMDModel)
    for label in ("../../etc", str(tmp_path / "mine"), "org/other"):
        with pytest.raises(ValueError, match="There is no model"):
            models.load_model(label)


def test_the_bundled_model_tells_segments_apart() -> None:
    model, processor = models.load_model(models.BUNDLED)
    frame = generate_clip(1, 96, 128, 2)[0][0]
    soft = actions.soft_segments(model, processor, frame)
    assert soft.shape == (model.config.num_segments, 96, 128)
    assert (soft.max(axis=0) > 0.3).mean() > 0.5, "segments are told apart, not all the same"


def test_the_bundled_model_finds_something(repository: Path) -> None:
    model, processor = models.load_model(models.BUNDLED)
    found = 0
    for name in ("astronaut", "cat", "coffee", "rocket"):
        photo = np.asarray(Image.open(repository / "spaces" / "examples" / f"{name}.jpg"))
        soft = actions.soft_segments(model, processor, photo)
        assert soft.shape == (model.config.num_segments, *photo.shape[:2])
        share = (soft[model.config.object_segment] > 0.5).mean()
        found += 0.005 < share < 0.6
    assert found >= 2, "the bundled model finds an object in most of the example photos"
