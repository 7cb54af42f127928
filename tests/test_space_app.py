"""The Space over HTTP: API, bad uploads, path tricks, many users, and what it leaves behind."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from amd_hf.data.synthetic_objects import generate_clip
from amd_hf.video_amd import FrameStream, VideoWriter

from .space_server import SPACE, SpaceServer, space_server

pytest.importorskip("gradio", reason="the demo extra is not installed")
gradio_client = pytest.importorskip("gradio_client", reason="gradio_client is not installed")

# gradio_client leaves its event stream to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpaceServer]:
    with space_server(tmp_path_factory.mktemp("space")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: SpaceServer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("downloads")
    return gradio_client.Client(server.url, download_files=str(folder), verbose=False)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with VideoWriter(path, 12) as writer:
        for frame in generate_clip(4, 64, 96, 2)[0]:
            writer.write(frame)
    return path


def test_an_image_by_its_api_name(client: Any) -> None:
    photo = SPACE / "examples" / "cat.jpg"
    pair, segments, note, mask = client.predict(
        gradio_client.handle_file(str(photo)), api_name="/segment_image"
    )
    size = Image.open(photo).size
    assert [Image.open(path).size for path in pair] == [size, size]
    assert Image.open(mask).size == size
    assert set(np.unique(np.asarray(Image.open(mask)))) <= {0, 255}
    assert [entry["label"] for entry in segments["annotations"]] == [
        "object",
        "segment A",
        "segment B",
        "segment C",
        "segment D",
    ]
    assert "object" in note


def test_a_video_by_its_api_name(client: Any, clip: Path) -> None:
    objects, flow, masks, note = client.predict(
        gradio_client.handle_file(str(clip)), 2, api_name="/segment_video"
    )
    for video in (objects, flow):
        assert [frame.shape for frame in FrameStream(video)] == [(64, 192, 3)] * 4
    with zipfile.ZipFile(masks) as archive:
        assert len(archive.namelist()) == 4
    assert note.startswith("4 frames, 2 adaptation steps")


def test_every_example_of_the_space_is_offered(server: SpaceServer) -> None:
    page = httpx.get(f"{server.url}/config").text
    files = [f for f in (SPACE / "examples").iterdir() if f.suffix in (".jpg", ".mp4")]
    assert len(files) >= 6
    assert [file.name for file in files if file.name not in page] == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.jpg", b"these are notes", "notes.jpg is no image this demo reads"),
        ("empty.png", b"", "empty.png is no image this demo reads"),
    ],
)
def test_a_bad_image_gets_a_clear_message(
    client: Any, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(gradio_client.exceptions.AppError, match=message):
        client.predict(gradio_client.handle_file(str(path)), api_name="/segment_image")


def test_a_bad_video_gets_a_clear_message(client: Any, tmp_path: Path) -> None:
    path = tmp_path / "list.mp4"
    path.write_bytes(b"#EXTM3U\nfile:///etc/passwd\n")
    with pytest.raises(gradio_client.exceptions.AppError, match=r"list\.mp4 is not an MP4"):
        client.predict(gradio_client.handle_file(str(path)), api_name="/segment_video")


def test_a_model_that_is_not_offered_is_refused(client: Any) -> None:
    photo = gradio_client.handle_file(str(SPACE / "examples" / "cat.jpg"))
    with pytest.raises(gradio_client.exceptions.AppError, match="not in the list of choices"):
        client.predict(photo, 0.5, "/etc", api_name="/segment_image")


@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "{server}/log.txt"])
def test_files_of_the_server_cannot_be_named(server: SpaceServer, path: str) -> None:
    """Neither by address nor as the "upload" of an API call."""
    path = path.format(server=server.log.parent)
    answer = httpx.get(f"{server.url}/gradio_api/file={path}")
    assert answer.status_code in (403, 404)
    payload = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, 0.5]}
    called = httpx.post(f"{server.url}/gradio_api/call/segment_image", json=payload)
    if called.status_code == 200:
        event = called.json()["event_id"]
        result = httpx.get(f"{server.url}/gradio_api/call/segment_image/{event}", timeout=60)
        assert "event: error" in result.text
        assert "root:" not in result.text


@pytest.mark.parametrize("name", ["../../evil.jpg", "..\\evil.jpg", "/tmp/evil.jpg", "a\x00b.jpg"])
def test_uploads_stay_in_the_folder_of_the_app(server: SpaceServer, name: str) -> None:
    before = {
        path for path in server.temporary.rglob("*") if server.gradio_files not in path.parents
    }
    answer = httpx.post(
        f"{server.url}/gradio_api/upload", files={"files": (name, b"evil", "image/jpeg")}
    )
    if answer.status_code == 200:
        stored = Path(answer.json()[0]).resolve()
        assert server.gradio_files.resolve() in stored.parents
    else:
        assert 400 <= answer.status_code < 500
    after = {
        path for path in server.temporary.rglob("*") if server.gradio_files not in path.parents
    }
    assert after == before
    assert not Path("/tmp/evil.jpg").exists()


def test_an_oversized_upload_is_refused(server: SpaceServer) -> None:
    data = b"\0" * (51 * 2**20)
    answer = httpx.post(
        f"{server.url}/gradio_api/upload", files={"files": ("big.jpg", data)}, timeout=60
    )
    assert answer.status_code == 413
    kept = [p for p in server.gradio_files.rglob("*") if p.is_file() and p.stat().st_size > 2**25]
    assert not kept


def test_ten_visitors_at_once_are_all_served(server: SpaceServer) -> None:
    photo = gradio_client.handle_file(str(SPACE / "examples" / "generated_2.jpg"))

    def visit(_: int) -> str:
        visitor = gradio_client.Client(server.url, download_files=False, verbose=False)
        return str(visitor.predict(photo, api_name="/segment_image")[2])

    with ThreadPoolExecutor(10) as pool:
        notes = list(pool.map(visit, range(10)))
    assert len(notes) == 10
    assert len(set(notes)) == 1
    assert "object" in notes[0]


def test_results_leave_no_folders_behind(server: SpaceServer, client: Any, clip: Path) -> None:
    client.predict(gradio_client.handle_file(str(clip)), api_name="/segment_video")
    assert not list(server.temporary.glob("amd-demo-*"))
    assert httpx.get(server.url).status_code == 200, "the page outlives every test above"
