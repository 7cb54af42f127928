"""The Space in a real browser: Chromium, desktop and phone.

Set `AMD_SCREENSHOTS` to a folder to keep pictures of the pages.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from amd_hf.data.synthetic_objects import generate_clip
from amd_hf.video_amd import VideoWriter

from .space_server import SPACE, SpaceServer, space_server

pytest.importorskip("gradio", reason="the demo extra is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("cv2", reason="OpenCV is not installed")  # the page then offers no choice

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no chromium on this machine (apt-get install chromium)", allow_module_level=True)

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
VIEWS = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
PATIENCE = 120_000  # milliseconds; the machine may be busy with other tests

# The page lives in another process; what its closing leaves to the collector is not ours.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpaceServer]:
    with space_server(tmp_path_factory.mktemp("space")) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(params=list(VIEWS))
def view(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def page(browser: Any, server: SpaceServer, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The open page; at the end, no request may have gone to another machine."""
    wanted = request.getfixturevalue("view") if "view" in request.fixturenames else "desktop"
    context = browser.new_context(viewport=VIEWS[wanted], reduced_motion="reduce")
    context.set_default_timeout(PATIENCE)
    opened = context.new_page()
    requests: list[str] = []
    opened.on("request", lambda sent: requests.append(sent.url))
    opened.goto(server.url)
    opened.wait_for_selector("#intro h1")
    yield opened
    context.close()
    own = urlsplit(server.url).netloc
    foreign = [url for url in requests if not url.startswith(("data:", "blob:"))]
    assert [url for url in foreign if urlsplit(url).netloc != own] == []
    assert requests


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    with VideoWriter(tmp_path / "clip.mp4", 12) as writer:
        for frame in generate_clip(8, 96, 160, 2)[0]:
            writer.write(frame)
    return tmp_path / "clip.mp4"


def keep_picture(page: Any, name: str) -> None:
    folder = os.environ.get("AMD_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(800)
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def open_video_tab(page: Any) -> Any:
    page.get_by_role("tab", name="Video").click()
    tab = page.locator("[role=tabpanel]:visible")
    tab.get_by_role("button", name="Find the object").wait_for()
    return tab


def upload(tab: Any, file: Path) -> None:
    tab.locator("input[type=file]").first.set_input_files(str(file))
    tab.get_by_label("Remove").or_(tab.get_by_label("Clear")).first.wait_for()


def image_tab(page: Any) -> Any:
    return page.locator("[role=tabpanel]:visible")


def no_sideways_scroll(page: Any) -> bool:
    return bool(page.evaluate("document.scrollingElement.scrollWidth <= window.innerWidth + 1"))


def test_an_image_shows_mask_and_segments(page: Any, view: str) -> None:
    keep_picture(page, f"{view}-start")
    tab = image_tab(page)
    upload(tab, SPACE / "examples" / "cat.jpg")
    tab.get_by_role("button", name="Find the object").click()
    page.wait_for_selector("#pair img")
    legend = page.locator("#segments")
    for name in ("object", "segment A", "segment B", "segment C", "segment D"):
        legend.get_by_text(name, exact=True).wait_for()
    note = page.locator("#image-note").inner_text()
    assert re.search(r"The object covers \d+% of the image|no object found", note)
    sizes = page.eval_on_selector_all("#pair img", "images => images.map(i => i.naturalWidth)")
    assert sizes == [451, 451]
    assert no_sideways_scroll(page)
    keep_picture(page, f"{view}-image")


def test_a_lower_threshold_gives_a_larger_object(page: Any) -> None:
    tab = image_tab(page)
    upload(tab, SPACE / "examples" / "cat.jpg")
    shares = []
    for threshold in ("0.95", "0.05"):
        tab.get_by_label("Threshold").first.fill(threshold)
        tab.get_by_label("Threshold").first.press("Enter")
        tab.get_by_role("button", name="Find the object").click()
        wanted = "no object found" if threshold == "0.95" else "The object covers"
        page.locator("#image-note", has_text=wanted).wait_for()
        shares.append(page.locator("#image-note").inner_text())
    assert "no object found" in shares[0]
    assert "100%" in shares[1]


def test_an_example_runs_at_once(page: Any) -> None:
    image_tab(page).locator("button.gallery-item").first.click()
    page.wait_for_selector("#pair img")
    page.locator("#segments").get_by_text("object", exact=True).wait_for()


def test_a_video_is_adapted_and_plays(page: Any, view: str, clip: Path) -> None:
    tab = open_video_tab(page)
    choice = tab.locator("#objective")
    assert choice.get_by_label("Masks of the whole video").is_checked()
    assert no_sideways_scroll(page)
    keep_picture(page, f"{view}-video-start")
    if view == "phone":  # each choice is seen through once
        choice.get_by_label("Published loss").check()
    upload(tab, clip)
    tab.get_by_label("Adaptation steps").first.fill("5")
    tab.get_by_label("Adaptation steps").first.press("Enter")
    tab.get_by_role("button", name="Find the object").click()
    page.wait_for_selector("#objects video")
    chosen = "masks of the whole video" if view == "desktop" else "published loss"
    page.locator("#video-note", has_text=f"8 frames, 5 adaptation steps ({chosen})").wait_for()
    page.wait_for_function(
        "() => { const v = document.querySelector('#objects video');"
        " if (v.paused) v.play(); return v.videoWidth === 320 && v.currentTime > 0.1; }"
    )
    assert no_sideways_scroll(page)
    keep_picture(page, f"{view}-video")


@pytest.mark.parametrize("waits_for", [r"Looking at the whole video", r"step \d+ of 100"])
def test_stop_ends_the_work(page: Any, tmp_path: Path, server: SpaceServer, waits_for: str) -> None:
    clip = tmp_path / "long.mp4"
    with VideoWriter(clip, 12) as writer:  # long enough that its masks take some seconds
        for frame in generate_clip(32, 96, 160, 2)[0]:
            writer.write(frame)
    tab = open_video_tab(page)
    upload(tab, clip)
    tab.get_by_label("Adaptation steps").first.fill("100")
    tab.get_by_label("Adaptation steps").first.press("Enter")
    tab.get_by_role("button", name="Find the object").click()
    page.get_by_text(re.compile(waits_for)).first.wait_for()
    tab.get_by_role("button", name="Stop").click()
    page.locator("#video-note", has_text="Stopped; nothing was kept").wait_for()
    assert page.locator("#objects video").count() == 0
    assert not list(server.temporary.glob("amd-demo-*"))


@pytest.mark.parametrize("kind", ["text", "video"])
def test_a_bad_file_gives_a_message_and_the_page_goes_on(
    page: Any, tmp_path: Path, clip: Path, kind: str
) -> None:
    bad = tmp_path / "holiday.jpg"
    bad.write_bytes(b"these are notes" if kind == "text" else clip.read_bytes())
    tab = image_tab(page)
    upload(tab, bad)
    tab.get_by_role("button", name="Find the object").click()
    expected = "no image this demo reads" if kind == "text" else "use the Video tab"
    toast = page.get_by_test_id("toast-body")
    toast.get_by_text(re.compile(f"holiday.jpg is .*{expected}")).wait_for()
    keep_picture(page, f"refusal-{kind}")
    tab.locator("button.gallery-item").first.click()
    page.wait_for_selector("#pair img")
