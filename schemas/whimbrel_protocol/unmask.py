"""From t revealed shares of each member to the plain sum: the server's last computation of a window.

Here belongs recovering what each member committed to, and taking the masks off a sum of masked vectors (masking
protocol, section 1.6). Nothing that does not fit its commitment is used: a wrong share is an error, never a wrong sum.
When to do it belongs in `collector.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from whimbrel_kernels import shamir_combine

from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.masks import SHARE_BYTES, MaskKeys, bcommit_of, exchange_all, pair_mask, self_key
from whimbrel_protocol.messages import Unmask
from whimbrel_protocol.primitives import x25519_public
from whimbrel_protocol.rules import members_of
from whimbrel_protocol.transcript import Cohort
from whimbrel_protocol.window import Shortage


@dataclass(frozen=True)
class Masked:
    """A window whose survivor set is fixed: what unmasking needs to know of it.

    `bcommits` are the commitments of the members of U2, `mask_keys` all members' public mask keys in roster order.
    """

    cohort: Cohort
    tau1: bytes
    p32: int
    u2: tuple[int, ...]
    u3: tuple[int, ...]
    bcommits: Mapping[int, bytes]
    mask_keys: Sequence[bytes]


def shares_by_dealer(responses: Sequence[Unmask], n: int) -> dict[int, list[tuple[int, bytes]]]:
    """For each dealer the (responder, 32-byte share) pairs, in the order of the responses."""
    dealt: dict[int, list[tuple[int, bytes]]] = {}
    for response in responses:
        for at, j in enumerate(members_of(response.present, n)):
            share = response.shares[SHARE_BYTES * at : SHARE_BYTES * (at + 1)]
            dealt.setdefault(j, []).append((response.i, share))
    return dealt


def masks_in_sum(window: Masked, responses: Sequence[Unmask]) -> MaskKeys:
    """The masks that are left in the sum of the survivors' vectors, as keys whose removal unmasks it.

    Raises RuleError BAD_SHARES where the first t shares of a member do not give what it committed to, Shortage where
    there are fewer than t.
    """
    dealt = shares_by_dealer(responses, window.cohort.n)
    seeds = {i: _self_seed(window, i, dealt.get(i, [])) for i in window.u3}
    add: list[bytes] = []
    subtract = [self_key(seed, window.tau1, i) for i, seed in seeds.items()]
    for j in sorted(set(window.u2) - set(window.u3)):
        secret = _mask_secret(window, j, dealt.get(j, []))
        lost = _edges_of_dropped(window, j, secret)
        add += lost.add
        subtract += lost.subtract
    return MaskKeys(add, subtract)


def _edges_of_dropped(window: Masked, j: int, secret: bytes) -> MaskKeys:
    """Undo what each survivor i added for its edge with j (i < j), and what it subtracted (i > j)."""
    shared = exchange_all(secret, [(i, window.mask_keys[i]) for i in window.u3])
    pairs = {i: pair_mask(shared[i], window.tau1, i, j) for i in window.u3}
    edges = {i: pair.seed for i, pair in pairs.items() if pair.is_edge(window.p32)}
    return MaskKeys([seed for i, seed in edges.items() if i > j], [seed for i, seed in edges.items() if i < j])


def _self_seed(window: Masked, i: int, shares: Sequence[tuple[int, bytes]]) -> bytes:
    seed = _interpolate(window, i, shares)
    if bcommit_of(window.cohort.tau0, i, seed) != window.bcommits[i]:
        raise RuleError(Code.BAD_SHARES, f"the self seed of member {i}")
    return seed


def _mask_secret(window: Masked, j: int, shares: Sequence[tuple[int, bytes]]) -> bytes:
    secret = _interpolate(window, j, shares)
    if x25519_public(secret) != window.mask_keys[j]:
        raise RuleError(Code.BAD_SHARES, f"the mask secret of member {j}")
    return secret


def _interpolate(window: Masked, dealer: int, shares: Sequence[tuple[int, bytes]]) -> bytes:
    t = window.cohort.t
    if len(shares) < t:
        raise Shortage(Code.SHORTAGE, f"{len(shares)} shares of member {dealer}, {t} are needed")
    return shamir_combine([i + 1 for i, _ in shares[:t]], b"".join(share for _, share in shares[:t]))
