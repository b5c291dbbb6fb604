"""Who and how many: the formulas that fix a window's numbers, and the bitmaps that name its members.

Here belong pure functions of integers (masking protocol, section 1.8). Who applies them to a message belongs in
`checks.py` (member) and `collector.py` (server).
"""

from __future__ import annotations

from collections.abc import Iterable
from math import comb, inf, log2

from whimbrel_protocol.errors import Code, WireError

# P32 of the complete graph, and the probability above which a sparse graph is not worth its doubt.
COMPLETE = 0xFFFFFFFF
_SPARSE_LIMIT = 0.9 * 2**32

# Doubles round the bound in the tenth digit at most; without it a client could refuse the smallest P32 that holds.
_ROUNDING = 1e-9


def corrupt(n: int, gamma_milli: int) -> int:
    """c = floor(gamma * n): how many of `n` members may collude with the server; gamma in thousandths."""
    return gamma_milli * n // 1000


def threshold(n: int, c: int) -> int:
    """t = floor((n + c) / 2) + 1, so that 2t > n + c: two quorums share an honest member."""
    return (n + c) // 2 + 1


def survivor_floor(t: int, n_min: int) -> int:
    """s_min = max(t, n_min): the fewest members that a sum may have."""
    return max(t, n_min)


def log2_bound(p32: int, m: int) -> float:
    """log2 of the bound on the chance that the graph on `m` honest survivors is not connected.

    Union bound over cuts: sum for s = 1..floor(m/2) of C(m, s) (1 - p)^(s (m - s)), p = p32 / 2^32. The complete graph, and a
    graph of one member, give minus infinity.
    """
    if p32 == COMPLETE or m < 2:
        return -inf
    log_absent = log2((2**32 - p32) / 2**32)
    terms = [log2(comb(m, s)) + s * (m - s) * log_absent for s in range(1, m // 2 + 1)]
    largest = max(terms)
    return largest + log2(sum(2.0 ** (term - largest) for term in terms))


def graph_holds(p32: int, m: int, sigma: int) -> bool:
    """Whether edges of probability p32 / 2^32 leave `m` honest survivors connected but for 2^-sigma."""
    return log2_bound(p32, m) <= -sigma + _ROUNDING


def smallest_p32(m: int, sigma: int) -> int:
    """The least P32 whose bound for `m` honest survivors is at most 2^-sigma; above 0.9 * 2^32 the complete graph."""
    low, high = 0, COMPLETE
    while low < high:
        middle = (low + high) // 2
        if log2_bound(middle, m) <= -sigma:
            high = middle
        else:
            low = middle + 1
    return COMPLETE if low > _SPARSE_LIMIT else low


def bitmap(members: Iterable[int], n: int) -> bytes:
    """ceil(n/8) bytes in which bit i % 8 of byte i / 8 is set for each member i."""
    bits = bytearray((n + 7) // 8)
    for i in members:
        if not 0 <= i < n:
            raise ValueError(f"member {i} is not among {n}")
        bits[i // 8] |= 1 << i % 8
    return bytes(bits)


def members_of(bits: bytes, n: int) -> tuple[int, ...]:
    """The members of a bitmap of `n`, ascending.

    Raises WireError BAD_BITMAP for another length than ceil(n/8) or a padding bit that is set.
    """
    if len(bits) != (n + 7) // 8:
        raise WireError(Code.BAD_BITMAP, f"a bitmap of {n} members has {(n + 7) // 8} bytes, not {len(bits)}")
    if int.from_bytes(bits, "little") >> n:
        raise WireError(Code.BAD_BITMAP, f"a bit above member {n - 1} is set")
    return tuple(i for i in range(n) if bits[i // 8] >> i % 8 & 1)
