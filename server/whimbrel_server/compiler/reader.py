"""From an ONNX inference model to the expression graph: what is read, lowered, promoted and refused.

`read` walks a prepared model and makes the trained weights graph inputs. Bringing models to one form is
`prepare.py`'s, choosing weights `selection.py`'s; losses, gradients and optimisers do not belong here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.ir import Array, Graph, Value
from whimbrel_server.compiler.prepare import STANDARD_DOMAINS
from whimbrel_server.compiler.rules import LOWERINGS
from whimbrel_server.compiler.selection import weights_of


@dataclass(frozen=True)
class Source:
    """A model read into a graph: its data inputs, its output, and its weights by name.

    `weights` are graph inputs for the weights to train; `frozen` names the float weights kept as constants.
    """

    graph: Graph
    data: tuple[Value, ...]
    output: Value
    weights: Mapping[str, Value]
    frozen: tuple[str, ...]


def read(
    prepared: onnx.ModelProto,
    output: str | None,
    batch: int,
    dims: Mapping[str, Sequence[int]],
    train: Iterable[str],
    training: bool = False,
) -> Source:
    """Reads the nodes that `output` needs, with the weights named in `train` as graph inputs.

    `batch` becomes the unknown first dimension of each data input; `dims` gives whole shapes by input name.
    """
    proto = prepared.graph
    nodes, needed = _needed(proto, _output_name(proto, output))
    graph, chosen = Graph(), set(train)
    graph.training = training
    values = _read_initialisers(graph, proto, needed, chosen)
    data = _read_inputs(graph, proto, needed, batch, dims)
    values.update({value.name: value for value in data})
    for node in nodes:
        _read_node(graph, node, values, chosen)
    weights = {name: values[name] for name in weights_of(proto) if name in values}
    trained = {name: value for name, value in weights.items() if value.data is None}
    frozen = tuple(name for name, value in weights.items() if value.data is not None and value.rank > 0)
    return Source(graph, data, values[_output_name(proto, output)], trained, frozen)


def _output_name(proto: onnx.GraphProto, output: str | None) -> str:
    names: list[str] = [info.name for info in proto.output]
    if output is None and len(names) == 1:
        return names[0]
    if output is None or output not in names:
        raise CompileError("output", f"choose one of the model's outputs {names!r}, not {output!r}")
    return output


def _needed(proto: onnx.GraphProto, output: str) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that lead to `output`, in order, and every tensor name they touch."""
    names, nodes = {output}, []
    for node in reversed(proto.node):
        if names.intersection(node.output):
            names.update(node.input)
            nodes.append(node)
    return nodes[::-1], names


def _read_initialisers(graph: Graph, proto: onnx.GraphProto, needed: set[str], train: set[str]) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for tensor in proto.initializer:
        if tensor.name in needed:
            values[tensor.name] = _weight(graph, tensor.name, numpy_helper.to_array(tensor), train)
    return values


def _weight(graph: Graph, name: str, data: Array, train: set[str]) -> Value:
    if data.dtype.kind != "f":
        return graph.constant(data)
    _check_name(name)
    return graph.input(name, data.dtype, data.shape) if name in train else graph.constant(data, name)


def _check_name(name: str) -> None:
    if "@" in name:
        raise CompileError("reserved-name", f"{name!r}: '@' in names is reserved for the train step's tensors")


def _read_inputs(
    graph: Graph, proto: onnx.GraphProto, needed: set[str], batch: int, dims: Mapping[str, Sequence[int]]
) -> tuple[Value, ...]:
    initialised = {tensor.name for tensor in proto.initializer}
    infos = [info for info in proto.input if info.name in needed and info.name not in initialised]
    unknown = set(dims) - {info.name for info in infos}
    if unknown:
        raise CompileError("dims", f"{sorted(unknown)!r} name no data input; there are {[i.name for i in infos]!r}")
    return tuple(_read_input(graph, info, batch, dims.get(info.name)) for info in infos)


def _read_input(graph: Graph, info: onnx.ValueInfoProto, batch: int, dims: Sequence[int] | None) -> Value:
    _check_name(info.name)
    tensor = info.type.tensor_type
    shape = list(dims) if dims is not None else _declared_shape(tensor)
    if shape and dims is None and shape[0] is None:
        shape[0] = batch
    if any(size is None for size in shape) or (dims is None and not tensor.HasField("shape")):
        raise CompileError("dims", f"the shape of input {info.name!r} is not known: {shape}; give it in dims")
    if shape and shape[0] != batch:
        raise CompileError("batch", f"input {info.name!r} has a fixed batch of {shape[0]}, not {batch}")
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return graph.input(info.name, dtype, [int(size) for size in shape if size is not None])


def _declared_shape(tensor: onnx.TypeProto.Tensor) -> list[int | None]:
    """Sizes where positive, None where symbolic, nameless or -1."""
    return [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim]


def _read_node(graph: Graph, node: onnx.NodeProto, values: dict[str, Value], train: set[str]) -> None:
    graph.origin = node.name or node.output[0]
    attrs = {attr.name: _attribute(attr, f"{node.op_type} (node {graph.origin!r})") for attr in node.attribute}
    if node.op_type == "Constant":
        values[node.output[0]] = _weight(graph, node.output[0], _constant(attrs, graph.origin), train)
        return
    if node.domain not in STANDARD_DOMAINS:
        raise CompileError(
            "foreign-operator",
            f"{node.domain}.{node.op_type} (node {graph.origin!r}): only ONNX's standard operators run on every device",
        )
    ins = [values[name] if name else None for name in node.input]
    results = _lower(graph, node, ins, attrs)
    values.update(zip(node.output, results, strict=False))
    missing = [name for name in node.output[len(results) :] if name]
    if missing:
        raise CompileError("extra-output", f"{node.op_type} (node {graph.origin!r}): output {missing[0]!r} is not kept")


def _lower(graph: Graph, node: onnx.NodeProto, ins: Sequence[Value | None], attrs: dict[str, Any]) -> tuple[Value, ...]:
    """Through the table of lowerings, or as it stands: an operator without a gradient may still be run."""
    if node.op_type in LOWERINGS:
        result = LOWERINGS[node.op_type](graph, *ins, **attrs)
        return result if isinstance(result, tuple) else (result,)
    while ins and ins[-1] is None:
        ins = ins[:-1]
    return graph.multi(node.op_type, *ins, outputs=len(node.output), **attrs)


def _attribute(attr: onnx.AttributeProto, where: str) -> Any:
    if attr.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
        raise CompileError("control-flow", f"{where} contains a graph: branches and loops are not compiled")
    value = helper.get_attribute_value(attr)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        return [item.decode() for item in value]
    return value


def _constant(attrs: Mapping[str, Any], origin: str) -> Array:
    ((name, value),) = attrs.items()
    if name == "value":
        return numpy_helper.to_array(value)
    dtypes = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if name not in dtypes:
        raise CompileError("constant", f"Constant (node {origin!r}) with {name!r} is not supported")
    return np.array(value, dtypes[name])
