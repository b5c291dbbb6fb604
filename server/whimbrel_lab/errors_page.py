"""Writes what is said about error numbers: `docs/errors.md`, and the list in `schemas/README.md`.

Run `python -m whimbrel_lab.errors_page` in a checkout after a change of `whimbrel_protocol/errors.py`, where numbers, statuses
and titles belong. Here belong the page's headings.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from whimbrel_protocol.errors import Code

HEADINGS = {
    1: "malformed bytes",
    2: "signed objects and enrolment",
    3: "rules of the masking window",
    4: "the server's answers",
    5: "the device's own troubles",
    6: "models",
}
INTRODUCTION = """# Error numbers

Every refusal carries one of these numbers: in the `Failure` message of the device listener and of the authority's enrolment
service, in the `code` of the admin listener's `application/problem+json`, in a device's reports and on standard error of every
command. A number is never used again for something else. The HTTP status is what a server answers with.

This page is made from `schemas/whimbrel_protocol/errors.py` by `python -m whimbrel_lab.errors_page`.
"""
BEGIN, END = "<!-- numbers: begin -->", "<!-- numbers: end -->"
_TIE = "\0"  # keeps a number and its name on one line


def page() -> str:
    """Return `docs/errors.md`."""
    return "\n".join(_page_lines()) + "\n"


def _page_lines() -> Iterator[str]:
    yield INTRODUCTION.rstrip()
    for hundreds, heading in HEADINGS.items():
        yield from ("", f"## {hundreds}xx: {heading}", "", "| number | name | HTTP | what it says |", "|---|---|---|---|")
        for code in _codes(hundreds):
            yield f'| <a id="{code:d}"></a>{code:d} | `{code.name}` | {code.http} | {code.title} |'


def _codes(hundreds: int) -> list[Code]:
    return [code for code in Code if code // 100 == hundreds]


def listed(specification: str) -> str:
    """Return the text of `schemas/README.md` with the list of numbers as it must be."""
    items = (f"- {hundreds}xx, {heading}: {_names(hundreds)}." for hundreds, heading in HEADINGS.items())
    block = "\n".join(textwrap.fill(item, 128, subsequent_indent="  ") for item in items).replace(_TIE, " ")
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{block}\n{END}", specification, flags=re.DOTALL)


def _names(hundreds: int) -> str:
    return ", ".join(f"{code:d}{_TIE}{code.name}" for code in _codes(hundreds))


def write(root: Path) -> None:
    """Bring both files of the checkout at `root` up to date."""
    specification = root / "schemas" / "README.md"
    specification.write_text(listed(specification.read_text()))
    (root / "docs" / "errors.md").write_text(page())


if __name__ == "__main__":
    write(Path(__file__).parents[2])
