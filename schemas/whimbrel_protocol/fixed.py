"""What a plan hands over once: frozen weights that its graphs only name, and the start of parameters that stay on the device.

Here belong the blob's bytes: one zstd frame of all tensors, little-endian and flat, in the order of `PlanBody.fixed`. A device
keeps its own local parameters in the same form.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from whimbrel_protocol.delta import compress, decompress
from whimbrel_protocol.errors import Code, WireError
from whimbrel_protocol.messages import Binding

Array = npt.NDArray[Any]

FIXED_MAX = 2**30
ROLES = ("frozen", "local")
_DTYPES = ("float32", "float64", "int64", "int32", "int8", "uint8", "bool")


def encode(tensors: Iterable[Array]) -> bytes:
    """Return the blob of these tensors, in order."""
    return compress(b"".join(np.ascontiguousarray(one, one.dtype.newbyteorder("<")).tobytes() for one in tensors))


def decode(data: bytes, bindings: Sequence[Binding]) -> Mapping[str, Array]:
    """Return the tensors by name.

    Raises WireError 103 for anything but exactly those of `bindings`, 202 for bindings that no such blob may have.
    """
    sizes = [_bytes_of(one) for one in bindings]
    total = sum(sizes)
    if total > FIXED_MAX:
        raise WireError(Code.BAD_FIELD, f"fixed tensors of {total} bytes, not at most {FIXED_MAX}")
    raw = decompress(data, total)
    if len(raw) != total:
        raise WireError(Code.BAD_DELTA, f"fixed tensors have {len(raw)} bytes, not {total}")
    starts = np.cumsum([0, *sizes])
    return {one.name: _tensor(raw, int(start), one) for one, start in zip(bindings, starts, strict=False)}


def _bytes_of(binding: Binding) -> int:
    if binding.role not in ROLES or binding.dtype not in _DTYPES:
        raise WireError(Code.BAD_FIELD, f"fixed tensor {binding.name!r} of role {binding.role!r} and type {binding.dtype!r}")
    return math.prod(binding.shape) * np.dtype(binding.dtype).itemsize


def _tensor(raw: bytes, start: int, binding: Binding) -> Array:
    count = math.prod(binding.shape)
    flat = np.frombuffer(raw, np.dtype(binding.dtype).newbyteorder("<"), count, start)
    return flat.astype(binding.dtype).reshape(binding.shape)
