"""Replays single cases, good and bad: one input each, and the number of the one error that it must give, 0 for none.

Here belong the format of these files and the checks of single objects and messages; whole windows, told message by message, are
`replay_stories.py`'s, reading and counting `known_answers.py`'s. Every check calls what the product calls.

A string that begins with `@` stands for the value of that name in `shared`, wherever it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np

from whimbrel_protocol import wire
from whimbrel_protocol.delta import apply
from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.forming import check_entry
from whimbrel_protocol.known_answers import Fields, MalformedError, Report
from whimbrel_protocol.messages import Message, ModelDelta
from whimbrel_protocol.objects import Certificate, CertificateRequest, CheckInBody, JoinEntry, Params, VectorSpec
from whimbrel_protocol.packing import decode_sum, pack
from whimbrel_protocol.primitives import KEY_BYTES, SigningKey, exchange, verify
from whimbrel_protocol.replay_stories import tell_member, tell_server
from whimbrel_protocol.rules import bitmap, members_of
from whimbrel_protocol.signed import Plan, Policy, VersionHeader
from whimbrel_protocol.trust import accept_certificate, accept_plan, accept_policy, demand

INPUTS = ("name", "shared")
OUTPUTS = ("cases",)
ITEMS = INPUTS + OUTPUTS
CASE = ("name", "check", "expect", "input")

ACCEPTED = 0
_DEEPEST = 8
_I32 = 2**31

OBJECTS: Mapping[str, Any] = {
    kind.__name__: kind
    for kind in (
        Certificate, CertificateRequest, CheckInBody, JoinEntry, Params, VectorSpec, Policy, Plan, VersionHeader,
    )
}  # fmt: skip
MESSAGES: Mapping[str, type] = {kind.__name__: kind for kind in get_args(Message)}


class Check(NamedTuple):
    """The names of its input, and what judges it: raises ProtocolError for what is refused."""

    names: Sequence[str]
    judge: Callable[[Fields], None]


def replay(value: object, report: Report) -> None:
    """Replay a file's value into the report. Raises MalformedError where the file itself cannot be read."""
    file = Fields(value, "", ITEMS)
    file.text("name")
    shared = file.raw("shared")
    if not isinstance(shared, dict):
        raise MalformedError("shared", "is not an object")
    seen: set[str] = set()
    for at, each in enumerate(file.array("cases")):
        _replay_case(Fields(each, f"cases[{at}]", CASE), shared, seen, report)


def _replay_case(case: Fields, shared: Mapping[str, Any], seen: set[str], report: Report) -> None:
    name = f"cases[{case.text('name')}]"
    try:
        if name in seen:
            raise MalformedError(name, "is there twice")
        seen.add(name)
        expected = case.integer("expect", 0, 2**16 - 1)
        report.same(name, _outcome(case, name, shared), expected)
    except MalformedError as reason:
        report.fail(name, str(reason))


def _outcome(case: Fields, name: str, shared: Mapping[str, Any]) -> int:
    """The number of the error that the case's input gives."""
    kind = case.text("check")
    if kind not in CHECKS:
        raise MalformedError(name, f"{kind!r} is no check")
    check = CHECKS[kind]
    fields = Fields(_resolved(case.raw("input"), shared, _DEEPEST), name, check.names)
    try:
        check.judge(fields)
    except ProtocolError as refused:
        return int(refused.code)
    return ACCEPTED


def _resolved(value: Any, shared: Mapping[str, Any], depth: int) -> Any:
    """The value with every `@name` replaced by what it stands for."""
    if isinstance(value, str) and value.startswith("@"):
        name = value[1:]
        if name not in shared or depth == 0:
            raise MalformedError(f"shared.{name}", "is missing" if name not in shared else "refers to itself")
        return _resolved(shared[name], shared, depth - 1)
    if isinstance(value, dict):
        return {key: _resolved(each, shared, depth) for key, each in value.items()}
    return [_resolved(each, shared, depth) for each in value] if isinstance(value, list) else value


# --- bytes ------------------------------------------------------------------------------------------------------------


def _object(input_: Fields) -> None:
    kind = input_.text("kind")
    if kind not in OBJECTS:
        raise MalformedError(input_.path("kind"), f"{kind!r} is no object")
    data = input_.hex("data")
    _demand_same(input_, OBJECTS[kind].decode(data).encode() == data)


def _bitmap(input_: Fields) -> None:
    n, data = input_.integer("n", 1, 2**16 - 1), input_.hex("data")
    _demand_same(input_, bitmap(members_of(data, n), n) == data)


def _message(input_: Fields) -> None:
    names = input_.array("kinds")
    if not names or not set(names) <= MESSAGES.keys():
        raise MalformedError(input_.path("kinds"), "names no messages")
    kinds = [MESSAGES[name] for name in names]
    value: Any = wire.decode(input_.hex("data"), *kinds)
    _demand_same(input_, wire.decode(wire.encode(value), *kinds) == value)


def _demand_same(input_: Fields, holds: bool) -> None:
    if not holds:
        raise MalformedError(input_.path("data"), "is not the same when it is written again")


def _delta(input_: Fields) -> None:
    shapes = {str(name): tuple(shape) for name, shape in input_.array("shapes")}
    snapshot = input_.hex("old")
    old = apply(wire.decode(snapshot, ModelDelta), shapes) if snapshot else None
    apply(wire.decode(input_.hex("change"), ModelDelta), shapes, old)


# --- cryptography -----------------------------------------------------------------------------------------------------


def _signature(input_: Fields) -> None:
    public, body = input_.hex("public", KEY_BYTES), input_.hex("body")
    demand(verify(input_.text("kind"), public, body, input_.hex("signature")), Code.BAD_SIGNATURE)


def _exchange(input_: Fields) -> None:
    exchange(input_.hex("secret", KEY_BYTES), input_.hex("public", KEY_BYTES))


def _certify(input_: Fields) -> None:
    """An issuer signs a certificate for this key, or refuses it."""
    numbers = ("not_before", "not_after", "serial", "attest_class", "flags", "epoch")
    names: dict[str, Any] = {"fleet": bytes(16), "device": bytes(16), "public_key": input_.hex("public_key")}
    Certificate.issue(SigningKey(bytes(KEY_BYTES)), **names, **dict.fromkeys(numbers, 1))


# --- what the authority signed ----------------------------------------------------------------------------------------


def _request(input_: Fields) -> None:
    demand(input_.blob("request", CertificateRequest.decode).proves_possession(), Code.BAD_REQUEST_SIGNATURE)


def _certificate(input_: Fields) -> None:
    policy = input_.blob("policy", Policy.decode)
    accept_certificate(input_.hex("certificate"), input_.hex("root", KEY_BYTES), policy, input_.integer("now"))


def _policy(input_: Fields) -> None:
    root, fleet = input_.hex("root", KEY_BYTES), input_.hex("fleet", 16)
    floor = input_.integer("least_cohort", 0, 2**16 - 1)
    accept_policy(input_.hex("policy"), root, fleet, input_.integer("now"), input_.integer("highest_serial"), floor)


def _plan(input_: Fields) -> None:
    policy, task = input_.blob("policy", Policy.decode), input_.text("task")
    plan = accept_plan(input_.hex("plan"), policy, task, input_.integer("now"), input_.integer("highest_serial"))
    plan.spec(input_.number("scale"))


# --- a window's ends --------------------------------------------------------------------------------------------------


def _entry(input_: Fields) -> None:
    """What a server admits at JOIN."""
    fleet, lane = input_.hex("fleet", 16), input_.hex("lane", 32)
    policy, root = input_.blob("policy", Policy.decode), input_.hex("root", KEY_BYTES)
    check_entry(input_.hex("entry"), fleet, lane, policy, root, input_.integer("now"))


def _pack(input_: Fields) -> None:
    update = np.array(input_.integers("update", -_I32, _I32 - 1), np.int64)
    pack(input_.blob("spec", VectorSpec.decode), update, input_.integer("weight"))


def _sum(input_: Fields) -> None:
    decode_sum(input_.blob("spec", VectorSpec.decode), input_.hex("words"), input_.integer("survivors", 1, 2**16 - 1))


CHECKS: Mapping[str, Check] = {
    "object": Check(("kind", "data"), _object),
    "bitmap": Check(("n", "data"), _bitmap),
    "message": Check(("kinds", "data"), _message),
    "delta": Check(("shapes", "old", "change"), _delta),
    "signature": Check(("kind", "public", "body", "signature"), _signature),
    "exchange": Check(("secret", "public"), _exchange),
    "certify": Check(("public_key",), _certify),
    "request": Check(("request",), _request),
    "certificate": Check(("certificate", "root", "policy", "now"), _certificate),
    "policy": Check(("policy", "root", "fleet", "now", "highest_serial", "least_cohort"), _policy),
    "plan": Check(("plan", "policy", "task", "now", "highest_serial", "scale"), _plan),
    "entry": Check(("entry", "fleet", "lane", "policy", "root", "now"), _entry),
    "pack": Check(("spec", "update", "weight"), _pack),
    "sum": Check(("spec", "words", "survivors"), _sum),
    "member": Check(("member", "steps", "state"), tell_member),
    "server": Check(("window", "steps", "state"), tell_server),
}
