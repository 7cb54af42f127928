"""Work over several processes gives what one process gives, and goes on where one of them died."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from amd_hf import AMDConfig, AMDForSemanticSegmentation, AMDImageProcessor, AMDModel
from amd_hf.cli import segment as segment_command
from amd_hf.cli.finished import STATE_NAME
from amd_hf.cli.main import main
from amd_hf.data.frame_pairs import open_source
from amd_hf.data.packing import pack_clips
from amd_hf.data.packing_clips import PackingSettings
from amd_hf.data.ranks import Ranks
from amd_hf.data.voc import VOC_LABELS
from amd_hf.evaluation import evaluate_benchmark

from .evaluation_data import write_davis, write_images

# Differ from run to run of one process, too.
OF_THE_RUN = ("created", "seconds", "versions")


class ThreadRanks(Ranks):
    """Ranks whose processes are threads: the shares and merges are real, the transport is not."""

    def __init__(self, rank: int, count: int, meeting: threading.Barrier, board: dict[int, Any]):
        super().__init__(rank, count)
        self.meeting, self.board = meeting, board

    def gather(self, value: Any) -> list[Any] | None:
        self.board[self.rank] = value
        self._meet()
        values = [self.board[rank] for rank in range(self.count)]
        self._meet()
        return values if self.is_main else None

    def spread(self, value: Any) -> Any:
        self.gather(value)
        self._meet()
        result = self.board[0]
        self._meet()
        return result

    def _meet(self) -> None:
        try:
            self.meeting.wait(120)
        except threading.BrokenBarrierError as error:
            raise RuntimeError("another process ended") from error


def together(work: Callable[[Ranks], Any], count: int = 2) -> tuple[list[Any], list[Exception]]:
    """Runs `work` once per rank; returns results by rank and what went wrong."""
    meeting, board = threading.Barrier(count), {}
    results: list[Any] = [None] * count
    errors: list[Exception] = []

    def one(rank: int) -> None:
        try:
            results[rank] = work(ThreadRanks(rank, count, meeting, board))
        except Exception as error:  # noqa: BLE001 (told to the test)
            errors.append(error)
            meeting.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, errors


def same(result: dict[str, Any]) -> str:
    """A result as text, without what differs between any two runs."""
    return json.dumps({key: value for key, value in result.items() if key not in OF_THE_RUN})


class TestPlace:
    def test_alone_without_a_launcher(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("RANK", raising=False)
        ranks = Ranks.from_environment()
        assert (ranks.rank, ranks.count, ranks.is_main) == (0, 1, True)
        assert ranks.gather("mine") == ["mine"]
        assert ranks.spread("mine") == "mine"
        ranks.wait()

    def test_of_a_launcher(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in (("RANK", 5), ("WORLD_SIZE", 8), ("LOCAL_RANK", 1)):
            monkeypatch.setenv(name, str(value))
        monkeypatch.delenv("MASTER_ADDR", raising=False)
        assert Ranks.from_environment().count == 1  # nobody to meet
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        ranks = Ranks.from_environment()
        assert (ranks.rank, ranks.count, ranks.local_rank, ranks.is_main) == (5, 8, 1, False)
        assert ranks.device("cpu") == "cpu"

    def test_shares_are_disjoint_and_complete(self) -> None:
        shares = [Ranks(rank, 3).share(range(11)) for rank in range(3)]
        assert sorted(item for share in shares for item in share) == list(range(11))
        assert {len(share) for share in shares} == {3, 4}

    def test_impossible_place(self) -> None:
        with pytest.raises(ValueError, match="`rank` must be from 0 to 1 for 2 processes, got 2"):
            Ranks(2, 2)


@pytest.fixture(scope="module")
def model() -> AMDModel:
    torch.manual_seed(0)
    return AMDModel(AMDConfig.tiny()).eval()


@pytest.fixture(scope="module")
def processor(model: AMDModel) -> AMDImageProcessor:
    return AMDImageProcessor.from_model_config(model.config, size={"shortest_edge": 48})


class TestEvaluation:
    @pytest.fixture
    def evaluate(self, model: AMDModel, processor: AMDImageProcessor, tmp_path: Path) -> Any:
        davis = write_davis(tmp_path / "davis")

        def run(ranks: Ranks | None = None, **options: Any) -> dict[str, Any]:
            options = {"num_bootstrap": 20, "progress": False} | options
            return evaluate_benchmark(model, processor, "davis2016", davis, ranks=ranks, **options)

        return run

    def test_two_equal_one(self, evaluate: Any, tmp_path: Path) -> None:
        sheets = [tmp_path / "one.png", tmp_path / "two.png"]
        alone = evaluate(controls=True, contact_sheet=sheets[0])
        results, errors = together(
            lambda ranks: evaluate(ranks, controls=True, contact_sheet=sheets[1])
        )
        assert not errors
        assert same(results[0]) == same(alone)
        assert results[1] == {}
        assert sheets[0].read_bytes() == sheets[1].read_bytes()

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_share_of_a_dead_process_is_done_by_the_next_run(
        self, evaluate: Any, tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alone = evaluate()
        state = tmp_path / "r.json.unfinished"
        from amd_hf.evaluation import runner

        real = runner.score_video

        def dying(name: str, *arguments: Any) -> Any:
            if name == alone["rows"][1]["name"]:
                raise OSError("power cut")
            return real(name, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(runner, "score_video", dying)
            _, errors = together(lambda ranks: evaluate(ranks, resume_file=state))
        assert len(errors) == 2  # the one that died, and the one that waited for it
        assert any("power cut" in str(error) for error in errors)
        assert any("another process ended" in str(error) for error in errors)

        scored: list[str] = []

        def noting(name: str, *arguments: Any) -> Any:
            scored.append(name)
            return real(name, *arguments)

        monkeypatch.setattr(runner, "score_video", noting)
        results, errors = together(lambda ranks: evaluate(ranks, resume_file=state), count)
        assert not errors
        assert same(results[0]) == same(alone)
        assert scored == [alone["rows"][1]["name"]]
        assert not list(tmp_path.glob("*unfinished*"))

    def test_images(self, model: AMDModel, processor: AMDImageProcessor, tmp_path: Path) -> None:
        data = write_images(tmp_path / "ecssd")

        def run(ranks: Ranks | None = None) -> dict[str, Any]:
            return evaluate_benchmark(
                model, processor, "ecssd", data, ranks=ranks, num_bootstrap=20, progress=False
            )

        results, errors = together(run, 3)
        assert not errors
        assert same(results[0]) == same(run())

    def test_classes(self, processor: AMDImageProcessor, tmp_path: Path) -> None:
        data = write_images(tmp_path / "voc", 3)
        (data / "images").rename(data / "JPEGImages")
        (data / "masks").rename(data / "SegmentationClass")
        (data / "ImageSets/Segmentation").mkdir(parents=True)
        (data / "ImageSets/Segmentation/val.txt").write_text("0\n1\n2\n")
        for path in (data / "SegmentationClass").iterdir():
            Image.open(path).convert("L").point(lambda value: value // 51).save(path)
        torch.manual_seed(0)
        model = AMDForSemanticSegmentation(AMDConfig.tiny(num_labels=len(VOC_LABELS))).eval()

        def run(ranks: Ranks | None = None) -> dict[str, Any]:
            return evaluate_benchmark(
                model, processor, "voc2012", data, ranks=ranks, progress=False
            )

        results, errors = together(run)
        assert not errors
        assert same(results[0]) == same(run())


class TestPacking:
    @pytest.fixture
    def videos(self, tmp_path: Path) -> Path:
        draw = np.random.default_rng(0)
        for video in range(5):
            folder = tmp_path / "videos" / f"v{video}"
            folder.mkdir(parents=True)
            for frame in range(6):
                pixels = draw.integers(0, 256, (24, 32, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{frame}.jpg")
        return tmp_path / "videos"

    @staticmethod
    def pack(videos: Path, folder: Path, ranks: Ranks | None = None) -> dict[str, Any]:
        settings = PackingSettings(clips_per_shard=2, reject_shot_cuts=False, frames_per_clip=2)
        return pack_clips(open_source(videos), folder, settings, ranks=ranks)

    @staticmethod
    def files(folder: Path) -> dict[str, bytes]:
        return {
            path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"
        }

    def test_same_shards(self, videos: Path, tmp_path: Path) -> None:
        alone = self.pack(videos, tmp_path / "one")
        assert len(alone["shards"]) > 3
        results, errors = together(lambda ranks: self.pack(videos, tmp_path / "two", ranks))
        assert not errors
        assert results == [alone, alone]
        assert self.files(tmp_path / "two") == self.files(tmp_path / "one")

    def test_dead_process(
        self, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.pack(videos, tmp_path / "one")
        from amd_hf.data import packing

        real = packing.make_part

        def dying(source: Any, video: str, *arguments: Any) -> None:
            if video == "v3":
                raise OSError("power cut")
            real(source, video, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(packing, "make_part", dying)
            _, errors = together(lambda ranks: self.pack(videos, tmp_path / "two", ranks))
        assert len(errors) == 2
        assert not (tmp_path / "two" / "index.json").exists()
        results, errors = together(lambda ranks: self.pack(videos, tmp_path / "two", ranks), 3)
        assert not errors
        assert self.files(tmp_path / "two") == self.files(tmp_path / "one")
        assert results[0] == self.pack(videos, tmp_path / "two")  # finished: left as it is


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
        draw = np.random.default_rng(0)
        for index in range(4):
            small = Image.fromarray(draw.integers(0, 256, (4, 5, 3), dtype=np.uint8))
            small.resize((40 + index, 30)).save(f"p{index}.png")
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


def launched(tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a module or script in two processes of torchrun, on one thread each."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    process = subprocess.Popen(
        [*launcher, "--nproc_per_node", "2", *command],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        for child in children_of(process.pid):
            os.kill(child, signal.SIGKILL)
        process.kill()
        raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def children_of(parent: int) -> list[int]:
    """The processes that a launcher has started; each leads a group of its own."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False
    )
    return [int(pid) for pid in listed.stdout.split()]


@pytest.mark.slow
class TestLauncher:
    """The real transport."""

    def test_evaluate(self, model: AMDModel, processor: AMDImageProcessor, tmp_path: Path) -> None:
        write_davis(tmp_path / "davis")
        model.save_pretrained(tmp_path / "checkpoint")
        processor.save_pretrained(tmp_path / "checkpoint")
        arguments = ["evaluate", "davis2016", "--data", "davis", "--model", "checkpoint"]
        arguments += ["--quiet", "--bootstrap", "20", "--controls"]
        done = launched(tmp_path, "-m", "amd_hf.cli", *arguments, "--output", "two.json")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("DAVIS-2016") == 1  # one process tells
        one = subprocess.run(
            [sys.executable, "-m", "amd_hf.cli", *arguments, "--output", "one.json"],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert one.returncode == 0, one.stderr
        read = [json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json")]
        assert same(read[0]) == same(read[1])

    def test_pack(self, tmp_path: Path) -> None:
        draw = np.random.default_rng(0)
        for video in range(3):
            folder = tmp_path / "videos" / f"v{video}"
            folder.mkdir(parents=True)
            for frame in range(4):
                pixels = draw.integers(0, 256, (24, 32, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{frame}.jpg")
        script = str(Path(__file__).parents[1] / "scripts" / "pack_youtube_vos.py")
        arguments = ["--source", "videos", "--num_workers", "0", "--keep_shot_cuts"]
        arguments += ["--frames_per_clip", "2", "--clips_per_shard", "2"]
        done = launched(tmp_path, script, *arguments, "--output_dir", "two")
        assert done.returncode == 0, done.stderr
        settings = PackingSettings(frames_per_clip=2, clips_per_shard=2, reject_shot_cuts=False)
        pack_clips(open_source(tmp_path / "videos"), tmp_path / "one", settings)
        names = sorted(path.name for path in (tmp_path / "one").glob("*.tar"))
        assert len(names) == 3
        for name in names:
            one, two = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
            assert one == two
