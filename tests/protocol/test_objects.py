"""Fixed-layout blobs: every byte has its place, and nothing else is a blob."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protocol import world
from whimbrel_protocol.errors import Code, RuleError, WireError
from whimbrel_protocol.objects import (
    Certificate,
    CertificateRequest,
    CheckInBody,
    JoinEntry,
    Params,
    VectorSpec,
)
from whimbrel_protocol.primitives import SigningKey, sha256, th, u64
from whimbrel_protocol.signed import CHAIN_START, Plan, Policy, VersionHeader, chain_next, lane_hash

KEY = SigningKey(bytes(32))
U16, U32, U64 = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
F32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
F64 = st.floats(allow_nan=False, allow_infinity=False)


def raw(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


CERTIFICATE = st.builds(Certificate, raw(16), raw(16), raw(32), U64, U64, U64, U16, U16, U32, raw(8), signature=raw(64))
KEYS = st.lists(raw(32), max_size=3).map(tuple)
BLOBS: dict[type[Any], tuple[int | None, st.SearchStrategy[Any]]] = {
    Certificate: (172, CERTIFICATE),
    CertificateRequest: (152, st.builds(CertificateRequest, raw(16), raw(16), raw(32), U16, U16, raw(16), signature=raw(64))),
    CheckInBody: (132, st.builds(CheckInBody, raw(16), raw(16), U64, raw(16), U64, signature=raw(64))),
    JoinEntry: (
        404,
        st.builds(
            JoinEntry, CERTIFICATE, raw(16), raw(16), raw(32), raw(32), raw(32), raw(16), U64, U64, U32, signature=raw(64)
        ),
    ),
    Params: (72, st.builds(Params, raw(16), raw(32), U16, U16, U16, U16, U32, U64)),
    VersionHeader: (64, st.builds(VersionHeader, U64, F64, F32, F32, F32, F32, F32, U32, U32, U32, U64, U32)),
    Policy: (None, st.builds(Policy, raw(16), U64, U64, U16, U16, U16, U16, U32, U16, KEYS, KEYS, signature=raw(64))),
    Plan: (
        None,
        st.builds(
            Plan, raw(16), U64, U64, U16, st.integers(0, 255), U16, st.integers(0, 255), U64, F64, F64,
            st.text(max_size=9), st.binary(max_size=40), signature=raw(64),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BLOBS, ids=lambda kind: kind.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_a_blob_gives_its_fields_back_and_has_one_length(kind: type[Any], data: st.DataObject) -> None:
    size, blobs = BLOBS[kind]
    blob = data.draw(blobs)
    encoded = blob.encode()
    assert size is None or len(encoded) == size
    assert kind.decode(encoded) == blob
    assert kind.decode(encoded).encode() == encoded
    for bad in (encoded[:-1], encoded + b"\0", encoded[: len(encoded) // 2], b""):
        with pytest.raises(WireError) as refused:
            kind.decode(bad)
        assert refused.value.code is Code.BAD_SIZE
    with pytest.raises(WireError) as refused:
        kind.decode(b"X" + encoded[1:])
    assert refused.value.code is Code.BAD_MAGIC


@settings(max_examples=200)
@given(data=st.binary(max_size=300), kind=st.sampled_from(list(BLOBS)))
def test_any_bytes_are_a_blob_or_a_numbered_error(data: bytes, kind: type[Any]) -> None:
    for candidate in (data, kind.MAGIC + data):
        try:
            assert kind.decode(candidate).encode() == candidate
        except WireError as refused:
            assert refused.code in (Code.BAD_SIZE, Code.BAD_MAGIC, Code.BAD_FIELD)


@pytest.mark.parametrize(
    "change",
    [{"fleet": bytes(15)}, {"fleet": bytes(17)}, {"serial": -1}, {"serial": 2**64}, {"flags": 2**16}, {"epoch": 1.5}],
    ids=str,
)
def test_a_field_that_does_not_fit_its_place_is_refused(change: dict[str, Any]) -> None:
    """Never cut or padded: a short key must not become another key."""
    good = {"fleet": bytes(16), "device": bytes(16), "public_key": KEY.public, "not_before": 0, "not_after": 1}
    rest = {"serial": 1, "attest_class": 1, "flags": 0, "epoch": 1}
    Certificate.issue(KEY, **(good | rest))
    with pytest.raises(WireError) as refused:
        Certificate.issue(KEY, **(good | rest | change))
    assert refused.value.code is Code.BAD_FIELD


def test_a_join_entry_lies_as_the_protocol_says() -> None:
    who = world.identity("a")
    entry = world.join(who, world.policy()).entry
    assert entry[:172] == who.certificate
    body = entry[172:-64]
    assert body[:4] == b"MWJ1"
    assert body[4:68] == world.FLEET + who.device + world.LANE
    assert struct.unpack("<QQI", body[-20:]) == (1, world.NOW + 600, 1)
    assert JoinEntry.decode(entry).signed_by_certificate()
    assert not JoinEntry.decode(entry[:200] + bytes([entry[200] ^ 1]) + entry[201:]).signed_by_certificate()


def test_nobody_certifies_a_key_outside_the_prime_order_subgroup() -> None:
    with pytest.raises(RuleError) as refused:
        world.identity("a", public_key=(1).to_bytes(32, "little"))
    assert refused.value.code is Code.WEAK_KEY


def test_a_request_proves_possession_of_the_key_that_it_names() -> None:
    fields: dict[str, Any] = {"fleet": bytes(16), "device": bytes(16), "attest_class": 0, "flags": 0, "nonce": bytes(16)}
    assert CertificateRequest.sign(KEY, public_key=KEY.public, **fields).proves_possession()
    assert not CertificateRequest.sign(KEY, public_key=world.AUTHORITY.public, **fields).proves_possession()


def test_a_policy_and_a_plan_lie_as_the_protocol_says() -> None:
    rules = world.policy(issuers=(b"i" * 32,), plan_signers=(b"p" * 32, b"q" * 32), flags=2)
    head = struct.pack("<QQHHHHIH", 7, world.NOW + 86_400, 200, 8, 4, 256, 3, 2)
    lists = b"\x01" + b"i" * 32 + b"\x02" + b"p" * 32 + b"q" * 32
    assert rules.encode()[:-64] == b"MWP1" + world.FLEET + head + lists
    assert rules.unmasked_allowed
    assert not world.policy(flags=1).unmasked_allowed
    plan = Plan.sign(
        KEY, fleet=world.FLEET, serial=1, not_after=2, flags=1, bits=16, n_max=64, weight_bits=0, d=9, scale_min=1.0,
        scale_max=2.0, task="ü", body=b"body",
    )  # fmt: skip
    head = struct.pack("<QQHBHBQdd", 1, 2, 1, 16, 64, 0, 9, 1.0, 2.0)
    assert plan.encode()[:-64] == b"MWN1" + world.FLEET + head + b"\x02\0" + "ü".encode() + b"\x04\0\0\0body"
    assert plan.signature == KEY.sign("plan", hashlib.sha256(plan.encode()[:-64]).digest())
    assert plan.spec(1.5) == VectorSpec.make(16, 64, 9, 1.5, 0)
    for outside in (0.5, 2.5, float("nan")):
        with pytest.raises(WireError):
            plan.spec(outside)


SPECS = st.builds(
    VectorSpec.make,
    bits=st.integers(8, 32),
    n_max=st.integers(1, 100),
    d=st.integers(1, 2**20),
    scale=st.floats(1e-3, 1e9),
    weight_bits=st.integers(0, 32),
)


@given(spec=SPECS)
def test_a_spec_gives_its_fields_back(spec: VectorSpec) -> None:
    encoded = spec.encode()
    assert len(encoded) == 39
    assert VectorSpec.decode(encoded) == spec
    assert spec.n_max * spec.limit <= 2 ** (spec.bits - 1) - 1 < spec.n_max * (spec.limit + 1)
    assert spec.n_max * (2**spec.limb_bits - 1) <= 2 ** (spec.bits - 1) - 1
    assert (spec.words - 2) * spec.lanes >= 1 + spec.weight_limbs + spec.d > (spec.words - 3) * spec.lanes


def f64(value: float) -> bytes:
    return struct.pack("<d", value)


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, b"\x02"), (1, b"\x05"), (2, b"\x21"), (3, b"\x07"), (4, bytes(2)), (6, bytes(8)), (14, b"\x0c"), (22, bytes(8)),
     (22, b"\0\x01"), (22, b"\xff" * 8), (30, f64(0.0)), (30, f64(-1.0)), (30, f64(float("nan"))), (30, f64(float("inf"))),
     (38, b"\x11"), (38, b"\x21")],
    ids=["suite", "L", "b", "wq", "n_max", "d", "words", "M=0", "M+1", "M<0", "scale=0", "scale<0", "nan", "inf", "wbits",
         "wbits>32"],
)  # fmt: skip
def test_a_spec_that_contradicts_itself_is_refused(at: int, value: bytes) -> None:
    encoded = VectorSpec.make(16, 128, 33, 4096.0, 16).encode()
    with pytest.raises(WireError) as refused:
        VectorSpec.decode(encoded[:at] + value + encoded[at + len(value) :])
    assert refused.value.code is Code.BAD_SPEC


def test_no_spec_has_lanes_too_narrow_for_its_members() -> None:
    for bits, n_max in ((8, 128), (1, 4), (33, 4), (16, 0)):
        with pytest.raises(WireError) as refused:
            VectorSpec.make(bits, n_max, 5, 1.0, 0)
        assert refused.value.code is Code.BAD_SPEC


LANE = {
    "fleet": b"f" * 16, "task_id": "tâche", "plan": b"plan", "version": 7, "model_hash": b"m" * 32, "chain_head": CHAIN_START,
    "spec": b"s" * 39, "policy": b"policy", "header": b"header",
}  # fmt: skip


def test_a_lane_binds_all_that_could_change_an_update() -> None:
    model = sha256(b"plan"), u64(7), b"m" * 32, bytes(32), b"s" * 39, sha256(b"policy"), sha256(b"header")
    assert lane_hash(**LANE) == th("mw1/lane", b"f" * 16, "tâche".encode(), *model)
    for name, value in LANE.items():
        other = value + 1 if isinstance(value, int) else value + value[:1]
        assert lane_hash(**(LANE | {name: other})) != lane_hash(**LANE), name


def test_a_chain_head_binds_the_windows_in_their_order() -> None:
    one, two = (b"1" * 32, b"a" * 32), (b"2" * 32, b"b" * 32)
    head = chain_next(CHAIN_START, 1, b"m" * 32, [one, two])
    assert head == th("mw1/chain", bytes(32), u64(1), b"m" * 32, one[0] + one[1] + two[0] + two[1])
    assert head != chain_next(CHAIN_START, 1, b"m" * 32, [two, one])
    assert head != chain_next(head, 1, b"m" * 32, [one, two])
