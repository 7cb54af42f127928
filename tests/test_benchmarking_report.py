"""The benchmark as a whole: its sections, targets, pages, figure and command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from scripts import benchmark

from amd_hf.benchmarking import (
    plots,
    report,
    suite,
    targets,
)


class TestSuiteAndReport:
    @pytest.fixture(scope="class")
    @classmethod
    def result(cls) -> dict[str, Any]:
        settings = suite.BenchmarkSettings.quick()
        return suite.run_benchmark(settings, ("training", "growth"))

    def test_all_figures_are_there(self, result: dict[str, Any]) -> None:
        (training,) = result["measurements"]
        assert set(training["timings"]) == {"published", "fp32", "bf16"}
        assert training["flops"] > 1e6
        assert {(row["work"], row["against"]) for row in result["growth"]} == {
            ("training step", "crop"),
            ("training step", "pairs"),
            ("training step", "segments"),
            ("inference", "side"),
            ("inference", "images"),
            ("inference", "segments"),
            ("adaptation", "frames"),
        }
        assert result["failures"] == {}
        assert set(result["seconds"]) == {"training", "growth"}
        assert "memory" not in result
        assert result["limits"]["convolution_bf16_training"] > 0

    def test_report_files(self, result: dict[str, Any], tmp_path: Path) -> None:
        as_json, as_markdown, figure = report.write_report(result, tmp_path / "made")
        assert figure.name == "benchmark_growth.svg"
        read = json.loads(as_json.read_text())
        assert report.markdown(read) == as_markdown.read_text()
        text = as_markdown.read_text()
        assert "| training step, 1 pairs of 64x64 | bf16 |" in text
        assert "| growth |" not in text
        for line in (line for line in text.splitlines() if line.startswith("|")):
            assert line.endswith(" |")

    def test_share_of_the_limit(self, result: dict[str, Any]) -> None:
        altered = json.loads(json.dumps(result))
        training = altered["measurements"][0]
        training["flops"] = 10**12
        training["timings"]["bf16"]["median"] = 2.0
        altered["limits"]["convolution_bf16_training"] = 1e12
        (row,) = (line for line in report.markdown(altered).splitlines() if "| bf16 |" in line)
        assert row.endswith(" 50% |")

    def test_targets(self, result: dict[str, Any]) -> None:
        altered = json.loads(json.dumps(result))
        training = altered["measurements"][0]
        training["flops"] = 10**12
        training["timings"]["published"]["median"] = 8.0
        training["timings"]["bf16"]["median"] = 2.0
        training["speedup"]["bf16"] = 4.0
        for limit, met in ((1e12, False), (0.6e12, True)):
            altered["limits"]["convolution_bf16_training"] = limit
            (target,) = targets.targets(altered)
            assert target.is_met is met
        assert target.row()[1:] == (
            "8.00 s",
            "2.00 s",
            "4.00x",
            "83%",
            "2.5x and 70% of the limit",
            "yes",
        )
        assert "| yes |" in report.markdown(altered)
        assert targets.targets_table({"measurements": [], "limits": {}}) == ""

    def test_targets_of_the_other_works(self) -> None:
        def work(name: str, setting: str, **notes: Any) -> dict[str, Any]:
            slow, fast = ({"median": seconds} for seconds in (4.0, 1.0))
            timings = {"published": slow, "bf16": fast}
            speedup = {"published": 1.0, "bf16": 4.0}
            return {
                "name": name,
                "setting": setting,
                "timings": timings,
                "speedup": speedup,
                "notes": notes,
                "flops": 0,
            }

        whole = {"published": 900.0, "fp32": 500.0, "bf16": 300.0, "bf16, crops of 256": 100.0}
        measured = [
            work("training step", "2 pairs of 384x384"),
            work("inference", "1 image", images_per_second={"bf16": 4.0}),
            work("inference", "8 images", images_per_second={"bf16": 3.0}),
            work("adaptation", "2 steps", seconds_of_100_steps=whole),
            work(
                "data loader", "2 workers", pairs_per_second={"loader": 50.0}, share_of_limit=0.95
            ),
        ]
        rows = list(targets.targets({"measurements": measured, "limits": {}}))
        met = [(row.ratio, row.share, row.is_met) for row in rows]
        assert met == [
            (4.0, None, True),
            (4.0, None, True),
            (0.75, None, False),
            (3.0, None, False),
            (9.0, None, True),
            (None, 0.95, True),
            (25.0, None, True),
        ]
        assert rows[3].published == "900.00 s"  # 100 steps

    def test_page(self, result: dict[str, Any], tmp_path: Path) -> None:
        page = tmp_path / "page.md"
        page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
        for _ in range(2):  # again and again
            files = report.write_into(result, page)
            text = page.read_text()
            assert text.startswith(f"before\n{report.BEGIN}\n\n2")
            assert text.endswith(f"\n{report.END}\nafter\n")
            assert "old" not in text
            assert "(figures/benchmark_growth.svg)" in text
        assert files == (page, tmp_path / "figures/benchmark_growth.svg")
        page.write_text("no marks")
        with pytest.raises(ValueError, match="must hold the lines <!-- benchmark: begin"):
            report.write_into(result, page)

    def test_figure_is_well_formed(self, result: dict[str, Any]) -> None:
        rows = [*result["growth"]]
        rows += [
            {"work": "a & b", "against": "processes", "value": n, "seconds": 4 / n, "memory": n / 2}
            for n in (2, 1, 4)
        ]
        root = ElementTree.fromstring(plots.growth_figure(rows))
        drawn = plots.panels(rows)
        assert len(root.findall("{*}g")) == len(drawn) == 8
        assert (drawn[-1].values, drawn[-1].memory) == ((1, 2, 4), (0.5, 1.0, 2.0))
        (line, memory) = root.findall("{*}g")[-1].findall("{*}polyline")
        heights = [float(point.split(",")[1]) for point in line.get("points", "").split()]
        assert heights == sorted(heights)  # less time is lower, further down
        assert memory.get("stroke") == plots.MEMORY_COLOR

    def test_a_failing_section_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def failing(*_: Any) -> Any:
            raise RuntimeError("no such\nluck")

        monkeypatch.setitem(suite._MEASUREMENTS, "adaptation", failing)
        kept: list[str] = []
        settings = suite.BenchmarkSettings.quick()
        result = suite.run_benchmark(
            settings, ("adaptation",), lambda so_far: kept.append(report.markdown(so_far))
        )
        assert result["failures"] == {"adaptation": "no such luck"}
        assert "**adaptation failed**: no such luck" in report.markdown(result)
        assert len(kept) == 1

    def test_unknown_names(self) -> None:
        with pytest.raises(ValueError, match=r"Unknown sections \['speed'\]"):
            suite.run_benchmark(suite.BenchmarkSettings.quick(), ("speed",))
        with pytest.raises(ValueError, match="`preset` must be one of"):
            suite.run_benchmark(suite.BenchmarkSettings.quick(preset="huge"), ())

    def test_command(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["--quick", "--sections", "adaptation", "--output", str(tmp_path)]
        assert benchmark.main([*arguments, "--device", "cpu"]) == 0
        assert "adaptation, 1 steps of 2 pairs" in capsys.readouterr().out
        assert (tmp_path / "benchmark.json").is_file()

    def test_command_writes_into_a_page(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: dict[str, Any]
    ) -> None:
        page = tmp_path / "page.md"
        page.write_text(f"a\n{report.BEGIN}\n{report.END}\nb\n")
        seen: list[str] = []

        def measuring(settings: Any, sections: Any, after_section: Any) -> dict[str, Any]:
            after_section(result)
            seen.append(page.read_text())
            return result | {"failures": {"memory": "broken"}}

        monkeypatch.setattr(benchmark, "run_benchmark", measuring)
        options = ["--quick", "--output", str(tmp_path / "out"), "--into", str(page)]
        assert benchmark.main([*options, "--device", "cpu"]) == 1  # a section failed
        assert "| training step, 1 pairs of 64x64" in seen[0]
        assert "**memory failed**: broken" in page.read_text()
        page.write_text("no marks")
        assert benchmark.main([*options, "--device", "cpu"]) == 2

    def test_command_names_a_wrong_value(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert benchmark.main(["--quick", "--rounds", "0", "--device", "cpu"]) == 2
        assert "error: `rounds` must be at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_whole_benchmark(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="needs the extra `train`")
    result = suite.run_benchmark(suite.BenchmarkSettings.quick())
    names = [measurement["name"] for measurement in result["measurements"]]
    assert names == ["training step", "inference", "adaptation", "data loader", "start-up"]
    assert {"import", "published", "fp32", "bf16"} == set(result["memory"])
    assert result["failures"] == {}
    assert {row["against"] for row in result["processes"]} == {"processes"}
    assert "| training step in a process of its own | peak memory |" in report.markdown(result)
