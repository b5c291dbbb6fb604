"""The guide for a model's author: its commands run, they print what it shows, its examples work, its exports made our files."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from whimbrel_lab.cli import main

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests/data"
PAGE = (ROOT / "docs/bring-your-model.md").read_text()
BLOCKS = re.findall(r"^(?:<!-- ([^\n]*) -->\n)?```(\w+)\n(.*?)^```\n", PAGE, re.M | re.S)
NUMBERS = re.compile(r"\d[\d.,]*(e[+-]?\d+)?")


def masked(text: str) -> str:
    """The text on one line, its numbers hidden: they differ from machine to machine."""
    return NUMBERS.sub("#", " ".join(text.split()))


def without_blank_lines(code: str) -> list[str]:
    return [line.rstrip() for line in code.splitlines() if line.strip()]


@pytest.fixture(name="_folder")
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for model in DATA.glob("*.onnx"):
        shutil.copy(model, tmp_path)
    monkeypatch.chdir(tmp_path)


def test_commands_print_what_the_guide_shows(_folder: None, capsys: pytest.CaptureFixture[str]) -> None:
    printed, shown = "", 0
    for _, kind, block in BLOCKS:
        if kind == "sh" and "whimbrel-lab" in block:
            for line in block.splitlines():
                assert main(shlex.split(line)[1:]) == 0, line
            printed = masked(capsys.readouterr().out)
        elif kind == "text":
            for line in block.splitlines():
                assert masked(line) in printed, line
                shown += 1
    assert shown > 5


def test_examples_run(_folder: None, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = [block for mark, kind, block in BLOCKS if kind == "python" and not mark]
    exec(compile(example, "bring-your-model.md", "exec"), {})
    assert re.fullmatch(r"\d+% before, \d+% after\n", capsys.readouterr().out)


def test_exports_are_the_code_that_made_our_files() -> None:
    source = (DATA / "make.py").read_text()
    marks = [mark for mark, _, _ in BLOCKS if mark]
    assert len(marks) == 4
    for mark, _, block in BLOCKS:
        if mark:
            (made,) = re.findall(rf"    # begin: {mark.split()[-1]}\n(.*?)    # end\n", source, re.S)
            lines = [line.removeprefix("    ") for line in without_blank_lines(made)]
            assert without_blank_lines(block) == lines, mark
