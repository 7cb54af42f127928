"""Damaged input in small numbers; `scripts/fuzz.py` runs tens of thousands."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import pytest

from tests.fuzzing.families import FAMILY_NAMES, case_random, judge, open_family
from tests.fuzzing.mutations import mutate, mutate_json
from tests.fuzzing.selftest import KINDS
from tests.fuzzing.supervisor import Result, load_result, run_family, save_result

SEED = 7
SHORT_RUNS = {
    "images": 60,
    "videos": 30,
    "masks": 40,
    "shards": 30,
    "configs": 40,
    "checkpoints": 25,
    "arguments": 60,
}


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_only_documented_errors_come_out(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As in the long runs, but in this process; native crashes would end the tests, too."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about damaged files
            family = open_family(name, tmp_path / "samples")
            findings, kinds = [], set()
            for number in range(SHORT_RUNS[name]):
                folder = tmp_path / str(number)
                folder.mkdir()
                case = family.case(case_random(name, SEED, number), folder)
                for reader in case.readers:
                    verdict = judge(reader)
                    kinds.add(verdict.kind)
                    if verdict.kind == "failed":
                        findings.append((number, case.what, reader.name, verdict.detail))
    finally:
        logging.disable(logging.NOTSET)
    assert findings == []
    assert kinds == {"accepted", "refused"}, "all accepted or all refused would prove nothing"


@pytest.mark.parametrize("name", ["images", "videos", "masks"])
def test_valid_samples_are_accepted(name: str, tmp_path: Path) -> None:
    family = open_family(name, tmp_path / "samples")
    (tmp_path / "case").mkdir()
    for case in family.valid(tmp_path / "case"):
        for reader in case.readers:
            verdict = judge(reader)
            assert verdict.kind == "accepted", (case.what, reader.name, verdict.detail)


def test_cases_follow_from_their_number() -> None:
    def damaged(number: int) -> tuple[bytes, str]:
        return mutate(case_random("images", SEED, number), bytes(range(256)) * 4, [b"other" * 50])

    assert [damaged(n) for n in range(50)] == [damaged(n) for n in range(50)]
    assert len({damaged(n)[0] for n in range(50)}) > 45


def test_changed_json_is_mostly_still_json() -> None:
    text = json.dumps({"a": [1, 2.5, "x"], "b": {"c": None}})
    whole = 0
    for number in range(200):
        data, how = mutate_json(case_random("configs", SEED, number), text)
        if how == "values":
            json.loads(data)
            whole += 1
    assert whole > 100


def test_a_reader_is_judged_by_its_documentation(tmp_path: Path) -> None:
    family = open_family("selftest", tmp_path)
    found = {}
    for number in range(60):
        case = family.case(case_random("selftest", SEED, number), tmp_path)
        if case.what not in ("crash", "hang"):
            found[case.what] = judge(case.readers[0])
    assert found["accept"].kind == "accepted"
    assert found["refuse"].kind == "refused"
    assert "does not name 'case.bin'" in found["unnamed"].detail
    assert "without a message" in found["silent"].detail
    assert "KeyError" in found["wrong type"].detail


def test_an_unfinished_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "images.json"
    saved = Result("images", 1, 100, done=40, counts={"read_image/refused": 40})
    save_result(path, saved)
    assert load_result(path, Result("images", 1, 100)) == saved
    assert load_result(path, Result("images", 2, 100)).done == 0
    saved.done = 100
    save_result(path, saved)
    assert load_result(path, Result("images", 1, 100)).done == 0


def test_growth_is_seen() -> None:
    rows = [[100.0 * n, 400.0 + 20.0 * n, 10.0 + n, 5.0] for n in range(16)]
    result = Result("images", 1, 1600, done=1600, usages=[rows])
    assert result.growth_mb == pytest.approx(80.0)
    assert result.grown_files == pytest.approx(4.0)
    assert not result.has_passed
    flat = Result("images", 1, 1600, done=1600, usages=[[[r[0], 400.0, 10.0, 5.0] for r in rows]])
    assert flat.has_passed


@pytest.mark.slow
def test_crashes_and_hangs_are_counted_and_survived(tmp_path: Path) -> None:
    result = run_family("selftest", 14, SEED, tmp_path, seconds_per_case=4.0)
    kinds = [
        (tmp_path / f"selftest/failures/selftest_{number}/case.bin").read_text()
        for number in [*result.hangs, *[crash["case"] for crash in result.crashes]]
    ]
    drawn = [case_random("selftest", SEED, number).choice(KINDS) for number in range(14)]
    assert sorted(kinds) == sorted(kind for kind in drawn if kind in ("crash", "hang"))
    assert {"crash", "hang"} <= set(drawn)
    assert result.done == 14
    assert not result.has_passed
    assert result.num_failures == sum(k in ("unnamed", "silent", "wrong type") for k in drawn)
    assert "Segmentation fault" in result.crashes[0]["stderr"]
