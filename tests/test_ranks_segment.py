"""`amd-hf segment` over several processes, and after an interruption."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from amd_hf import AMDImageProcessor, AMDModel
from amd_hf.cli import segment as segment_command
from amd_hf.cli.finished import STATE_NAME
from amd_hf.cli.main import main

from .rank_cases import model, processor, together  # noqa: F401 (fixtures)
from .segment_cases import picture


class TestSegment:
    @pytest.fixture
    def command(
        self,
        model: AMDModel,
        processor: AMDImageProcessor,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> list[str]:
        monkeypatch.chdir(tmp_path)
        model.save_pretrained("checkpoint")
        processor.save_pretrained("checkpoint")
        for index in range(4):
            picture(index, 40 + index).save(f"p{index}.png")
        names = [f"p{index}.png" for index in range(4)]
        return ["segment", *names, "--model", "checkpoint", "--device", "cpu", "--json"]

    @staticmethod
    def told(text: str) -> list[dict[str, Any]]:
        """The JSON lines without the time and the folder."""
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        return [
            {key: value for key, value in line.items() if key not in ("seconds", "mask", "overlay")}
            for line in lines
        ]

    def test_goes_on(
        self,
        command: list[str],
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        assert main([*command, "--output", "one"]) == 0
        whole = self.told(capfd.readouterr().out)
        done: list[str] = []
        real = segment_command.segment_image

        def noting(job: Any, *arguments: Any) -> Any:
            if len(done) == 2 and job.source == "p2.png":
                raise KeyboardInterrupt
            done.append(job.source)
            return real(job, *arguments)

        monkeypatch.setattr(segment_command, "segment_image", noting)
        assert main([*command, "--output", "two"]) == 130
        assert [path.name for path in Path("two").glob(f"{STATE_NAME}*")] == [f"{STATE_NAME}-0"]
        with Path("two", f"{STATE_NAME}-0").open("a") as file:
            file.write('{"name": "p2", "inp')  # cut off by a kill
        Image.open("p1.png").rotate(180).save("p1.png")  # changed since
        done.append("again")
        assert main([*command, "--output", "two"]) == 0
        captured = capfd.readouterr()
        assert done == ["p0.png", "p1.png", "again", "p1.png", "p2.png", "p3.png"]
        assert "Going on: 2 of 4 inputs are done." in captured.err
        told = self.told(captured.out)[2:]
        assert [line["input"] for line in told] == [line["input"] for line in whole]
        assert told[0] == whole[0]
        assert told[2:] == whole[2:]
        assert not list(Path("two").glob(f"{STATE_NAME}*"))

    def test_other_options_start_afresh(
        self, command: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done: list[str] = []
        real = segment_command.segment_image

        def noting(job: Any, *arguments: Any) -> Any:
            done.append(job.source)
            if len(done) == 3:
                raise KeyboardInterrupt
            return real(job, *arguments)

        monkeypatch.setattr(segment_command, "segment_image", noting)
        assert main([*command, "--output", "out"]) == 130
        done.clear()
        done.extend("....")
        assert main([*command, "--output", "out", "--threshold", "0.4"]) == 0
        assert done[4:] == ["p0.png", "p1.png", "p2.png", "p3.png"]

    def test_two_tell_what_one_tells(
        self, command: list[str], capfd: pytest.CaptureFixture[str]
    ) -> None:
        Path("p1.png").write_bytes(b"no picture")
        assert main([*command, "--output", "one"]) == 2
        whole = self.told(capfd.readouterr().out)
        from amd_hf.cli.main import build_parser
        from amd_hf.cli.progress import Console

        args = build_parser(["segment"]).parse_args([*command, "--output", "two"])
        Path("two").mkdir()
        codes, errors = together(
            lambda ranks: segment_command._segment_together(
                args, Path("two"), Console(is_json=True), ranks
            )
        )
        assert not errors
        assert codes == [2, 0]
        assert self.told(capfd.readouterr().out) == whole
        one, two = (
            {path.name: path.read_bytes() for path in Path(n).iterdir()} for n in ("one", "two")
        )
        assert one == two
