"""The known answers hold, and a file that differs in one item is told from them by that item's name."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whimbrel_protocol import replay_steps, replay_window
from whimbrel_protocol.known_answers import Report
from whimbrel_protocol.replay import main, replay_file

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "schemas" / "vectors"
WHOLE, SPARSE, STEPS = (
    VECTORS / f"{name}.json" for name in ("window-n8-b16-complete", "window-n40-b12-hidden-graph", "masking-window")
)
# The step file has no updates but member 0's: these two are held against their ranges only.
RANGE_ONLY = {"sum", "wsum"}


def failures(path: Path, value: Any) -> list[str]:
    """The names of the failed items of a file with this value."""
    path.write_text(json.dumps(value))
    report = Report()
    replay_file(path, report)
    return [name for name, _ in report.failures]


@pytest.mark.parametrize(("path", "items"), [(WHOLE, 100), (SPARSE, 400), (STEPS, 60)], ids=lambda value: str(value)[-20:])
def test_the_known_answers_hold(path: Path, items: int) -> None:
    report = Report()
    replay_file(path, report)
    assert report.failures == []
    assert report.passed > items


def flipped(value: Any) -> Any:
    """The value with one bit of its first leaf changed."""
    match value:
        case bool():
            return not value
        case int():
            return value ^ 1
        case float():
            return value + 1
        case str() if value:
            return f"{int(value[:2], 16) ^ 0x10:02x}{value[2:]}"
        case dict():
            first = next(iter(value))
            return {**value, first: flipped(value[first])}
        case list():
            at = next(i for i, each in enumerate(value) if each != "")
            return [*value[:at], flipped(value[at]), *value[at + 1 :]]
    raise AssertionError(f"nothing to flip in {value!r}")


OUTPUTS = [
    *((WHOLE, name) for name in replay_window.OUTPUTS),
    *((STEPS, name) for name in replay_steps.OUTPUTS if name not in RANGE_ONLY),
    *((SPARSE, name) for name in ("params", "P32", "masked_sha256")),
]


@pytest.mark.parametrize(("path", "name"), OUTPUTS, ids=lambda value: value if isinstance(value, str) else value.stem)
def test_a_changed_output_fails_and_is_named(path: Path, name: str, tmp_path: Path) -> None:
    value = json.loads(path.read_text())
    value[name] = flipped(value[name])
    failed = failures(tmp_path / "changed.json", value)
    assert any(each.startswith(name) for each in failed), failed


@pytest.mark.parametrize("field", ["device", "rho", "sign_seed", "cert", "x", "w"])
@pytest.mark.parametrize(("path", "at"), [(WHOLE, 3), (SPARSE, 39)], ids=["n8", "n40"])
def test_a_changed_member_fails_and_is_named(path: Path, at: int, field: str, tmp_path: Path) -> None:
    value = json.loads(path.read_text())
    value["members"][at][field] = flipped(value["members"][at][field])
    failed = failures(tmp_path / "changed.json", value)
    assert any(each.startswith(f"members[{at}]") for each in failed), failed


@pytest.mark.parametrize(
    ("path", "where", "value"),
    [
        (WHOLE, ("policy", "fleet"), "00" * 16),
        (WHOLE, ("policy", "authority_pk"), "00" * 32),
        (WHOLE, ("policy", "gamma_milli"), 250),
        (WHOLE, ("policy", "n_min"), 6),
        (WHOLE, ("policy", "n_max"), 7),
        (SPARSE, ("policy", "sigma"), 9),
        (WHOLE, ("spec", "bytes"), "00" * 39),
        (WHOLE, ("spec", "scale"), 4095.0),
        (WHOLE, ("spec", "M"), 254),
        (WHOLE, ("lane",), "00" * 32),
        (WHOLE, ("seq",), 2),
        (WHOLE, ("expires",), 549755813889),
        (WHOLE, ("now",), 2**50),
        (WHOLE, ("name",), 1),
        (WHOLE, ("drops", "before_masked"), []),
        (WHOLE, ("drops", "before_vote"), [0, 1, 3, 4]),
        (WHOLE, ("members", 5, "x", 0), 256),
        (STEPS, ("n",), 7),
        (STEPS, ("rho", 4), "00" * 32),
        (STEPS, ("sign_seed", 4), "00" * 32),
        (STEPS, ("dev", 4), "00" * 16),
        (STEPS, ("fa_pk",), "00" * 32),
        (STEPS, ("params",), "00" * 72),
        (STEPS, ("x0", 0), 2799),
        (STEPS, ("w0",), 1),
        (STEPS, ("sum", 0), 2**17),
        (STEPS, ("wsum",), -1),
    ],
)
def test_a_changed_input_that_matters_fails(path: Path, where: tuple[str | int, ...], value: Any, tmp_path: Path) -> None:
    changed = json.loads(path.read_text())
    target = changed
    for step in where[:-1]:
        target = target[step]
    assert target[where[-1]] != value
    target[where[-1]] = value
    assert failures(tmp_path / "changed.json", changed)


def str_of(value: str) -> str:
    """Short test ids for long texts."""
    return value[:12]


def malformed() -> Iterator[tuple[str, str]]:
    """Texts that are no known answers, each with the item that the report must name."""
    text = WHOLE.read_text()
    value = json.loads(text)
    yield "", "file"
    yield text[:-2], "file"
    yield "[" * 100_000, "file"
    yield "[]", "file"
    yield "{}", "name"
    yield text.replace('"tau0"', '"tau9"'), "tau0"
    yield text.replace('"t":5', '"t":5,"t":5'), "file"
    yield text.replace('"t":5', '"t":NaN'), "file"
    yield text.replace('"t":5', '"t":5.0'), "t"
    yield text.replace(value["tau0"], value["tau0"].upper()), "tau0"
    yield text.replace(value["tau0"], value["tau0"][:-2]), "tau0"
    yield text.replace(value["tau0"], " " + value["tau0"]), "tau0"
    yield json.dumps({**value, "params": "00"}), "params"
    yield json.dumps({**value, "members": []}), "members"
    yield json.dumps({**value, "members": None}), "members"
    yield json.dumps({**value, "shares": {**value["shares"], "8": {}}}), "shares[8]"
    yield json.dumps({**value, "drops": {**value["drops"], "before_vote": [8]}}), "drops.before_vote"


@pytest.mark.parametrize(("text", "name"), list(malformed()), ids=str_of)
def test_a_file_that_is_none_is_a_failed_item(text: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "malformed.json"
    path.write_text(text)
    report = Report()
    replay_file(path, report)
    names = [each for each, _ in report.failures]
    assert name in names or (name == "name" and set(names) <= set(replay_window.ITEMS)), names


# Flips that no output depends on: text for people, the time, members that dropped before they masked, limits not reached.
FREE = ("name", "now", "policy", "members")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_noticed_and_never_crashes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = bytearray(WHOLE.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 2))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.mktemp("flipped") / "window.json"
    path.write_bytes(raw)
    report = Report()
    replay_file(path, report)
    if not report.failures:
        honest, changed = json.loads(WHOLE.read_text()), json.loads(raw)
        assert {name for name in honest if honest[name] != changed[name]} <= set(FREE)
        for i, (one, other) in enumerate(zip(honest["members"], changed["members"], strict=True)):
            assert one == other or i in (2, 5)


def test_the_command_counts_and_its_status_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = copy.deepcopy(json.loads(WHOLE.read_text()))
    changed["weight_sum"] += 1
    (tmp_path / "changed.json").write_text(json.dumps(changed))
    assert main([str(WHOLE), str(tmp_path / "changed.json"), str(tmp_path / "missing.json")]) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["weight_sum", "file"]
    assert last.endswith("passed, 2 failed")


def test_the_module_runs_as_a_command() -> None:
    search = ":".join(str(ROOT / part) for part in ("cext", "schemas"))
    command = [sys.executable, "-m", "whimbrel_protocol.replay", *map(str, sorted(VECTORS.glob("*.json")))]
    done = subprocess.run(command, env={"PYTHONPATH": search}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith("passed, 0 failed")
