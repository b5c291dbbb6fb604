"""The NumPy twin of the C kernels: the same names, the same bytes, the same exception classes.

Here belongs what `_native` exports, for machines without the extension. Protocol rules do not: these
functions know words, lanes, blocks, keystreams and field elements, not windows or members. A secret is never an
index nor a loop bound, so that time depends on sizes and public values alone.
"""

import operator
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from nacl.bindings import crypto_aead_chacha20poly1305_ietf_encrypt

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    # NumPy's stubs call an array a buffer only from Python 3.12 on.
    Readable: TypeAlias = ReadableBuffer | npt.NDArray[Any]
    Writable: TypeAlias = WriteableBuffer | npt.NDArray[Any]

IMPLEMENTATION = "numpy"

_U16 = npt.NDArray[np.uint16]
_U32 = npt.NDArray[np.uint32]
_U64 = npt.NDArray[np.uint64]
_F32 = npt.NDArray[np.float32]

_KEY_BYTES = 32
_SECRET_BYTES = 32
_SYMBOLS = _SECRET_BYTES // 2
_BLOCK_MAX = 2**20
_WORDS_PER_BLOCK = 8
# Counters run from 1 to 2^32 - 1, hence one block less than the counter has values.
_STREAM_WORDS = _WORDS_PER_BLOCK * (2**32 - 1)
# libsodium makes keystream three times as fast as NumPy does (0.55 against 0.19 GB/s), but only from
# block 1 on; NumPy costs no less than 4096 blocks of libsodium even for one. 4096 blocks are also the
# piece for which NumPy's calls no longer matter and its arrays still stay in the second-level cache.
_AEAD_REACH = 3
_BLOCKS_PER_PIECE = 4096


# ---- ring Z_2^64 ---------------------------------------------------------------------------------


def ring_add(acc: "Writable", src: "Readable", /) -> None:
    """Add `src` to `acc`, both little-endian u64 words of any alignment, modulo 2^64.

    The buffers have equal sizes, a multiple of 8 bytes; they are the same or do not overlap.
    Raises ValueError (size, read-only, not contiguous) or TypeError (no buffer).
    """
    total, addend = _word_pair(acc, src)
    np.add(total, addend, out=total)


def ring_sub(acc: "Writable", src: "Readable", /) -> None:
    """Subtract `src` from `acc`; arguments and errors as for `ring_add`."""
    total, addend = _word_pair(acc, src)
    np.subtract(total, addend, out=total)


def _word_pair(acc: "Writable", src: "Readable") -> tuple[_U64, _U64]:
    total, addend = _words(acc, "acc", writable=True), _words(src, "src")
    if total.size != addend.size:
        raise ValueError(f"src must have as many bytes as acc: {8 * addend.size} != {8 * total.size}")
    return total, addend


# ---- signed lanes --------------------------------------------------------------------------------


def pack_lanes(out: "Writable", lanes: "Readable", bits: int, /) -> None:
    """Pack int32 `lanes`, L = 64 // bits to a word, into u64 words: sum_k x_k * 2^(k*bits) mod 2^64.

    Two's complement with borrows: a negative lane takes from the lane above, so that sums of packed
    words are packed sums. `lanes` holds a multiple of L values, `out` 8 bytes for each L of them;
    bits is 2..32. Values are taken as they are: the caller keeps each sum within a lane.
    Raises ValueError or TypeError (`lanes` is no int32 buffer).
    """
    width = _integer(bits, "bits", 2, 32)
    per_word = 64 // width
    values, words = _int32(lanes, "lanes"), _words(out, "out", writable=True)
    if values.size != words.size * per_word:
        raise ValueError(f"lanes must hold {per_word} values for each word of out: {words.size} words, "
                         f"{values.size} values")  # fmt: skip
    total = np.zeros(words.size, np.int64)
    for k in range(per_word):
        total += values[k::per_word].astype(np.int64) << (k * width)
    words[:] = total.view(np.uint64)


def unpack_lanes(out: "Writable", words: "Readable", bits: int, /) -> None:
    """Decode u64 `words` to int32 lanes, the inverse of `pack_lanes` for lanes within bits - 1 bits.

    For each lane from the lowest: s = sign-extended low bits, then v = (v - s) >> bits.
    Bits above the last lane are ignored. Raises ValueError or TypeError (`out` is no int32 buffer).
    """
    width = _integer(bits, "bits", 2, 32)
    per_word = 64 // width
    values, packed = _int32(out, "out", writable=True), _words(words, "words")
    if values.size != packed.size * per_word:
        raise ValueError(f"out must hold {per_word} values for each word of words: {packed.size} words, "
                         f"{values.size} values")  # fmt: skip
    rest, unused = packed.astype(np.int64), 64 - width
    for k in range(per_word):
        lane = (rest << unused) >> unused
        values[k::per_word] = lane
        rest = (rest - lane) >> width


# ---- block Hadamard rotation ---------------------------------------------------------------------


def rotate(values: "Writable", signs: "Readable", block: int, /) -> None:
    """Rotate float32 `values` in place: flip signs, then transform block by block; lengths are kept.

    Value i is negated where bit i % 8 of signs[i // 8] is 1 (`signs` has ceil(count / 8) bytes). Then each
    block of `block` values (a power of two, at most 2^20), and the rest cut into its binary powers of two,
    largest first, goes through the Walsh-Hadamard transform in natural (Sylvester) order times
    1 / sqrt(its length), in float32, strides 1, 2, 4, ... (Suresh et al. 2017, section 3).
    Raises ValueError or TypeError (`values` is no float32 buffer).
    """
    floats, flips, length = _rotation(values, signs, block)
    _flip(floats, flips)
    _transform_blocks(floats, length)


def unrotate(values: "Writable", signs: "Readable", block: int, /) -> None:
    """Undo `rotate`, but for float32 rounding: the transform, then the signs; arguments and errors are the same."""
    floats, flips, length = _rotation(values, signs, block)
    _transform_blocks(floats, length)
    _flip(floats, flips)


def _rotation(values: "Writable", signs: "Readable", block: int) -> tuple[_F32, bytes, int]:
    length = _integer(block, "block", 1, _BLOCK_MAX)
    floats = _float32(values, "values")
    flips = _exactly(signs, "signs", (floats.size + 7) // 8)
    if length & (length - 1):
        raise ValueError(f"block must be a power of two: {length}")
    return floats, flips, length


def _flip(floats: _F32, flips: bytes) -> None:
    # The sign is the float's highest bit: flipping it is exact, for zeros too.
    chosen = np.unpackbits(np.frombuffer(flips, np.uint8), count=floats.size, bitorder="little")
    floats.view("<u4")[:] ^= chosen.astype(np.uint32) << np.uint32(31)


def _transform_blocks(floats: _F32, length: int) -> None:
    whole = floats.size // length * length
    _transform(floats[:whole], length)
    start = whole
    while start < floats.size:
        length = 1 << (floats.size - start).bit_length() - 1
        _transform(floats[start : start + length], length)
        start += length


def _transform(blocks: _F32, length: int) -> None:
    """Transform each `length` values; there is a whole number of blocks."""
    stride = 1
    while stride < length:
        pairs = blocks.reshape(-1, 2, stride)
        total = pairs[:, 0] + pairs[:, 1]
        np.subtract(pairs[:, 0], pairs[:, 1], out=pairs[:, 1])
        pairs[:, 0] = total
        stride *= 2
    blocks *= np.float32(1 / np.sqrt(np.float64(length)))


# ---- mask expansion: ChaCha20, RFC 8439 ----------------------------------------------------------


def mask_add(acc: "Writable", key: "Readable", first_word: int, /) -> None:
    """Add the mask's words first_word, first_word + 1, ... to `acc` (u64 words, modulo 2^64).

    The mask is the ChaCha20 keystream (RFC 8439) of the 32-byte `key` with nonce 0^12 and a counter
    that starts at 1, read as little-endian u64: word w lies in block 1 + w // 8.
    Raises ValueError (sizes; a range past the last counter value) or TypeError.
    """
    total, mask = _masked_words(acc, key, first_word)
    np.add(total, mask, out=total)


def mask_sub(acc: "Writable", key: "Readable", first_word: int, /) -> None:
    """Subtract what `mask_add` adds; arguments and errors are the same."""
    total, mask = _masked_words(acc, key, first_word)
    np.subtract(total, mask, out=total)


def _masked_words(acc: "Writable", key: "Readable", first_word: int) -> tuple[_U64, _U64]:
    total = _words(acc, "acc", writable=True)
    secret = _exactly(key, "key", _KEY_BYTES)
    first = _integer(first_word, "first_word", 0, _STREAM_WORDS)
    if total.size > _STREAM_WORDS - first:
        raise ValueError(f"first_word {first} and {total.size} words run past the counter's {_STREAM_WORDS}")
    block, skip = divmod(first, _WORDS_PER_BLOCK)
    blocks = -(-(skip + total.size) // _WORDS_PER_BLOCK)
    return total, _keystream(secret, block, blocks)[skip : skip + total.size]


def _keystream(key: bytes, first_block: int, blocks: int) -> _U64:
    """Words of the blocks with counters first_block + 1 and on."""
    if first_block + blocks <= max(_AEAD_REACH * blocks, _BLOCKS_PER_PIECE):
        zeros = bytes(64 * (first_block + blocks))
        sealed = crypto_aead_chacha20poly1305_ietf_encrypt(zeros, None, bytes(12), key)
        return np.frombuffer(sealed, "<u8", 8 * blocks, offset=64 * first_block)
    stream = np.empty((blocks, 16), "<u4")
    for start in range(0, blocks, _BLOCKS_PER_PIECE):
        piece = stream[start : start + _BLOCKS_PER_PIECE]
        piece[:] = _chacha20_blocks(key, 1 + first_block + start, len(piece))
    return stream.view("<u8").reshape(-1)


def _chacha20_blocks(key: bytes, counter: int, blocks: int) -> _U32:
    """Keystream blocks as rows of 16 u32 (RFC 8439, section 2.3), a block to a column while mixing."""
    start = np.zeros((4, 4, blocks), np.uint32)
    start[0] = np.frombuffer(b"expand 32-byte k", "<u4")[:, None]
    start[1:3] = np.frombuffer(key, "<u4").reshape(2, 4, 1)
    start[3, 0] = np.arange(counter, counter + blocks, dtype=np.uint64).astype(np.uint32)
    a, b, c, d = start.copy()
    for _ in range(10):
        _quarter_rounds(a, b, c, d)
        # Turning rows makes columns of the diagonals, and turning them on makes columns again.
        b, c, d = np.roll(b, -1, 0), np.roll(c, -2, 0), np.roll(d, -3, 0)
        _quarter_rounds(a, b, c, d)
        b, c, d = np.roll(b, 1, 0), np.roll(c, 2, 0), np.roll(d, 3, 0)
    return (np.stack((a, b, c, d)) + start).reshape(16, blocks).T


def _quarter_rounds(a: _U32, b: _U32, c: _U32, d: _U32) -> None:
    for total, addend, target, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        total += addend
        target ^= total
        high = target << np.uint32(turn)
        target >>= np.uint32(32 - turn)
        target |= high


# ---- Shamir sharing over GF(2^16) = GF(2)[x] / (x^16 + x^12 + x^3 + x + 1) ----------------------


def shamir_share(secret: "Readable", coefficients: "Readable", n: int, /) -> bytes:
    """Share 32 bytes, sixteen little-endian symbols, among n members: 32 bytes for each, in order.

    The secret's symbols are constant terms; bytes 32(k-1)..32k-1 of `coefficients` are the sixteen
    coefficients of x^k; member i (from 0) gets the values at x = i + 1 (Shamir 1979).
    The threshold is one more than the number of coefficient rows and at most n; n is 1..65535.
    """
    constant = np.frombuffer(_exactly(secret, "secret", _SECRET_BYTES), "<u2").astype(np.uint16)
    rows = _symbol_rows(coefficients, "coefficients")
    x = np.arange(1, _integer(n, "n", 1, 65535) + 1, dtype=np.uint16)[:, None]
    if len(rows) >= len(x):
        raise ValueError(f"threshold {len(rows) + 1} is above the number of members {len(x)}")
    y = np.zeros((len(x), _SYMBOLS), np.uint16)
    for row in rows[::-1]:
        y = _gf_multiply(y ^ row, x)
    return (y ^ constant).astype("<u2").tobytes()


def shamir_combine(xs: Iterable[int], shares: "Readable", /) -> bytes:
    """Recover the 32-byte secret from shares (32 bytes each) at the distinct points xs, 1..65535.

    Lagrange interpolation at 0. With fewer shares than the threshold the result is an unrelated value:
    the caller knows the threshold. Raises ValueError or TypeError.
    """
    points = tuple(_integer(x, "x", 1, 65535) for x in xs)
    rows = _symbol_rows(shares, "shares")
    if not points or len(rows) != len(points):
        raise ValueError(f"shares must be 32 bytes for each of xs, at least one: {len(points)} xs, "
                         f"{len(rows)} shares")  # fmt: skip
    if len(set(points)) != len(points):
        raise ValueError("xs must be distinct")
    terms = _gf_multiply(rows, _lagrange_at_zero(points)[:, None])
    secret: _U16 = np.bitwise_xor.reduce(terms, axis=0)
    return secret.astype("<u2").tobytes()


@lru_cache(maxsize=8)  # one window combines many secrets at the same, public, points
def _lagrange_at_zero(points: tuple[int, ...]) -> _U16:
    """Coefficients prod_{j != i} x_j / (x_j - x_i) as (product of all x) / (x_i * prod (x_i - x_j))."""
    x = np.array(points, np.uint16)
    numerator, denominator = np.ones_like(x), x.copy()
    for i, point in enumerate(x):
        numerator = _gf_multiply(numerator, np.full_like(x, point))
        difference = x ^ point
        difference[i] = 1
        denominator = _gf_multiply(denominator, difference)
    return _gf_multiply(numerator, _gf_inverse(denominator))


def _gf_inverse(a: _U16) -> _U16:
    """a^(2^16 - 2), by Fermat: the product of a^2, a^4, ..., a^32768."""
    square, inverse = a, np.ones_like(a)
    for _ in range(15):
        square = _gf_multiply(square, square)
        inverse = _gf_multiply(inverse, square)
    return inverse


def _gf_multiply(a: _U16, public: _U16) -> _U16:
    """Field product, shift and add. Takes as many steps as the longest `public` factor has bits."""
    product: _U16 = np.zeros(np.broadcast_shapes(a.shape, public.shape), np.uint16)
    for bit in reversed(range(int(public.max()).bit_length())):
        product = (product << np.uint16(1)) ^ ((product >> np.uint16(15)) * np.uint16(0x100B))
        product ^= a * ((public >> np.uint16(bit)) & np.uint16(1))
    return product


# ---- arguments -----------------------------------------------------------------------------------


def _view(buffer: "Readable", name: str, writable: bool) -> memoryview:
    try:
        view = memoryview(cast("ReadableBuffer", buffer))
    except TypeError:
        raise TypeError(f"{name} must be a buffer, not {type(buffer).__name__}") from None
    if not view.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous")
    if writable and view.readonly:
        raise ValueError(f"{name} must be writable")
    return view


def _words(buffer: "Readable", name: str, writable: bool = False) -> _U64:
    view = _view(buffer, name, writable)
    if view.nbytes % 8:
        raise ValueError(f"{name} must be a multiple of 8 bytes: {view.nbytes}")
    return np.frombuffer(view, "<u8")


def _int32(buffer: "Readable", name: str, writable: bool = False) -> npt.NDArray[np.int32]:
    return np.frombuffer(_typed(buffer, name, ("int32", "il"), writable), "<i4")


def _float32(buffer: "Writable", name: str) -> _F32:
    return np.frombuffer(_typed(buffer, name, ("float32", "f"), True), "<f4")


def _typed(buffer: "Readable", name: str, kind: tuple[str, str], writable: bool) -> memoryview:
    """A buffer of one 4-byte type: its name, and the letters that the struct module has for it."""
    view, (type_name, codes) = _view(buffer, name, writable), kind
    code = view.format.lstrip("@=<")
    if view.itemsize != 4 or len(code) != 1 or code not in codes:
        raise TypeError(f"{name} must be a buffer of {type_name}, not of format {view.format!r}")
    return view


def _exactly(buffer: "Readable", name: str, size: int) -> bytes:
    view = _view(buffer, name, False)
    if view.nbytes != size:
        raise ValueError(f"{name} must be {size} bytes: {view.nbytes}")
    return view.tobytes()


def _symbol_rows(buffer: "Readable", name: str) -> _U16:
    view = _view(buffer, name, False)
    if view.nbytes % _SECRET_BYTES:
        raise ValueError(f"{name} must be a multiple of {_SECRET_BYTES} bytes: {view.nbytes}")
    return np.frombuffer(view, "<u2").astype(np.uint16).reshape(-1, _SYMBOLS)


def _integer(value: Any, name: str, low: int, high: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}") from None
    if not low <= number <= high:
        raise ValueError(f"{name} must be {low}..{high}")
    return number
