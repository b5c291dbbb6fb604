"""The protocol's specification says what the code does: fields and limits, layouts, states and numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from struct import Struct
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from whimbrel_lab import errors_page
from whimbrel_protocol import objects, signed
from whimbrel_protocol.errors import Code
from whimbrel_protocol.messages import VoteKind
from whimbrel_protocol.primitives import SIGNATURE_BYTES
from whimbrel_protocol.transcript import VOTE_MAGIC, vote_body
from whimbrel_protocol.window import MEMBER, SERVER, MemberEvent
from whimbrel_protocol.wire import _ITEM_LIMITS, CONTENT_TYPE, LIMITS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "schemas/README.md").read_text()
POWERS = {2**power - less: f"2^{power}" + "-1" * less for power in (30, 31, 32, 40, 48, 64, 127) for less in (0, 1)}
POWERS[-(2**127)] = "-2^127"
SIGNED = (objects.Certificate, objects.CertificateRequest, objects.CheckInBody, objects.JoinEntry, signed.Policy, signed.Plan)


# --- messages -------------------------------------------------------------------------------------------------------


def span(limit: tuple[int, int]) -> str:
    low, high = (POWERS.get(end, str(end)) for end in limit)
    return low if low == high else f"{low}..{high}"


def of(kind: type, limit: tuple[int, int]) -> str:
    return span(limit) + {bytes: " bytes", str: " bytes of UTF-8"}.get(kind, "")


def limit_of(cls: type, name: str) -> str:
    """What the table must say of a field."""
    hint: Any = get_type_hints(cls)[name]
    if type(None) in get_args(hint):
        return f"{get_args(hint)[0].__name__}, may be absent"
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        return f"{span(LIMITS[cls][name])} × {item.__name__ if item in LIMITS else of(item, _ITEM_LIMITS[cls, name])}"
    if hint in LIMITS or issubclass(hint, IntEnum):
        return str(hint.__name__)
    return "flag" if hint is bool else of(hint, LIMITS[cls][name])


def test_every_field_stands_in_a_table_with_its_limit_and_a_meaning() -> None:
    said = {row[0]: (row[1], row[2]) for row in re.findall(r"^\| `(\w+\.\w+)` \| (.*?) \| (.*?) \|$", TEXT, re.MULTILINE)}
    limits = {f"{cls.__name__}.{name}": limit_of(cls, name) for cls in LIMITS for name in get_type_hints(cls)}
    assert {name: limit for name, (limit, _) in said.items()} == limits
    assert all(len(meaning) > 2 for _, meaning in said.values())


def test_every_message_and_every_call_is_named() -> None:
    for cls in LIMITS:
        assert re.search(rf"\b{cls.__name__}\b", TEXT), cls.__name__
    assert CONTENT_TYPE in TEXT


# --- blobs ----------------------------------------------------------------------------------------------------------

SPEC = ["suite", "lanes", "bits", "limb_bits", "n_max", "d", "words", "limit", "scale", "weight_bits"]
# Name in the text, offset of its letters (None: it has none), layout of what follows, fields in order, signature at the end.
Blob = tuple[str, int | None, Struct, list[str], bool]


def fields(cls: type) -> list[str]:
    return [name for name, field in cls.__dataclass_fields__.items() if not field.kw_only]  # type: ignore[attr-defined]


def blobs() -> Iterator[Blob]:
    for cls in (objects.Certificate, objects.CertificateRequest, objects.CheckInBody):
        yield cls.__name__, 0, cls.LAYOUT, fields(cls), True
    yield "JoinEntry", objects.Certificate.size(), objects.JoinEntry.LAYOUT, fields(objects.JoinEntry)[1:], True
    yield "Params", 0, objects.Params.LAYOUT, fields(objects.Params), False
    yield "VectorSpec", None, objects.VectorSpec.LAYOUT, SPEC, False
    yield "Policy", 0, signed.Policy.LAYOUT, fields(signed.Policy)[:-2], False
    yield "Plan", 0, signed.Plan.LAYOUT, fields(signed.Plan)[:-2], False
    yield "VersionHeader", 0, signed.VersionHeader.LAYOUT, fields(signed.VersionHeader), False
    yield "VoteBody", 0, Struct("<32sB32s32s"), ["tau0", "kind", "tau1", "u3_sha256"], False


def layout(blob: Blob) -> list[tuple[int, int, str]]:
    _, start, struct, names, is_signed = blob
    at, rows = 0 if start is None else start, []
    for name, size in [("magic", 4)] * (start is not None) + list(zip(names, sizes(struct), strict=True)):
        rows.append((at, size, name))
        at += size
    return rows + [(at, SIGNATURE_BYTES, "signature")] * is_signed


def sizes(struct: Struct) -> list[int]:
    return [Struct("<" + code).size for code in re.findall(r"\d*[a-zA-Z]", struct.format.lstrip("<"))]


@pytest.mark.parametrize("blob", list(blobs()), ids=lambda blob: blob[0])
def test_every_layout_is_the_codes(blob: Blob) -> None:
    (section,) = re.findall(rf"^### {blob[0]} \((.*?)\n(?=### |## )", TEXT, re.MULTILINE | re.DOTALL)
    rows = [
        (int(at), int(size), name) for at, size, name in re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \|", section, re.MULTILINE)
    ]
    assert rows == layout(blob)
    stated = int(re.match(r"\d+", section)[0])  # type: ignore[index]
    end = rows[-1][0] + rows[-1][1]
    assert stated == end + {"Policy": 2 + SIGNATURE_BYTES, "Plan": 2 + 4 + SIGNATURE_BYTES}.get(blob[0], 0)


def test_the_vote_body_is_the_codes() -> None:
    data = vote_body(bytes([1]) * 32, VoteKind.COMMIT, bytes([2]) * 32, b"")
    assert data[:4] == VOTE_MAGIC and (data[36], data[37:69]) == (1, bytes([2]) * 32) and len(data) == 101


def test_every_magic_and_every_kind_of_signature_is_named() -> None:
    for cls in (*SIGNED, objects.Params, signed.VersionHeader):
        assert f"`{cls.MAGIC.decode()}`" in TEXT
    kinds = {cls.KIND for cls in SIGNED} | {objects.RENEW_KIND, "shares", "masked", "vote"}
    assert set(re.findall(r"`(\w+)`", re.findall(r"Kinds: (.*?)\. A", TEXT, re.DOTALL)[0])) == kinds


# --- states and numbers ---------------------------------------------------------------------------------------------


def test_the_state_tables_are_the_codes() -> None:
    said = set(re.findall(r"^\| `([A-Z0-9_]+)` \| `([A-Z0-9_]+)` \| `([A-Z0-9_]+)` \|$", TEXT, re.MULTILINE))
    tables = [*MEMBER.items(), *SERVER.items()]
    assert said == {(a.name, e.name, b.name) for (a, e), b in tables if e is not MemberEvent.END}  # type: ignore[attr-defined]


def test_the_error_numbers_are_listed_and_the_page_is_current() -> None:
    again = "run `python -m whimbrel_lab.errors_page`"
    assert errors_page.listed(TEXT) == TEXT, again
    assert (ROOT / "docs/errors.md").read_text() == errors_page.page(), again
    for code in Code:
        assert re.search(rf"\b{code:d}\s+{code.name}\b", TEXT), code


def test_every_number_belongs_to_a_range_and_has_an_error_status() -> None:
    for code in Code:
        assert code // 100 in errors_page.HEADINGS
        assert 400 <= code.http < 600
        assert code.title[0].isupper() and not code.title.endswith(".")
