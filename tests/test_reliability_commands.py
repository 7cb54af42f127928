"""The commands behind `docs/reliability.md`: what they measure, and that they notice trouble."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scripts import compatibility, endurance, load_test

PYPROJECT = """
[project]
dependencies = ["torch>=2.5", "pillow>=11.0.0,<13"]
[project.optional-dependencies]
train = ["accelerate>=1.15"]
eval = ["evaluate>=0.4.6"]
demo = ["gradio>=6.0.0,<7"]
deploy = ["onnx{limit}"]
"""


class FakeProcess:
    """A process whose memory and open files follow a rule."""

    def __init__(self, megabytes: Any, files: Any) -> None:
        self.megabytes, self.files, self.count = megabytes, files, 0

    def oneshot(self) -> Any:
        self.count += 1
        return nullcontext()

    def memory_info(self) -> Any:
        return SimpleNamespace(rss=self.megabytes(self.count) * 2**20)

    def num_fds(self) -> int:
        return int(self.files(self.count))


@pytest.mark.parametrize(
    ("megabytes", "files", "problem"),
    [
        (lambda n: 100 + 50 * (n < 5), lambda n: 7, None),  # a start that is given back
        (lambda n: 100 + n, lambda n: 7, "memory grew by"),
        (lambda n: 100, lambda n: 7 + n // 10, "open files grew from"),
    ],
)
def test_growth_is_noticed(megabytes: Any, files: Any, problem: str | None) -> None:
    trace = endurance.Trace(FakeProcess(megabytes, files))
    for number in range(1, 51):
        trace.add(100 * number)
    problems = endurance.problems_of(trace.summary())
    assert [text[: len(problem or "")] for text in problems] == ([problem] if problem else [])
    if problem and "memory" in problem:
        assert trace.summary()["megabytes_per_1000_items"] == pytest.approx(10)


def test_a_stream_keeps_its_memory_and_files(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("psutil")
    assert endurance.main(["--what", "stream", "--samples", "1500"]) == 0
    result = json.loads(capsys.readouterr().out)["stream"]
    assert result["items"] == 1500
    assert result["problems"] == []


@pytest.mark.slow
def test_a_video_keeps_its_memory_and_files(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("psutil")
    assert endurance.main(["--what", "video", "--frames", "400"]) == 0
    assert json.loads(capsys.readouterr().out)["video"]["problems"] == []


@pytest.mark.slow
def test_large_pictures_stay_within_their_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert endurance.main(["--what", "image"]) == 0
    result = json.loads(capsys.readouterr().out)["image"]
    assert result["100 megapixels"]["refused"]
    assert not result["100 megapixels, limit raised"]["refused"]


def load_result(**changes: Any) -> dict[str, Any]:
    result = {
        "answers": 10,
        "errors": {},
        "before": {"megabytes": 500.0},
        "after": {"megabytes": 520.0},
        "seconds_until_an_abandoned_job_is_freed": 1.0,
        "forgotten_job_folders": 0,
        "left_after_the_end": [],
        "server_tracebacks": 0,
    }
    return result | changes


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"answers": 0}, "no request was answered"),
        ({"errors": {"image: AppError: ...": 2}}, "error: image: AppError"),
        ({"after": {"megabytes": 900.0}}, "memory grew by 400 MB"),
        ({"seconds_until_an_abandoned_job_is_freed": None}, "an abandoned job was not freed"),
        ({"forgotten_job_folders": 1}, "folders of jobs or of the server were left behind"),
        ({"left_after_the_end": ["x"]}, "folders of jobs or of the server were left behind"),
        ({"server_tracebacks": 1}, "the server's log holds tracebacks"),
    ],
)
def test_a_demo_that_suffers_is_noticed(changes: dict[str, Any], problem: str | None) -> None:
    found = load_test.problems_of(load_result(**changes))
    assert len(found) == (problem is not None)
    assert problem is None or problem in found[0]


@pytest.mark.slow
def test_the_demo_under_a_little_load(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio_client")
    assert load_test.main(["--clients", "3", "--minutes", "0.3"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["answers"] >= 3
    assert result["errors"] == {}


def test_the_oldest_end_holds_every_lower_bound(tmp_path: Path, repository: Path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text(PYPROJECT.format(limit=">=1.17.0"))
    oldest, newest = (compatibility.requirements(end, file) for end in compatibility.ENDS)
    tools = list(compatibility.TEST_TOOLS)
    pins = ["pillow==11.0.0", "accelerate==1.15", "evaluate==0.4.6", "gradio==6.0.0"]
    assert oldest == ["torch==2.13.0", *pins, "onnx==1.17.0", *tools]
    assert newest[:3] == ["torch==2.13.0", "pillow>=11.0.0,<13", "accelerate>=1.15"]
    file.write_text(PYPROJECT.format(limit=""))
    with pytest.raises(ValueError, match=r"'onnx' in pyproject\.toml has no lower bound"):
        compatibility.requirements("oldest", file)
    assert all("==" in text for text in compatibility.requirements("oldest") if text not in tools)
