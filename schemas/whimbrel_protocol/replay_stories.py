"""Replays windows that are told message by message, to one member or to the server: all are taken but, perhaps, the last.

Here belongs what each step of a story does with the same `Member`, `SpentRecord` and `Collector` as the product. The format of
the file around a story is `replay_cases.py`'s. After the last step `state` must be where the member, or the server, stands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from whimbrel_protocol.collector import Collector
from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.known_answers import Fields, MalformedError
from whimbrel_protocol.member import Identity, Member
from whimbrel_protocol.messages import (
    U2,
    Blame,
    CanaryMasks,
    Done,
    MaskedHead,
    Open,
    Quorum,
    Shares,
    Survivors,
    Unmask,
    Vote,
    VoteKind,
)
from whimbrel_protocol.objects import JoinEntry, Params, VectorSpec
from whimbrel_protocol.primitives import HASH_BYTES, KEY_BYTES, SIGNATURE_BYTES, SigningKey
from whimbrel_protocol.signed import Policy
from whimbrel_protocol.spent import SpentRecord, verify_certificate

MEMBER = ("device", "sign_seed", "certificate", "lane", "spec", "policy", "root", "rho", "seq", "expires")
WINDOW = ("params", "roster", "spec")
RESTARTED = "restarted"


class Step(NamedTuple):
    """The names of a step's values, and what takes it."""

    names: Sequence[str]
    take: Callable[[Fields], object]


def _tell(story: Fields, steps: Mapping[str, Step], state: Callable[[], str]) -> None:
    """Take all steps; a refusal of any but the last is a fault of the file."""
    rows = story.array("steps")
    try:
        for at, row in enumerate(rows):
            _take(row, story.path(f"steps[{at}]"), steps, last=at == len(rows) - 1)
    finally:
        if state() != story.text("state"):
            raise MalformedError(story.path("state"), f"is {state()}, the file says {story.text('state')}")


def _take(row: object, name: str, steps: Mapping[str, Step], last: bool) -> None:
    kind = row.get("step") if isinstance(row, dict) else None
    if not isinstance(kind, str) or kind not in steps:
        raise MalformedError(name, f"{kind!r} is no step")
    step = steps[kind]
    fields = Fields(row, name, ("step", *step.names))
    try:
        step.take(fields)
    except ProtocolError as refused:
        if last:
            raise
        raise MalformedError(name, f"was refused: {refused}") from None


# --- a member ---------------------------------------------------------------------------------------------------------


def tell_member(story: Fields) -> None:
    """A member's window from its join on. Raises ProtocolError for what the join or the last step is refused for."""
    teller = _MemberStory(Fields(story.raw("member"), story.path("member"), MEMBER))
    _tell(story, teller.steps, teller.state)


class _MemberStory:
    """A member and the messages that it is told; after a restart only its record."""

    def __init__(self, given: Fields) -> None:
        self._key = SigningKey(given.hex("sign_seed", KEY_BYTES))
        self._lane = given.hex("lane", HASH_BYTES)
        self._record: SpentRecord | None = None
        self._member = Member.join(
            Identity(given.hex("device", 16), self._key, given.hex("certificate")),
            lane=self._lane,
            spec=given.blob("spec", VectorSpec.decode),
            policy=given.blob("policy", Policy.decode),
            root=given.hex("root", KEY_BYTES),
            rho=given.hex("rho", KEY_BYTES),
            seq=given.integer("seq"),
            expires=given.integer("expires"),
        )
        certificate = ("kind", "tau1", "u3", "idx", "sigs")
        self.steps: Mapping[str, Step] = {
            "open": Step(("params", "roster", "now", "policy_now"), self._open),
            "u2": Step(("bitmap", "cts"), self._u2),
            "mask": Step(("plain", "first_word"), self._mask),
            "head": Step(("sha256",), self._head),
            "survivors": Step(("bitmap", "msigs", "abort"), self._survivors),
            "abort": Step((), self._abort),
            "quorum": Step(certificate, lambda step: self._member.on_quorum(_certificate(step))),
            "certificate": Step((*certificate, "verdict"), self._judge),
            "blame": Step(("tau1",), lambda step: self._member.on_blame(Blame(step.hex("tau1", HASH_BYTES)))),
            "done": Step(("lane", "sum_sha256"), self._done),
            "restart": Step((), self._restart),
        }

    def state(self) -> str:
        """Where the member stands."""
        return RESTARTED if self._record is not None else self._member.state.value

    def _open(self, step: Fields) -> None:
        message = Open(step.hex("params"), tuple(step.hexes("roster")))
        self._member.on_open(message, step.integer("now"), step.blob("policy_now", Policy.decode))

    def _u2(self, step: Fields) -> None:
        self._member.on_u2(U2(step.hex("bitmap"), step.hex("cts")))

    def _mask(self, step: Fields) -> None:
        self._member.mask_chunk(step.hex("plain"), step.integer("first_word"))

    def _head(self, step: Fields) -> None:
        self._member.head(step.hex("sha256", HASH_BYTES))

    def _survivors(self, step: Fields) -> None:
        message = Survivors(step.hex("bitmap"), step.hex("msigs"), _flag(step, "abort"))
        if self._record is None:
            self._member.on_survivors(message)
        elif message.abort:
            self._record = self._record.abort(self._key)
        else:
            self._record = self._record.commit(self._key, message)

    def _abort(self, step: Fields) -> None:
        if self._record is None:
            self._member.abort_vote()
        else:
            self._record = self._record.abort(self._key)

    def _judge(self, step: Fields) -> None:
        message = _certificate(step)
        judged = self._member.on_certificate(message) if self._record is None else verify_certificate(self._record, message)
        if judged.value != step.text("verdict"):
            raise MalformedError(step.path("verdict"), f"is {judged.value}, the file says {step.text('verdict')!r}")

    def _done(self, step: Fields) -> None:
        self._member.on_done(Done(step.hex("lane", HASH_BYTES), step.hex("sum_sha256", HASH_BYTES)))

    def _restart(self, step: Fields) -> None:
        self._record = SpentRecord.decode(json.loads(json.dumps(self._member.record.encode())))


def _certificate(step: Fields) -> Quorum:
    kind = VoteKind(step.integer("kind", 1, 2))
    voters = tuple(step.integers("idx", 0, 2**16 - 1))
    return Quorum(kind, step.hex("tau1", HASH_BYTES), step.hex("u3"), voters, step.hex("sigs"))


def _flag(step: Fields, name: str) -> bool:
    value = step.raw(name)
    if not isinstance(value, bool):
        raise MalformedError(step.path(name), "is not true or false")
    return value


# --- the server -------------------------------------------------------------------------------------------------------


def tell_server(story: Fields) -> None:
    """The server's side of a window. Raises ProtocolError for what the opening or the last step is refused for."""
    teller = _ServerStory(Fields(story.raw("window"), story.path("window"), WINDOW))
    _tell(story, teller.steps, teller.state)


class _ServerStory:
    """A collector and what arrives at it."""

    def __init__(self, given: Fields) -> None:
        spec, roster = given.blob("spec", VectorSpec.decode), given.hexes("roster", JoinEntry.SIZE)
        collector = self._collector = Collector(given.blob("params", Params.decode), roster, spec)
        self.steps: Mapping[str, Step] = {
            "shares": Step(("i", "tau0", "cts", "bcommit", "sig"), self._shares),
            "close shares": Step((), lambda step: collector.close_shares()),
            "u2 for": Step(("i",), lambda step: collector.u2_for(_index(step))),
            "head": Step(("tau1", "i", "words", "sha256", "msig", "present"), self._head),
            "vector": Step(("i",), lambda step: collector.on_vector(_index(step))),
            "close masked": Step((), lambda step: collector.close_masked()),
            "ask abort": Step((), lambda step: collector.ask_abort()),
            "vote": Step(("i", "kind", "sig"), self._vote),
            "unmask": Step(("i", "present", "shares"), self._unmask),
            "finish": Step(("total", "sum_sha256"), self._finish),
            "spoiled": Step(("total",), self._spoiled),
            "canaries": Step(("i", "edges", "masks"), self._canaries),
        }

    def state(self) -> str:
        """Where the server's side stands."""
        return self._collector.state.value

    def _shares(self, step: Fields) -> None:
        tau0, bcommit = step.hex("tau0", HASH_BYTES), step.hex("bcommit", HASH_BYTES)
        self._collector.on_shares(Shares(_index(step), tau0, step.hex("cts"), bcommit, step.hex("sig", SIGNATURE_BYTES)))

    def _head(self, step: Fields) -> None:
        tau1, digest, msig = step.hex("tau1", HASH_BYTES), step.hex("sha256", HASH_BYTES), step.hex("msig", SIGNATURE_BYTES)
        self._collector.on_head(MaskedHead(tau1, _index(step), step.integer("words"), digest, msig, step.hex("present")))

    def _vote(self, step: Fields) -> None:
        kind = VoteKind(step.integer("kind", 1, 2))
        self._collector.on_vote(Vote(_index(step), kind, step.hex("sig", SIGNATURE_BYTES)))

    def _unmask(self, step: Fields) -> None:
        self._collector.on_unmask(Unmask(_index(step), step.hex("present"), step.hex("shares")))

    def _finish(self, step: Fields) -> None:
        result = self._collector.finish(bytearray(step.hex("total")))
        if result.sha256 != step.hex("sum_sha256", HASH_BYTES):
            raise MalformedError(step.path("sum_sha256"), f"is {result.sha256.hex()}")

    def _spoiled(self, step: Fields) -> None:
        """A finish that fails: the only refusal after which a story goes on."""
        try:
            self._collector.finish(bytearray(step.hex("total")))
        except ProtocolError as refused:
            if refused.code is Code.SPOILED_SUM:
                return
        raise MalformedError(step.path("total"), "does not give a spoiled sum")

    def _canaries(self, step: Fields) -> None:
        self._collector.on_canaries(CanaryMasks(_index(step), step.hex("edges"), step.hex("masks")))


def _index(step: Fields) -> int:
    return step.integer("i", 0, 2**16 - 1)
