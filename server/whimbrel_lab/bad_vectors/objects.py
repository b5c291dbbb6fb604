"""Cases of bytes and of cryptography: fixed-layout objects, bitmaps, signatures, key agreement, packing and sums."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from whimbrel_lab.bad_vectors.book import GOOD, Book
from whimbrel_lab.bad_vectors.scene import FLEET, LANE, NOW, PLAN_SIGNER, ROOT, SPEC, identity, join, policy, secret, signer
from whimbrel_protocol.errors import Code
from whimbrel_protocol.objects import CertificateRequest, CheckInBody, Params, VectorSpec
from whimbrel_protocol.packing import pack
from whimbrel_protocol.signed import Plan, VersionHeader

ORDER = 2**252 + 27742317777372353535851937790883648493
PRIME = 2**255 - 19


def write(book: Book) -> None:
    """All of the chapter."""
    for kind, data in good_objects().items():
        _write_object(book, kind, data)
    _write_fields(book)
    _write_specs(book)
    _write_bitmaps(book)
    _write_signatures(book)
    _write_exchanges(book)
    _write_certified_keys(book)
    _write_packing(book)
    _write_sums(book)


def good_objects() -> dict[str, bytes]:
    """One of each kind, by its name."""
    who = identity("object")
    names: dict[str, Any] = {"fleet": FLEET, "device": who.device}
    request = CertificateRequest.sign(
        who.key, **names, public_key=who.key.public, attest_class=0, flags=0, nonce=secret("nonce")[:16]
    )
    presence = CheckInBody.sign(who.key, **names, now=NOW, nonce=secret("presence")[:16], policy_serial=7)
    return {
        "Certificate": who.certificate,
        "CertificateRequest": request.encode(),
        "CheckInBody": presence.encode(),
        "JoinEntry": join(who, policy()).entry,
        "Params": Params(FLEET, LANE, 7, 5, 5, 1, 2**32 - 1, 1).encode(),
        "VectorSpec": SPEC.encode(),
        "Policy": policy().encode(),
        "Plan": plan().encode(),
        "VersionHeader": header().encode(),
    }


def plan(**changes: Any) -> Plan:
    """A task's plan."""
    fields: dict[str, Any] = {
        "fleet": FLEET,
        "serial": 3,
        "not_after": NOW + 3_600,
        "flags": 1,
        "bits": 16,
        "n_max": 64,
        "weight_bits": 0,
        "d": 9,
        "scale_min": 1.0,
        "scale_max": 4096.0,
        "task": "digits",
        "body": b"a plan's body",
    }
    return Plan.sign(PLAN_SIGNER, **(fields | changes))


def header() -> VersionHeader:
    """A version's header."""
    reals: dict[str, Any] = {"scale": 64.0, "clip": 1.0, "lr": 0.5, "momentum": 0.0, "mu": 0.0, "weight_decay": 0.0}
    return VersionHeader(version=1, **reals, epochs=1, max_steps=0, time_budget_ms=0, seed=1, flags=0)


# --- objects ----------------------------------------------------------------------------------------------------------


def _write_object(book: Book, kind: str, data: bytes) -> None:
    book.add(f"object {kind}: good", "object", GOOD, kind=kind, data=data)
    book.add(f"object {kind}: a byte short", "object", Code.BAD_SIZE, kind=kind, data=data[:-1])
    book.add(f"object {kind}: a byte long", "object", Code.BAD_SIZE, kind=kind, data=data + b"\0")
    if kind != "VectorSpec":
        at = 172 if kind == "JoinEntry" else 0
        book.add(f"object {kind}: other letters", "object", Code.BAD_MAGIC, kind=kind, data=put(data, at, b"X"))


def put(data: bytes, at: int, new: bytes) -> bytes:
    """`data` with `new` in the place of as many bytes."""
    return data[:at] + new + data[at + len(new) :]


def _write_fields(book: Book) -> None:
    whole = header().encode()
    for at, size, name in ((12, 8, "scale"), (24, 4, "lr")):
        data = put(whole, at, struct.pack("<d" if size == 8 else "<f", float("nan")))
        book.add(f"object VersionHeader: {name} is not a number", "object", Code.BAD_FIELD, kind="VersionHeader", data=data)
    text = put(plan().encode(), 68, b"\xff")
    book.add("object Plan: the task's name is not UTF-8", "object", Code.BAD_FIELD, kind="Plan", data=text)
    keys = put(policy().encode(), 50, b"\xff")
    book.add("object Policy: more keys than there are bytes", "object", Code.BAD_SIZE, kind="Policy", data=keys)
    entry = put(good_objects()["JoinEntry"], 0, b"X")
    book.add("object JoinEntry: other letters in its certificate", "object", Code.BAD_MAGIC, kind="JoinEntry", data=entry)


def _write_specs(book: Book) -> None:
    """Offset, bytes: a spec that contradicts itself."""
    good = VectorSpec.make(16, 128, 33, 4096.0, 16).encode()
    for name, at, value in (
        ("suite", 0, b"\x02"),
        ("lanes", 1, b"\x05"),
        ("bits above 32", 2, b"\x21"),
        ("limb bits", 3, b"\x07"),
        ("no members", 4, bytes(2)),
        ("no values", 6, bytes(8)),
        ("words", 14, b"\x0c"),
        ("limit 0", 22, bytes(8)),
        ("limit that could overflow", 22, b"\0\x01"),
        ("limit below 0", 22, b"\xff" * 8),
        ("scale 0", 30, struct.pack("<d", 0.0)),
        ("scale below 0", 30, struct.pack("<d", -1.0)),
        ("scale not a number", 30, struct.pack("<d", float("nan"))),
        ("scale infinite", 30, struct.pack("<d", float("inf"))),
        ("weight bits above 32", 38, b"\x21"),
    ):
        book.add(f"object VectorSpec: {name}", "object", Code.BAD_SPEC, kind="VectorSpec", data=put(good, at, value))


def _write_bitmaps(book: Book) -> None:
    for n, good, bad in (
        (7, b"\x7f", b"\x80"),
        (8, b"\xff", b"\xff\0"),
        (9, b"\0\x01", b"\0\x02"),
        (130, bytes(17), bytes(16)),
    ):
        book.add(f"bitmap of {n}: good", "bitmap", GOOD, n=n, data=good)
        reason = "padding" if len(bad) == len(good) else "length"
        book.add(f"bitmap of {n}: {reason}", "bitmap", Code.BAD_BITMAP, n=n, data=bad)
    book.add("bitmap: empty", "bitmap", Code.BAD_BITMAP, n=7, data=b"")


# --- cryptography -----------------------------------------------------------------------------------------------------

# A key outside the prime-order subgroup, and a signature over 32 zero bytes of kind "masked" that holds up to a point of small
# order: libraries that multiply by the cofactor take it.
MIXED_KEY = bytes.fromhex("0ddfa0dec2f2143fe4352913c0a17521d80d1f7d89d75f3b4ec512f31f60579e")
MIXED_SIGNATURE = bytes.fromhex(
    "c220dfdeea2d8d1c8a6cb1a3236a21b1f899e0e350ef80f2ee4a555af300e383"
    "24c8ffdc3b09afe1b18c31c1c0caefc35cad709a1d16636be3e1c12b08b1a407"
)
BASE_POINT = bytes.fromhex("58" + "66" * 31)
NEUTRAL = (1).to_bytes(32, "little")
NEUTRAL_NOT_CANONICAL = (PRIME + 1).to_bytes(32, "little")


def _write_signatures(book: Book) -> None:
    key, body = signer("a signer"), bytes(32)
    good = key.sign("masked", body)
    malleated = good[:32] + (int.from_bytes(good[32:], "little") + ORDER).to_bytes(32, "little")
    # With the neutral element for a key, R = [S]B holds for every message.
    anything = BASE_POINT + NEUTRAL
    for name, expect, public, kind, signature in (
        ("good", GOOD, key.public, "masked", good),
        ("another kind", Code.BAD_SIGNATURE, key.public, "vote", good),
        ("another key", Code.BAD_SIGNATURE, ROOT.public, "masked", good),
        ("S + L", Code.BAD_SIGNATURE, key.public, "masked", malleated),
        ("a bit of R", Code.BAD_SIGNATURE, key.public, "masked", put(good, 0, bytes([good[0] ^ 1]))),
        ("cut", Code.BAD_SIGNATURE, key.public, "masked", good[:-1]),
        ("empty", Code.BAD_SIGNATURE, key.public, "masked", b""),
        ("a key of small order", Code.BAD_SIGNATURE, NEUTRAL, "masked", anything),
        ("a key that is not canonical", Code.BAD_SIGNATURE, NEUTRAL_NOT_CANONICAL, "masked", anything),
        ("a key of mixed order", Code.BAD_SIGNATURE, MIXED_KEY, "masked", MIXED_SIGNATURE),
    ):
        book.add(f"signature: {name}", "signature", expect, kind=kind, public=public, body=body, signature=signature)
    given = {"kind": "masked", "public": key.public, "body": put(body, 0, b"\x01"), "signature": good}
    book.add("signature: another body", "signature", Code.BAD_SIGNATURE, **given)


def _low_order() -> Iterator[tuple[str, bytes]]:
    yield "0", bytes(32)
    yield "1", (1).to_bytes(32, "little")
    yield "p - 1", (PRIME - 1).to_bytes(32, "little")
    yield "p", PRIME.to_bytes(32, "little")
    yield "p + 1", (PRIME + 1).to_bytes(32, "little")
    yield "order 8", bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")
    yield "order 8, the other", bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157")
    yield "0 with the top bit", bytes(31) + b"\x80"


def _write_exchanges(book: Book) -> None:
    mine = secret("exchange")
    nine, beyond = (9).to_bytes(32, "little"), (PRIME + 9).to_bytes(32, "little")
    for name, public in (("9", nine), ("9 with the top bit", put(nine, 31, b"\x80")), ("p + 9", beyond)):
        book.add(f"key agreement: u = {name} is taken", "exchange", GOOD, secret=mine, public=public)
    for name, public in _low_order():
        book.add(f"key agreement: u = {name}", "exchange", Code.LOW_ORDER_KEY, secret=mine, public=public)


def _write_certified_keys(book: Book) -> None:
    for name, expect, key in (
        ("good", GOOD, signer("a signer").public),
        ("of small order", Code.WEAK_KEY, NEUTRAL),
        ("not canonical", Code.WEAK_KEY, NEUTRAL_NOT_CANONICAL),
        ("of mixed order", Code.WEAK_KEY, MIXED_KEY),
    ):
        book.add(f"a key to certify: {name}", "certify", expect, public_key=key)


# --- packing and sums -------------------------------------------------------------------------------------------------


def _write_packing(book: Book) -> None:
    spec, top = book.share("spec", SPEC.encode()), SPEC.limit
    for name, expect, update, weight in (
        ("good, at both limits", GOOD, [top, -top, 0, 1, -1, 2], 2**16 - 1),
        ("a value too high", Code.UPDATE_OUT_OF_RANGE, [top + 1, 0, 0, 0, 0, 0], 1),
        ("a value too low", Code.UPDATE_OUT_OF_RANGE, [0, 0, 0, 0, 0, -top - 1], 1),
        ("a value too many", Code.UPDATE_OUT_OF_RANGE, [0] * 7, 1),
        ("a value too few", Code.UPDATE_OUT_OF_RANGE, [0] * 5, 1),
        ("a weight too high", Code.UPDATE_OUT_OF_RANGE, [0] * 6, 2**16),
    ):
        book.add(f"packing: {name}", "pack", expect, spec=spec, update=update, weight=weight)


def _write_sums(book: Book) -> None:
    """Sums of three vectors: each bad one fails one check of its words."""
    spec, top = book.share("spec", SPEC.encode()), SPEC.limit
    one = int.from_bytes(pack(SPEC, np.array([top, -top, 1, 0, -1, 2]), 2**16 - 1), "little")
    words = [3 * (one >> 64 * k & 2**64 - 1) % 2**64 for k in range(SPEC.words)]
    lane = {name: 64 + 16 * at for at, name in enumerate(("count", "limb 0", "limb 1"))}
    lane |= {"value 0": 64 + 16 * (1 + SPEC.weight_limbs), "unused": 64 + 16 * (1 + SPEC.weight_limbs + SPEC.d)}
    bad = {
        "a canary": _added(words, 0, 1),
        "the last canary": _added(words, 64 * (SPEC.words - 1), 1),
        "the count": _added(words, lane["count"], 1),
        "a limb above": _added(words, lane["limb 0"], 1),
        "a limb below 0": _added(words, lane["limb 0"], -3 * (2**SPEC.limb_bits - 1) - 1),
        "a value above": _added(words, lane["value 0"], 1),
        "an unused lane": _added(words, lane["unused"], 1),
    }
    book.add("sum: good", "sum", GOOD, spec=spec, words=_bytes(words), survivors=3)
    for name, wrong in bad.items():
        book.add(f"sum: {name}", "sum", Code.SPOILED_SUM, spec=spec, words=_bytes(wrong), survivors=3)
    book.add("sum: a word short", "sum", Code.SPOILED_SUM, spec=spec, words=_bytes(words[:-1]), survivors=3)
    book.add("sum: of more vectors than said", "sum", Code.SPOILED_SUM, spec=spec, words=_bytes(words), survivors=2)


def _added(words: list[int], bit: int, amount: int) -> list[int]:
    """The words with `amount` more in the lane that begins at this bit."""
    changed = list(words)
    changed[bit // 64] = (changed[bit // 64] + (amount << bit % 64)) % 2**64
    return changed


def _bytes(words: list[int]) -> bytes:
    return b"".join(word.to_bytes(8, "little") for word in words)
