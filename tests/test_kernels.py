"""One class of tests for both implementations of the kernels: the C extension and its NumPy twin.

Here belong known answers, properties against slow references in plain Python, and refusals.
The C code's own paths (portable, AVX2, AVX-512) are compared with each other in cext/tests.
"""

import importlib.util
import os
import subprocess
import sys
from array import array
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.bindings import crypto_aead_chacha20poly1305_ietf_encrypt

MASK64 = 2**64 - 1
STREAM_WORDS = 8 * (2**32 - 1)
ALL_BITS = range(2, 33)

words = st.lists(st.integers(0, MASK64), max_size=40)
keys = st.binary(min_size=32, max_size=32)
offsets = st.integers(0, 7)


BUILT = importlib.util.find_spec("whimbrel_kernels._native") is not None
NEEDS_EXTENSION = pytest.mark.skipif(not BUILT, reason="not built: python setup.py build_ext --inplace")


@pytest.fixture(params=["_numpy", "_native"] if BUILT else ["_numpy"], scope="module")
def kernels(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(f"whimbrel_kernels.{request.param}")


def unaligned(data: bytes, offset: int) -> memoryview:
    """A writable view of `data` that starts `offset` bytes behind an allocation's start."""
    return memoryview(bytearray(offset) + bytearray(data))[offset:]


def to_bytes(values: list[int]) -> bytes:
    return b"".join((value & MASK64).to_bytes(8, "little") for value in values)


def to_words(data: bytes | memoryview) -> list[int]:
    return [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]


def chacha20_block(key: bytes, counter: int) -> bytes:
    """RFC 8439, section 2.3, nonce 0^12, one u32 at a time."""
    data = b"expand 32-byte k" + key + counter.to_bytes(4, "little") + bytes(12)
    start = [int.from_bytes(data[i : i + 4], "little") for i in range(0, 64, 4)]
    x = list(start)
    columns = [(i, 4 + i, 8 + i, 12 + i) for i in range(4)]
    diagonals = [(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4) for i in range(4)]
    for a, b, c, d in (columns + diagonals) * 10:
        for total, addend, target, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[total] = (x[total] + x[addend]) % 2**32
            mixed = x[target] ^ x[total]
            x[target] = (mixed << turn | mixed >> (32 - turn)) % 2**32
    return b"".join(((u + v) % 2**32).to_bytes(4, "little") for u, v in zip(x, start, strict=True))


def stream(key: bytes, first: int, count: int) -> list[int]:
    blocks = range(1 + first // 8, 1 + (first + count + 7) // 8)
    return to_words(b"".join(chacha20_block(key, block) for block in blocks))[first % 8 :][:count]


def gf_multiply(a: int, b: int) -> int:
    product = 0
    for bit in range(16):
        product ^= (a << bit) * (b >> bit & 1)
    for bit in range(30, 15, -1):
        product ^= (0x1100B << (bit - 16)) * (product >> bit & 1)
    return product


def slow_share(secret: bytes, coefficients: bytes, x: int) -> bytes:
    share = bytearray()
    for symbol in range(0, 32, 2):
        value, power = 0, 1
        for row in range(0, 32 + len(coefficients), 32):
            term = (secret + coefficients)[row + symbol : row + symbol + 2]
            value ^= gf_multiply(int.from_bytes(term, "little"), power)
            power = gf_multiply(power, x)
        share += value.to_bytes(2, "little")
    return bytes(share)


def pick(shares: bytes, xs: list[int]) -> bytes:
    return b"".join(shares[32 * (x - 1) : 32 * x] for x in xs)


@st.composite
def lane_runs(draw: st.DrawFn) -> tuple[int, list[int]]:
    """A lane width and whole words of values that fit it, extremes often among them."""
    bits = draw(st.sampled_from(ALL_BITS))
    limit = 2 ** (bits - 1) - 1
    value = st.sampled_from([-limit, -1, 0, 1, limit]) | st.integers(-limit, limit)
    size = (64 // bits) * draw(st.integers(0, 6))
    return bits, draw(st.lists(value, min_size=size, max_size=size))


@st.composite
def polynomials(draw: st.DrawFn) -> tuple[bytes, bytes, int]:
    """A secret, coefficients whose highest row has no zero symbol, and a number of members."""
    threshold = draw(st.integers(1, 6))
    free = 32 * max(threshold - 2, 0)
    lower = draw(st.binary(min_size=free, max_size=free))
    top = draw(st.lists(st.integers(1, 65535), min_size=16, max_size=16)) if threshold > 1 else []
    highest = b"".join(symbol.to_bytes(2, "little") for symbol in top)
    return draw(st.binary(min_size=32, max_size=32)), lower + highest, draw(st.integers(threshold, 9))


def hadamard(length: int) -> np.ndarray:
    """The orthonormal matrix in natural order: entry (i, j) has the sign of the parity of i AND j."""
    signs = [[(-1) ** (i & j).bit_count() for j in range(length)] for i in range(length)]
    return np.array(signs) / np.sqrt(length)


def rotated(values: np.ndarray, signs: bytes, block: int) -> np.ndarray:
    """The rotation by its definition, in float64."""
    flips = np.array([1 - 2 * (signs[i // 8] >> i % 8 & 1) for i in range(len(values))])
    rest, parts = values.astype(np.float64) * flips, []
    while rest.size:
        while block > rest.size:
            block //= 2
        parts.append(hadamard(block) @ rest[:block])
        rest = rest[block:]
    return np.concatenate(parts)


@st.composite
def rotations(draw: st.DrawFn) -> tuple[np.ndarray, bytes, int]:
    """Values of very different sizes, their signs, and a block."""
    count = draw(st.integers(1, 150))
    seed = draw(st.integers(0, 2**32 - 1))
    values = np.random.default_rng(seed).standard_t(3, count).astype(np.float32)
    signs = draw(st.binary(min_size=(count + 7) // 8, max_size=(count + 7) // 8))
    return values, signs, 2 ** draw(st.integers(0, 8))


REFUSALS: dict[str, tuple[type[Exception], Callable[[ModuleType], object]]] = {
    "sizes differ": (ValueError, lambda k: k.ring_add(bytearray(16), bytes(8))),
    "no whole words": (ValueError, lambda k: k.ring_sub(bytearray(12), bytes(12))),
    "read-only bytes": (ValueError, lambda k: k.ring_add(bytes(8), bytes(8))),
    "read-only view": (ValueError, lambda k: k.mask_add(memoryview(bytes(8)), bytes(32), 0)),
    "not contiguous": (ValueError, lambda k: k.ring_add(np.zeros(4, "u8")[::2], bytes(16))),
    "Fortran order": (ValueError, lambda k: k.ring_add(np.zeros((2, 2), "u8", "F"), bytes(32))),
    "acc is no buffer": (TypeError, lambda k: k.ring_add([1], bytes(8))),
    "src is no buffer": (TypeError, lambda k: k.ring_add(bytearray(8), None)),
    "src is text": (TypeError, lambda k: k.ring_add(bytearray(8), "12345678")),
    "argument missing": (TypeError, lambda k: k.ring_add(bytearray(8))),
    "argument too many": (TypeError, lambda k: k.ring_add(bytearray(8), bytes(8), 1)),
    "bits 1": (ValueError, lambda k: k.pack_lanes(bytearray(8), array("i", [0] * 64), 1)),
    "bits 33": (ValueError, lambda k: k.pack_lanes(bytearray(8), array("i", [0]), 33)),
    "bits huge": (ValueError, lambda k: k.unpack_lanes(array("i"), b"", 2**70)),
    "bits no integer": (TypeError, lambda k: k.unpack_lanes(array("i", [0] * 4), bytes(8), 16.0)),
    "partial word of lanes": (ValueError, lambda k: k.pack_lanes(bytearray(8), array("i", [0] * 3), 16)),
    "out too short": (ValueError, lambda k: k.unpack_lanes(array("i", [0] * 4), bytes(16), 16)),
    "lanes of 64 bits": (TypeError, lambda k: k.pack_lanes(bytearray(8), array("q", [0] * 4), 16)),
    "lanes unsigned": (TypeError, lambda k: k.pack_lanes(bytearray(8), array("I", [0] * 4), 16)),
    "lanes are bytes": (TypeError, lambda k: k.pack_lanes(bytearray(8), bytes(16), 16)),
    "lanes of floats": (TypeError, lambda k: k.unpack_lanes(array("f", [0] * 4), bytes(8), 16)),
    "lanes big-endian": (TypeError, lambda k: k.pack_lanes(bytearray(8), np.zeros(4, ">i4"), 16)),
    "key of 31 bytes": (ValueError, lambda k: k.mask_add(bytearray(8), bytes(31), 0)),
    "key is no buffer": (TypeError, lambda k: k.mask_sub(bytearray(8), 5, 0)),
    "first word negative": (ValueError, lambda k: k.mask_add(bytearray(8), bytes(32), -1)),
    "first word a float": (TypeError, lambda k: k.mask_add(bytearray(8), bytes(32), 0.0)),
    "past the last block": (ValueError, lambda k: k.mask_add(bytearray(16), bytes(32), STREAM_WORDS - 1)),
    "far past the last block": (ValueError, lambda k: k.mask_sub(bytearray(8), bytes(32), 2**70)),
    "secret of 31 bytes": (ValueError, lambda k: k.shamir_share(bytes(31), b"", 1)),
    "partial coefficient row": (ValueError, lambda k: k.shamir_share(bytes(32), bytes(33), 3)),
    "nobody to share with": (ValueError, lambda k: k.shamir_share(bytes(32), b"", 0)),
    "too many members": (ValueError, lambda k: k.shamir_share(bytes(32), b"", 65536)),
    "threshold above members": (ValueError, lambda k: k.shamir_share(bytes(32), bytes(64), 2)),
    "no shares": (ValueError, lambda k: k.shamir_combine([], b"")),
    "x is 0": (ValueError, lambda k: k.shamir_combine([0, 1], bytes(64))),
    "x above the field": (ValueError, lambda k: k.shamir_combine([65536], bytes(32))),
    "x a float": (TypeError, lambda k: k.shamir_combine([1.0], bytes(32))),
    "x twice": (ValueError, lambda k: k.shamir_combine([3, 7, 3], bytes(96))),
    "share missing": (ValueError, lambda k: k.shamir_combine([1, 2], bytes(32))),
    "partial share": (ValueError, lambda k: k.shamir_combine([1], bytes(31))),
    "values of float64": (TypeError, lambda k: k.rotate(np.zeros(8), bytes(1), 4)),
    "values are bytes": (TypeError, lambda k: k.unrotate(bytearray(32), bytes(1), 4)),
    "values are read-only": (ValueError, lambda k: k.rotate(np.zeros(1, "f4").data.toreadonly(), bytes(1), 4)),
    "sign byte missing": (ValueError, lambda k: k.rotate(array("f", [0.0] * 9), bytes(1), 4)),
    "sign byte too many": (ValueError, lambda k: k.unrotate(array("f", [0.0] * 8), bytes(2), 4)),
    "block no power of two": (ValueError, lambda k: k.rotate(array("f", [0.0] * 8), bytes(1), 12)),
    "block 0": (ValueError, lambda k: k.unrotate(array("f", [0.0] * 8), bytes(1), 0)),
    "block huge": (ValueError, lambda k: k.rotate(array("f", [0.0] * 8), bytes(1), 2**21)),
    "xs no sequence": (TypeError, lambda k: k.shamir_combine(1, bytes(32))),
}


class TestKernels:
    @given(pairs=st.lists(st.tuples(st.integers(0, MASK64), st.integers(0, MASK64))), at=offsets, off=offsets)
    def test_ring_is_integers_mod_2_64(self, kernels: ModuleType, pairs: list[tuple[int, int]], at: int, off: int) -> None:
        a, b = [p[0] for p in pairs], [p[1] for p in pairs]
        acc, src = unaligned(to_bytes(a), at), unaligned(to_bytes(b), off)
        kernels.ring_add(acc, src)
        assert acc == to_bytes([x + y for x, y in pairs])
        kernels.ring_sub(acc, src)
        kernels.ring_sub(acc, src)
        assert acc == to_bytes([x - y for x, y in pairs])

    def test_ring_takes_any_buffer_and_adds_to_itself(self, kernels: ModuleType) -> None:
        grid = np.full((3, 5), 2**63 + 1, np.uint64)
        kernels.ring_add(grid, grid)
        kernels.ring_add(grid, array("B", to_bytes([40] * 15)))
        assert (grid == 42).all()

    def test_packing_known_answer(self, kernels: ModuleType) -> None:
        # Count 1, weight 59212 in limbs of 13 bits, an update of seven values, at 21 bits a lane.
        lanes = [1, 59212 % 2**13, 59212 >> 13, 2798, 4997, -7820, 5045, -510, 251, 2134, 0, 0]
        out = bytearray(32)
        kernels.pack_lanes(out, array("i", lanes), 21)
        assert out.hex() == "010080e9001c0000ee0aa07002d085ffb51340c0ffeb03005608000000000000"

    @given(run=lane_runs(), at=offsets)
    def test_packing_is_the_sum_of_shifted_lanes(self, kernels: ModuleType, run: tuple[int, list[int]], at: int) -> None:
        bits, lanes = run
        per_word = 64 // bits
        rows = [lanes[i : i + per_word] for i in range(0, len(lanes), per_word)]
        out = unaligned(bytes(8 * len(rows)), at)
        kernels.pack_lanes(out, array("i", lanes), bits)
        assert to_words(out) == [sum(x << (k * bits) for k, x in enumerate(row)) & MASK64 for row in rows]
        back = array("i", [99] * len(lanes))
        kernels.unpack_lanes(back, out, bits)
        assert list(back) == lanes

    @pytest.mark.parametrize("bits", ALL_BITS)
    def test_sums_of_packed_words_are_packed_sums(self, kernels: ModuleType, bits: int) -> None:
        limit, per_word = 2 ** (bits - 1) - 1, 64 // bits
        clients = min(limit, 5)
        bound = limit // clients
        signs = [[(-1) ** (client * (k % 2) + k) for k in range(2 * per_word)] for client in range(clients)]
        total, packed = bytearray(16), bytearray(16)
        for row in signs:
            kernels.pack_lanes(packed, array("i", [bound * sign for sign in row]), bits)
            kernels.ring_add(total, packed)
        out = array("i", [0] * (2 * per_word))
        kernels.unpack_lanes(out, total, bits)
        assert list(out) == [bound * sum(column) for column in zip(*signs, strict=True)]

    @given(row=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=4, max_size=4))
    def test_values_beyond_a_lane_carry_into_the_next(self, kernels: ModuleType, row: list[int]) -> None:
        out = bytearray(8)
        kernels.pack_lanes(out, array("i", row), 16)
        assert to_words(out) == [sum(x << (16 * k) for k, x in enumerate(row)) & MASK64]

    @given(word=st.integers(0, MASK64), bits=st.sampled_from(ALL_BITS))
    def test_unpacking_any_word(self, kernels: ModuleType, word: int, bits: int) -> None:
        out, expected, rest = array("i", [0] * (64 // bits)), [], word
        for _ in out:
            low = rest % 2**bits
            signed = low - (low >> (bits - 1) << bits)
            expected.append(signed)
            rest = (rest - signed) >> bits
        kernels.unpack_lanes(out, to_bytes([word]), bits)
        assert list(out) == expected

    @pytest.mark.parametrize(
        ("key", "block", "expected"),
        [  # RFC 8439, appendix A.1, vectors 2, 3 and 4: those with nonce 0 and a counter from 1 on
            (
                bytes(32),
                1,
                "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
                "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f",
            ),
            (
                bytes(31) + b"\x01",
                1,
                "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"
                "8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0",
            ),
            (
                b"\x00\xff" + bytes(30),
                2,
                "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca"
                "13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096",
            ),
        ],
    )
    def test_mask_is_the_chacha20_of_rfc_8439(self, kernels: ModuleType, key: bytes, block: int, expected: str) -> None:
        acc = bytearray(64)
        kernels.mask_add(acc, key, 8 * (block - 1))
        assert acc.hex() == expected

    def test_long_mask_is_the_keystream_of_the_aead(self, kernels: ModuleType) -> None:
        key, size = bytes(range(32)), 8 * 40_003
        keystream = crypto_aead_chacha20poly1305_ietf_encrypt(bytes(size), None, bytes(12), key)[:size]
        acc = bytearray(size)
        kernels.mask_add(acc, key, 0)
        assert acc == keystream
        for first in (1, 8 * 16, 39_000):
            part = bytearray(size - 8 * first)
            kernels.mask_add(part, key, first)
            assert part == keystream[8 * first :]

    @settings(max_examples=60)
    @given(
        key=keys,
        first=st.integers(0, 600) | st.integers(0, STREAM_WORDS - 300) | st.just(STREAM_WORDS - 300),
        acc=st.lists(st.integers(0, MASK64), max_size=300),
        at=offsets,
    )
    def test_mask_is_seekable_and_subtracts(self, kernels: ModuleType, key: bytes, first: int, acc: list[int], at: int) -> None:
        mask = stream(key, first, len(acc))
        total = unaligned(to_bytes(acc), at)
        kernels.mask_add(total, key, first)
        assert total == to_bytes([x + m for x, m in zip(acc, mask, strict=True)])
        kernels.mask_sub(total, key, first)
        kernels.mask_sub(total, key, first)
        assert total == to_bytes([x - m for x, m in zip(acc, mask, strict=True)])

    def test_mask_reaches_the_last_counter_value(self, kernels: ModuleType) -> None:
        key, first = bytes(range(32)), STREAM_WORDS - 200
        acc = bytearray(1600)
        kernels.mask_add(acc, key, first)
        assert to_words(acc) == stream(key, first, 200)
        kernels.mask_add(bytearray(0), key, STREAM_WORDS)

    @settings(max_examples=40)
    @given(polynomial=polynomials(), data=st.data())
    def test_shares_are_values_and_any_threshold_of_them_recovers(
        self, kernels: ModuleType, polynomial: tuple[bytes, bytes, int], data: st.DataObject
    ) -> None:
        secret, coefficients, n = polynomial
        threshold = 1 + len(coefficients) // 32
        shares = kernels.shamir_share(secret, coefficients, n)
        assert shares == b"".join(slow_share(secret, coefficients, x) for x in range(1, n + 1))
        order = data.draw(st.permutations(range(1, n + 1)))
        enough = order[: data.draw(st.integers(threshold, n))]
        assert kernels.shamir_combine(enough, pick(shares, enough)) == secret
        if threshold > 1:  # one too few is off by (highest coefficient) * (product of xs): never by 0
            few = order[: threshold - 1]
            wrong = kernels.shamir_combine(tuple(few), pick(shares, few))
            assert all(wrong[i : i + 2] != secret[i : i + 2] for i in range(0, 32, 2))

    def test_shares_at_the_edge_of_the_field(self, kernels: ModuleType) -> None:
        secret, coefficients = bytes(range(200, 232)), bytes(range(1, 97))
        shares = kernels.shamir_share(secret, coefficients, 65535)
        xs = [65535, 32768, 4097, 2]
        assert pick(shares, [65535]) == slow_share(secret, coefficients, 65535)
        assert kernels.shamir_combine(xs, pick(shares, xs)) == secret

    def test_rotation_known_answer(self, kernels: ModuleType) -> None:
        # Signs of values 1, 4 and 6; blocks of 4, 2 and 1, so that all but the block of 2 is exact.
        values = array("f", [1, 2, 3, 4, 5, 6, -7])
        kernels.rotate(values, bytes([0b1010010]), 4)
        assert list(values[:4]) == [3, 1, -4, 2]
        assert list(values[4:6]) == pytest.approx([1 / 2**0.5, -11 / 2**0.5], rel=1e-7)
        assert values[6] == 7

    @given(case=rotations(), at=offsets)
    def test_rotation_is_hadamards_matrix_and_undone(
        self, kernels: ModuleType, case: tuple[np.ndarray, bytes, int], at: int
    ) -> None:
        values, signs, block = case
        held = unaligned(values.tobytes(), at).cast("f")
        kernels.rotate(held, signs, block)
        allowed = 4e-7 * np.linalg.norm(values)
        assert np.abs(np.array(held) - rotated(values, signs, block)).max() <= allowed
        kernels.unrotate(held, signs, block)
        assert np.abs(np.array(held) - values).max() <= allowed

    @pytest.mark.parametrize("case", REFUSALS)
    def test_refuses(self, kernels: ModuleType, case: str) -> None:
        error, call = REFUSALS[case]
        with pytest.raises(error) as caught:
            call(kernels)
        assert caught.type is error

    def test_refusal_leaves_the_accumulator_alone(self, kernels: ModuleType) -> None:
        acc = bytearray(to_bytes([1, 2]))
        for call in (
            lambda: kernels.ring_add(acc, bytes(8)),
            lambda: kernels.mask_add(acc, bytes(32), STREAM_WORDS - 1),
            lambda: kernels.pack_lanes(acc, array("i", [5] * 7), 16),
        ):
            with pytest.raises(ValueError):
                call()
        assert to_words(acc) == [1, 2]
        acc.append(0)  # no buffer is still held


@NEEDS_EXTENSION
@pytest.mark.parametrize("count", [0, 1, 4096, 6090, 100_003])
def test_rotation_has_the_same_bits_in_both(count: int) -> None:
    native, twin = (importlib.import_module(f"whimbrel_kernels.{name}") for name in ("_native", "_numpy"))
    rng = np.random.default_rng(count)
    first = rng.standard_t(3, count).astype(np.float32)
    second, signs = first.copy(), rng.bytes((count + 7) // 8)
    for name in ("rotate", "unrotate"):
        getattr(native, name)(first, signs, 4096)
        getattr(twin, name)(second, signs, 4096)
        assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize(("value", "prefix"), [("1", "numpy"), pytest.param("0", "native", marks=NEEDS_EXTENSION)])
def test_environment_chooses_the_twin(value: str, prefix: str) -> None:
    program = "import whimbrel_kernels as k; print(k.IMPLEMENTATION)"
    environment = {**os.environ, "WHIMBREL_NO_EXT": value, "PYTHONPATH": os.pathsep.join(sys.path)}
    shown = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith(prefix)
