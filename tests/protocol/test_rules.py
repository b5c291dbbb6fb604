"""The formulas of section 1.8 against the numbers that the protocol's analysis states, and bitmaps."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel_protocol.errors import Code, WireError
from whimbrel_protocol.rules import (
    COMPLETE,
    bitmap,
    corrupt,
    graph_holds,
    log2_bound,
    members_of,
    smallest_p32,
    survivor_floor,
    threshold,
)

# n, gamma in thousandths, c, t, m = t - c, edge probability for sigma = 40 (four digits).
TABLE = [
    (8, 100, 0, 5, 5, 1.0), (8, 200, 1, 5, 4, 1.0), (8, 330, 2, 6, 4, 1.0), (10, 250, 2, 7, 5, 1.0), (16, 330, 5, 11, 6, 1.0),
    (20, 200, 4, 13, 9, 1.0), (32, 100, 3, 18, 15, 0.8863), (32, 200, 6, 20, 14, 1.0), (50, 100, 5, 28, 23, 0.7541),
    (50, 250, 12, 32, 20, 0.8015), (64, 200, 12, 39, 27, 0.6967), (64, 330, 21, 43, 22, 0.7695),
    (100, 200, 20, 61, 41, 0.5443), (128, 100, 12, 71, 59, 0.4221), (128, 200, 25, 77, 52, 0.4627),
    (128, 330, 42, 86, 44, 0.5194), (200, 250, 50, 126, 76, 0.3478), (256, 200, 51, 154, 103, 0.2719),
    (512, 330, 168, 341, 173, 0.1740), (1024, 100, 102, 564, 462, 0.0708), (1024, 330, 337, 681, 344, 0.0932),
]  # fmt: skip


@pytest.mark.parametrize(("n", "gamma", "c", "t", "m", "p"), TABLE)
def test_numbers_are_those_of_the_analysis(n: int, gamma: int, c: int, t: int, m: int, p: float) -> None:
    assert corrupt(n, gamma) == c
    assert threshold(n, c) == t
    assert survivor_floor(t, 4) - c == m
    assert round(smallest_p32(m, 40) / 2**32, 4) == p


@pytest.mark.rule("1.8 numbers: two quorums share an honest member")
@given(n=st.integers(4, 1024), gamma=st.integers(0, 333), n_min=st.integers(4, 1024))
def test_two_quorums_share_an_honest_member(n: int, gamma: int, n_min: int) -> None:
    c = corrupt(n, gamma)
    t = threshold(n, c)
    assert 2 * t > n + c >= 2 * (t - 1)
    assert t <= n
    assert survivor_floor(t, n_min) >= max(t, n_min)


@pytest.mark.rule("1.8 numbers: the graph bound")
@given(m=st.integers(4, 300), sigma=st.integers(1, 64))
def test_the_smallest_probability_holds_and_no_smaller_one(m: int, sigma: int) -> None:
    p32 = smallest_p32(m, sigma)
    assert graph_holds(p32, m, sigma)
    if p32 != COMPLETE:
        assert p32 <= 0.9 * 2**32
        assert log2_bound(p32 - 1, m) > -sigma


def test_the_complete_graph_always_holds_and_a_bound_is_the_sum_over_cuts() -> None:
    assert graph_holds(COMPLETE, 4, 1000)
    assert log2_bound(COMPLETE, 4) == -inf
    # m = 4, p = 1/2: C(4,1)/2^3 + C(4,2)/2^4 = 7/8.
    assert 2 ** log2_bound(2**31, 4) == pytest.approx(7 / 8)


@given(st.integers(1, 70).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_a_bitmap_gives_its_members_back(case: tuple[int, set[int]]) -> None:
    n, members = case
    bits = bitmap(members, n)
    assert len(bits) == (n + 7) // 8
    assert members_of(bits, n) == tuple(sorted(members))


def test_bit_i_of_a_byte_is_member_i() -> None:
    assert bitmap([0, 2, 9], 11) == bytes([0b101, 0b10])


@pytest.mark.parametrize(("bits", "n"), [(b"\x08", 3), (b"\x00\x00", 8), (b"", 1), (b"\xff\x04", 10)])
def test_a_padding_bit_or_another_length_is_refused(bits: bytes, n: int) -> None:
    with pytest.raises(WireError) as refused:
        members_of(bits, n)
    assert refused.value.code is Code.BAD_BITMAP
