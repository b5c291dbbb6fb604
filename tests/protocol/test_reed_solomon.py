"""Secrets come out of wrong shares, or nothing does: never another secret than the one that was shared."""

from __future__ import annotations

import hashlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whimbrel_kernels import shamir_combine, shamir_share
from whimbrel_protocol.reed_solomon import _EXP, _LOG, decode, shares_at


def deal(name: object, n: int, t: int) -> tuple[bytes, list[bytes]]:
    """A secret and its shares for n members."""
    digest = hashlib.shake_256(repr(name).encode()).digest(32 * t)
    secret, coefficients = digest[:32], digest[32:]
    shares = shamir_share(secret, coefficients, n)
    return secret, [shares[32 * i : 32 * i + 32] for i in range(n)]


@st.composite
def lies(draw: st.DrawFn, beyond: int = 0) -> tuple[int, int, list[int], dict[int, bytes]]:
    """n and t, who answers, and what is added to some answers: floor((r - t) / 2) of them, and `beyond` more."""
    t = draw(st.integers(1, 12))
    r = draw(st.integers(t + 2 * (beyond == 0), t + 10))
    n = draw(st.integers(r, r + 5))
    there = draw(st.permutations(range(n)))[:r]
    many = min((r - t) // 2 + beyond, r)
    liars = draw(st.permutations(there))[:many]
    # Sparse errors, as a liar would make them that hides in one symbol, and dense ones.
    error = st.one_of(
        st.binary(min_size=32, max_size=32).filter(any),
        st.integers(0, 255).map(lambda bit: (1 << bit).to_bytes(32, "little")),
    )
    return n, t, there, {i: draw(error) for i in liars}


def told(n: int, t: int, there: list[int], errors: dict[int, bytes]) -> tuple[bytes, list[int], list[bytes]]:
    """The secret, the points and the shares as the liars tell them."""
    secret, shares = deal((n, t), n, t)
    zero = bytes(32)
    wrong = [bytes(a ^ b for a, b in zip(shares[i], errors.get(i, zero), strict=True)) for i in there]
    return secret, [i + 1 for i in there], wrong


@settings(max_examples=150, deadline=None)
@given(lies())
def test_as_many_lies_as_the_code_allows_are_corrected_and_found(case: tuple[int, int, list[int], dict[int, bytes]]) -> None:
    _, t, there, errors = case
    secret, points, shares = told(*case)
    decoded = decode(points, shares, t)
    assert decoded is not None
    assert decoded.secret == secret
    assert {there[at] for at in decoded.wrong} == set(errors)


@settings(max_examples=100, deadline=None)
@given(lies(beyond=1))
def test_one_lie_more_gives_the_secret_or_none_or_one_that_no_commitment_fits(
    case: tuple[int, int, list[int], dict[int, bytes]],
) -> None:
    _, t, there, errors = case
    secret, points, shares = told(*case)
    decoded = decode(points, shares, t)
    if decoded is not None:
        # Whatever comes out explains all but as many shares as can be corrected: it is no mixture.
        assert len(decoded.wrong) <= (len(there) - t) // 2
        right = [at for at in range(len(there)) if at not in decoded.wrong][:t]
        assert shamir_combine([points[at] for at in right], b"".join(shares[at] for at in right)) == decoded.secret
        assert decoded.secret != secret or not set(errors) <= {there[at] for at in decoded.wrong}


def test_liars_that_hide_in_a_symbol_each_are_all_found() -> None:
    n, t = 60, 26
    secret, shares = deal("hidden", n, t)
    for liar in range(17):
        lie = bytearray(shares[3 * liar])
        lie[2 * (15 - liar % 16)] ^= 1
        shares[3 * liar] = bytes(lie)
    decoded = decode(range(1, n + 1), shares, t)
    assert decoded == (secret, tuple(range(0, 51, 3)))


def test_shares_elsewhere_follow_from_t_right_ones() -> None:
    dealt = [deal(name, 9, 4)[1] for name in "ab"]
    points = [2, 9, 5, 1]
    columns = [[shares[x - 1] for x in points] for shares in dealt]
    assert shares_at(points, columns, [3, 8]) == [[shares[2], shares[7]] for shares in dealt]


def test_two_liars_among_130_take_well_under_a_second() -> None:
    n, t = 130, 79
    secret, shares = deal("large", n, t)
    shares[4], shares[77] = bytes(32), shares[4]
    began = time.perf_counter()
    assert decode(range(1, n + 1), shares, t) == (secret, (4, 77))
    assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize(
    ("points", "sizes", "t"),
    [
        ((1, 2), (32,), 1),
        ((1, 1), (32, 32), 1),
        ((0, 1), (32, 32), 1),
        ((1, 65536), (32, 32), 1),
        ((1,), (31,), 1),
        ((1,), (32,), 2),
    ],
)
def test_what_are_no_shares_is_refused(points: tuple[int, ...], sizes: tuple[int, ...], t: int) -> None:
    with pytest.raises(ValueError, match=r"share"):
        decode(points, [bytes(size) for size in sizes], t)


def test_the_field_has_its_65535_units() -> None:
    assert sorted(_EXP[:65535].tolist()) == list(range(1, 65536))
    assert (_EXP[_LOG[0x8000] + _LOG[2]], _EXP[_LOG[0x800D] + _LOG[2]]) == (0x100B, 0x1011)
