"""Writes `docs/operators.md`: each operator, its rule, what that was held against, and the largest error.

Run `python -m tests.compiler.operators_page` in a checkout after a change of a rule or a case. Here belong the page's words;
the numbers are `measuring.py`'s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from onnx import defs

from tests.compiler.cases import CASES
from tests.compiler.cases.case import Case, is_differentiable, opsets
from tests.compiler.measuring import largest_errors
from tests.compiler.ops import OPS
from whimbrel_server.compiler.rules import LOWERINGS, RULES, STOPS
from whimbrel_server.compiler.source.prepare import OLDEST_OPSET

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "operators.md"
INTRODUCTION = """# Operators that train

A model may use any operator, of any domain, where no trained weight lies before it: it is kept as it is. Between a trained
weight and the loss each operator needs a rule. These have one; others are refused by name, with what could be trained instead.
Models of opset {oldest} to {newest} are read.

- **Opsets**: the versions of the operator that were tried, each by its first opset.
- **Rule**: `lowered` is rewritten into other operators of this table while a model is read; `gradient` has a rule of its own;
  through `none` no gradient flows, for the reason given.
- **Forward**: the rewritten graph on stock onnxruntime, against the operator itself there. **Gradient**: the compiled gradient
  in float64 through onnx's reference evaluator, against central differences. **float32**: loss and gradients on onnxruntime,
  against float64. Each is the largest error over all cases and versions, relative to max(1, |true value|).

This page is made by `python -m tests.compiler.operators_page`; a test fails where it is not current or an operator is missing.

| operator | opsets | rule | cases | forward | gradient | float32 |
|---|---|---|---|---|---|---|
"""
_ERROR = re.compile(r"(?<=\| )(?:0|\d\.\de[-+]\d\d)(?= \|)")

Errors = Mapping[str, float]


def page(errors: Mapping[str, Errors]) -> str:
    """Return `docs/operators.md` for the largest errors of each operator, by kind."""
    newest = max(schema.since_version for schema in defs.get_all_schemas() if schema.domain == "")
    rows = [_row(op, cases, errors.get(op, {})) for op, cases in by_operator().items()]
    return INTRODUCTION.format(oldest=OLDEST_OPSET, newest=min(newest, 23)) + "".join(rows)


def by_operator() -> dict[str, list[Case]]:
    """All cases, the promised operators first and in their order."""
    order = {op: place for place, op in enumerate(OPS)}
    cases = sorted(CASES.values(), key=lambda case: (order.get(case.op, len(order)), case.op))
    return {op: list(group) for op, group in groupby(cases, key=lambda case: case.op)}


def measured() -> dict[str, dict[str, float]]:
    """The largest error of each kind, by operator, over all of its cases and opsets."""
    return {
        op: _largest([one for case in cases for one in largest_errors(case).values()]) for op, cases in by_operator().items()
    }


def _largest(errors: Sequence[Errors]) -> dict[str, float]:
    kinds = {kind for one in errors for kind in one}
    return {kind: max(one[kind] for one in errors if kind in one) for kind in kinds}


def _row(op: str, cases: Sequence[Case], errors: Errors) -> str:
    tried = sorted({opset for case in cases for opset in opsets(case)})
    graded = any(is_differentiable(case) for case in cases) and op not in STOPS
    figures = [_figure(errors.get(kind)) if graded or kind == "forward" else "" for kind in ("forward", "gradient", "float32")]
    return f"| {op} | {', '.join(map(str, tried))} | {rule(op)} | {len(cases)} | {' | '.join(figures)} |\n"


def rule(op: str) -> str:
    """What the compiler does with an operator, and in which file."""
    if op in STOPS:
        return f"none: {STOPS[op]}"
    ways = [(word, table[op]) for word, table in (("lowered", LOWERINGS), ("gradient", RULES)) if op in table]
    return ", ".join(f"{word} (`{_home(way).rpartition('.')[2]}`)" for word, way in ways) or "resolved while reading"


def _home(way: Any) -> str:
    """The module of a rule, or of what a partial rule is a part of."""
    return str(getattr(way, "func", way).__module__)


def _figure(error: float | None) -> str:
    return f"{error:.1e}" if error else "0"


def without_errors(text: str) -> str:
    """The page with every error hidden: machines differ in the last bits."""
    return _ERROR.sub("*", text)


if __name__ == "__main__":
    PAGE.write_text(page(measured()))
