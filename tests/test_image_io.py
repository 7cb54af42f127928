"""`read_image` and the resize rule: any image in, an upright RGB array or one sentence out."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from amd_hf.image_io_amd import (
    MAX_IMAGE_PIXELS,
    MIN_SIDE,
    describe,
    list_images,
    open_image,
    read_image,
    resize_image,
    resized_size,
    to_rgb,
    upright_size,
)


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def test_every_source_of_an_rgb_image_gives_the_same_pixels(
    rgb: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(rgb).save(path)
    text = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)
    sources = [path, str(path), text, Image.open(path), rgb, rgb.transpose(2, 0, 1), tensor]
    sources += [rgb / 255, rgb.astype(np.float32), rgb.astype(np.int64), tensor.float() / 255]
    for source in sources:
        assert np.array_equal(read_image(source), rgb), describe(source)


def test_result_is_a_writable_copy(rgb: np.ndarray) -> None:
    result = read_image(rgb)
    result[:] = 0
    assert rgb.any()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_modes_are_those_of_pillow(rgb: np.ndarray, mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(rgb).convert(mode)
    assert np.array_equal(read_image(image), np.array(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_pixels_become_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 2), (10, 10, 10, 255))
    image.putpixel((1, 0), (10, 10, 10, 0))
    converted = image.convert(mode)
    if converted.convert("RGBA").getpixel((1, 0)) == (0, 0, 0, 255):
        pytest.skip(f"Pillow {PIL.__version__} loses color and opacity on the way to {mode}")
    result = read_image(converted)
    assert result[0, 1].tolist() == [255, 255, 255]
    assert result[1, 1].tolist() == [10, 10, 10]


def test_rgba_array_is_composed_as_the_image(rgb: np.ndarray) -> None:
    rgba = np.dstack([rgb, np.full(rgb.shape[:2], 128, dtype=np.uint8)])
    difference = read_image(rgba).astype(int) - read_image(Image.fromarray(rgba)).astype(int)
    assert np.abs(difference).max() <= 1


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    image.save(tmp_path / "p.png", transparency=0)
    assert read_image(tmp_path / "p.png").tolist() == [[[255, 255, 255], [0, 0, 255]]]


def test_16_bit_grey_keeps_its_upper_bits(tmp_path: Path) -> None:
    for values in (np.array([[0, 256, 32768, 65535]]), np.array([[0, 17, 200, 255]])):
        expected = (values >> 8)[0].tolist()
        Image.fromarray(values.astype(np.uint16)).save(tmp_path / "deep.png")
        big = Image.frombytes("I;16B", (4, 1), values.astype(">u2").tobytes())
        big.save(tmp_path / "big.tif")
        for name in ("deep.png", "big.tif"):
            assert read_image(tmp_path / name)[0, :, 0].tolist() == expected
            with open_image(tmp_path / name) as image:
                assert np.asarray(to_rgb(image))[0, :, 1].tolist() == expected
        assert read_image(values.astype(np.uint16))[0, :, 2].tolist() == expected


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_exif_orientation_is_applied(orientation: int, suffix: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 16), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 16, 8))  # dark upper left corner of the stored picture
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"turned{suffix}", exif=exif)
    result = read_image(tmp_path / f"turned{suffix}")
    with open_image(tmp_path / f"turned{suffix}") as opened:
        assert upright_size(opened) == result.shape[:2]
    is_turned = orientation >= 5
    assert result.shape == ((32, 16, 3) if is_turned else (16, 32, 3))
    dark = {(y, x) for y in (0, -1) for x in (0, -1) if result[y, x].max() < 128}
    # Where the first row and the first column of the stored picture are displayed (EXIF 2.3).
    expected = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0)}
    expected |= {5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    assert dark == {expected[orientation]}


@pytest.mark.parametrize("shape", [(1, 1), (2, 3000), (3000, 2), (1, 1, 3), (5, 4, 1), (3, 5, 5)])
def test_extreme_shapes(shape: tuple[int, ...]) -> None:
    result = read_image(np.zeros(shape, dtype=np.uint8))
    assert result.ndim == 3
    assert result.shape[2] == 3
    assert result.size == 3 * np.prod([side for side in shape if side not in (1, 3)] or [1])


def test_layout_of_ambiguous_shapes() -> None:
    array = np.zeros((3, 7, 3), dtype=np.uint8)
    assert read_image(array).shape == (3, 7, 3)
    assert read_image(torch.from_numpy(array)).shape == (7, 3, 3)
    assert read_image(array, channels_first=True).shape == (7, 3, 3)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.full((4, 4, 3), np.nan), "0..255, got nan"),
        (np.full((4, 4, 3), -0.5), "must lie in 0..255"),
        (np.full((4, 4, 3), 70000), "must lie in 0..65535"),
        (np.zeros((5, 9, 7), dtype=np.uint8), r"1 to 4 channels.*got \(5, 9, 7\)"),
        (np.zeros((0, 4, 3), dtype=np.uint8), "no empty side"),
        (np.zeros((2, 2, 2, 2, 3), dtype=np.uint8), "must have shape"),
        (np.zeros((4, 4), dtype="datetime64[s]"), "must hold numbers"),
    ],
)
def test_bad_arrays(array: np.ndarray, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        read_image(array)


def test_wrong_type_is_named() -> None:
    with pytest.raises(TypeError, match="got dict"):
        read_image({"image": 1})


def test_pixel_limit_is_stated() -> None:
    huge = np.broadcast_to(np.uint8(0), (20000, 20000))
    with pytest.raises(ValueError, match=f"20000 x 20000 pixels.*limit of {MAX_IMAGE_PIXELS}"):
        read_image(huge)
    with pytest.raises(ValueError, match="more than the limit of 10"):
        read_image(Image.new("L", (4, 4)), max_pixels=10)


def test_values_that_are_no_gray_levels_are_named_and_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "depth.tif"
    Image.fromarray(np.full((4, 4), 300.0, dtype=np.float32)).save(path)
    with pytest.raises(
        ValueError, match=r"depth\.tif': Image values must lie in 0\.\.255"
    ) as caught:
        read_image(path)
    assert "damaged" not in str(caught.value)


def test_huge_file_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    # A valid header of 20000 x 20000 pixels; nothing behind it is ever read.
    buffer = io.BytesIO()
    Image.new("1", (8, 8)).save(buffer, "png")
    data = bytearray(buffer.getvalue())
    data[16:24] = (20000).to_bytes(4, "big") * 2
    path.write_bytes(_with_new_header_checksum(data))
    with pytest.raises(ValueError, match=rf"bomb.png.*limit of {MAX_IMAGE_PIXELS}"):
        read_image(path)


def _with_new_header_checksum(data: bytearray) -> bytes:
    import zlib

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_cut_off_files_give_one_sentence(
    rgb: np.ndarray, suffix: str, share: float, tmp_path: Path
) -> None:
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(np.tile(rgb, (20, 20, 1))).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=r"cut\.\w+.*replace the file") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no file .*nothing\.png"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(ValueError, match="is a folder"):
        read_image(tmp_path)


def test_address_that_does_not_answer() -> None:
    with pytest.raises(ValueError, match="could not be fetched"):
        read_image("http://127.0.0.1:9/nothing.jpg", timeout=2)


def test_list_images_is_in_natural_order(tmp_path: Path) -> None:
    names = ["f10.png", "f2.PNG", "f1.jpg", ".hidden.png", "notes.txt"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["f1.jpg", "f2.PNG", "f10.png"]


def test_published_sizes() -> None:
    assert resized_size(480, 854, 392) == (392, 697)
    assert resized_size(854, 480, 392) == (697, 392)
    assert resized_size(2, 3000, 392, 1344) == (MIN_SIDE, 1344)
    assert resized_size(1, 1, 392, 1344) == (392, 392)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(32, 500))
def test_resized_sides_stay_in_bounds(height: int, width: int, short: int) -> None:
    new = resized_size(height, width, short, 4 * short)
    assert min(new) >= MIN_SIDE
    assert max(new) <= 4 * short
    if max(height, width) < 3.9 * min(height, width):
        assert min(new) == short
        assert max(new) / min(new) == pytest.approx(
            max(height, width) / min(height, width), abs=1 / short
        )


def test_resize_is_bilinear_without_antialiasing_in_whole_levels() -> None:
    image = torch.zeros(1, 1, 4, 8)
    image[..., 0:2] = 255.0
    # Half pixel centers: column x of the result reads column 2 x + 0.5 of the source.
    result = resize_image(image, (2, 4))
    assert result.tolist() == [[[[255.0, 0.0, 0.0, 0.0]] * 2]]
    shrunk = resize_image(torch.arange(6.0).view(1, 1, 1, 6).expand(1, 1, 2, 6) * 7, (2, 4))
    positions = [0.25, 1.75, 3.25, 4.75]
    assert shrunk[0, 0, 0].tolist() == [float(np.rint(7 * x)) for x in positions]
    assert resize_image(image, (4, 8)).equal(image)
