"""Evaluations that were interrupted go on; states that do not fit start afresh."""

# ruff: noqa: F811 (fixtures)

import zipfile

import pytest

from amd_hf.evaluation.predictors import ModelPredictor
from amd_hf.evaluation.progress import EvaluationProgress

from .evaluation_cases import davis, ecssd, evaluate, processor  # noqa: F401 (fixtures)


class TestResuming:
    @pytest.mark.parametrize("name", ["davis2016", "ecssd"])
    def test_interrupted_equals_uninterrupted(
        self, name, evaluate, davis, ecssd, tmp_path, monkeypatch, caplog
    ):
        data = davis if name == "davis2016" else ecssd
        options = {"controls": name == "ecssd", "contact_sheet": tmp_path / "sheet.png"}
        whole = evaluate(name, data, **options)
        sheet = (tmp_path / "sheet.png").read_bytes()
        original, calls = ModelPredictor.predict, []

        def breaks_at_the_second(self, sequence, frames):
            calls.append(sequence.name)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return original(self, sequence, frames)

        state = tmp_path / "result.json.unfinished"
        monkeypatch.setattr(ModelPredictor, "predict", breaks_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            evaluate(name, data, resume_file=state, **options)
        assert state.is_file()
        resumed = evaluate(name, data, resume_file=state, **options)
        assert "Resuming" in caplog.text
        # Once by the model, and on images once by the random control.
        assert calls.count(calls[0]) == (2 if name == "ecssd" else 1)
        for key in ("selected", "oracle", "best_of_k", "intervals", "rows"):
            assert resumed[key] == whole[key]
        assert resumed.get("controls") == whole.get("controls")
        assert (tmp_path / "sheet.png").read_bytes() == sheet
        assert not state.exists()

    def test_a_contact_sheet_that_is_asked_for_later_is_of_all_rows(
        self, evaluate, ecssd, tmp_path, monkeypatch
    ):
        sheet, again = tmp_path / "sheet.png", tmp_path / "again.png"
        whole = evaluate("ecssd", ecssd, contact_sheet=sheet)
        original, names = ModelPredictor.predict, []

        def breaks_at_the_last(self, sequence, frames):
            names.append(sequence.name)
            if len(names) == len(whole["rows"]):
                raise KeyboardInterrupt
            return original(self, sequence, frames)

        monkeypatch.setattr(ModelPredictor, "predict", breaks_at_the_last)
        with pytest.raises(KeyboardInterrupt):
            evaluate("ecssd", ecssd, resume_file=tmp_path / "state")
        monkeypatch.undo()
        resumed = evaluate("ecssd", ecssd, resume_file=tmp_path / "state", contact_sheet=again)
        assert resumed["rows"] == whole["rows"]
        assert again.read_bytes() == sheet.read_bytes()

    def test_other_settings_start_afresh(self, tmp_path, caplog):
        path = tmp_path / "state"
        first = EvaluationProgress(path, {"threshold": 0.5})
        first.of("model").rows.append({"name": "dog"})
        first.save()
        assert EvaluationProgress(path, {"threshold": 0.5}).of("model").rows == [{"name": "dog"}]
        assert EvaluationProgress(path, {"threshold": 0.6}).of("model").rows == []
        assert "other settings or weights; starting afresh" in caplog.text

    @pytest.mark.parametrize("damage", ["cut archive", "cut header of an array"])
    def test_damaged_state_starts_afresh(self, damage, tmp_path, caplog):
        path = tmp_path / "state"
        if damage == "cut archive":
            path.write_bytes(b"PK\x03\x04 cut off")
        else:
            text = b"{'descr': (1,\n"
            with zipfile.ZipFile(path, "w") as archive:
                size = len(text).to_bytes(2, "little")
                archive.writestr("header.npy", b"\x93NUMPY\x01\x00" + size + text)
        assert EvaluationProgress(path, {}).of("model").rows == []
        assert "Cannot use the unfinished state" in caplog.text
