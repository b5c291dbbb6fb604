"""Hostile bytes at every parser of the contract: whatever comes in, only the contract's own errors come out.

Valid messages of every kind are damaged, FUZZ_EXAMPLES of them for each parser (1,000 by default; `make fuzz` takes 100,000),
or as many as fit in FUZZ_SECONDS. What a parser accepts in spite of the damage must mean the same when it is written again. The
listeners have tests of their own.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.mutations import mutated
from tests.protocol.strategies import CLASSES, message
from whimbrel_protocol import delta
from whimbrel_protocol.errors import ProtocolError, WireError
from whimbrel_protocol.messages import Binding, ModelDelta, PlanBody
from whimbrel_protocol.objects import Certificate, CertificateRequest, CheckInBody, JoinEntry, Params, VectorSpec
from whimbrel_protocol.primitives import SigningKey
from whimbrel_protocol.rules import bitmap, members_of
from whimbrel_protocol.signed import Plan, Policy, VersionHeader
from whimbrel_protocol.trust import accept_policy
from whimbrel_protocol.wire import decode, encode

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
EXAMPLES = 1000 if SECONDS else int(os.environ.get("FUZZ_EXAMPLES", "1000"))
# Damages to each valid message: making one takes longer than parsing it.
EACH = 40
VOLLEYS = settings(
    max_examples=max(1, math.ceil(EXAMPLES / EACH)),
    deadline=None,
    database=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ and not SECONDS,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)

KEY = SigningKey(bytes(range(32)))


def fuzz(valid: st.SearchStrategy[bytes], parse: Callable[[bytes], object]) -> int:
    """Throw EXAMPLES damaged messages at `parse`, which may raise nothing but ProtocolError; return how many were refused."""
    refused = 0

    @VOLLEYS
    @given(valid, st.integers(0, 2**64 - 1))
    def thrown(data: bytes, seed: int) -> None:
        nonlocal refused
        random = Random(seed)
        parse(data)
        for _ in range(EACH):
            bad = mutated(data, random)
            try:
                parse(bad)
            except ProtocolError:
                refused += 1
            except Exception as error:
                raise AssertionError(f"{type(error).__name__}: {error}, from {bad.hex()}") from error

    for_the_time(thrown)
    return refused


def for_the_time(volleys: Callable[[], object]) -> None:
    """Run `volleys` once, and again until FUZZ_SECONDS are over."""
    end = time.monotonic() + SECONDS
    volleys()
    while time.monotonic() < end:
        volleys()


# --- messages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_messages(cls: type) -> None:
    def parse(data: bytes) -> None:
        value: Any = decode(data, *CLASSES)
        assert decode(encode(value), *CLASSES) == value

    assert fuzz(message(cls).map(encode), parse) > EXAMPLES // 4


# --- fixed-layout objects -------------------------------------------------------------------------------------------

U8, U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
FLOAT32 = st.floats(-1e6, 1e6, width=32)


def blob(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


SIGNATURE = blob(64)
KEYS = st.lists(blob(32), max_size=3).map(tuple)
SCALE = st.floats(0, 1e9)
CERTIFICATE = (blob(16), blob(16), blob(32), U64, U64, U64, U16, U16, U32, blob(8))
SPEC = (st.integers(12, 32), st.integers(1, 1024), st.integers(1, 10**6), st.floats(1, 2**20), st.integers(0, 32))
REQUEST = (blob(16), blob(16), blob(32), U16, U16, blob(16))
ENTRY = (blob(16), blob(16), blob(32), blob(32), blob(32), blob(16), U64, U64, U32)
POLICY = (blob(16), U64, U64, U16, U16, U16, U16, U32, U16, KEYS, KEYS)
PLAN = (blob(16), U64, U64, U16, U8, U16, U8, U64, SCALE, SCALE, st.text(max_size=9), st.binary())
HEADER = (U64, SCALE, *[FLOAT32] * 5, U32, U32, U32, U64, U32)


def signed(cls: Any, fields: tuple[st.SearchStrategy[Any], ...]) -> st.SearchStrategy[Any]:
    return st.builds(cls, *fields, signature=SIGNATURE)


OBJECTS: dict[type, st.SearchStrategy[Any]] = {
    Certificate: signed(Certificate, CERTIFICATE),
    CertificateRequest: signed(CertificateRequest, REQUEST),
    CheckInBody: signed(CheckInBody, (blob(16), blob(16), U64, blob(16), U64)),
    JoinEntry: signed(JoinEntry, (signed(Certificate, CERTIFICATE), *ENTRY)),
    Params: st.builds(Params, blob(16), blob(32), U16, U16, U16, U16, U32, U64),
    VectorSpec: st.builds(VectorSpec.make, *SPEC),
    Policy: signed(Policy, POLICY),
    Plan: signed(Plan, PLAN),
    VersionHeader: st.builds(VersionHeader, *HEADER),
}


@pytest.mark.parametrize("cls", OBJECTS, ids=lambda cls: cls.__name__)
def test_objects(cls: Any) -> None:
    def parse(data: bytes) -> None:
        # These are hashed and signed as received: what is accepted must be the same bytes again.
        assert cls.decode(data).encode() == data

    assert fuzz(OBJECTS[cls].map(lambda value: value.encode()), parse) > EXAMPLES // 10


def test_a_policy_is_accepted_as_it_was_signed_or_not_at_all() -> None:
    fields = {"serial": 3, "not_after": 10**6, "gamma_milli": 200, "sigma": 48, "n_min": 8, "n_max": 16, "min_epoch": 0}
    keys = (KEY.public,)
    policy = Policy.sign(KEY, fleet=bytes(16), **fields, flags=0, issuers=keys, plan_signers=keys).encode()

    def parse(data: bytes) -> None:
        accept_policy(data, KEY.public, bytes(16), 10**6, 0)
        assert data == policy

    assert fuzz(st.just(policy), parse) > EXAMPLES * 9 // 10


def test_bitmaps() -> None:
    def parse(data: bytes) -> None:
        assert bitmap(members_of(data, 100), 100) == data

    assert fuzz(st.sets(st.integers(0, 99)).map(lambda members: bitmap(members, 100)), parse) > EXAMPLES // 4


# --- what blobs hold ------------------------------------------------------------------------------------------------

SHAPES = {"w": (4, 5), "b": (5,)}


def lattice(seed: int) -> delta.Lattice:
    random = np.random.default_rng(seed)
    return tuple(delta.quantise(random.normal(size=shape), -12) for shape in SHAPES.values())


def test_snapshots_and_deltas() -> None:
    old = tuple(delta.quantise(np.ones(shape), -10) for shape in SHAPES.values())
    new = st.integers(0, 2**32 - 1).map(lattice)
    changes = new.map(lambda each: delta.delta(1, old, 2, each)) | new.map(lambda each: delta.snapshot(2, each))

    def parse(data: bytes) -> None:
        change = decode(data, ModelDelta)
        result = delta.apply(change, SHAPES, None if change.snapshot else old)
        assert delta.lattice_hash(result) == change.model_hash

    assert fuzz(changes.map(encode), parse) > EXAMPLES // 4


def test_plans_with_all_that_is_in_them() -> None:
    binding = st.builds(Binding, st.just("param"), st.text("abc/.[", min_size=1), st.just("float32"), st.just((4, 5)), FLOAT32)
    graphs = st.binary(max_size=60).map(delta.compress)
    bindings = st.lists(binding, max_size=2).map(tuple)
    bodies = st.builds(PlanBody, st.just("mse"), st.integers(1, 64), graphs, graphs, *[bindings] * 4).map(encode)
    plans = bodies.map(lambda body: Plan.sign(KEY, **_HEAD, task="digits", body=body).encode())

    def parse(data: bytes) -> None:
        plan = Plan.decode(data)
        body = decode(plan.body, PlanBody)
        delta.decompress(body.train_graph, 2**20)
        delta.decompress(body.eval_graph, 2**20)
        plan.spec(2.0)

    assert fuzz(plans, parse) > EXAMPLES // 4


_HEAD: dict[str, Any] = {
    "fleet": bytes(16),
    "serial": 1,
    "not_after": 10**9,
    "flags": 1,
    "bits": 21,
    "n_max": 64,
    "weight_bits": 1,
    "d": 25,
    "scale_min": 1.0,
    "scale_max": 4.0,
}


def test_the_fuzzer_sees_what_it_should() -> None:
    """A parser that fails in its own way is reported, with the bytes."""

    def parse(data: bytes) -> None:
        if data != b"valid message":
            raise WireError(100) if len(data) > 12 else IndexError(len(data))  # type: ignore[arg-type]

    with pytest.raises(AssertionError, match="IndexError"):
        fuzz(st.just(b"valid message"), parse)
