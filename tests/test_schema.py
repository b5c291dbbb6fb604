"""The schema's gates: the committed code is what flatc makes of it, and no change breaks a device that is out there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from whimbrel_protocol import wire

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "schemas/whimbrel.fbs"
RELEASED = ROOT / "schemas/released/v1.fbs"

needs_flatc = pytest.mark.skipif(
    shutil.which("flatc") is None,
    reason="flatc is missing (Debian: apt-get install flatbuffers-compiler); `make check` wants it",
)


def flatc(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["flatc", *map(str, arguments)], capture_output=True, text=True, timeout=60)


@needs_flatc
def test_the_committed_code_is_what_flatc_makes(tmp_path: Path) -> None:
    made = flatc("--python", "--gen-onefile", "-o", tmp_path, SCHEMA)
    assert made.returncode == 0, made.stderr
    committed = ROOT / "schemas/whimbrel_protocol/_fb/whimbrel_generated.py"
    assert (tmp_path / committed.name).read_text() == committed.read_text()


@needs_flatc
def test_the_schema_conforms_to_what_was_released() -> None:
    gate = flatc("--conform", RELEASED, SCHEMA)
    assert gate.returncode == 0, gate.stderr


@needs_flatc
@pytest.mark.parametrize(
    ("old", "new", "passes"),
    [
        ("come_back_s:uint; }", "come_back_s:uint; reason:ushort; }", True),
        ("Unmask, Done, Report", "Unmask, Done, Report", True),
        ("words:ulong", "words:uint", False),
        ("i:ushort; kind:VoteKind", "kind:VoteKind; i:ushort", False),
        ("Commit = 1, Abort = 2", "Commit = 2, Abort = 1", False),
    ],
    ids=["a field appended", "no change", "a type changed", "fields exchanged", "enum values exchanged"],
)
def test_the_gate_lets_additions_through_and_nothing_else(tmp_path: Path, old: str, new: str, passes: bool) -> None:
    text = RELEASED.read_text()
    assert old in text
    changed = tmp_path / "changed.fbs"
    changed.write_text(text.replace(old, new))
    assert (flatc("--conform", RELEASED, changed).returncode == 0) == passes


def test_every_table_is_a_message_class_with_the_same_fields_in_the_same_order() -> None:
    tables = dict(re.findall(r"table (\w+) \{(.*?)\}", SCHEMA.read_text(), re.DOTALL))
    for carrier in ("Envelope", "Blob"):
        del tables[carrier]
    declared = {name: re.findall(r"(\w+):", body) for name, body in tables.items()}
    classes = {cls.__name__: list(cls.__dataclass_fields__) for cls in wire.LIMITS}  # type: ignore[attr-defined]
    assert declared == classes


def test_the_union_holds_exactly_the_messages() -> None:
    (union,) = re.findall(r"union Body \{(.*?)\}", SCHEMA.read_text(), re.DOTALL)
    assert re.findall(r"\w+", union) == [cls.__name__ for cls in wire._BODIES.values()]
