"""What the members of one window hash and sign: the names of a roster and of a U2, and the bodies under their signatures.

Here belong these byte strings (masking protocol, sections 1.4 and 1.5) and the cohort whose signatures count; keys and
masks belong in `masks.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from whimbrel_protocol.messages import VoteKind
from whimbrel_protocol.objects import JoinEntry, Params
from whimbrel_protocol.primitives import HASH_BYTES, sha256, th, u16

VOTE_MAGIC = b"MWV1"

# An abort names no U2; its survivor bitmap is the empty string.
NO_TAU1 = bytes(HASH_BYTES)


def tau0_of(params: bytes, roster: Sequence[bytes]) -> bytes:
    """The window's name: a hash of its parameters and its join entries in order, as received."""
    return th("mw1/roster", params, *roster)


def tau1_of(tau0: bytes, u2: bytes) -> bytes:
    """What a masked vector is bound to: the window and the bitmap of those who dealt shares."""
    return th("mw1/u2", tau0, u2)


def shares_body(tau0: bytes, i: int, bcommit: bytes, cts: bytes) -> bytes:
    """What the signature of SHARES covers."""
    return th("mw1/shares", tau0, u16(i), bcommit, sha256(cts))


def vote_body(tau0: bytes, kind: VoteKind, tau1: bytes = NO_TAU1, u3: bytes = b"") -> bytes:
    """What a vote's signature covers; an abort leaves `tau1` and `u3` at their defaults."""
    return VOTE_MAGIC + tau0 + bytes([kind]) + tau1 + sha256(u3)


@dataclass(frozen=True)
class Cohort:
    """Who stands in a window and by which numbers, as OPEN fixed it: all that votes are judged by.

    `keys` are the members' Ed25519 identity keys in roster order.
    """

    tau0: bytes
    n: int
    t: int
    s_min: int
    keys: tuple[bytes, ...]

    @classmethod
    def of(cls, params: Params, roster: Sequence[bytes], entries: Sequence[JoinEntry]) -> Self:
        """The cohort of an OPEN's parameters, its entries as received, and the same entries decoded."""
        tau0 = tau0_of(params.encode(), roster)
        return cls(tau0, params.n, params.t, params.s_min, tuple(entry.certificate.public_key for entry in entries))
