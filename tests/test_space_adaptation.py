"""The adaptation of the demo: which objectives it offers, progress, stopping, limits."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

from amd_hf import AMDImageProcessor, AMDModel, adaptation_amd, frame_cache_amd
from amd_hf.cli import demo_adaptation as adaptation
from amd_hf.cli.demo_adaptation import SEGMENT_FLOW, VIDEO_MASK, WITHOUT_OPENCV
from amd_hf.cli.demo_models import BUNDLED
from amd_hf.data.synthetic_objects import generate_clip
from amd_hf.video_amd import VideoWriter

from .space_server import SPACE, SpaceServer, space_server

SMALL = AMDImageProcessor(size={"shortest_edge": 48})
MISSING: Any = None
with_opencv = pytest.mark.skipif(
    VIDEO_MASK not in adaptation.offered_objectives(), reason="OpenCV is not installed"
)
both = pytest.mark.parametrize(
    "objective", [SEGMENT_FLOW, pytest.param(VIDEO_MASK, marks=with_opencv)]
)


class StoppedError(Exception):
    """Stands for the visitor who pressed Stop."""


def silent(share: float, text: str) -> None:
    assert 0 <= share <= 1
    assert text


class Clock:
    """Stands still unless it is told to go on."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that the adaptation sees."""
    stopped = Clock()
    for module in (adaptation, adaptation_amd, frame_cache_amd):
        monkeypatch.setattr(module, "time", stopped)
    return stopped


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    return list(generate_clip(4, 64, 96, 0)[0])


@both
def test_a_copy_adapts_and_reports(
    tiny_model: AMDModel, frames: list[np.ndarray], objective: str
) -> None:
    before = {name: weight.clone() for name, weight in tiny_model.state_dict().items()}
    said: list[tuple[float, str]] = []

    def listen(share: float, text: str) -> None:
        said.append((share, text))

    result = adaptation.adapt(tiny_model, SMALL, frames, 2, objective, listen)
    assert result.num_steps == 2
    assert said[0] == (0.0, "Adapting to this video")
    assert said[-2:] == [(n / 2, f"Adapting to this video: step {n} of 2") for n in (1, 2)]
    looks = [share for share, text in said if text.startswith("Looking at the whole video")]
    if objective == SEGMENT_FLOW:
        assert not looks
    else:
        assert looks == sorted(looks), "the bar never goes back"
        assert 0.9 < looks[-1] <= 1, "`LOOKS_PER_FRAME` is what the objective does"
    assert all(torch.equal(before[n], w) for n, w in tiny_model.state_dict().items())
    assert any(not torch.equal(before[n], w) for n, w in result.model.state_dict().items())
    with pytest.raises(ValueError, match="1 to 100 steps"):
        adaptation.adapt(tiny_model, SMALL, frames, 101, objective, silent)


@with_opencv
def test_the_masks_of_the_video_are_those_of_the_public_preset(
    tiny_model: AMDModel, frames: list[np.ndarray], clock: Clock
) -> None:
    """Watching changes nothing, and the objective is really another one than the published."""
    from amd_hf.adaptation_amd import adapt_to_video, adaptation_scale
    from amd_hf.training.video_masks import adaptation_preset

    ours = adaptation.adapt(tiny_model, SMALL, frames, 2, VIDEO_MASK, silent)
    preset = adaptation_preset(VIDEO_MASK, adaptation_scale(SMALL)["short_side"])
    theirs = adapt_to_video(tiny_model, frames, 2, return_history=True, **preset)
    published = adaptation.adapt(tiny_model, SMALL, frames, 2, SEGMENT_FLOW, silent)
    assert ours.losses == theirs.losses != published.losses
    wanted = theirs.model.state_dict()
    assert all(torch.equal(wanted[name], w) for name, w in ours.model.state_dict().items())


@pytest.mark.parametrize(
    ("objective", "when"),
    [
        (SEGMENT_FLOW, "step 1 of"),
        pytest.param(VIDEO_MASK, "Looking at the whole video", marks=with_opencv),
        pytest.param(VIDEO_MASK, "step 1 of", marks=with_opencv),
    ],
)
def test_stop_reaches_every_part(
    tiny_model: AMDModel, frames: list[np.ndarray], objective: str, when: str
) -> None:
    said: list[str] = []

    def stop(share: float, text: str) -> None:
        said.append(text)
        if when in text:
            raise StoppedError

    with pytest.raises(StoppedError):
        adaptation.adapt(tiny_model, SMALL, frames, 100, objective, stop)
    assert when in said[-1]
    assert sum(when in text for text in said) == 1


@both
def test_the_time_limit_ends_the_steps(
    tiny_model: AMDModel, frames: list[np.ndarray], objective: str, clock: Clock
) -> None:
    def take_time(share: float, text: str) -> None:
        clock.seconds += 0.3 * adaptation.MAX_ADAPT_SECONDS * ("step" in text)

    result = adaptation.adapt(tiny_model, SMALL, frames, 100, objective, take_time)
    assert result.num_steps == 4, "the result says how many steps there were"


@with_opencv
def test_masks_that_take_too_long_are_refused(
    tiny_model: AMDModel, frames: list[np.ndarray], clock: Clock
) -> None:
    looks: list[str] = []

    def take_time(share: float, text: str) -> None:
        looks.append(text)
        clock.seconds += 0.3 * adaptation.MAX_ADAPT_SECONDS

    with pytest.raises(ValueError, match=r"longer than 100 s; choose the published loss"):
        adaptation.adapt(tiny_model, SMALL, frames, 2, VIDEO_MASK, take_time)
    assert 2 <= len(looks) <= 5, "it does not go on to the last frame"


# What is offered


@with_opencv
def test_the_masks_are_the_default() -> None:
    assert adaptation.offered_objectives() == [VIDEO_MASK, SEGMENT_FLOW]
    assert adaptation.chosen_objective(None) == VIDEO_MASK
    assert adaptation.chosen_objective(SEGMENT_FLOW) == SEGMENT_FLOW


@pytest.mark.parametrize("library", ["cv2", "skimage"])
def test_without_opencv_the_published_loss_remains(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, MISSING)
    assert adaptation.offered_objectives() == [SEGMENT_FLOW]
    assert adaptation.chosen_objective(None) == SEGMENT_FLOW
    with pytest.raises(ValueError, match=r"needs OpenCV.*; choose segment_flow\.$"):
        adaptation.chosen_objective(VIDEO_MASK)


@pytest.mark.parametrize("name", ["", "masks", 3, [VIDEO_MASK], {}])
def test_other_names_are_refused(name: Any) -> None:
    with pytest.raises(ValueError, match=r"^There is no adaptation objective .*choose one of"):
        adaptation.chosen_objective(name)


def test_the_demo_extra_holds_what_the_masks_need(repository: Path) -> None:
    """The Space installs the extra; its ranges are those of training."""
    extras = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    parsed = {
        name: {Requirement(text).name: Requirement(text) for text in texts}
        for name, texts in extras["optional-dependencies"].items()
        if name in ("demo", "train")
    }
    for library in ("opencv-python-headless", "scikit-image"):
        assert parsed["demo"][library] == parsed["train"][library]
    lines = (SPACE / "requirements.txt").read_text().splitlines()
    ours = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert [(entry.name, entry.extras) for entry in ours] == [("amd-hf", {"demo"})]


# The page


@pytest.mark.parametrize(
    ("asked", "taken", "note"),
    [
        (0, 0, "no adaptation"),
        (20, 20, "20 adaptation steps (masks of the whole video)"),
        (100, 37, "37 of 100 adaptation steps in 100 s (masks of the whole video)"),
    ],
)
def test_the_note_tells_the_steps_that_were_taken(asked: int, taken: int, note: str) -> None:
    handlers = pytest.importorskip("amd_hf.cli.demo_handlers", exc_type=ImportError)
    settings = handlers.VideoSettings(asked, VIDEO_MASK, 0.5, BUNDLED)
    assert handlers._steps_taken(settings, taken) == note


def radio_of(config: dict[str, Any]) -> dict[str, Any]:
    """What the page says about the choice of the objective."""
    [radio] = [c["props"] for c in config["components"] if c["type"] == "radio"]
    return dict(radio)


@pytest.fixture
def bare_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SpaceServer]:
    """A Space on a machine where OpenCV cannot be imported."""
    pytest.importorskip("gradio", reason="the demo extra is not installed")
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "cv2.py").write_text("raise ImportError(\"No module named 'cv2'\")\n")
    monkeypatch.setenv("PYTHONPATH", str(hidden))
    with space_server(tmp_path) as running:
        yield running


def events_of(server: SpaceServer, path: str, *settings: Any) -> str:
    """The events of a call of the API with an uploaded video."""
    upload = {"path": path, "meta": {"_type": "gradio.FileData"}}
    calls = f"{server.url}/gradio_api/call/segment_video"
    started = httpx.post(calls, json={"data": [upload, *settings]}).json()["event_id"]
    return httpx.get(f"{calls}/{started}", timeout=60).text


@pytest.mark.slow
def test_a_space_without_opencv_says_so(bare_server: SpaceServer, tmp_path: Path) -> None:
    radio = radio_of(httpx.get(f"{bare_server.url}/config").json())
    assert [tuple(choice) for choice in radio["choices"]] == [("Published loss", SEGMENT_FLOW)]
    assert radio["value"] == SEGMENT_FLOW
    assert radio["info"] == WITHOUT_OPENCV
    with VideoWriter(tmp_path / "clip.mp4", 12) as writer:
        for frame in generate_clip(3, 48, 64, 5)[0]:
            writer.write(frame)
    files = {"files": ("clip.mp4", (tmp_path / "clip.mp4").read_bytes(), "video/mp4")}
    path = httpx.post(f"{bare_server.url}/gradio_api/upload", files=files).json()[0]
    refusal = events_of(bare_server, path, 1, 0.5, BUNDLED, VIDEO_MASK)
    assert "event: error" in refusal
    assert f"{WITHOUT_OPENCV[:-1]}; choose segment_flow." in refusal
    answer = events_of(bare_server, path, 1, 0.5, BUNDLED, SEGMENT_FLOW)
    assert "3 frames, 1 adaptation steps (published loss)" in answer
    assert bare_server.errors() == []
