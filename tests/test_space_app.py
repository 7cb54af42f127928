"""The Space over HTTP: API, bad uploads, path tricks, many users, and what it leaves behind."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from amd_hf.cli.demo_models import BUNDLED
from amd_hf.data.synthetic_objects import generate_clip
from amd_hf.video_amd import FrameStream, VideoWriter

from .space_server import SPACE, SpaceServer, space_server

pytest.importorskip("gradio", reason="the demo extra is not installed")
gradio_client = pytest.importorskip("gradio_client", reason="gradio_client is not installed")
pytest.importorskip("cv2", reason="OpenCV is not installed")  # test_space_adaptation goes without

# gradio_client leaves its event stream to the garbage collector.
VIDEO = "/segment_video"

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpaceServer]:
    with space_server(tmp_path_factory.mktemp("space")) as running:
        yield running


@pytest.fixture(autouse=True)
def logged_errors(server: SpaceServer) -> Iterator[list[str]]:
    """Errors that a test expects in the server's log; any other one, or a missing one, fails it."""
    start, expected = server.log.stat().st_size, list[str]()
    yield expected
    found = server.errors(start)
    assert len(found) == len(expected), found
    assert [line for line, known in zip(found, expected, strict=True) if known not in line] == []


@pytest.fixture(scope="module")
def client(server: SpaceServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = str(tmp_path_factory.mktemp("downloads"))
    connected = gradio_client.Client(server.url, download_files=folder, verbose=False)
    yield connected
    connected.close()


def wait_until(condition: Callable[[], bool], wanted: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {wanted}"
        time.sleep(0.1)


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


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ({}, "masks of the whole video"),
        ({"objective": "video_mask"}, "masks of the whole video"),
        ({"objective": "segment_flow"}, "published loss"),
    ],
    ids=["default", "video_mask", "segment_flow"],
)
def test_a_video_by_its_api_name(
    client: Any, clip: Path, choice: dict[str, str], wanted: str
) -> None:
    objects, flow, masks, note = client.predict(
        gradio_client.handle_file(str(clip)), 2, api_name="/segment_video", **choice
    )
    for video in (objects, flow):
        assert [frame.shape for frame in FrameStream(video)] == [(64, 192, 3)] * 4
    with zipfile.ZipFile(masks) as archive:
        assert len(archive.namelist()) == 4
    assert note.startswith(f"4 frames, 2 adaptation steps ({wanted}); the object covers")


@pytest.mark.parametrize("name", ["nothing", ["video_mask"], 1])
def test_an_objective_that_is_not_there_is_refused(client: Any, clip: Path, name: Any) -> None:
    upload = gradio_client.handle_file(str(clip))
    message = "There is no adaptation objective .*; choose one of video_mask, segment_flow"
    with pytest.raises(gradio_client.exceptions.AppError, match=message):
        client.predict(upload, 2, objective=name, api_name=VIDEO)


def test_the_page_offers_both_objectives(server: SpaceServer) -> None:
    components = httpx.get(f"{server.url}/config").json()["components"]
    [radio] = [entry["props"] for entry in components if entry["type"] == "radio"]
    assert [tuple(entry) for entry in radio["choices"]] == [
        ("Masks of the whole video", "video_mask"),
        ("Published loss", "segment_flow"),
    ]
    assert radio["value"] == "video_mask"
    assert all(words in radio["info"] for words in ("Masks of the whole video:", "Published loss:"))


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


def test_an_image_bomb_is_refused(client: Any, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(path)
    assert path.stat().st_size < 100_000
    with pytest.raises(gradio_client.exceptions.AppError, match=r"bomb\.png has more than 25 mega"):
        client.predict(gradio_client.handle_file(str(path)), api_name="/segment_image")


def test_a_model_that_is_not_offered_is_refused(client: Any, logged_errors: list[str]) -> None:
    photo = gradio_client.handle_file(str(SPACE / "examples" / "cat.jpg"))
    with pytest.raises(gradio_client.exceptions.AppError, match="not in the list of choices"):
        client.predict(photo, 0.5, "/etc", api_name="/segment_image")
    logged_errors.append('gradio.exceptions.Error: "Value: /etc is not in the list of choices')


MARK = {"meta": {"_type": "gradio.FileData"}}


def call(server: SpaceServer, name: str, data: list[Any]) -> str:
    """The events of an API call, made without a client that would prepare the files."""
    called = httpx.post(f"{server.url}/gradio_api/call/{name}", json={"data": data})
    assert called.status_code == 200, called.text
    event = called.json()["event_id"]
    return httpx.get(f"{server.url}/gradio_api/call/{name}/{event}", timeout=60).text


@pytest.fixture
def secret(server: SpaceServer, clip: Path) -> Path:
    """A folder of a picture and a video on the server that no visitor has uploaded."""
    folder = server.log.parent / "secret"
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64), (200, 30, 30)).save(folder / "secret.png")
    shutil.copyfile(clip, folder / "secret.mp4")
    return folder


@pytest.mark.parametrize(
    "mark",
    [MARK, {}, {"meta": {}}, {"meta": {"_type": "other"}}],
    ids=["marked", "unmarked", "empty mark", "other mark"],
)
@pytest.mark.parametrize(
    ("name", "file", "settings"),
    [
        ("segment_image", "secret.png", [0.5, BUNDLED]),
        ("segment_video", "secret.mp4", [0, 0.5, BUNDLED, "segment_flow"]),
    ],
)
@pytest.mark.parametrize("way", ["{folder}/{file}", "{uploads}/../../secret/{file}"])
def test_files_of_the_server_are_no_uploads(
    server: SpaceServer,
    secret: Path,
    logged_errors: list[str],
    name: str,
    file: str,
    settings: list[Any],
    mark: dict[str, Any],
    way: str,
) -> None:
    """A call cannot name a file of the server as its "upload", whether it says it is one or not."""
    path = way.format(folder=secret, uploads=server.gradio_files, file=file)
    assert Path(path).is_file()
    before = server.files()
    events = call(server, name, [{"path": path, **mark}, *settings])
    assert "event: error" in events
    assert "event: complete" not in events
    if mark == MARK:
        logged_errors.append("gradio.exceptions.InvalidPathError: Cannot move")
    elif name == "segment_video":
        logged_errors.append("ValidationError: 1 validation error for FileData")
    else:  # Gradio lets it through
        assert f"{file} was not uploaded to this page" in events
    assert server.files() == before


@pytest.mark.parametrize(
    "address", ["file:///etc/passwd", "http://127.0.0.1:9/x.jpg", "http://169.254.169.254/x.jpg"]
)
def test_the_server_fetches_nothing_from_its_own_network(
    server: SpaceServer, logged_errors: list[str], address: str
) -> None:
    upload = {"path": address, "url": address, **MARK}
    events = call(server, "segment_image", [upload, 0.5, BUNDLED])
    assert "event: error" in events
    assert "root:" not in events
    is_file = address.startswith("file:")
    logged_errors.append("InvalidPathError: Cannot move" if is_file else "failed validation")


@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "{server}/log.txt"])
def test_files_of_the_server_are_not_served(server: SpaceServer, path: str) -> None:
    path = path.format(server=server.log.parent)
    answer = httpx.get(f"{server.url}/gradio_api/file={path}")
    assert answer.status_code in (403, 404)


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


def test_ten_visitors_at_once_are_all_served(
    server: SpaceServer, clip: Path, tmp_path: Path
) -> None:
    """Seven with a photo, two with a bad file, one with a video: each gets their own answer."""
    bad = tmp_path / "notes.jpg"
    bad.write_bytes(b"these are notes")
    photo = SPACE / "examples" / "generated_2.jpg"

    def visit(number: int) -> str:
        visitor = gradio_client.Client(server.url, download_files=False, verbose=False)
        upload = gradio_client.handle_file(
            str(clip if number == 0 else bad if number < 3 else photo)
        )
        try:
            if number == 0:
                return str(visitor.predict(upload, api_name=VIDEO)[3])
            return str(visitor.predict(upload, api_name="/segment_image")[2])
        except gradio_client.exceptions.AppError as error:
            return str(error)
        finally:
            visitor.close()

    with ThreadPoolExecutor(10) as pool:
        notes = list(pool.map(visit, range(10)))
    assert notes[0].startswith("4 frames, no adaptation;")
    assert notes[1:3] == ["notes.jpg is no image this demo reads."] * 2
    assert len(notes) == 10
    assert len(set(notes[3:])) == 1
    assert "object" in notes[3]


def test_a_call_stopped_in_the_middle_frees_the_place(
    server: SpaceServer, client: Any, clip: Path
) -> None:
    """The work in progress ends, its files go, and the next visitor is served."""
    upload = gradio_client.handle_file(str(clip))
    assert client.predict(api_name="/stop_video") == "Nothing is running."
    job = client.submit(upload, 100, api_name=VIDEO)
    wait_until(lambda: bool(server.job_folders()), "the work has begun")
    assert client.predict(api_name="/stop_video") == "Stopping ..."
    assert job.result(timeout=120)[3] == "Stopped; nothing was kept."
    assert not server.job_folders()
    assert str(client.predict(upload, api_name=VIDEO)[3]).startswith("4 frames")


@pytest.mark.parametrize("ends", [signal.SIGTERM, signal.SIGKILL])
def test_the_work_for_a_client_that_went_away_ends(
    server: SpaceServer, clip: Path, ends: signal.Signals
) -> None:
    script = (
        "import sys; from gradio_client import Client, handle_file\n"
        "client = Client(sys.argv[1], verbose=False)\n"
        "client.predict(handle_file(sys.argv[2]), 100, api_name='/segment_video')\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script, server.url, str(clip)])
    try:
        wait_until(lambda: bool(server.job_folders()), "the work has begun")
    finally:
        child.send_signal(ends)
        child.wait()
    wait_until(lambda: not server.job_folders(), "the work has ended", seconds=60)


def test_results_leave_no_folders_behind(server: SpaceServer, client: Any, clip: Path) -> None:
    client.predict(gradio_client.handle_file(str(clip)), api_name=VIDEO)
    assert not server.job_folders()
    assert httpx.get(server.url).status_code == 200, "the page outlives every test above"
