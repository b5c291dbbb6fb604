"""What the corpus is thrown at: each parser of what a window's members and the authority say, with inputs that are right.

Here belong a target's parser and its seeds, which come from `schemas/vectors/bad.json` and from an honest window. A parser
raises nothing but ProtocolError, and what it accepts can only have been said by those whose signatures are in it. Throwing
belongs in `test_fuzz_corpus.py`, parsers that take no signed input in `test_fuzz.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from whimbrel_lab.bad_vectors import scene
from whimbrel_protocol import messages as m
from whimbrel_protocol.checks import Opening, Terms, check_certificate, check_open, check_u2, read_open
from whimbrel_protocol.errors import ProtocolError
from whimbrel_protocol.forming import check_entry
from whimbrel_protocol.member import Member
from whimbrel_protocol.replay_cases import MESSAGES, OBJECTS
from whimbrel_protocol.rules import bitmap, members_of
from whimbrel_protocol.trust import accept_certificate, accept_plan, accept_policy
from whimbrel_protocol.wire import decode, encode

VECTORS = Path(__file__).parents[1] / "schemas/vectors/bad.json"
VICTIM = 2


@dataclass(frozen=True)
class Target:
    """A parser of bytes, and inputs to begin with, not all of them good."""

    parse: Callable[[bytes], object]
    seeds: tuple[bytes, ...]


# --- the honest window ------------------------------------------------------------------------------------------------


@cache
def window() -> scene.Window:
    """Seven honest members, played to the votes."""
    made = scene.Window()
    assert len(made.votes) == scene.N
    return made


def victim() -> Member:
    """The member that is spoken to, after its vote."""
    return window().members[VICTIM]


def commit() -> m.Quorum:
    """The honest certificate."""
    return window().certificate(m.VoteKind.COMMIT, [0, 1, 3, 4, 6])


def vectors(check: str, field: str) -> list[bytes]:
    """One field of all cases of a check, without those that stand for a shared value."""
    cases = json.loads(VECTORS.read_text())["cases"]
    values = [case["input"][field] for case in cases if case["check"] == check]
    return [bytes.fromhex(value) for value in values if not value.startswith("@")]


# --- blobs and messages -----------------------------------------------------------------------------------------------


def parse_object(data: bytes) -> None:
    """Each kind in turn: what is accepted is the same bytes again."""
    for kind in OBJECTS.values():
        try:
            value: Any = kind.decode(data)
        except ProtocolError:
            continue
        assert value.encode() == data, kind.__name__


def parse_message(data: bytes) -> None:
    """Any message: what is accepted means the same when it is written again."""
    value: Any = decode(data, *MESSAGES.values())
    assert decode(encode(value), *MESSAGES.values()) == value


def parse_bitmap(data: bytes) -> None:
    """A bitmap of ten."""
    assert bitmap(members_of(data, 10), 10) == data


# --- what the authority signed ----------------------------------------------------------------------------------------


def parse_policy(data: bytes) -> None:
    """Accepted as it was signed or not at all."""
    accept_policy(data, scene.ROOT.public, scene.FLEET, scene.NOW, 7)
    assert data in POLICIES


def parse_plan(data: bytes) -> None:
    """Accepted as it was signed or not at all."""
    accept_plan(data, scene.policy(flags=2), "digits", scene.NOW, 3)
    assert data in PLANS


def parse_certificate(data: bytes) -> None:
    """Accepted as it was signed or not at all."""
    accept_certificate(data, scene.ROOT.public, scene.policy(), scene.NOW)
    assert data in CERTIFICATES


def parse_entry(data: bytes) -> None:
    """A server admits what its device signed or nothing."""
    check_entry(data, scene.FLEET, scene.LANE, scene.policy(), scene.ROOT.public, scene.NOW)
    assert data in ENTRIES


POLICIES, PLANS = vectors("policy", "policy"), vectors("plan", "plan")
CERTIFICATES, ENTRIES = vectors("certificate", "certificate"), vectors("entry", "entry")


# --- what the server says in a window ---------------------------------------------------------------------------------


def parse_open(data: bytes) -> None:
    """Whatever is accepted has the honest roster, and numbers that protect as much."""
    message, honest, rules = decode(data, m.Open), window().collector, window().rules
    params, entries = read_open(message)
    terms = Terms(scene.FLEET, scene.LANE, rules, scene.ROOT.public, scene.NOW)
    check_open(Opening(params, entries, message.roster, terms, scene.SPEC, victim().entry, rules.serial))
    assert message.roster == honest.open.roster
    assert (params.n, params.c) == (honest.params.n, honest.params.c)
    assert honest.t <= params.t <= params.n and params.t <= params.s_min <= params.n


def parse_u2(data: bytes) -> None:
    """Whatever is accepted holds the member and enough others."""
    u2 = check_u2(decode(data, m.U2), scene.N, VICTIM, window().collector.s_min)
    assert VICTIM in u2 and len(u2) >= 5


def parse_survivors(data: bytes) -> None:
    """Whatever is voted for are members that signed the U2 of the voter."""
    message = decode(data, m.Survivors)
    if message.abort:
        return
    unvoted = _record_without_vote()
    unvoted.commit(window().identities[VICTIM].key, message)
    honest = window().collector.survivors.msigs
    u3 = members_of(message.bitmap, scene.N)
    assert len(u3) >= 5 and message.msigs == b"".join(honest[64 * i : 64 * i + 64] for i in u3)


@cache
def _record_without_vote() -> Any:
    record = victim().record
    return type(record)(record.cohort, record.i, record.tau1, record.u2)


def parse_quorum(data: bytes) -> None:
    """Whatever convinces was voted by t members: here only votes on the honest body, and aborts, were ever cast."""
    message = decode(data, m.Quorum)
    check_certificate(message, victim().record.cohort)
    cast = commit() if message.kind is m.VoteKind.COMMIT else window().certificate(m.VoteKind.ABORT, [0, 1, 3, 4, 6])
    assert (message.tau1, message.u3) == (cast.tau1, cast.u3) and len(message.idx) >= 5


def said(*messages: m.Message) -> Iterable[bytes]:
    """Messages as bytes."""
    return [encode(message) for message in messages]


def targets() -> dict[str, Target]:
    """All of them, by name; the corpus has a file of the same name for each."""
    honest = window()
    abort = honest.certificate(m.VoteKind.ABORT, [0, 1, 3, 4, 6])
    rows: dict[str, tuple[Callable[[bytes], object], Iterable[bytes]]] = {
        "object": (parse_object, vectors("object", "data")),
        "message": (parse_message, vectors("message", "data")),
        "bitmap": (parse_bitmap, [b"\xff\x03", b"\x00\x00", b"\x55\x01"]),
        "policy": (parse_policy, POLICIES),
        "plan": (parse_plan, PLANS),
        "certificate": (parse_certificate, CERTIFICATES),
        "entry": (parse_entry, ENTRIES),
        "open": (parse_open, said(honest.collector.open)),
        "u2": (parse_u2, said(*(honest.collector.u2_for(i) for i in range(scene.N)))),
        "survivors": (parse_survivors, said(honest.collector.survivors, m.Survivors(b"", b"", abort=True))),
        "quorum": (parse_quorum, said(commit(), abort)),
    }
    return {name: Target(parse, tuple(seeds)) for name, (parse, seeds) in rows.items()}
