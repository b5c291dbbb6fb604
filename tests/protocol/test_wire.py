"""Messages to bytes and back: nothing is lost, every limit holds at both ends, and hostile bytes are one kind of error."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from enum import IntEnum
from types import UnionType
from typing import Any, get_type_hints

import flatbuffers
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.protocol.strategies import CLASSES, at_end, least, message
from whimbrel_protocol import messages as m
from whimbrel_protocol import wire
from whimbrel_protocol.errors import Code, WireError
from whimbrel_protocol.wire import LIMITS, decode, encode

fb = wire.fb
# Bytes and lists whose upper end fits a test; the rest are lengths of hundreds of megabytes.
REACHABLE = 200_000

LIMITED = [(cls, name) for cls, limits in LIMITS.items() for name in limits]
ids = [f"{cls.__name__}.{name}" for cls, name in LIMITED]


def is_number(cls: type, name: str) -> bool:
    return get_type_hints(cls)[name] in (int, float)


ENDS = [
    (cls, name, end)
    for cls, name in LIMITED
    for end in (0, 1)
    if not end or is_number(cls, name) or LIMITS[cls][name][1] < REACHABLE
]


def carrier(cls: type, value: Any) -> m.Message:
    """The smallest message that carries a value of a class that is no message by itself."""
    inside: dict[type, Any] = {
        m.Held: lambda: replace(least(m.CheckIn), held=(value,)),
        m.BlobRef: lambda: replace(least(m.CheckedIn), assignment=replace(least(m.Assignment), plan=value)),
        m.Assignment: lambda: replace(least(m.CheckedIn), assignment=value),
        m.Binding: lambda: replace(least(m.PlanBody), inputs=(value,)),
        m.Metric: lambda: replace(least(m.PlanBody), metrics=(value,)),
        m.TensorDelta: lambda: replace(least(m.ModelDelta), tensors=(value,)),
    }
    carried: m.Message = inside[cls]() if cls in inside else value
    return carried


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_message_comes_back_as_it_was(cls: type) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(message(cls))
    def comes_back(value: Any) -> None:
        data = encode(value)
        assert decode(data, cls) == value
        assert decode(memoryview(bytearray(data)), *CLASSES) == value

    comes_back()


@pytest.mark.parametrize("cls", list(LIMITS), ids=lambda cls: cls.__name__)
def test_every_field_that_can_be_out_of_limits_has_a_limit(cls: Any) -> None:
    free = set()
    for name, hint in get_type_hints(cls).items():
        inner = hint in LIMITS or isinstance(hint, UnionType)
        if inner or (isinstance(hint, type) and issubclass(hint, IntEnum | bool)):
            free.add(name)
    assert set(LIMITS[cls]) == {field.name for field in fields(cls)} - free


@pytest.mark.parametrize(("cls", "name", "end"), ENDS, ids=[f"{cls.__name__}.{name}-{end}" for cls, name, end in ENDS])
def test_limits_hold_at_both_ends(cls: type, name: str, end: int) -> None:
    good = carrier(cls, at_end(cls, name, end, 0))
    assert decode(encode(good), type(good)) == good
    if not is_number(cls, name) and LIMITS[cls][name][end] == 0:
        return  # nothing is shorter than empty
    step = 2**110 if name == "default" else 1  # a double of this size has no smaller neighbour
    with pytest.raises(WireError) as refused:
        encode(carrier(cls, at_end(cls, name, end, step if end else -step)))
    assert refused.value.code is Code.OUT_OF_RANGE


@pytest.mark.parametrize(("cls", "name"), LIMITED, ids=ids)
def test_the_reader_does_not_trust_the_writer(cls: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes by a writer without limits: the reader refuses what is beyond the end, whatever it decodes to."""
    low, high = LIMITS[cls][name]
    beyond = [at_end(cls, name, 0, -1)] if low > 0 else []
    if not is_number(cls, name) and high < REACHABLE:
        beyond.append(at_end(cls, name, 1, 1))
    for value in beyond:
        with monkeypatch.context() as context:
            context.setattr(wire, "_check", lambda *_: None)
            data = encode(carrier(cls, value))
        with pytest.raises(WireError) as refused:
            decode(data, *CLASSES)
        assert refused.value.code is Code.OUT_OF_RANGE


@pytest.mark.parametrize(
    ("cls", "name", "item"),
    [
        (m.Open, "roster", bytes(403)),
        (m.Open, "roster", bytes(405)),
        (m.PlanBody, "operators", "é" * 65),
        (m.Quorum, "idx", 1024),
        (m.Binding, "shape", -1),
    ],
    ids=["short entry", "long entry", "130 bytes of text", "index", "shape"],
)
def test_items_have_limits_too(cls: type, name: str, item: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    message = carrier(cls, cls(**{**vars(least(cls)), name: (item,)}))
    with pytest.raises(WireError, match=f"{cls.__name__}.{name}"):
        encode(message)
    with monkeypatch.context() as context:
        context.setattr(wire, "_check", lambda *_: None)
        data = encode(message)
    with pytest.raises(WireError, match=f"{cls.__name__}.{name}"):
        decode(data, *CLASSES)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_are_finite(value: float) -> None:
    with pytest.raises(WireError, match="default"):
        encode(carrier(m.Binding, m.Binding("hyper", "@lr", "float32", (), value)))


def test_a_message_of_another_kind_is_named() -> None:
    with pytest.raises(WireError, match="Wait, not Joined or Open") as refused:
        decode(encode(m.Wait(3)), m.Joined, m.Open)
    assert refused.value.code is Code.UNEXPECTED_MESSAGE


@pytest.mark.parametrize("data", [b"", b"WHB1", bytes(64), bytes(4) + b"WHB1" + bytes(64), b"{}" * 40, b"\xff" * 64], ids=repr)
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(WireError) as refused:
        decode(data, *CLASSES)
    assert refused.value.code is Code.MALFORMED


def test_every_prefix_of_a_message_is_refused() -> None:
    data = encode(least(m.CheckIn))
    for length in range(len(data)):
        with pytest.raises(WireError):
            decode(data[:length], m.CheckIn)


def test_an_unknown_field_at_the_end_of_a_table_is_skipped() -> None:
    """The version rule: a newer peer appends fields, an older one reads on."""
    builder = flatbuffers.Builder(64)
    builder.StartObject(2)
    builder.PrependUint32Slot(0, 7, 0)
    builder.PrependUint64Slot(1, 99, 0)
    table = builder.EndObject()
    assert decode(_enveloped(builder, table, fb.Body.Wait), m.Wait) == m.Wait(7)


def test_a_message_kind_of_a_newer_version_is_refused_by_number() -> None:
    builder = flatbuffers.Builder(64)
    builder.StartObject(0)
    with pytest.raises(WireError, match="unknown message kind 200"):
        decode(_enveloped(builder, builder.EndObject(), 200), *CLASSES)


def test_a_small_message_cannot_fill_the_memory() -> None:
    """4,096 tensors that all point at the same megabyte would decode to four gigabytes."""
    builder = flatbuffers.Builder(2**21)
    planes = builder.CreateByteVector(bytes(2**20))
    fb.TensorDeltaStart(builder)
    fb.TensorDeltaAddPlanes(builder, planes)
    tensor = fb.TensorDeltaEnd(builder)
    fb.ModelDeltaStartTensorsVector(builder, 4096)
    for _ in range(4096):
        builder.PrependUOffsetTRelative(tensor)
    tensors = builder.EndVector()
    model_hash = builder.CreateByteVector(bytes(32))
    fb.ModelDeltaStart(builder)
    fb.ModelDeltaAddModelHash(builder, model_hash)
    fb.ModelDeltaAddTensors(builder, tensors)
    data = _enveloped(builder, fb.ModelDeltaEnd(builder), fb.Body.ModelDelta)
    began = time.perf_counter()
    with pytest.raises(WireError, match="overlap"):
        decode(data, m.ModelDelta)
    assert time.perf_counter() - began < 1


def _enveloped(builder: Any, table: int, kind: int) -> bytes:
    fb.EnvelopeStart(builder)
    fb.EnvelopeAddBodyType(builder, kind)
    fb.EnvelopeAddBody(builder, table)
    builder.Finish(fb.EnvelopeEnd(builder), file_identifier=wire.IDENTIFIER)
    return bytes(builder.Output())


def test_calls_take_less_than_blobs_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MESSAGE_MAX", 1_000)
    big = replace(least(m.ModelDelta), tensors=(m.TensorDelta(1, 0, bytes(2_000)),))
    assert decode(encode(big), m.ModelDelta) == big
    with pytest.raises(WireError, match="not at most 1000"):
        decode(encode(big), m.ModelDelta, m.Wait)
    with pytest.raises(WireError, match="takes"):
        encode(replace(least(m.Shares), cts=bytes(2_000)))


@given(st.binary(max_size=300))
def test_random_bytes_are_no_message(data: bytes) -> None:
    with pytest.raises(WireError):
        decode(data, *CLASSES)
