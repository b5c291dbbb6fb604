"""Cases of the wire: one message of each kind, and bytes that are none, of another kind, or outside a limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from whimbrel_lab.bad_vectors.book import GOOD, Book
from whimbrel_lab.bad_vectors.scene import secret
from whimbrel_protocol import delta, wire
from whimbrel_protocol import messages as m
from whimbrel_protocol.errors import Code
from whimbrel_protocol.messages import Message

# Contents that occur nowhere else in a message, so that one field can be found in its bytes.
HASH, OTHER_HASH, SIGNATURE, SIXTEEN = secret("hash"), secret("other hash"), secret("a") + secret("b"), secret("id")[:16]
CERTIFICATE, ENTRY, PARAMS, BODY = (b"C" * 172, b"J" * 404, b"P" * 72, b"b" * 80)


def write(book: Book) -> None:
    """All of the chapter."""
    for name, sample in samples().items():
        book.add(f"message {name}: good", "message", GOOD, kinds=[name], data=wire.encode(sample))
    _write_malformed(book)
    for spoiled in spoilt_fields():
        data = spoiled.data()
        kind = type(spoiled.message).__name__
        book.add(f"message {kind}: {spoiled.reason}", "message", Code.OUT_OF_RANGE, kinds=[kind], data=data)
    _write_deltas(book)


def samples() -> dict[str, Message]:
    """One message of each kind, by its name."""
    offer = m.Assignment(
        SIXTEEN, "digits", 1, m.BlobRef(HASH, 9), b"header", OTHER_HASH, HASH, m.BlobRef(HASH, 5), None, 0, 900
    )
    binding = m.Binding("param", "w", "float32", (2, 3))
    graph = delta.compress(b"a graph")
    body = m.PlanBody("mse", 8, graph, graph, (binding,), (binding,), (binding,), (binding,), operators=("Gemm",))
    every: list[Message] = [
        m.Enrol(BODY, "an enrolment token"),
        m.Renew(BODY, CERTIFICATE, SIGNATURE),
        m.Enrolled(CERTIFICATE, b"a policy"),
        m.CheckIn(CERTIFICATE, BODY, "the app's version", 1, (m.Held("digits", 1),)),
        m.CheckedIn("a bearer token", 0x15151, 0x2345, 0x6A5B4C3D, b"a policy", offer),
        m.Join(ENTRY, SIXTEEN),
        m.Joined(SIXTEEN, 0x12345),
        m.Wait(0x12345),
        m.Open(PARAMS, (ENTRY, b"K" * 404)),
        m.Shares(0x123, HASH, b"c" * 80, OTHER_HASH, SIGNATURE),
        m.U2(b"\x7e", b"c" * 80),
        m.MaskedHead(HASH, 0x123, 5, OTHER_HASH, SIGNATURE, b"\x7e"),
        m.Survivors(b"\x7e", SIGNATURE),
        m.Vote(0x123, m.VoteKind.COMMIT, SIGNATURE),
        m.Quorum(m.VoteKind.COMMIT, HASH, b"\x7e", (0x123,), SIGNATURE),
        m.Unmask(0x123, b"\x7e", b"s" * 32),
        m.Blame(HASH),
        m.CanaryMasks(0x123, b"\x7e", b"t" * 16),
        m.Done(HASH, OTHER_HASH),
        m.Report(510, 4, "digits", 1, 0x2A),
        m.Accepted(),
        m.Failure(510, "a sentence", 0x12345),
        body,
        m.ModelDelta(0, 1, HASH, (m.TensorDelta(2, -12, b"planes"),), snapshot=True),
    ]
    return {type(message).__name__: message for message in every}


def _write_malformed(book: Book) -> None:
    good = wire.encode(m.Done(HASH, OTHER_HASH))
    everything = list(samples())
    for name, data in (
        ("empty", b""),
        ("zeros", bytes(64)),
        ("without the identifier", good[:4] + b"WHB2" + good[8:]),
        ("cut within its table", good[:20]),
        ("with a root outside the bytes", b"\xff\xff\xff\x7f" + good[4:]),
        ("of a kind that does not exist", _unknown_kind(good)),
        ("text", b'{"number": 100}' * 4),
    ):
        book.add(f"message: {name}", "message", Code.MALFORMED, kinds=everything, data=data)
    book.add("message: of another kind", "message", Code.UNEXPECTED_MESSAGE, kinds=["Wait", "Open"], data=good)
    text = _replaced(wire.encode(m.Enrol(BODY, "an enrolment token")), b"enrolment", b"\xff\xfe\xfdolment")
    book.add("message: text that is not UTF-8", "message", Code.MALFORMED, kinds=["Enrol"], data=text)
    lost = wire.encode(samples()["Open"])
    overlap = _replaced(wire.encode(m.Survivors(b"\x7e", SIGNATURE)), _prefix(SIGNATURE), (2**16).to_bytes(4, "little"))
    book.add("message: a length beyond its end", "message", Code.MALFORMED, kinds=["Survivors"], data=overlap)
    book.add("message: a list of entries, cut", "message", Code.MALFORMED, kinds=["Open"], data=lost[: len(lost) // 2])


def _unknown_kind(data: bytes) -> bytes:
    """The union's tag is the one byte with the kind's number in the envelope's table, before the body's."""
    tag = bytes([wire.fb.Body.Done])
    at = data.index(tag, 8)
    while wire.fb.Envelope.GetRootAs(_put(data, at, b"\xf0"), 0).BodyType() != 0xF0:
        at = data.index(tag, at + 1)
    return _put(data, at, b"\xf0")


def _put(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _prefix(content: bytes) -> bytes:
    """What stands for the length of a vector or text before its content."""
    return len(content).to_bytes(4, "little")


def _replaced(data: bytes, old: bytes, new: bytes) -> bytes:
    if data.count(old) != 1:
        raise ValueError(f"{old!r} stands {data.count(old)} times in the message")
    return data.replace(old, new)


@dataclass(frozen=True)
class Spoilt:
    """A message, and the bytes of one field in it that are made to break its limit."""

    message: Message
    reason: str
    old: bytes
    new: bytes

    def data(self) -> bytes:
        """The spoilt bytes."""
        return _replaced(wire.encode(self.message), self.old, self.new)


def spoilt_fields() -> list[Spoilt]:
    """At least one for each kind of message that has limits."""
    by_name = samples()

    def length(name: str, field: str, said: int) -> Spoilt:
        message = by_name[name]
        value: Any = getattr(message, field)
        content = value.encode() if isinstance(value, str) else value
        old = _prefix(content) + content
        return Spoilt(message, f"{field} of {said} bytes", old, said.to_bytes(4, "little") + content)

    def number(name: str, field: str, size: int, said: int) -> Spoilt:
        old = int(getattr(by_name[name], field)).to_bytes(size, "little")
        return Spoilt(by_name[name], f"{field} is {said}", old, said.to_bytes(size, "little"))

    entry = _prefix(ENTRY) + ENTRY
    planes = _prefix(b"planes") + b"planes"
    return [
        length("Enrol", "token", 0),
        length("Enrol", "request", 63),
        length("Renew", "signature", 63),
        length("Enrolled", "certificate", 171),
        length("CheckIn", "certificate", 173),
        length("CheckIn", "app_version", 2**31),
        length("CheckedIn", "token", 0),
        number("CheckedIn", "token_expires_s", 4, 31 * 86_400 + 1),
        length("Join", "entry", 403),
        length("Joined", "ticket", 15),
        number("Wait", "come_back_s", 4, 31 * 86_400 + 1),
        length("Open", "params", 71),
        Spoilt(by_name["Open"], "an entry of 403 bytes", entry, (403).to_bytes(4, "little") + ENTRY),
        length("Shares", "sig", 65),
        number("Shares", "i", 2, 1024),
        length("U2", "bitmap", 129),
        length("MaskedHead", "sha256", 31),
        length("Survivors", "bitmap", 129),
        length("Vote", "sig", 63),
        number("Vote", "i", 2, 1024),
        length("Quorum", "tau1", 33),
        number("Unmask", "i", 2, 1024),
        length("Unmask", "present", 0),
        length("Blame", "tau1", 31),
        number("CanaryMasks", "i", 2, 1024),
        length("CanaryMasks", "edges", 129),
        length("Done", "sum_sha256", 31),
        number("Report", "duration_class", 1, 64),
        number("Failure", "come_back_s", 4, 31 * 86_400 + 1),
        length("PlanBody", "loss", 0),
        Spoilt(by_name["PlanBody"], "an operator of 0 bytes", _prefix(b"Gemm") + b"Gemm", bytes(4) + b"Gemm"),
        length("ModelDelta", "model_hash", 31),
        Spoilt(by_name["ModelDelta"], "planes of 2^31 bytes", planes, (2**31).to_bytes(4, "little") + b"planes"),
    ]


# --- models on a lattice ----------------------------------------------------------------------------------------------

SHAPES = (("w", (2, 3)), ("b", (3,)))


def _lattice(first: int, exponent: int) -> delta.Lattice:
    rising = np.arange(6, dtype=np.float64) + first
    return delta.quantise(np.ldexp(rising, exponent), exponent), delta.quantise(np.ldexp(rising[:3], exponent), exponent)


def _write_deltas(book: Book) -> None:
    old, new = _lattice(1, -3), _lattice(5, -4)
    shared = book.share("model", wire.encode(delta.snapshot(1, old)))
    change = delta.delta(1, old, 2, new)
    tensor, *rest = change.tensors
    changed: dict[str, m.ModelDelta] = {
        "another hash": m.ModelDelta(1, 2, HASH, change.tensors),
        "a tensor left out": m.ModelDelta(1, 2, change.model_hash, change.tensors[:1]),
        "another count": _with(change, m.TensorDelta(tensor.count + 1, tensor.exponent, tensor.planes), rest),
        "planes that are no frame": _with(change, m.TensorDelta(tensor.count, tensor.exponent, b"planes"), rest),
        "planes too short": _with(change, m.TensorDelta(tensor.count, tensor.exponent, delta.compress(bytes(20))), rest),
        "a step that rises": _with(change, m.TensorDelta(tensor.count, -2, tensor.planes), rest),
        "a step too far": _with(change, m.TensorDelta(tensor.count, -3 - 39, tensor.planes), rest),
        "a snapshot on top of a model": delta.snapshot(2, new),
    }
    book.add("delta: good", "delta", GOOD, shapes=SHAPES, old=shared, change=wire.encode(change))
    book.add("snapshot: good", "delta", GOOD, shapes=SHAPES, old="", change=wire.encode(delta.snapshot(2, new)))
    for name, bad in changed.items():
        book.add(f"delta: {name}", "delta", Code.BAD_DELTA, shapes=SHAPES, old=shared, change=wire.encode(bad))
    alone = {"shapes": SHAPES, "old": "", "change": wire.encode(change)}
    book.add("delta: without the model that it starts from", "delta", Code.BAD_DELTA, **alone)


def _with(change: m.ModelDelta, tensor: m.TensorDelta, rest: list[m.TensorDelta]) -> m.ModelDelta:
    return m.ModelDelta(change.from_version, change.to_version, change.model_hash, (tensor, *rest))
