"""Uploads and results are really deleted: a Space with a short setting, and a look at its disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from amd_hf.cli import demo_uploads as uploads
from amd_hf.data.synthetic_objects import generate_clip
from amd_hf.video_amd import VideoWriter
from amd_hf.whole_files import PARTIAL_PREFIX

from .space_server import SPACE, SpaceServer, space_server

pytest.importorskip("gradio", reason="the demo extra is not installed")
gradio_client = pytest.importorskip("gradio_client", reason="gradio_client is not installed")

# gradio_client leaves its event stream to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")

EVERY, AGE = 1, 10  # seconds; a busy machine must get through a call in less than the age


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpaceServer]:
    with space_server(tmp_path_factory.mktemp("space"), delete_cache=(EVERY, AGE)) as running:
        yield running


@pytest.fixture
def client(server: SpaceServer, tmp_path: Path) -> Iterator[Any]:
    connected = gradio_client.Client(server.url, download_files=str(tmp_path), verbose=False)
    yield connected
    connected.close()


class Watch(threading.Thread):
    """Notes when every file of a server is first and last there."""

    def __init__(self, server: SpaceServer) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.times: dict[Path, tuple[float, float]] = {}
        self.is_over = threading.Event()

    def run(self) -> None:
        while not self.is_over.wait(0.05):
            now = time.monotonic()
            for path in self.server.files():
                self.times[path] = self.times.get(path, (now, now))[0], now


def test_the_promise_is_kept_by_the_settings() -> None:
    """A file just too young for one look is deleted at the next one."""
    every, age = uploads.DELETE_CACHE
    assert every + age <= 60 * uploads.KEEP_MINUTES
    assert f"within {uploads.KEEP_MINUTES} minutes" in uploads.LIMITS
    assert f"within {uploads.KEEP_MINUTES} minutes" in (SPACE / "README.md").read_text()


def test_the_page_uses_the_settings(server: SpaceServer) -> None:
    """The short ones of this test stand in for those that the page itself has set."""
    every, age = uploads.DELETE_CACHE
    assert f"delete_cache: {every} {age}\n" in server.log.read_text()


def test_uploads_and_results_are_deleted_and_the_examples_stay(
    server: SpaceServer, client: Any, tmp_path: Path
) -> None:
    examples = server.files()
    assert {"cat.jpg", "generated_2.mp4"} <= {path.name for path in examples}
    photo, clip = tmp_path / "mine.jpg", tmp_path / "mine.mp4"
    photo.write_bytes((SPACE / "examples" / "cat.jpg").read_bytes() + b"mine")
    with VideoWriter(clip, 12) as writer:
        for frame in generate_clip(3, 48, 64, 5)[0]:
            writer.write(frame)
    watch = Watch(server)
    watch.start()

    mask = client.predict(gradio_client.handle_file(str(photo)), api_name="/segment_image")[3]
    client.predict(gradio_client.handle_file(str(clip)), api_name="/segment_video")
    assert Path(mask).is_file(), "what the visitor has downloaded is theirs"
    deadline = time.monotonic() + 120
    while server.files() != examples and time.monotonic() < deadline:
        time.sleep(0.1)
    watch.is_over.set()
    watch.join()

    assert server.files() == examples, "uploads and results go, the older examples stay"
    kept = {path: last - first for path, (first, last) in watch.times.items()}
    written = {path.name for path in kept.keys() - examples}
    results = {"mask.png", "object.mp4", "segments.mp4", "masks.zip"}
    assert written >= {"mine.jpg", "mine.mp4"} | results
    for path in kept.keys() - examples:
        if path.name.startswith(PARTIAL_PREFIX):
            continue  # seen before it got its name by rename
        assert kept[path] > AGE - 1, f"{path.name} went too early"
    for path in examples:
        assert httpx.get(f"{server.url}/gradio_api/file={path}").status_code == 200
    # The page goes on after a cleaning, also with a file that it has seen before.
    client.predict(gradio_client.handle_file(str(photo)), api_name="/segment_image")
    assert server.errors() == []
