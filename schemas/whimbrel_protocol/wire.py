"""Messages to bytes and back: the only module that touches generated FlatBuffers code.

FlatBuffers' Python runtime has no verifier, so `decode` treats the bytes as hostile: whatever the runtime raises becomes one
`WireError`, and every length and value is held against `LIMITS` before anything is copied. Both directions are driven by the
dataclasses of `messages.py`: a message that is added there needs its limits here and nothing else. What a well-formed message
means is judged elsewhere.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import fields
from enum import IntEnum
from functools import cache
from types import UnionType
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import flatbuffers

from whimbrel_protocol import messages as m
from whimbrel_protocol._fb import whimbrel_generated
from whimbrel_protocol.errors import Code, WireError

# Generated code has no types; this is the one door to it.
fb: Any = whimbrel_generated

CONTENT_TYPE = "application/vnd.whimbrel.v1+flatbuffers"
IDENTIFIER = b"WHB1"
MESSAGE_MAX = 16 * 2**20

# Sizes that the fixed-layout blobs have (see objects.py), and the greatest cohort that a spec allows.
CERT, ENTRY, PARAMS, SIG, HASH, DEVICE = 172, 404, 72, 64, 32, 16
COHORT = 1024
BITMAP = (COHORT + 7) // 8
GRAPH_MAX = 8 * 2**20
MONTH_S = 31 * 86_400

Limit = tuple[int, int]


def _exactly(size: int) -> Limit:
    return (size, size)


_U64: Limit = (0, 2**64 - 1)
_TEXT: Limit = (0, 256)
_NAME: Limit = (1, 128)
_INDEX: Limit = (0, COHORT - 1)
_SECONDS: Limit = (0, MONTH_S)
_BITMAP: Limit = (1, BITMAP)
_FEW: Limit = (0, 4096)

# Bytes and text: least and greatest length in bytes. Tuples: number of items. Integers: value.
LIMITS: dict[type, dict[str, Limit]] = {
    m.Enrol: {"request": (64, 1024), "token": (1, 256)},
    m.Renew: {"request": (64, 1024), "certificate": _exactly(CERT), "signature": _exactly(SIG)},
    m.Enrolled: {"certificate": _exactly(CERT), "policy": (1, 4096)},
    m.Held: {"task": _NAME, "version": _U64},
    m.CheckIn: {
        "certificate": _exactly(CERT),
        "body": (64, 1024),
        "app_version": _TEXT,
        "protocol": (0, 65_535),
        "held": (0, 64),
    },
    m.BlobRef: {"sha256": _exactly(HASH), "size": (0, 2**40)},
    m.Assignment: {
        "id": _exactly(16),
        "task": _NAME,
        "version": _U64,
        "header": (1, 4096),
        "chain_head": _exactly(HASH),
        "model_hash": _exactly(HASH),
        "delta_from": _U64,
        "deadline_s": _SECONDS,
    },
    m.CheckedIn: {
        "token": (1, 512),
        "token_expires_s": _SECONDS,
        "come_back_s": _SECONDS,
        "now": (0, 2**48),
        "policy": (1, 4096),
    },
    m.Join: {"entry": _exactly(ENTRY), "assignment": _exactly(16)},
    m.Joined: {"ticket": _exactly(16), "come_back_s": _SECONDS},
    m.Wait: {"come_back_s": _SECONDS},
    m.Open: {"params": _exactly(PARAMS), "roster": (1, COHORT)},
    m.Shares: {
        "i": _INDEX,
        "tau0": _exactly(HASH),
        "cts": (0, 80 * (COHORT - 1)),
        "bcommit": _exactly(HASH),
        "sig": _exactly(SIG),
    },
    m.U2: {"bitmap": _BITMAP, "cts": (0, 80 * (COHORT - 1))},
    m.MaskedHead: {
        "tau1": _exactly(HASH),
        "i": _INDEX,
        "words": (1, 2**40),
        "sha256": _exactly(HASH),
        "msig": _exactly(SIG),
        "present": _BITMAP,
    },
    m.Survivors: {"bitmap": (0, BITMAP), "msigs": (0, SIG * COHORT)},
    m.Vote: {"i": _INDEX, "sig": _exactly(SIG)},
    m.Quorum: {"tau1": _exactly(HASH), "u3": (0, BITMAP), "idx": (1, COHORT), "sigs": (SIG, SIG * COHORT)},
    m.Unmask: {"i": _INDEX, "present": _BITMAP, "shares": (0, 32 * COHORT)},
    m.Done: {"lane": _exactly(HASH), "sum_sha256": _exactly(HASH)},
    m.Report: {
        "code": (0, 65_535),
        "step": (0, 255),
        "task": (0, 128),
        "version": _U64,
        "duration_class": (0, 63),
    },
    m.Accepted: {},
    m.Failure: {"number": (1, 65_535), "detail": (0, 1024), "come_back_s": _SECONDS},
    m.Binding: {"role": _NAME, "name": (1, 512), "dtype": _NAME, "shape": (0, 16)},
    m.PlanBody: {
        "loss": _NAME,
        "batch": (1, 65_536),
        "train_graph": (1, GRAPH_MAX),
        "eval_graph": (1, GRAPH_MAX),
        "inputs": _FEW,
        "outputs": _FEW,
        "eval_inputs": _FEW,
        "eval_outputs": _FEW,
        "min_examples": (0, 2**32 - 1),
        "contributions_cap": (0, 2**32 - 1),
        "cap_period_s": (0, 2**32 - 1),
        "operators": _FEW,
    },
    m.TensorDelta: {"count": (0, 2**32), "exponent": (-1100, 1100), "planes": (0, 2**30)},
    m.ModelDelta: {"from_version": _U64, "to_version": _U64, "model_hash": _exactly(HASH), "tensors": _FEW},
}
_ITEM_LIMITS: dict[tuple[type, str], Limit] = {
    (m.Open, "roster"): _exactly(ENTRY),
    (m.Quorum, "idx"): _INDEX,
    (m.Binding, "shape"): (0, 2**31),
    (m.PlanBody, "operators"): _NAME,
}
_BODIES: dict[int, type] = {getattr(fb.Body, c.__name__): c for c in get_args(m.Message)}

# What the runtime is known to raise on corrupt bytes; anything else would be a defect worth seeing.
_CORRUPT = (
    struct.error,
    ValueError,
    TypeError,
    IndexError,
    OverflowError,
    UnicodeDecodeError,
    AttributeError,
)

T = TypeVar("T")


class _Kind(NamedTuple):
    """How one field travels: its accessor's name, and what it holds."""

    accessor: str
    type: Any
    item: Any
    optional: bool


@cache
def _kinds(cls: Any) -> dict[str, _Kind]:
    hints = get_type_hints(cls)
    return {f.name: _kind(f.name, hints[f.name]) for f in fields(cls)}


def _kind(name: str, hint: Any) -> _Kind:
    accessor = "".join(part.capitalize() for part in name.split("_"))
    if get_origin(hint) is UnionType:
        return _Kind(accessor, next(a for a in get_args(hint) if a is not type(None)), None, True)
    if get_origin(hint) is tuple:
        return _Kind(accessor, tuple, get_args(hint)[0], False)
    return _Kind(accessor, hint, None, False)


def _check(cls: type, name: str, number: int, limit: Limit) -> None:
    if not limit[0] <= number <= limit[1]:
        wanted = f"{limit[0]}" if limit[0] == limit[1] else f"{limit[0]} to {limit[1]}"
        raise WireError(Code.OUT_OF_RANGE, f"{cls.__name__}.{name}: {number}, not {wanted}")


# --- decoding -------------------------------------------------------------------------------------------------------


def decode(data: bytes | bytearray | memoryview, *types: type[T]) -> T:
    """Return the message in `data`, which must be one of `types`.

    Raises WireError: 100 if the bytes are not a message, 101 if it is one of another kind, 102 if a length or value is outside
    its limits.
    """
    if len(data) > MESSAGE_MAX:
        raise WireError(Code.OUT_OF_RANGE, f"a message of {len(data)} bytes, not at most {MESSAGE_MAX}")
    try:
        kind, table = _root(bytes(data))
        cls = _BODIES.get(kind)
        if cls is None:
            raise WireError(Code.MALFORMED, f"unknown message kind {kind}")
        if cls not in types:
            raise WireError(Code.UNEXPECTED_MESSAGE, f"{cls.__name__}, not {' or '.join(t.__name__ for t in types)}")
        view = getattr(fb, cls.__name__)()
        view.Init(table.Bytes, table.Pos)
        value: T = _read(cls, view)
    except _CORRUPT as error:
        raise WireError(Code.MALFORMED, f"not a whimbrel message: {type(error).__name__}") from error
    return value


def _root(data: bytes) -> tuple[int, Any]:
    if len(data) < 16 or data[4:8] != IDENTIFIER:
        raise WireError(Code.MALFORMED, "no message identifier")
    envelope = fb.Envelope.GetRootAs(data, 0)
    table = envelope.Body()
    if table is None:
        raise WireError(Code.MALFORMED, "an empty envelope")
    return envelope.BodyType(), table


def _read(cls: type, view: Any) -> Any:
    values = {name: _read_field(cls, name, kind, view) for name, kind in _kinds(cls).items()}
    return cls(**values)


def _read_field(cls: type, name: str, kind: _Kind, view: Any) -> Any:
    limit = LIMITS[cls].get(name)
    if kind.type is tuple:
        return _read_items(cls, name, kind, view)
    if kind.type is bytes:
        length = getattr(view, kind.accessor + "Length")()
        _check(cls, name, length, limit or _U64)
        return getattr(view, kind.accessor + "AsNumpy")().tobytes() if length else b""
    value = getattr(view, kind.accessor)()
    if kind.type is str:
        raw = value or b""
        _check(cls, name, len(raw), limit or _TEXT)
        return raw.decode()
    if kind.type in LIMITS:
        if value is None and not kind.optional:
            raise WireError(Code.MALFORMED, f"{cls.__name__}.{name} is missing")
        return None if value is None else _read(kind.type, value)
    return _read_scalar(cls, name, kind, value)


def _read_scalar(cls: type, name: str, kind: _Kind, value: Any) -> Any:
    if issubclass(kind.type, IntEnum):
        return kind.type(value)
    limit = LIMITS[cls].get(name)
    if limit is not None:
        _check(cls, name, value, limit)
    return kind.type(value)


def _read_items(cls: type, name: str, kind: _Kind, view: Any) -> tuple[Any, ...]:
    count = getattr(view, kind.accessor + "Length")()
    _check(cls, name, count, LIMITS[cls][name])
    item = getattr(view, kind.accessor)
    if kind.item in LIMITS:
        return tuple(_read(kind.item, item(j)) for j in range(count))
    one = _item_reader(kind.item)
    values = tuple(one(item(j)) for j in range(count))
    limit = _ITEM_LIMITS[cls, name]
    for value in values:
        _check(cls, name, value if isinstance(value, int) else len(value), limit)
    return values


def _item_reader(item: type) -> Callable[[Any], Any]:
    if item is bytes:
        return lambda blob: blob.DataAsNumpy().tobytes()
    if item is str:
        return lambda raw: raw.decode()
    return int


# --- encoding -------------------------------------------------------------------------------------------------------


def encode(message: m.Message) -> bytes:
    """Return the bytes of `message`. Raises WireError 102 where it breaks a limit that `decode` would refuse."""
    try:
        builder = flatbuffers.Builder(1024)
        body = _write(builder, message)
        fb.EnvelopeStart(builder)
        fb.EnvelopeAddBodyType(builder, getattr(fb.Body, type(message).__name__))
        fb.EnvelopeAddBody(builder, body)
        builder.Finish(fb.EnvelopeEnd(builder), file_identifier=IDENTIFIER)
        return bytes(builder.Output())
    except _CORRUPT as error:
        raise WireError(Code.OUT_OF_RANGE, f"{type(message).__name__} cannot be written: {error}") from error


def _write(builder: Any, value: Any) -> int:
    cls: Any = type(value)
    written = {}
    for name, kind in _kinds(cls).items():
        written[name] = _write_field(builder, cls, name, kind, getattr(value, name))
    getattr(fb, cls.__name__ + "Start")(builder)
    for name, kind in _kinds(cls).items():
        if written[name] is not None:
            getattr(fb, cls.__name__ + "Add" + kind.accessor)(builder, written[name])
    offset: int = getattr(fb, cls.__name__ + "End")(builder)
    return offset


def _write_field(builder: Any, cls: type, name: str, kind: _Kind, value: Any) -> Any:
    """Return what the table's slot takes: an offset for whatever lies outside the table, the value itself for scalars."""
    limit = LIMITS[cls].get(name)
    if value is None and kind.optional:
        return None
    if isinstance(value, bytes | str):
        raw = value.encode() if isinstance(value, str) else value
        _check(cls, name, len(raw), limit or _TEXT)
        return builder.CreateString(value) if isinstance(value, str) else builder.CreateByteVector(raw)
    if kind.type is tuple:
        _check(cls, name, len(value), LIMITS[cls][name])
        return _write_items(builder, cls, name, kind, value)
    if kind.type in LIMITS:
        return _write(builder, value)
    if limit is not None:
        _check(cls, name, value, limit)
    return value


def _write_items(builder: Any, cls: type, name: str, kind: _Kind, values: tuple[Any, ...]) -> int:
    limit = _ITEM_LIMITS.get((cls, name))
    for value in values if limit else ():
        _check(cls, name, value if isinstance(value, int) else len(value), limit or _U64)
    offsets = [_write_item(builder, kind.item, value) for value in values]
    getattr(fb, f"{cls.__name__}Start{kind.accessor}Vector")(builder, len(values))
    prepend = builder.PrependUOffsetTRelative
    if kind.item is int:
        prepend = builder.PrependUint16 if cls is m.Quorum else builder.PrependInt64
    for offset in reversed(offsets):
        prepend(offset)
    end: int = builder.EndVector()
    return end


def _write_item(builder: Any, item: type, value: Any) -> int:
    if item is str:
        text: int = builder.CreateString(value)
        return text
    if item is bytes:
        return _write_blob(builder, value)
    if item is int:
        return int(value)
    return _write(builder, value)


def _write_blob(builder: Any, value: bytes) -> int:
    data = builder.CreateByteVector(value)
    fb.BlobStart(builder)
    fb.BlobAddData(builder, data)
    blob: int = fb.BlobEnd(builder)
    return blob
