"""What SECURITY.md promises, clause by clause."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import re
import struct
import tarfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from transformers import AutoModel, pipeline

from amd_hf import AMDConfig, AMDImageProcessor, AMDModel
from amd_hf.cli.demo_uploads import MAX_IMAGE_MEGAPIXELS, MAX_UPLOAD_MEGABYTES, read_uploaded_image
from amd_hf.cli.main import main
from amd_hf.data.annotations import read_frame, read_labels, read_object_mask
from amd_hf.data.archives import MAX_MEMBER_BYTES
from amd_hf.data.counting import SkippedPairError
from amd_hf.data.decoding import PairTransform
from amd_hf.data.fbms import open_fbms59_test
from amd_hf.data.frame_pairs import frame_pairs, open_source
from amd_hf.data.sources_video import VideoFileSource
from amd_hf.hub.convert_official import convert_official_checkpoint
from amd_hf.image_io_amd import MAX_DOWNLOAD_BYTES, MAX_IMAGE_PIXELS, read_image
from amd_hf.training.checkpointing import CheckpointError, load_state, verify_checkpoint
from amd_hf.training.moco_data import TwoViewTransform
from amd_hf.video_amd import FrameStream

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(p for part in ("src", "scripts", "spaces") for p in (ROOT / part).rglob("*.py"))

FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open"),
    *("dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads", "joblib.load"),
    *("pandas.read_pickle", "tempfile.mktemp", "torch.hub.load", "torch.jit.load"),
}
FORBIDDEN_METHODS = {"extractall", "extract", "extract_cython", "unsafe_load", "full_load"}
# Calls that are safe with one keyword only, and the value that it must have.
GUARDED_CALLS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
FORBIDDEN_KEYWORDS = {("trust_remote_code", True), ("shell", True), ("verify", False)}
# Only these open images and videos that come from outside.
OPENERS = {"Image.open": {"image_io_amd.py", "demo_uploads.py"}, "av.open": {"video_amd.py"}}
# These read what the package itself has just made, or what belongs to the repository.
OWN_FILES = {"contact_sheet.py", "make_figures.py", "make_demo.py"}
OWN_FILES |= {"make_examples.py", "pictures.py"}
OWN_FOLDER = "benchmarking"


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an expression; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        left = dotted(node.value)
        return f"{left}.{node.attr}" if left else ""
    return ""


def weaknesses(tree: ast.AST, file: str = "") -> Iterator[str]:
    """Every call in a module that could run or unpack what a file says."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        keywords = {
            k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)
        }
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if name in FORBIDDEN_CALLS or method in FORBIDDEN_METHODS:
            yield f"{node.lineno}: {name or method}"
        if (
            name in GUARDED_CALLS
            and keywords.get(GUARDED_CALLS[name][0]) is not GUARDED_CALLS[name][1]
        ):
            yield f"{node.lineno}: {name} without {GUARDED_CALLS[name][0]}={GUARDED_CALLS[name][1]}"
        yield from (
            f"{node.lineno}: {key}={value}"
            for key, value in keywords.items()
            if (key, value) in FORBIDDEN_KEYWORDS
        )
        if file and name in OPENERS and file not in OPENERS[name] | OWN_FILES:
            yield f"{node.lineno}: {name} in place of the reader with limits"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_runs_what_a_file_says(path: Path) -> None:
    file = "" if path.parent.name == OWN_FOLDER else path.name
    assert list(weaknesses(ast.parse(path.read_text(encoding="utf-8")), file)) == []


@pytest.mark.parametrize(
    "snippet",
    [
        *("eval('1')", "exec(text)", "pickle.load(file)", "yaml.load(text)", "os.system(command)"),
        *("torch.load(path)", "torch.load(path, weights_only=False)", "np.load(path)"),
        *("np.load(path, allow_pickle=True)", "archive.extractall(folder)", "Image.open(path)"),
        *("AutoModel.from_pretrained(name, trust_remote_code=True)", "run(command, shell=True)"),
        *("av.open(path)", "torch.load(path, 'cpu')", "yaml.unsafe_load(text)"),
    ],
)
def test_the_search_finds(snippet: str) -> None:
    assert len(list(weaknesses(ast.parse(snippet), "module.py"))) == 1


@pytest.mark.parametrize(
    "snippet",
    ["model.eval()", "torch.load(path, weights_only=True)", "np.load(path, allow_pickle=False)"],
)
def test_the_search_leaves_alone(snippet: str) -> None:
    assert list(weaknesses(ast.parse(snippet), "module.py")) == []


# Weights.


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A folder that appears if the code of a file has run."""
    path = tmp_path / "code-has-run"
    yield path
    assert not path.exists(), "code from a file was run"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny checkpoint."""
    torch.manual_seed(0)
    path = tmp_path / "model"
    AMDModel(AMDConfig.tiny()).save_pretrained(path)
    AMDImageProcessor.from_model_config(AMDConfig.tiny()).save_pretrained(path)
    return path


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_a_pickle_with_code_is_not_run(tmp_path: Path, canary: Path, is_zip: bool) -> None:
    path = tmp_path / "weights.pth"
    content = {"state_dict": {"backbone2.conv1.weight": Payload(canary)}}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match=r"weights\.pth` holds more than tensors"):
        convert_official_checkpoint(path, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"weights\.pth cannot be read"):
        load_state(path)


def test_a_plain_pickle_is_not_run(tmp_path: Path, canary: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps(Payload(canary), protocol=2))
    with pytest.raises(ValueError, match=r"weights\.pt`"):
        convert_official_checkpoint(path, tmp_path / "out")


def test_pickled_weights_of_a_model_folder_are_not_run(folder: Path, canary: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"appearance": Payload(canary)}, folder / "pytorch_model.bin")
    with pytest.raises((OSError, ValueError, RuntimeError, pickle.UnpicklingError)):
        AMDModel.from_pretrained(folder)


def test_weights_are_written_as_safetensors_only(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert "model.safetensors" in names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt"))}


# Code of repositories and data sets.


def plant_code(folder: Path, canary: Path) -> None:
    """Makes a checkpoint name classes of a Python file beside it, which leaves a trace."""
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    for name in ("config.json", "preprocessor_config.json"):
        content = json.loads((folder / name).read_text())
        content["auto_map"] = {
            **dict.fromkeys(("AutoConfig", "AutoModel", "AutoImageProcessor"), "evil.Evil"),
            "AutoModelForSemanticSegmentation": "evil.Evil",
        }
        content["custom_pipelines"] = {
            "zero-shot-object-segmentation": {"impl": "evil.Evil", "pt": ["AutoModel"]}
        }
        (folder / name).write_text(json.dumps(content))


def test_code_of_a_repository_is_not_run_without_the_flag(
    folder: Path, tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant_code(folder, canary)
    photo = tmp_path / "photo.png"
    Image.new("RGB", (48, 32), (200, 30, 30)).save(photo)
    AMDConfig.from_pretrained(folder)
    AMDModel.from_pretrained(folder)
    AMDImageProcessor.from_pretrained(folder)
    assert isinstance(AutoModel.from_pretrained(folder), AMDModel)
    task: Any = "zero-shot-object-segmentation"
    pipeline(task, model=str(folder))(photo)
    argv = ["segment", str(photo), "--model", str(folder), "--output", str(tmp_path / "out")]
    assert main([*argv, "--device", "cpu", "--quiet"]) == 0
    capsys.readouterr()


def test_a_foreign_model_type_with_code_is_refused(
    folder: Path, tmp_path: Path, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant_code(folder, canary)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "model_type": "evil"}))
    photo = tmp_path / "photo.png"
    Image.new("RGB", (48, 32)).save(photo)
    argv = ["segment", str(photo), "--model", str(folder), "--output", str(tmp_path / "out")]
    assert main([*argv, "--device", "cpu", "--quiet"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_script_in_a_data_folder_is_not_run(tmp_path: Path, canary: Path) -> None:
    data = tmp_path / "clips"
    data.mkdir()
    for name in ("clips.py", "__init__.py", "conftest.py"):
        (data / name).write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    with pytest.raises(ValueError, match="holds no video of at least two frames"):
        open_source(data)


# Archives.


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


# The document.


def test_the_document_states_the_limits_of_the_code() -> None:
    text = re.sub(r"\s+", " ", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert f"{MAX_IMAGE_PIXELS:,} pixels" in text
    assert f"{MAX_MEMBER_BYTES >> 20} MiB" in text
    assert f"{MAX_DOWNLOAD_BYTES >> 20} MiB" in text
    assert f"{MAX_UPLOAD_MEGABYTES} MB" in text
    assert f"{MAX_IMAGE_MEGAPIXELS} megapixels" in text
