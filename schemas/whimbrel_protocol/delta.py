"""Published parameters on an exact lattice, and the deltas between them.

A published tensor is an array of integers times a power of two (its step), with |integer| < 2**24, hence exact in float32. So
any chain of deltas, any composite and the snapshot give the same bits on every platform. A step may be halved from one version
to the next, never raised: the difference of two versions is a whole number of the newer step. Coding: zigzag integers in four
byte planes, lowest first, zstd level 1.

What belongs here: quantising to the lattice, coding, decoding. What does not: what is published when (the server's registry).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import zstandard

from whimbrel_protocol.errors import Code, WireError
from whimbrel_protocol.messages import ModelDelta, TensorDelta

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

LIMIT = 2**24  # integers below this magnitude are exact in float32
PARAMETERS_MAX = 2**31
_LEVEL = 1  # higher levels are slower and no smaller on byte planes
# Values at a time, so that the float64 and int64 between two int32 arrays do not cost memory by the size of a model.
_BLOCK = 2**16


@dataclass(frozen=True)
class LatticeTensor:
    """`integers` (int32, flat) in units of 2**`exponent`."""

    exponent: int
    integers: Int32

    def values(self) -> Float32:
        """Return the tensor in float32, flat; exact by construction."""
        floats = self.integers.astype(np.float32)
        return np.ldexp(floats, self.exponent, out=floats)


Lattice = tuple[LatticeTensor, ...]


def step_exponent(values: npt.NDArray[np.floating], fraction: float) -> int:
    """Return the exponent of the greatest power of two at most `fraction` times the root mean square of `values`.

    The exponent is raised where |integers| would otherwise reach 2**24. A tensor of zeros gets a step of 2**-24. Raises
    WireError 103 where a value is not finite.
    """
    peak = greatest(values)
    if not math.isfinite(peak):
        raise WireError(Code.BAD_DELTA, "a parameter is not finite")
    if peak == 0.0:
        return -24
    # Scaled by the peak, so that neither the squares of large values overflow nor those of small ones vanish.
    flat = values.ravel()
    squares = sum(float(np.sum(np.square(flat[at].astype(np.float64) / peak))) for at in _blocks(flat.size))
    coarsest = math.floor(math.log2(fraction) + math.log2(peak) + math.log2(squares / flat.size) / 2)
    finest = math.ceil(math.log2(peak) - math.log2(LIMIT - 1))
    return max(coarsest, finest, -126)


def greatest(values: npt.NDArray[np.floating] | Int32 | Int64) -> float:
    """Return the largest magnitude of `values` (any shape; 0 of none, NaN where one is)."""
    return max(float(np.max(values, initial=0)), -float(np.min(values, initial=0)))


def quantise(values: npt.NDArray[np.floating], exponent: int) -> LatticeTensor:
    """Return the lattice point nearest to `values` (any shape). Raises WireError 103 where one is not finite or too large."""
    flat = values.ravel()
    integers = np.empty(flat.size, np.int32)
    for at in _blocks(flat.size):
        scaled = np.rint(np.ldexp(flat[at].astype(np.float64), -exponent))
        if not greatest(scaled) < LIMIT:
            raise WireError(Code.BAD_DELTA, f"a parameter is not finite or exceeds 2**24 steps of 2**{exponent}")
        integers[at] = scaled
    return LatticeTensor(_checked(exponent, "a parameter"), integers)


def _blocks(size: int) -> Iterator[slice]:
    return (slice(start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK))


def model_hash(tensors: Iterable[Float32]) -> bytes:
    """Return the SHA-256 of the little-endian float32 parameters in plan order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(np.ascontiguousarray(tensor, dtype="<f4").data)
    return digest.digest()


def lattice_hash(lattice: Lattice) -> bytes:
    """Return the model hash of a lattice."""
    parts = (LatticeTensor(each.exponent, each.integers[at]) for each in lattice for at in _blocks(each.integers.size))
    return model_hash(part.values() for part in parts)


def snapshot(version: int, new: Lattice, new_hash: bytes = b"") -> ModelDelta:
    """Return the whole of `new`, version `version`; `new_hash` is its model hash, where that is known already."""
    return ModelDelta(0, version, new_hash or lattice_hash(new), tuple(_code(tensor) for tensor in new), snapshot=True)


def delta(old_version: int, old: Lattice, new_version: int, new: Lattice, new_hash: bytes = b"") -> ModelDelta:
    """Return the difference of two versions of the same model, `new_hash` as in `snapshot`.

    Raises WireError 103 if a step was raised, or a parameter moved by 2**31 steps.
    """
    coded = tuple(_code(after, before) for before, after in zip(old, new, strict=True))
    return ModelDelta(old_version, new_version, new_hash or lattice_hash(new), coded)


def apply(change: ModelDelta, shapes: Mapping[str, tuple[int, ...]], old: Lattice | None = None) -> Lattice:
    """Return the lattice that `change` leads to, from `old` where it is a difference.

    `shapes` gives each parameter's shape in plan order. Raises WireError 103 where anything does not fit: number of tensors,
    counts, planes, magnitudes, or the hash of the result.
    """
    if change.snapshot == (old is not None) or len(change.tensors) != len(shapes):
        raise WireError(Code.BAD_DELTA, "a delta needs the version that it starts from, a snapshot none, both every tensor")
    if old is not None and [tensor.integers.size for tensor in old] != [math.prod(shape) for shape in shapes.values()]:
        raise WireError(Code.BAD_DELTA, "the version that the delta starts from has other shapes")
    before: Sequence[LatticeTensor | None] = old if old is not None else [None] * len(shapes)
    rows = zip(change.tensors, shapes.items(), before, strict=True)
    lattice = tuple(_decode(tensor, math.prod(shape), name, base) for tensor, (name, shape), base in rows)
    if lattice_hash(lattice) != change.model_hash:
        raise WireError(Code.BAD_DELTA, "the decoded model does not have the hash that the delta names")
    return lattice


def _rescaled(tensor: LatticeTensor, exponent: int, at: slice) -> Int64:
    shift = tensor.exponent - exponent
    if not 0 <= shift <= 38:
        raise WireError(Code.BAD_DELTA, f"a step of 2**{tensor.exponent} cannot become 2**{exponent}")
    return tensor.integers[at].astype(np.int64) << shift


def _checked(exponent: int, name: str) -> int:
    if not -149 <= exponent <= 103:
        raise WireError(Code.BAD_DELTA, f"{name}: a step of 2**{exponent} is not exact in float32")
    return exponent


def _code(new: LatticeTensor, old: LatticeTensor | None = None) -> TensorDelta:
    """The byte planes of `new`, or of its difference from `old`."""
    planes = np.empty((4, new.integers.size), np.uint8)
    for at in _blocks(new.integers.size):
        change = new.integers[at].astype(np.int64)
        if old is not None:
            change -= _rescaled(old, new.exponent, at)
        if greatest(change) >= 2**31:
            raise WireError(Code.BAD_DELTA, "two versions are too far apart for a delta")
        zigzag = ((change << 1) ^ (change >> 63)).astype("<u4")
        planes[:, at] = zigzag.view(np.uint8).reshape(-1, 4).T
    return TensorDelta(new.integers.size, new.exponent, compress(planes.data))


def _decode(tensor: TensorDelta, count: int, name: str, old: LatticeTensor | None) -> LatticeTensor:
    """The tensor that the planes give, on top of `old` where they are a difference."""
    if tensor.count != count or count > PARAMETERS_MAX:
        raise WireError(Code.BAD_DELTA, f"{name}: {tensor.count} values, not {count}")
    raw = decompress(tensor.planes, 4 * count)
    if len(raw) != 4 * count:
        raise WireError(Code.BAD_DELTA, f"{name}: {len(raw)} bytes of planes, not {4 * count}")
    planes = np.frombuffer(raw, np.uint8).reshape(4, -1)
    integers = np.empty(count, np.int32)
    for at in _blocks(count):
        zigzag = np.ascontiguousarray(planes[:, at].T).view("<u4").ravel().astype(np.int64)
        reached = (zigzag >> 1) ^ -(zigzag & 1)
        if old is not None:
            reached += _rescaled(old, tensor.exponent, at)
        if greatest(reached) >= LIMIT:
            raise WireError(Code.BAD_DELTA, f"{name}: an integer reaches 2**24")
        integers[at] = reached
    return LatticeTensor(_checked(tensor.exponent, name), integers)


def decompress(data: bytes, limit: int) -> bytes:
    """Return the one zstd frame in `data`, of at most `limit` bytes. Raises WireError 103 on anything else."""
    try:
        stated = zstandard.frame_content_size(data)
        if not 0 <= stated <= limit:
            raise WireError(Code.BAD_DELTA, f"a frame of {stated} bytes, not 0 to {limit}")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=max(stated, 1), allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WireError(Code.BAD_DELTA, f"not a zstd frame: {error}") from error


def compress(data: bytes | memoryview) -> bytes:
    """Return `data` as one zstd frame that states its size."""
    return zstandard.ZstdCompressor(level=_LEVEL).compress(data)
