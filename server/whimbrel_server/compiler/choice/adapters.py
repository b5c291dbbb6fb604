"""Low-rank adapters (LoRA) beside frozen weights: which weights take one, the model with them, and their merging.

x W becomes x W + scale (x A) B with A `[in, rank]` and B `[rank, out]`, called `<W>@lora_a` and `<W>@lora_b`;
scale = alpha / rank. A starts normal with deviation 1 / rank, B zero, so that the model starts as it was.
Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, section 4.1.
Works on prepared models; what is trained is not decided here.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from whimbrel_server.compiler.choice.selection import Uses, matches
from whimbrel_server.compiler.choice.starting_values import normal
from whimbrel_server.compiler.contract import Adapter, Adapters
from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.graph.ir import Array

PRODUCTS = ("Conv", "Gemm", "MatMul")


def find_adapters(graph: onnx.GraphProto, spec: Adapters, taken: Iterable[str]) -> tuple[Adapter, ...]:
    """The adapters that `spec` asks for, in the order of their weights in the file.

    A weight takes one if every node that uses it multiplies by it in the same way (MatMul, Gemm, Conv with a kernel
    of one), if it is none of `taken`, and if the adapter is smaller than the weight itself.
    Raises CompileError ("adapters").
    """
    if spec.rank < 1 or not 0.0 < spec.alpha < math.inf:
        raise CompileError("adapters", f"rank {spec.rank} and alpha {spec.alpha}: both must be positive")
    uses, excluded = Uses(graph), set(taken)
    asked = [name for name in uses.candidates() if any(matches(pattern, name) for pattern in spec.patterns)]
    possible = [_adapter(uses, name, spec) for name in asked if name not in excluded]
    found = tuple(adapter for adapter in possible if adapter is not None)
    if not found:
        message = (
            f"{list(spec.patterns)!r} names no frozen weight of a product that is larger than an adapter of rank {spec.rank}"
        )
        raise CompileError("adapters", message)
    return found


def with_adapters(prepared: onnx.ModelProto, adapters: Sequence[Adapter]) -> onnx.ModelProto:
    """A copy of the model with `adapters` at every use of their weights; their factors are initialisers."""
    model, uses = onnx.ModelProto(), Uses(prepared.graph)
    model.CopyFrom(prepared)
    beside = {adapter.weight: adapter for adapter in adapters}
    del model.graph.node[:]
    for node in prepared.graph.node:
        weight = uses.weight.get(node.input[1]) if node.op_type in PRODUCTS else None
        adapter = beside.get(weight) if weight else None
        model.graph.node.extend(_adapted(node, adapter) if adapter else [node])
    for adapter in adapters:
        factors = {name: start_value(adapter, name) for name in (adapter.a, adapter.b)}
        factors[f"{adapter.weight}@scale"] = np.array(adapter.scale, adapter.dtype)
        model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in factors.items())
    return model


def start_value(adapter: Adapter, name: str) -> Array:
    """What the factor `name` of an adapter is before training."""
    rank = adapter.spec.rank
    if name == adapter.b:
        return np.zeros((rank, adapter.outputs), adapter.dtype)
    return normal(name, (adapter.inputs, rank), 1.0 / rank, adapter.dtype)


def merged(weight: Array, adapter: Adapter, a: Array, b: Array) -> Array:
    """W + scale A B in the weight's own shape and type, computed in float64."""
    change = adapter.scale * (a.astype(np.float64) @ b.astype(np.float64))
    stored = change.T if adapter.transposed else change
    result: Array = (weight + stored.reshape(weight.shape)).astype(weight.dtype)
    return result


def _adapter(uses: Uses, name: str, spec: Adapters) -> Adapter | None:
    ways = {_transposed(uses, node, name) if uses.outer.issuperset(node.output) else None for node in uses.users.get(name, [])}
    way = ways.pop() if len(ways) == 1 else None
    if way is None or any(uses.weight.get(info.name) == name for info in uses.graph.output):
        return None
    tensor = uses.tensors[name]
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    adapter = Adapter(name, tuple(tensor.dims), way, dtype, spec)
    return adapter if spec.rank * (adapter.inputs + adapter.outputs) < adapter.inputs * adapter.outputs else None


def _transposed(uses: Uses, node: onnx.NodeProto, name: str) -> bool | None:
    """Whether a product uses the weight as stored `[out, in]`; None where the node is no product that can be adapted."""
    operands = [index for index, operand in enumerate(node.input) if uses.weight.get(operand) == name]
    dims, attrs = list(uses.tensors[name].dims), _attributes(node)
    if node.op_type not in PRODUCTS or operands != [1]:
        return None
    axes = uses.axes(node.input[1])
    if node.op_type == "Conv":
        pointwise = set(dims[2:]) == {1} and attrs.get("group", 1) == 1 and axes == list(range(len(dims)))
        return True if pointwise else None
    if len(dims) != 2 or axes is None or attrs.get("transA", 0):
        return None
    return (axes == [1, 0]) != bool(attrs.get("transB", 0))


def _adapted(node: onnx.NodeProto, adapter: Adapter) -> list[onnx.NodeProto]:
    """The product with its adapter added; what is scaled is the small middle `[..., rank]`."""
    y = node.output[0]
    base = onnx.NodeProto()
    base.CopyFrom(node)
    base.output[0] = f"{y}@frozen"
    return [
        base,
        *_product(node, node.input[0], adapter.a, adapter, f"{y}@a"),
        helper.make_node("Mul", [f"{y}@a", f"{adapter.weight}@scale"], [f"{y}@scaled"], node.name),
        *_product(onnx.NodeProto(op_type=node.op_type), f"{y}@scaled", adapter.b, adapter, f"{y}@b"),
        helper.make_node("Add", [f"{y}@frozen", f"{y}@b"], [y], node.name),
    ]


def _product(like: onnx.NodeProto, x: str, factor: str, adapter: Adapter, y: str) -> list[onnx.NodeProto]:
    """`x` times a factor, with what the attributes of `like` say of `x`: its scale, or where a kernel meets it."""
    attrs = _attributes(like)
    kept = {name: attrs[name] for name in ("alpha", "auto_pad", "pads", "strides") if name in attrs}
    if like.op_type != "Conv":
        return [helper.make_node(like.op_type, [x, factor], [y], like.name, **kept)]
    kernel, unit = f"{y}@kernel", list(range(2, len(adapter.shape)))
    return [
        helper.make_node("Transpose", [factor], [f"{kernel}@flat"], like.name, perm=[1, 0]),
        helper.make_node("Constant", [], [f"{kernel}@axes"], value_ints=unit),
        helper.make_node("Unsqueeze", [f"{kernel}@flat", f"{kernel}@axes"], [kernel], like.name),
        helper.make_node("Conv", [x, kernel], [y], like.name, **kept),
    ]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attr.name: helper.get_attribute_value(attr) for attr in node.attribute}
