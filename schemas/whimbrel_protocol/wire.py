"""Messages to bytes and back: the only module that touches generated FlatBuffers code.

FlatBuffers' Python runtime has no verifier, so `decode` treats the bytes as hostile: whatever the runtime raises becomes one
`WireError`, and every length and value is held against `LIMITS` before anything is copied. Both directions are driven by the
dataclasses of `messages.py`: a message that is added there needs its limits here and nothing else. What a well-formed message
means is judged elsewhere.
"""

from __future__ import annotations

import struct
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
# What is stored as a blob may be larger than what a call carries: a snapshot takes about three bytes a parameter.
MESSAGE_MAX = 16 * 2**20
BLOB_MAX = 2**30
_BLOBS = {m.PlanBody, m.ModelDelta}

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

# Bytes and text: least and greatest length in bytes. Tuples: number of items. Numbers: value. Only enums, flags and inner
# messages have none.
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
    m.Blame: {"tau1": _exactly(HASH)},
    m.CanaryMasks: {"i": _INDEX, "edges": _BITMAP, "masks": (0, 16 * COHORT)},
    m.Report: {
        "code": (0, 65_535),
        "step": (0, 255),
        "task": (0, 128),
        "version": _U64,
        "duration_class": (0, 63),
    },
    m.Accepted: {},
    m.Failure: {"number": (1, 65_535), "detail": (0, 1024), "come_back_s": _SECONDS},
    m.Binding: {"role": _NAME, "name": (1, 512), "dtype": _NAME, "shape": (0, 16), "default": (-(2**127), 2**127)},
    m.Metric: {"name": _NAME, "maximum": (0, 2**40), "bits": (1, 32)},
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
        "metrics": (0, 64),
        "weight_max": (0, 2**32 - 1),
        "clip_min": (0, 2**40),
        "clip_max": (0, 2**40),
        "fixed": _FEW,
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


def _check(cls: type, name: str, number: float, limit: Limit) -> None:
    if not limit[0] <= number <= limit[1]:
        wanted = f"{limit[0]}" if limit[0] == limit[1] else f"{limit[0]} to {limit[1]}"
        raise WireError(Code.OUT_OF_RANGE, f"{cls.__name__}.{name}: {number}, not {wanted}")


# --- decoding -------------------------------------------------------------------------------------------------------


def decode(data: bytes | bytearray | memoryview, *types: type[T]) -> T:
    """Return the message in `data`, which must be one of `types`.

    Raises WireError: 100 if the bytes are not a message, 101 if it is one of another kind, 102 if a length or value is outside
    its limits.
    """
    largest = BLOB_MAX if set(types) <= _BLOBS else MESSAGE_MAX
    if len(data) > largest:
        raise WireError(Code.OUT_OF_RANGE, f"a message of {len(data)} bytes, not at most {largest}")
    try:
        kind, table = _root(bytes(data))
        cls = _BODIES.get(kind)
        if cls is None:
            raise WireError(Code.MALFORMED, f"unknown message kind {kind}")
        if cls not in types:
            raise WireError(Code.UNEXPECTED_MESSAGE, f"{cls.__name__}, not {' or '.join(t.__name__ for t in types)}")
        view = getattr(fb, cls.__name__)()
        view.Init(table.Bytes, table.Pos)
        value: T = _Reader(len(data)).read(cls, view)
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


class _Reader:
    """Reads one message of `size` bytes, and no more bytes than that in all.

    Offsets of hostile bytes may all point at the same large vector; a writer never makes such, and a small message must not
    fill the memory.
    """

    def __init__(self, size: int) -> None:
        self._left = size

    def read(self, cls: type, view: Any) -> Any:
        return cls(**{name: self._field(cls, name, kind, view) for name, kind in _kinds(cls).items()})

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise WireError(Code.MALFORMED, "parts of the message overlap")

    def _field(self, cls: type, name: str, kind: _Kind, view: Any) -> Any:
        if kind.type is tuple:
            return self._items(cls, name, kind, view)
        if kind.type is bytes:
            length = getattr(view, kind.accessor + "Length")()
            _check(cls, name, length, LIMITS[cls][name])
            self._take(length)
            return getattr(view, kind.accessor + "AsNumpy")().tobytes() if length else b""
        value = getattr(view, kind.accessor)()
        if kind.type is str:
            return self._text(cls, name, value or b"", LIMITS[cls][name])
        if kind.type in LIMITS:
            return self._inner(cls, name, kind, value)
        if not issubclass(kind.type, IntEnum | bool):
            _check(cls, name, value, LIMITS[cls][name])
        return kind.type(value)

    def _inner(self, cls: type, name: str, kind: _Kind, value: Any) -> Any:
        if value is None and not kind.optional:
            raise WireError(Code.MALFORMED, f"{cls.__name__}.{name} is missing")
        return None if value is None else self.read(kind.type, value)

    def _text(self, cls: type, name: str, raw: bytes, limit: Limit) -> str:
        _check(cls, name, len(raw), limit)
        self._take(len(raw))
        return raw.decode()

    def _items(self, cls: type, name: str, kind: _Kind, view: Any) -> tuple[Any, ...]:
        count = getattr(view, kind.accessor + "Length")()
        _check(cls, name, count, LIMITS[cls][name])
        self._take(2 * count)  # the least that an item takes in the vector
        return tuple(self._item(cls, name, kind, getattr(view, kind.accessor)(j)) for j in range(count))

    def _item(self, cls: type, name: str, kind: _Kind, value: Any) -> Any:
        if kind.item in LIMITS:
            return self.read(kind.item, value)
        limit = _ITEM_LIMITS[cls, name]
        if kind.item is str:
            return self._text(cls, name, value, limit)
        if kind.item is int:
            _check(cls, name, value, limit)
            return int(value)
        _check(cls, name, value.DataLength(), limit)
        self._take(value.DataLength())
        return value.DataAsNumpy().tobytes()


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
        data = bytes(builder.Output())
    except _CORRUPT as error:
        raise WireError(Code.OUT_OF_RANGE, f"{type(message).__name__} cannot be written: {error}") from error
    if len(data) > (BLOB_MAX if type(message) in _BLOBS else MESSAGE_MAX):
        raise WireError(Code.OUT_OF_RANGE, f"{type(message).__name__} takes {len(data)} bytes")
    return data


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
    if value is None and kind.optional:
        return None
    if kind.type in LIMITS:
        return _write(builder, value)
    if issubclass(kind.type, IntEnum | bool):
        return kind.type(value)
    limit = LIMITS[cls][name]
    if kind.type is tuple:
        _check(cls, name, len(value), limit)
        return _write_items(builder, cls, name, kind, value)
    if kind.type in (bytes, str):
        return _write_bytes(builder, cls, name, value, limit)
    _check(cls, name, value, limit)
    return value


def _write_bytes(builder: Any, cls: type, name: str, value: Any, limit: Limit) -> int:
    raw = value.encode() if isinstance(value, str) else value
    _check(cls, name, len(raw), limit)
    offset: int = builder.CreateString(value) if isinstance(value, str) else builder.CreateByteVector(raw)
    return offset


def _write_items(builder: Any, cls: type, name: str, kind: _Kind, values: tuple[Any, ...]) -> int:
    offsets = [_write_item(builder, cls, name, kind.item, value) for value in values]
    getattr(fb, f"{cls.__name__}Start{kind.accessor}Vector")(builder, len(values))
    prepend = builder.PrependUOffsetTRelative
    if kind.item is int:
        prepend = builder.PrependUint16 if cls is m.Quorum else builder.PrependInt64
    for offset in reversed(offsets):
        prepend(offset)
    end: int = builder.EndVector()
    return end


def _write_item(builder: Any, cls: type, name: str, item: type, value: Any) -> int:
    if item in LIMITS:
        return _write(builder, value)
    limit = _ITEM_LIMITS[cls, name]
    if item is int:
        _check(cls, name, value, limit)
        return int(value)
    if item is str:
        return _write_bytes(builder, cls, name, value, limit)
    data = _write_bytes(builder, cls, name, value, limit)
    fb.BlobStart(builder)
    fb.BlobAddData(builder, data)
    blob: int = fb.BlobEnd(builder)
    return blob
