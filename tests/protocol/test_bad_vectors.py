"""The file of good and bad cases: it is current, it replays, it misses no check of a client, and a replay notices a change."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.protocol.strategies import CLASSES
from whimbrel_lab.bad_vectors.__main__ import PATH, text
from whimbrel_protocol import replay, wire
from whimbrel_protocol.errors import Code
from whimbrel_protocol.known_answers import Report

ROOT = Path(__file__).parents[2]
FILE = json.loads(PATH.read_text())
CASES: dict[str, dict[str, Any]] = {case["name"]: case for case in FILE["cases"]}
GIVEN = {case["expect"] for case in CASES.values()}

# Where a client's checks of objects and of the window are made.
CLIENT = [
    *(ROOT / "schemas/whimbrel_protocol" / f"{name}.py" for name in (
        "blame", "checks", "encoding", "layout", "masks", "member", "objects", "packing", "primitives", "rules", "signed",
        "spent", "transcript", "trust", "window",
    )),
    *(ROOT / "edge_client/whimbrel").glob("*.py"),
]  # fmt: skip
# Answers of the authority, not checks of a client.
AUTHORITYS = {Code.ENROLMENT_TOKEN, Code.DEVICE_TAKEN, Code.DEVICE_REVOKED, Code.RENEWAL_TOO_LATE}


def report_of(value: object, path: Path) -> Report:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    report = Report()
    replay.replay_file(path, report)
    return report


def test_the_file_is_what_the_generator_writes() -> None:
    assert PATH.read_text() == text(), "run `python -m whimbrel_lab.bad_vectors`"


def test_every_case_gives_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main([str(PATH)]) == 0
    assert capsys.readouterr().out == f"{len(CASES)} passed, 0 failed\n"


def test_no_number_of_a_clients_check_is_missing() -> None:
    used = {Code[name] for path in CLIENT if path.exists() for name in re.findall(r"\bCode\.([A-Z0-9_]+)", path.read_text())}
    assert len(used) > 60
    missing = {code for code in used - AUTHORITYS if 200 <= code < 400} - GIVEN
    assert not missing, sorted(code.name for code in missing)


def test_every_check_has_good_cases_and_bad_ones() -> None:
    for kind in replay.replay_cases.CHECKS:
        numbers = {case["expect"] for case in CASES.values() if case["check"] == kind}
        assert 0 in numbers and len(numbers) > 1, kind


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_message_is_there_good_and_beyond_a_limit(cls: type) -> None:
    numbers = {case["expect"] for case in CASES.values() if case["input"].get("kinds") == [cls.__name__]}
    assert numbers >= ({0, 102} if wire.LIMITS[cls] else {0})


def test_every_changed_number_is_noticed(tmp_path: Path) -> None:
    cases = [{**case, "expect": case["expect"] + 1} for case in CASES.values()]
    report = report_of({**FILE, "cases": cases}, tmp_path / "changed.json")
    assert {name for name, _ in report.failures} == {f"cases[{name}]" for name in CASES}


def test_every_story_ends_where_it_says(tmp_path: Path) -> None:
    stories = [case for case in CASES.values() if case["input"].get("state")]
    changed = [{**case, "input": {**case["input"], "state": "elsewhere"}} for case in stories]
    report = report_of({**FILE, "cases": changed}, tmp_path / "changed.json")
    assert len(report.failures) == len(stories) > 100


def test_a_refusal_within_a_story_is_a_fault_of_the_file(tmp_path: Path) -> None:
    case = CASES["U2: without this member"]
    steps = [*case["input"]["steps"], {"step": "abort"}]
    report = report_of({**FILE, "cases": [{**case, "input": {**case["input"], "steps": steps}}]}, tmp_path / "changed.json")
    assert "steps[1]: was refused: error 341" in report.failures[0][1]


@pytest.mark.parametrize("item", ["lane", "key", "signs", "values", "rotated", "signs_sha256", "count", "rotated_at"])
def test_a_changed_rotation_fails(item: str, tmp_path: Path) -> None:
    file = json.loads((PATH.parent / "rotation.json").read_text())
    assert not report_of(file, tmp_path / "rotation.json").failures
    case = next(case for case in reversed(file["cases"]) if item in case)
    match case[item]:
        case str() as text:
            case[item] = text[:-1] + ("0" if text[-1] != "0" else "1")
        case list() as numbers:
            numbers[-1] += 0.25
        case dict() as numbers:
            numbers["8834"] += 1e-4
        case count:
            case[item] = count - 1
    assert report_of(file, tmp_path / "rotation.json").failures


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: f.pop("shared"), "is missing"),
        (lambda f: f.update(shared=[]), "is not an object"),
        (lambda f: f.update(cases=[]), "not reached"),
        (lambda f: f["cases"][0].pop("expect"), "is missing"),
        (lambda f: f["cases"][0].update(check="other"), "is no check"),
        (lambda f: f["cases"][0].update(expect=True), "is not an integer"),
        (lambda f: f["cases"].append(f["cases"][0]), "is there twice"),
        (lambda f: f["cases"][0]["input"].update(data="@nobody"), "is missing"),
        (lambda f: (f["shared"].update(me="@me"), f["cases"][0]["input"].update(data="@me")), "refers to itself"),
        (lambda f: f["cases"][0]["input"].update(data="0g"), "hexadecimal"),
        (lambda f: f["cases"][0]["input"].update(more=1), "is not expected"),
    ],
)
def test_a_damaged_file_is_a_failed_item(change: Change, reason: str, tmp_path: Path) -> None:
    file = {**FILE, "shared": dict(FILE["shared"]), "cases": [json.loads(json.dumps(FILE["cases"][0]))]}
    change(file)
    report = report_of(file, tmp_path / "damaged.json")
    assert any(reason in said for _, said in report.failures), report.failures
