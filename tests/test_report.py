"""Markdown tables from result files, and the published numbers."""

import json

import pytest

from amd_hf.cli.main import main
from amd_hf.evaluation.report import (
    BEGIN_MARK,
    END_MARK,
    REQUIRED_KEYS,
    insert_report,
    load_result,
    published_results,
    render_report,
    summary_text,
)

VIDEO_SCORES = {
    "J": 0.457,
    "J_recall": 0.5,
    "J_decay": 0.01,
    "F": 0.4,
    "J_frames": 0.45,
    "pooled_iou": 0.44,
    "temporal_stability": 0.8,
}
IMAGE_SCORES = {
    "max_f_beta": 0.6,
    "mean_f_beta": 0.5,
    "adaptive_f_beta": 0.55,
    "mae": 0.131,
    "s_measure": 0.6,
    "iou": 0.4,
}


def make_result(benchmark="davis2016", **changes):
    is_video = benchmark == "davis2016"
    scores = VIDEO_SCORES if is_video else IMAGE_SCORES
    measure = "J" if is_video else "max_f_beta"
    best = {**scores, measure: scores[measure] + 0.1}
    result = {
        "benchmark": benchmark,
        "title": "DAVIS-2016 val" if is_video else "DUTS-TE",
        "kind": "video" if is_video else "image",
        "protocol": "per-image",
        "model": "tiny",
        "selected": scores,
        "oracle": best,
        "best_of_k": best,
        "intervals": {"selected": {measure: [0.41, 0.5]}},
        "rows": [{"name": "dog", measure: 0.5}],
        "versions": {"amd_hf": "0.1.0", "commit": "abc1234"},
        "settings": {"refinements": []},
        "created": "2026-01-02T03:04:05+00:00",
        "command": f"amd-hf evaluate {benchmark} --data DIR",
        "is_subset": False,
        "num_scored": 1376,
        "num_found": 1376,
        "num_expected": 1376,
        "num_without_mask": 0,
        "seconds": 12.3,
    }
    return result | changes


class TestTable:
    def test_flow_of_the_adaptation_is_named(self):
        training = ("no", "none", "DIS (training only)")

        def own_line(**settings):
            result = make_result(settings={"refinements": [], **settings})
            lines = render_report([result], training).splitlines()
            return next(line for line in lines if "selected segment" in line)

        masks = {"objective": "video_mask"}
        with_flow = own_line(adapt_steps=100, adapt_settings=masks)
        assert with_flow.endswith("| no | none | DIS (training and adaptation) |")
        # The published objective needs no flow, and without steps there is no adaptation.
        assert own_line(adapt_steps=100, adapt_settings={}).endswith("DIS (training only) |")
        assert own_line(adapt_steps=0, adapt_settings=masks).endswith("DIS (training only) |")

    def test_own_control_and_published_rows(self):
        control = {"selected": VIDEO_SCORES, "intervals": {"selected": {"J": [0.1, 0.2]}}}
        adapted = make_result(protocol="per-video, 100 steps")
        report = render_report(
            [make_result(controls={"center_ellipse": control}), adapted], ("yes", "none", "none")
        )
        assert "### DAVIS-2016 val (1376 frames)" in report
        assert "| **tiny**, selected segment | per-image | 45.7 [41.0, 50.0] | 40.0 |" in report
        assert "| **tiny**, selected segment | per-video, 100 steps | 45.7" in report
        assert "| oracle: best segment of the set = oracle per row | per-image | 55.7 |" in report
        assert report.count("control: center ellipse | measured | 45.7 [10.0, 20.0]") == 1
        assert "| ARP | *published* | 76.2 | - | - | - | no | saliency | CPMFlow |" in report
        assert "| AMD (per-vid) | *published* | 57.8 | - | - | - | yes | none | none |" in report
        assert "`amd-hf evaluate davis2016 --data DIR`: 2026-01-02, commit abc1234" in report
        assert "not comparable" not in report

    def test_equal_scores_share_a_row(self):
        same = make_result(oracle=VIDEO_SCORES, best_of_k=VIDEO_SCORES, intervals={})
        report = render_report([same])
        joined = "selected segment = oracle of the set = oracle per row"
        assert f"| **tiny**, {joined} | per-image | 45.7 |" in report
        assert "| oracle: best" not in report

    def test_size_and_refinements_belong_to_the_protocol(self):
        settings = {"refinements": ["flips"], "short_side": 360}
        report = render_report([make_result(settings=settings)])
        assert "| per-image + 360 pixels + flips |" in report

    def test_every_line_of_a_table_has_the_same_cells(self):
        for name in ("davis2016", "duts-te"):
            lines = [
                line for line in render_report([make_result(name)]).splitlines() if line[:1] == "|"
            ]
            assert len({line.count("|") for line in lines}) == 1

    def test_subsets_are_marked(self):
        report = render_report([make_result(is_subset=True, num_scored=40)])
        assert "### DAVIS-2016 val, subset (40 of 1376)" in report
        assert "not comparable with published numbers" in report

    def test_errors_are_not_percentages(self):
        report = render_report([make_result("duts-te")])
        assert "| 60.0 [41.0, 50.0] | 50.0 | 55.0 | 0.131 | 60.0 | 40.0 |" in report
        assert "| AMD | *published* | - | - | 60.2 | 0.13 | - | - |" in report

    def test_refinements_are_named(self):
        result = make_result(settings={"refinements": ["flips", "temporal"]})
        assert "| per-image + flips + temporal |" in render_report([result])

    def test_asterisks(self):
        result = make_result() | {"benchmark": "segtrackv2", "title": "SegTrackv2"}
        report = render_report([result])
        assert "| MG | *published* | 37.8\\* |" in report
        assert "| MG | *published* | 53.2 |" in render_report([make_result()])

    def test_nothing(self):
        with pytest.raises(ValueError, match="at least one result file"):
            render_report([])

    def test_summary(self):
        text = summary_text(make_result(controls={"center_ellipse": {"selected": VIDEO_SCORES}}))
        assert "45.7" in text
        assert "center_ellipse" in text


def test_published_numbers_match_the_talk(shared_dir):
    """Every number of the slides' tables is in the data file, and none is invented."""
    slides = (shared_dir / "docs" / "slides.txt").read_text(encoding="utf-8")
    tables = published_results()
    for row in tables["video"]["rows"]:
        line = next(
            text
            for text in slides.splitlines()
            if text.lstrip().split("\t")[-1]
            and f"{row['davis2016']}\t" in text + "\t"
            and row["model"].split()[0] in text
        )
        cells = line.split("\t")
        assert [cell.rstrip("*") for cell in cells[-3:]] == [
            str(row[name]) for name in ("davis2016", "segtrackv2", "fbms59")
        ]
        starred = [name for name, cell in zip(row_names(), cells[-3:], strict=True) if "*" in cell]
        assert starred == row.get("starred", [])
        assert ("✓" in cells[-6]) == row["e2e"]
    for row in tables["image"]["rows"]:
        values = row["duts-te"]
        line = next(
            text
            for text in slides.splitlines()
            if f"{values['f_beta']}\t{values['mae']:.2f}" in text
        )
        assert row["model"] in line


def row_names():
    return ("davis2016", "segtrackv2", "fbms59")


class TestFiles:
    def test_command(self, tmp_path, capsys):
        path = tmp_path / "r.json"
        path.write_text(json.dumps(make_result()))
        assert main(["report", str(path)]) == 0
        assert "### DAVIS-2016 val" in capsys.readouterr().out
        assert main(["report", str(path), "--output", str(tmp_path / "r.md")]) == 0
        assert (tmp_path / "r.md").read_text().startswith("### DAVIS-2016 val")

    def test_insertion_is_repeatable(self, tmp_path):
        readme = tmp_path / "README.md"
        readme.write_text(f"before\n{BEGIN_MARK}\nold\n{END_MARK}\nafter\n")
        path = tmp_path / "r.json"
        path.write_text(json.dumps(make_result()))
        for _ in range(2):
            assert main(["report", str(path), "--into", str(readme), "--flow", "none"]) == 0
        text = readme.read_text()
        assert text.startswith(f"before\n{BEGIN_MARK}\n")
        assert text.endswith(f"{END_MARK}\nafter\n")
        assert "old" not in text
        assert text.count("### DAVIS-2016 val") == 1

    @pytest.mark.parametrize("text", ["no marks", f"{END_MARK}\n{BEGIN_MARK}", BEGIN_MARK * 2])
    def test_marks_must_be_there(self, tmp_path, text):
        readme = tmp_path / "README.md"
        readme.write_text(text)
        with pytest.raises(ValueError, match="must hold"):
            insert_report(readme, "table")
        assert readme.read_text() == text

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (None, "Cannot read"),
            ("{", "Cannot read"),
            ("[]", "is not a result"),
            ("{}", "has no"),
            (json.dumps(dict.fromkeys(REQUIRED_KEYS[:-1])), "has no 'seconds'"),
        ],
    )
    def test_bad_files(self, tmp_path, capsys, text, message):
        path = tmp_path / "r.json"
        if text is not None:
            path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_result(path)
        assert main(["report", str(path)]) == 2
        assert "amd-hf report: " in capsys.readouterr().err
