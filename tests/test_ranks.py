"""Work over several processes gives what one process gives, and goes on where one of them died."""

# ruff: noqa: F811 (fixtures)

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from amd_hf import AMDConfig, AMDForSemanticSegmentation, AMDImageProcessor, AMDModel
from amd_hf.data.frame_pairs import open_source
from amd_hf.data.packing import pack_clips
from amd_hf.data.packing_clips import PackingSettings
from amd_hf.data.ranks import Ranks
from amd_hf.data.voc import VOC_LABELS
from amd_hf.evaluation import evaluate_benchmark

from .evaluation_data import write_davis, write_images
from .rank_cases import model, processor, same, together  # noqa: F401 (fixtures)
from .video_trees import write_videos


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
        return write_videos(tmp_path / "videos", {f"v{number}": 6 for number in range(5)}, "")

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
