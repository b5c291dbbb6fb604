"""The table of operators is current, complete, and shows no error that a test would not accept."""

import re

from tests.compiler import operators_page
from tests.compiler.cases import CASES
from tests.compiler.ops import OPS
from whimbrel_server.compiler.rules import LOWERINGS, RULES


def test_the_page_is_current() -> None:
    expected = operators_page.page({})
    found = operators_page.PAGE.read_text()
    assert operators_page.without_errors(found) == operators_page.without_errors(expected), (
        "run `python -m tests.compiler.operators_page`"
    )


def test_every_promised_operator_is_in_the_page() -> None:
    _, *rows = re.findall(r"^\| (\w+) \|", operators_page.PAGE.read_text(), re.MULTILINE)
    assert rows[: len(OPS)] == list(OPS)
    assert len(set(rows)) == len(rows)
    assert set(rows) >= set(RULES) | set(LOWERINGS)


def test_no_error_in_the_page_is_larger_than_a_test_accepts() -> None:
    loosest = {op: max(case.accept for case in CASES.values() if case.op == op) for op in {case.op for case in CASES.values()}}
    for row in operators_page.PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if cells[0] in loosest:
            forward, gradient, rounding = (float(cell or 0) for cell in cells[4:])
            assert forward <= 1e-6 and gradient <= loosest[cells[0]] and rounding <= 1e-5, cells[0]
