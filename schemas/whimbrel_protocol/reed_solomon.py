"""Shamir shares of which some are wrong: the secret all the same, and whose shares were wrong.

Here belongs the decoding of Reed-Solomon codes over GF(2^16) (polynomial 0x1100B, as the shares themselves): a secret of
16 symbols is the constant term of 16 polynomials of degree below t, each share their values at one point, so the errors of
all symbols lie at the same shares. Whether a secret is the one that was committed to, and what follows from a wrong share,
belongs in `unmask.py`. The shares were revealed to all who listen, so table look-ups by their values give nothing away;
secrets that are not revealed yet belong to the kernels.

Algorithm: S. Gao, "A new algorithm for decoding Reed-Solomon codes" (2003). The received word is interpolated, and the
extended Euclidean algorithm with prod(x - x_i), stopped half-way, gives the message polynomial times the error locator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SYMBOLS = 16
_SHARE_BYTES = 2 * SYMBOLS
_POLYNOMIAL = 0x1100B
_ORDER = 2**16 - 1

Symbols = NDArray[np.int64]
"""Elements of the field, 0 to 65535; of a polynomial the lowest coefficient first."""


class Decoded(NamedTuple):
    """The 32-byte secret, and the places (into the shares given) whose shares do not belong to it."""

    secret: bytes
    wrong: tuple[int, ...]


def decode(points: Sequence[int], shares: Sequence[bytes], t: int) -> Decoded | None:
    """The secret of which `shares` (32 bytes each, at the distinct `points`, 1 to 65535) are shares with threshold `t`.

    Corrects floor((r - t) / 2) wrong ones among r shares. None where no secret is so near; with more wrong shares than that
    another secret may come out, so the caller holds it against its commitment. Raises ValueError for fewer than `t` shares,
    points that are not distinct elements other than 0, or shares of another size.
    """
    xs = np.array(points, np.int64)
    if not 1 <= t <= len(shares) == len(set(points)) == len(points) or not bool(((xs > 0) & (xs <= _ORDER)).all()):
        raise ValueError("at least t shares at distinct points of 1 to 65535 are needed")
    if any(len(share) != _SHARE_BYTES for share in shares):
        raise ValueError(f"a share has {_SHARE_BYTES} bytes")
    rows = np.frombuffer(b"".join(shares), "<u2").reshape(len(shares), SYMBOLS).astype(np.int64)
    return _decode(xs, rows, t, (len(shares) - t) // 2)


def _decode(xs: Symbols, rows: Symbols, t: int, radius: int) -> Decoded | None:
    """Leave out wrong shares, those of one symbol at a time, until the rest agree in all symbols.

    Whoever is wrong is wrong in some symbol, nearly always in the first that is looked at. A share left out was an error if
    there are no more than `radius` in all, and each takes at most half of one from what the rest can correct.
    """
    good = np.arange(len(xs))
    while True:
        disagreeing = _first_disagreement(xs[good], rows[good], t)
        if disagreeing is None:
            break
        errors = _errors(xs[good], rows[good, disagreeing], t)
        if errors is None or len(xs) - len(good) + len(errors) > radius:
            return None
        good = np.delete(good, errors)
    secret = _interpolated(xs[good[:t]], rows[good[:t]], np.zeros(1, np.int64))[0]
    wrong = tuple(sorted(set(range(len(xs))) - set(good.tolist())))
    return Decoded(secret.astype("<u2").tobytes(), wrong)


def _first_disagreement(xs: Symbols, rows: Symbols, t: int) -> int | None:
    """The first symbol in which the later shares do not lie on the polynomial of the first `t`."""
    if len(xs) == t:
        return None
    differs = (_interpolated(xs[:t], rows[:t], xs[t:]) != rows[t:]).any(axis=0)
    return int(differs.argmax()) if differs.any() else None


def shares_at(points: Sequence[int], dealt: Sequence[Sequence[bytes]], at: Sequence[int]) -> list[list[bytes]]:
    """What several dealers' shares at the points `at` must be: a list a dealer.

    `dealt` holds for each dealer its t shares at `points`, which are right; `at` are other points.
    """
    rows = np.frombuffer(b"".join(map(b"".join, zip(*dealt, strict=True))), "<u2").reshape(len(points), -1).astype(np.int64)
    values = _interpolated(np.array(points, np.int64), rows, np.array(at, np.int64)).astype("<u2")
    columns = range(0, values.shape[1], SYMBOLS)
    return [[row[column : column + SYMBOLS].tobytes() for row in values] for column in columns]


# --- Gao's decoder for one symbol -------------------------------------------------------------------------------------


def _errors(xs: Symbols, values: Symbols, t: int) -> list[int] | None:
    """The places of at most (r - t) // 2 errors in a word, or None where no word of the code is so near."""
    locator_of_all = np.ones(1, np.int64)
    for x in xs:
        locator_of_all = _add(np.concatenate(([0], locator_of_all)), _multiply(locator_of_all, x))
    received = _interpolation(xs, values, locator_of_all)
    remainder, multiplier = _half_euclid(locator_of_all, received, (len(xs) + t + 1) // 2)
    message, rest = _divide(remainder, multiplier)
    if len(_trimmed(rest)) or len(_trimmed(message)) > t:
        return None
    errors = np.flatnonzero(_evaluate(message, xs) != values).tolist()
    return errors if 0 < len(errors) <= (len(xs) - t) // 2 else None


def _interpolation(xs: Symbols, values: Symbols, locator: Symbols) -> Symbols:
    """The polynomial of degree below r through all (xs, values): sum of values_i / locator'(x_i) * locator / (x - x_i)."""
    quotients = _quotients(locator, xs)
    weights = _multiply(values, _inverse(_evaluate_rows(quotients, xs)))
    through: Symbols = np.bitwise_xor.reduce(_multiply(quotients, weights[:, None]), axis=0)
    return through


def _quotients(locator: Symbols, xs: Symbols) -> Symbols:
    """Row i is locator / (x - x_i), by synthetic division in all rows at once."""
    degree = len(locator) - 1
    rows = np.zeros((len(xs), degree), np.int64)
    carry = np.zeros(len(xs), np.int64)
    for k in range(degree, 0, -1):
        carry = _multiply(carry, xs) ^ locator[k]
        rows[:, k - 1] = carry
    return rows


def _half_euclid(a: Symbols, b: Symbols, stop: int) -> tuple[Symbols, Symbols]:
    """The first remainder of (a, b) of degree below `stop`, and the multiplier of b in it."""
    multiplier, following = np.zeros(0, np.int64), np.ones(1, np.int64)
    b = _trimmed(b)
    while len(b) > stop:
        quotient, rest = _divide(a, b)
        a, b = b, _trimmed(rest)
        multiplier, following = following, _trimmed(_add(multiplier, _product(quotient, following)))
    return b, following


# --- polynomials ------------------------------------------------------------------------------------------------------


def _trimmed(polynomial: Symbols) -> Symbols:
    nonzero = np.flatnonzero(polynomial)
    return polynomial[: nonzero[-1] + 1] if len(nonzero) else polynomial[:0]


def _add(a: Symbols, b: Symbols) -> Symbols:
    total = np.zeros(max(len(a), len(b)), np.int64)
    total[: len(a)] = a
    total[: len(b)] ^= b
    return total


def _product(a: Symbols, b: Symbols) -> Symbols:
    total = np.zeros(max(len(a) + len(b) - 1, 0), np.int64)
    for k, factor in enumerate(a):
        total[k : k + len(b)] ^= _multiply(b, factor)
    return total


def _divide(a: Symbols, b: Symbols) -> tuple[Symbols, Symbols]:
    """Quotient and remainder; `b` is trimmed and not zero."""
    rest, steps = a.copy(), len(a) - len(b) + 1
    quotient = np.zeros(max(steps, 0), np.int64)
    inverse = _inverse(b[-1])
    for k in range(steps - 1, -1, -1):
        quotient[k] = _multiply(rest[k + len(b) - 1], inverse)
        rest[k : k + len(b)] ^= _multiply(b, quotient[k])
    return quotient, rest[: len(b) - 1]


def _evaluate(polynomial: Symbols, xs: Symbols) -> Symbols:
    return _evaluate_rows(np.broadcast_to(polynomial, (len(xs), len(polynomial))), xs)


def _evaluate_rows(rows: Symbols, xs: Symbols) -> Symbols:
    """Row i at xs[i] (Horner)."""
    values = np.zeros(len(xs), np.int64)
    for k in range(rows.shape[1] - 1, -1, -1):
        values = _multiply(values, xs) ^ rows[:, k]
    return values


def _interpolated(xs: Symbols, rows: Symbols, at: Symbols) -> Symbols:
    """The polynomials through (xs, rows), one a column of `rows`, at the points `at`, which are none of xs: [at, symbols]."""
    # The diagonal, x ^ x, becomes 1: it is no factor of the weights.
    weights = _inverse(_products((xs[:, None] ^ xs[None, :]) | np.eye(len(xs), dtype=np.int64)))
    gaps = at[:, None] ^ xs[None, :]
    factors = _multiply(_multiply(_products(gaps)[:, None], _inverse(gaps)), weights[None, :])
    values = np.zeros((len(at), rows.shape[1]), np.int64)
    for k in range(len(xs)):
        values ^= _multiply(factors[:, k, None], rows[k])
    return values


def _products(rows: Symbols) -> Symbols:
    """The product of each row, whose elements are not zero: a sum of logarithms."""
    product: Symbols = _EXP[_LOG[rows].sum(axis=1) % _ORDER]
    return product


# --- the field --------------------------------------------------------------------------------------------------------


def _tables() -> tuple[Symbols, Symbols]:
    """Powers of x (which generates all of the field's 65535 units), written out twice, and their logarithms."""
    powers, element = np.zeros(2 * _ORDER, np.int64), 1
    for k in range(_ORDER):
        powers[k] = powers[k + _ORDER] = element
        element = element << 1 ^ (_POLYNOMIAL if element >> 15 else 0)
    logarithms = np.zeros(_ORDER + 1, np.int64)
    logarithms[powers[:_ORDER]] = np.arange(_ORDER)
    return powers, logarithms


_EXP, _LOG = _tables()


def _multiply(a: Symbols, b: Symbols) -> Symbols:
    product: Symbols = np.where((a == 0) | (b == 0), 0, _EXP[_LOG[a] + _LOG[b]])
    return product


def _inverse(a: Symbols) -> Symbols:
    inverse: Symbols = _EXP[_ORDER - _LOG[a]]
    return inverse
