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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import zstandard

from whimbrel_protocol.errors import Code, WireError
from whimbrel_protocol.messages import ModelDelta, TensorDelta

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

LIMIT = 2**24  # integers below this magnitude are exact in float32
PARAMETERS_MAX = 2**31
_LEVEL = 1  # higher levels are slower and no smaller on byte planes


@dataclass(frozen=True)
class LatticeTensor:
    """`integers` (int64, flat) in units of 2**`exponent`."""

    exponent: int
    integers: Int64

    def values(self) -> Float32:
        """Return the tensor in float32, flat; exact by construction."""
        return np.ldexp(self.integers.astype(np.float64), self.exponent).astype(np.float32)


Lattice = tuple[LatticeTensor, ...]


def step_exponent(values: npt.NDArray[np.floating], fraction: float) -> int:
    """Return the exponent of the greatest power of two at most `fraction` times the root mean square of `values`.

    The exponent is raised where |integers| would otherwise reach 2**24. A tensor of zeros gets a step of 2**-24. Raises
    WireError 103 where a value is not finite.
    """
    peak = float(np.max(np.abs(values), initial=0.0))
    if not math.isfinite(peak):
        raise WireError(Code.BAD_DELTA, "a parameter is not finite")
    if peak == 0.0:
        return -24
    # Scaled by the peak, so that neither the squares of large values overflow nor those of small ones vanish.
    mean_square = float(np.mean(np.square(values.astype(np.float64) / peak)))
    coarsest = math.floor(math.log2(fraction) + math.log2(peak) + math.log2(mean_square) / 2)
    finest = math.ceil(math.log2(peak) - math.log2(LIMIT - 1))
    return max(coarsest, finest, -126)


def quantise(values: npt.NDArray[np.floating], exponent: int) -> LatticeTensor:
    """Return the lattice point nearest to `values` (any shape). Raises WireError 103 where one is not finite or too large."""
    scaled = np.rint(np.ldexp(values.astype(np.float64).ravel(), -exponent))
    if not np.all(np.isfinite(scaled)) or (scaled.size and float(np.max(np.abs(scaled))) >= LIMIT):
        raise WireError(Code.BAD_DELTA, f"a parameter is not finite or exceeds 2**24 steps of 2**{exponent}")
    return _checked(LatticeTensor(exponent, scaled.astype(np.int64)), "a parameter")


def model_hash(tensors: Sequence[Float32]) -> bytes:
    """Return the SHA-256 of the little-endian float32 parameters in plan order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(np.ascontiguousarray(tensor, dtype="<f4").tobytes())
    return digest.digest()


def lattice_hash(lattice: Lattice) -> bytes:
    """Return the model hash of a lattice."""
    return model_hash([tensor.values() for tensor in lattice])


def snapshot(version: int, new: Lattice) -> ModelDelta:
    """Return the whole of `new`, as version `version`."""
    coded = tuple(_code(tensor.integers, tensor.exponent) for tensor in new)
    return ModelDelta(0, version, lattice_hash(new), coded, snapshot=True)


def delta(old_version: int, old: Lattice, new_version: int, new: Lattice) -> ModelDelta:
    """Return the difference of two versions of the same model. Raises WireError 103 if a step was raised."""
    coded = tuple(_code(b.integers - _rescaled(a, b.exponent), b.exponent) for a, b in zip(old, new, strict=True))
    return ModelDelta(old_version, new_version, lattice_hash(new), coded)


def apply(change: ModelDelta, shapes: Mapping[str, tuple[int, ...]], old: Lattice | None = None) -> Lattice:
    """Return the lattice that `change` leads to, from `old` where it is a difference.

    `shapes` gives each parameter's shape in plan order. Raises WireError 103 where anything does not fit: number of tensors,
    counts, planes, magnitudes, or the hash of the result.
    """
    if change.snapshot == (old is not None) or len(change.tensors) != len(shapes):
        raise WireError(Code.BAD_DELTA, "a delta needs the version that it starts from, a snapshot none, both every tensor")
    if old is not None and [tensor.integers.size for tensor in old] != [math.prod(shape) for shape in shapes.values()]:
        raise WireError(Code.BAD_DELTA, "the version that the delta starts from has other shapes")
    result = []
    for index, (name, shape) in enumerate(shapes.items()):
        tensor = change.tensors[index]
        integers = _decode(tensor, math.prod(shape), name)
        base = _rescaled(old[index], tensor.exponent) if old is not None else np.int64(0)
        result.append(_checked(LatticeTensor(tensor.exponent, integers + base), name))
    lattice = tuple(result)
    if lattice_hash(lattice) != change.model_hash:
        raise WireError(Code.BAD_DELTA, "the decoded model does not have the hash that the delta names")
    return lattice


def _rescaled(tensor: LatticeTensor, exponent: int) -> Int64:
    shift = tensor.exponent - exponent
    if not 0 <= shift <= 38:
        raise WireError(Code.BAD_DELTA, f"a step of 2**{tensor.exponent} cannot become 2**{exponent}")
    return tensor.integers << shift


def _checked(tensor: LatticeTensor, name: str) -> LatticeTensor:
    if not -149 <= tensor.exponent <= 103:
        raise WireError(Code.BAD_DELTA, f"{name}: a step of 2**{tensor.exponent} is not exact in float32")
    if tensor.integers.size and int(np.max(np.abs(tensor.integers))) >= LIMIT:
        raise WireError(Code.BAD_DELTA, f"{name}: an integer reaches 2**24")
    return tensor


def _code(integers: Int64, exponent: int) -> TensorDelta:
    if integers.size and int(np.max(np.abs(integers))) >= 2**31:
        raise WireError(Code.BAD_DELTA, "two versions are too far apart for a delta")
    zigzag = ((integers << 1) ^ (integers >> 63)).astype("<u4")
    planes = np.ascontiguousarray(zigzag.view(np.uint8).reshape(-1, 4).T)
    return TensorDelta(integers.size, exponent, zstandard.ZstdCompressor(level=_LEVEL).compress(planes.tobytes()))


def _decode(tensor: TensorDelta, count: int, name: str) -> Int64:
    if tensor.count != count or count > PARAMETERS_MAX:
        raise WireError(Code.BAD_DELTA, f"{name}: {tensor.count} values, not {count}")
    raw = decompress(tensor.planes, 4 * count)
    if len(raw) != 4 * count:
        raise WireError(Code.BAD_DELTA, f"{name}: {len(raw)} bytes of planes, not {4 * count}")
    planes = np.frombuffer(raw, np.uint8).reshape(4, -1)
    zigzag = np.ascontiguousarray(planes.T).view("<u4").ravel().astype(np.int64)
    return (zigzag >> 1) ^ -(zigzag & 1)


def decompress(data: bytes, limit: int) -> bytes:
    """Return the one zstd frame in `data`, of at most `limit` bytes. Raises WireError 103 on anything else."""
    try:
        stated = zstandard.frame_content_size(data)
        if not 0 <= stated <= limit:
            raise WireError(Code.BAD_DELTA, f"a frame of {stated} bytes, not 0 to {limit}")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=max(stated, 1), allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WireError(Code.BAD_DELTA, f"not a zstd frame: {error}") from error


def compress(data: bytes) -> bytes:
    """Return `data` as one zstd frame that states its size."""
    return zstandard.ZstdCompressor(level=_LEVEL).compress(data)
