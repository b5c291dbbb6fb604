"""Replays rotated updates: each lane's key and signs, and what its rotation makes of given values.

Here belongs what is computed from which item of `rotation.json`; reading and counting are `known_answers.py`'s. A long update
is not in the file but follows from its length, and only some of its rotated values are compared. Two float32 clients may differ
in the last digits, so values agree within 1e-5.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from whimbrel_kernels import rotate
from whimbrel_protocol.encoding import BLOCK, rotation_signs
from whimbrel_protocol.known_answers import Fields, MalformedError, Report
from whimbrel_protocol.primitives import HASH_BYTES, KEY_BYTES, kdf, sha256

INPUTS = ("about", "block")
OUTPUTS = ("cases",)
ITEMS = INPUTS + OUTPUTS
WHOLE = ("name", "lane", "key", "signs", "values", "rotated")
LONG = ("name", "lane", "key", "signs_sha256", "count", "rotated_at")

TOLERANCE = 1e-5
_COUNT_MAX = 2**20


def replay(value: object, report: Report) -> None:
    """Replay a file's value into the report. Raises MalformedError where it cannot go on."""
    file = Fields(value, "", ITEMS)
    file.text("about")
    report.same("block", BLOCK, file.integer("block"))
    for at, row in enumerate(file.array("cases")):
        names = LONG if isinstance(row, dict) and "count" in row else WHOLE
        case = Fields(row, f"cases[{at}]", names)
        _replay_case(case, names is LONG, report)


def _replay_case(case: Fields, long: bool, report: Report) -> None:
    case.text("name")
    lane = case.hex("lane", HASH_BYTES)
    report.same(case.path("key"), kdf(lane, bytes(KEY_BYTES), "rotate"), case.hex("key", KEY_BYTES))
    values = _formula(case.integer("count", 1, _COUNT_MAX)) if long else _numbers(case, "values")
    signs = rotation_signs(lane, values.size)
    if long:
        report.same(case.path("signs_sha256"), sha256(signs), case.hex("signs_sha256", HASH_BYTES))
        stated = case.by_member("rotated_at", values.size)
    else:
        report.same(case.path("signs"), signs, case.hex("signs"))
        stated = dict(enumerate(case.array("rotated")))
        report.same(case.path("rotated"), values.size, len(stated))
    rotate(values, signs, BLOCK)
    for i, each in stated.items():
        within = i < values.size and abs(float(values[i]) - _number(each, case.path("rotated"))) <= TOLERANCE
        report.holds(f"{case.path('rotated')}[{i}]", within, f"computed {values[i : i + 1]}, the file says {each}")


def _formula(count: int) -> NDArray[np.float32]:
    return (((37 * np.arange(count)) % 101 - 50) / 64).astype(np.float32)


def _numbers(case: Fields, key: str) -> NDArray[np.float32]:
    return np.array([_number(each, case.path(key)) for each in case.array(key)], np.float32)


def _number(value: Any, name: str) -> float:
    if type(value) not in (int, float):
        raise MalformedError(name, "is not a number")
    return float(value)
