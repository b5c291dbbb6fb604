"""The data inputs of a model: which shapes they get, which of them are fixed to a value.

Weights are no inputs here, wherever a file lists them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.graph.ir import Graph, Value

Dims = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Inputs:
    """`data` are the graph's inputs, `fixed` the constants in place of others, `sizes` what symbols stand for."""

    data: tuple[Value, ...]
    fixed: Mapping[str, Value]
    sizes: Mapping[str, int]

    def by_name(self) -> dict[str, Value]:
        return {**self.fixed, **{value.name: value for value in self.data}}


def read_inputs(
    graph: Graph, infos: Sequence[onnx.ValueInfoProto], batch: int, dims: Dims, values: Mapping[str, float]
) -> Inputs:
    """Whole shapes come from `dims`; elsewhere an unknown first size is the batch, and so is its symbol anywhere.

    Raises CompileError: "dims" for a shape that stays open or a name of no input, "batch", "input", "reserved-name".
    """
    unknown = {*dims, *values} - {info.name for info in infos}
    if unknown:
        raise CompileError("dims", f"{sorted(unknown)!r} name no data input; there are {[i.name for i in infos]!r}")
    sizes = _sizes(infos, batch, dims)
    shapes = {info.name: _shape(info, batch, dims, sizes) for info in infos}
    fixed = {
        info.name: graph.constant(np.full(shapes[info.name], values[info.name], _dtype(info)))
        for info in infos
        if info.name in values
    }
    data = tuple(graph.input(i.name, _dtype(i), shapes[i.name]) for i in infos if i.name not in fixed)
    _check_batch(data, batch)
    return Inputs(data, fixed, sizes)


def dims_at(infos: Iterable[onnx.ValueInfoProto], dims: Dims, old: int, new: int) -> dict[str, list[int]]:
    """The same shapes for another batch: `new` in place of `old` wherever the batch's symbol stands, and at the first
    open size of each shape."""
    found, listed = {name: list(shape) for name, shape in dims.items()}, list(infos)
    symbols = {dim.dim_param for info in listed for dim in info.type.tensor_type.shape.dim[:1]} - {""}
    for info in listed:
        shape = found.get(info.name, [])
        declared = list(info.type.tensor_type.shape.dim[: len(shape)])
        nameless = [axis for axis, dim in enumerate(declared) if dim.dim_value <= 0 and not dim.dim_param]
        named = [axis for axis, dim in enumerate(declared) if dim.dim_param in symbols]
        for axis in (*named, *nameless[:1]):
            shape[axis] = new if shape[axis] == old else shape[axis]
    return found


def check_name(name: str) -> None:
    if "@" in name:
        raise CompileError("reserved-name", f"{name!r}: '@' in names is reserved for the train step's tensors")


def static_shape(tensor: onnx.TypeProto.Tensor, sizes: Mapping[str, int]) -> list[int | None]:
    """Sizes where positive or of a known symbol; None where symbolic, nameless or -1."""
    return [dim.dim_value if dim.dim_value > 0 else sizes.get(dim.dim_param) for dim in tensor.shape.dim]


def _sizes(infos: Sequence[onnx.ValueInfoProto], batch: int, dims: Dims) -> dict[str, int]:
    """What each symbol in the inputs' shapes stands for, as far as `dims` and `batch` tell."""
    sizes: dict[str, int] = {}
    for info in infos:
        declared = info.type.tensor_type.shape.dim
        for dim, size in zip(declared, dims.get(info.name, ()), strict=False):
            sizes.setdefault(dim.dim_param, size)
    for info in infos:
        if info.name not in dims:
            sizes.update({dim.dim_param: batch for dim in info.type.tensor_type.shape.dim[:1] if dim.dim_param not in sizes})
    return {symbol: size for symbol, size in sizes.items() if symbol}


def _shape(info: onnx.ValueInfoProto, batch: int, dims: Dims, sizes: Mapping[str, int]) -> list[int]:
    check_name(info.name)
    tensor = info.type.tensor_type
    if info.name in dims:
        return [int(size) for size in dims[info.name]]
    shape = static_shape(tensor, sizes)
    if shape and shape[0] is None:
        shape[0] = batch
    if any(size is None for size in shape) or not tensor.HasField("shape"):
        raise CompileError("dims", f"the shape of input {info.name!r} is not known: {shape}; give it in dims")
    return [size for size in shape if size is not None]


def _dtype(info: onnx.ValueInfoProto) -> np.dtype[np.generic]:
    if not info.type.HasField("tensor_type"):
        raise CompileError("input", f"input {info.name!r} is no tensor but a {info.type.WhichOneof('value')}")
    return np.dtype(helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))


def _check_batch(data: Sequence[Value], batch: int) -> None:
    """One input must lead with the batch; others may be states or tables of any shape."""
    if data and all(value.shape[:1] != (batch,) for value in data):
        first = data[0]
        raise CompileError("batch", f"input {first.name!r} has a fixed batch of {first.shape[:1]}, not {batch}")
