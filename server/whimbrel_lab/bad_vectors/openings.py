"""Cases of JOIN and OPEN: each check of the parameters, of an entry and of the roster is broken alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from whimbrel_lab.bad_vectors.book import GOOD, Book
from whimbrel_lab.bad_vectors.scene import (
    FLEET,
    ISSUER,
    LANE,
    NOW,
    ROOT,
    STRANGER,
    N,
    Window,
    identity,
    join,
    policy,
    resigned,
    seed,
)
from whimbrel_lab.bad_vectors.stories import ENDED, OTHER, VICTIM, Teller, told
from whimbrel_protocol.errors import Code
from whimbrel_protocol.messages import Open
from whimbrel_protocol.objects import JoinEntry, Params
from whimbrel_protocol.primitives import SigningKey

SKEW = 600
T = 5  # of seven members, one corrupt: floor((7 + 1) / 2) + 1
COMPLETE = 2**32 - 1


def write(book: Book) -> None:
    """All of the chapter."""
    _write_joins(book)
    window = Window()
    teller = Teller(book, window)
    for name, opening in good(window):
        teller.tell(f"OPEN: {name}", GOOD, [teller.open(opening)], "shared")
    for name, code, opening in (*bad_params(window), *bad_entries(window), *bad_rosters(window)):
        teller.tell(f"OPEN: {name}", code, [teller.open(opening)], ENDED)
    newer = [teller.open(policy_now=policy(serial=8))]
    teller.tell("OPEN: a newer policy arrived after the join", Code.OPEN_POLICY_NEWER, newer, ENDED)


def _write_joins(book: Book) -> None:
    """A device does not join with what is not its own."""
    own, other = identity("joins"), identity("another")
    for name, code, who in (
        ("another device's certificate", Code.KEY_MISMATCH, replace(own, certificate=other.certificate)),
        ("another key than certified", Code.KEY_MISMATCH, identity("joins", public_key=other.key.public)),
        ("a certificate of another fleet", Code.OTHER_FLEET, identity("joins", fleet=bytes(16))),
    ):
        book.add(f"join: {name}", "member", code, member=told(book, who, seed("joins")), steps=[], state="")


def good(window: Window) -> Iterator[tuple[str, Open]]:
    """What lies just within the limits."""
    yield "good", window.collector.open
    yield "an entry over for ten minutes", entry(window, expires=NOW - SKEW)
    yield "a certificate over for ten minutes", certified(window, not_after=NOW - SKEW)
    yield "a certificate valid in ten minutes", certified(window, not_before=NOW + SKEW)
    yield "a certificate of the root", certified(window, ROOT, issuer=ROOT.public[:8])
    yield "the complete graph", params(window, p32=COMPLETE)
    yield "a higher threshold and floor than need be", params(window, t=T + 1, s_min=N)


# --- parameters -------------------------------------------------------------------------------------------------------


def params(window: Window, **changes: Any) -> Open:
    """OPEN with other parameters."""
    return Open(replace(window.collector.params, **changes).encode(), window.collector.open.roster)


def bad_params(window: Window) -> Iterator[tuple[str, Code, Open]]:
    """Each check of the parameters."""
    honest = window.collector.open
    yield "parameters a byte short", Code.OPEN_MALFORMED, Open(honest.params[:-1], honest.roster)
    yield "parameters with other letters", Code.OPEN_MALFORMED, Open(b"X" + honest.params[1:], honest.roster)
    yield "another fleet", Code.OPEN_FLEET, params(window, fleet=bytes(16))
    yield "another lane", Code.OPEN_LANE, params(window, lane=bytes(32))
    yield "n above the number of entries", Code.OPEN_COUNT, params(window, n=N + 1)
    yield "an entry left out", Code.OPEN_COUNT, Open(honest.params, honest.roster[:-1])
    yield "a cohort below the policy's floor", Code.OPEN_TOO_SMALL, _small(window)
    yield "a cohort above the spec's n_max", Code.OPEN_TOO_LARGE, _large(window)
    yield "c of the server's own", Code.OPEN_CORRUPT_COUNT, params(window, c=0)
    yield "c too high", Code.OPEN_CORRUPT_COUNT, params(window, c=2)
    yield "t too low", Code.OPEN_THRESHOLD_LOW, params(window, t=T - 1)
    yield "t above n", Code.OPEN_THRESHOLD_HIGH, params(window, t=N + 1, s_min=N + 1)
    yield "a floor below t", Code.OPEN_FLOOR_LOW, params(window, s_min=T - 1)
    yield "a floor above n", Code.OPEN_FLOOR_HIGH, params(window, s_min=N + 1)
    yield "a graph too sparse", Code.OPEN_GRAPH_SPARSE, params(window, p32=2**31)
    yield "no graph", Code.OPEN_GRAPH_SPARSE, params(window, p32=0)


def _small(window: Window) -> Open:
    kept = tuple(data for i, data in enumerate(window.collector.open.roster) if i in (0, VICTIM, OTHER))
    return Open(Params(FLEET, LANE, 3, 2, 4, 0, COMPLETE, 1).encode(), kept)


def _large(window: Window) -> Open:
    crowd = [*window.collector.open.roster, *(join(identity(k), window.rules).entry for k in (100, 101))]
    by_device = sorted(crowd, key=lambda data: JoinEntry.decode(data).device)
    return Open(Params(FLEET, LANE, 9, 6, 6, 1, COMPLETE, 1).encode(), tuple(by_device))


# --- entries ----------------------------------------------------------------------------------------------------------


def at(window: Window, place: int, data: bytes) -> Open:
    """OPEN with another entry at one place."""
    roster = list(window.collector.open.roster)
    roster[place] = data
    return Open(window.collector.open.params, tuple(roster))


def entry(window: Window, place: int = OTHER, signer: SigningKey | None = None, **changes: Any) -> Open:
    """OPEN with fields of one entry changed, signed by its device or by `signer`."""
    honest = JoinEntry.decode(window.collector.open.roster[place])
    return at(window, place, resigned(honest, signer or window.identities[place].key, **changes).encode())


def certified(window: Window, signer: SigningKey = ISSUER, **changes: Any) -> Open:
    """OPEN with an entry whose certificate was changed and signed by `signer`."""
    honest = JoinEntry.decode(window.collector.open.roster[OTHER]).certificate
    return entry(window, certificate=resigned(honest, signer, **changes))


def bad_entries(window: Window) -> Iterator[tuple[str, Code, Open]]:
    """Each check of an entry."""
    other = window.collector.open.roster[OTHER]
    yield "an entry a byte short", Code.OPEN_MALFORMED, at(window, OTHER, other[:-1])
    yield "an entry with other letters", Code.OPEN_MALFORMED, at(window, OTHER, other[:172] + b"X" + other[173:])
    yield "a certificate with other letters", Code.OPEN_MALFORMED, at(window, OTHER, b"X" + other[1:])
    yield "an entry of another fleet", Code.ENTRY_FLEET, entry(window, fleet=bytes(16))
    yield "a certificate of another fleet", Code.ENTRY_FLEET, certified(window, fleet=bytes(16))
    yield "an entry for another device", Code.ENTRY_DEVICE, entry(window, device=bytes(16))
    yield "an entry of another lane", Code.ENTRY_LANE, entry(window, lane=bytes(32))
    yield "a certificate not valid yet", Code.ENTRY_CERTIFICATE_DATES, certified(window, not_before=NOW + SKEW + 1)
    yield "a certificate that is over", Code.ENTRY_CERTIFICATE_DATES, certified(window, not_after=NOW - SKEW - 1)
    yield "an entry that is over", Code.ENTRY_EXPIRED, entry(window, expires=NOW - SKEW - 1)
    yield "a revoked certificate", Code.ENTRY_EPOCH, certified(window, epoch=2)
    yield "a certificate forged in the issuer's name", Code.ENTRY_CERTIFICATE, certified(window, STRANGER)
    stranger = certified(window, STRANGER, issuer=STRANGER.public[:8])
    yield "a certificate of a stranger", Code.ENTRY_CERTIFICATE, stranger
    yield "an entry signed by another key", Code.ENTRY_SIGNATURE, entry(window, signer=STRANGER)


# --- rosters ----------------------------------------------------------------------------------------------------------


def bad_rosters(window: Window) -> Iterator[tuple[str, Code, Open]]:
    """Each check of the roster as a whole."""

    def reordered(change: Callable[[tuple[bytes, ...]], tuple[bytes, ...]]) -> Open:
        return Open(window.collector.open.params, change(window.collector.open.roster))

    first, other = (JoinEntry.decode(window.collector.open.roster[place]) for place in (0, OTHER))
    yield "ids that descend", Code.ROSTER_ORDER, reordered(lambda r: (r[1], r[0], *r[2:]))
    yield "an entry twice", Code.ROSTER_ORDER, reordered(lambda r: (r[0], r[0], *r[2:]))
    yield "a mask key twice", Code.ROSTER_KEYS, entry(window, mask_key=first.mask_key)
    yield "a mask key that is also a channel key", Code.ROSTER_KEYS, entry(window, channel_key=other.mask_key)
    yield "the own entry changed", Code.ROSTER_OWN_ENTRY, entry(window, VICTIM, nonce=bytes(16))
    yield "the own keys replaced", Code.ROSTER_OWN_ENTRY, entry(window, VICTIM, mask_key=b"k" * 32)
    yield "a low-order mask key", Code.LOW_ORDER_KEY, entry(window, mask_key=bytes(32))
    yield "a low-order channel key", Code.LOW_ORDER_KEY, entry(window, channel_key=(1).to_bytes(32, "little"))
