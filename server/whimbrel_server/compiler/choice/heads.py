"""Another number of classes: the final product of a model gets new weights and its outputs new sizes.

Works on the source model, so that the published model has the new head too. Names stay, so that patterns and the
published model read as before; only a weight that others use as well is left to them, and the head's is then called
`<weight>.head`. New weights are He-normal and biases zero.
"""

import math
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from whimbrel_server.compiler.choice.selection import Uses
from whimbrel_server.compiler.choice.starting_values import he_normal
from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.graph.nested import reads
from whimbrel_server.compiler.source.constants import constant

CLASS_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": -1, "MatMul": -1}  # of the products' weights
# What may stand between the head and the output: it treats all classes alike and holds no size of theirs.
# fmt: off
PASSING = frozenset({
    "AveragePool", "Cast", "Clip", "Dropout", "Exp", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "Identity",
    "LogSoftmax", "MaxPool", "ReduceMean", "Relu", "Reshape", "Sigmoid", "Softmax", "Squeeze", "Tanh",
    "Unsqueeze",
})
# fmt: on
ARITHMETIC = ("Add", "Div", "Mul", "Sub")  # with numbers or results, as in a softmax that an exporter wrote out


@dataclass(frozen=True)
class Operand:
    """A head's weight or bias: operand `index` of `node`, its classes on `axis` of the operand."""

    node: onnx.NodeProto
    index: int
    axis: int


def with_head(model: onnx.ModelProto, classes: int, output: str) -> tuple[str, ...]:
    """Gives the (flat) model `classes` classes at `output`, in place; returns the names of the new weights.

    Raises CompileError ("head") where the output does not end in a Gemm, MatMul or Conv with a weight.
    """
    if classes < 1:
        raise CompileError("head", f"a head of {classes} classes; at least 1 is needed")
    uses = Uses(model.graph, half=True)
    weight, *biases = _operands(uses, output)
    old = _length(uses, weight)
    _check_targets(uses, output, old)
    replaced = [weight, *(bias for bias in biases if _length(uses, bias) == old)]
    names = tuple(_replace(model.graph, uses, operand, classes) for operand in replaced)
    _infer_sizes(model, weight.node)
    return names


def _operands(uses: Uses, output: str) -> list[Operand]:
    """The head's weight first, then its bias, if it has one."""
    *after, product = _ending(uses, output)
    attrs = {attr.name: helper.get_attribute_value(attr) for attr in product.attribute}
    if attrs.get("group", 1) != 1:
        raise CompileError("head", f"the final {product.op_type} (node {product.name!r}) has groups")
    found = [Operand(product, 1, 0 if attrs.get("transB", 0) else CLASS_AXIS[product.op_type])]
    if len(product.input) > 2 and product.input[2] in uses.weight:
        found.append(Operand(product, 2, -1))
    spatial = len(_order(uses, product.input[1])[1]) - 2
    for node in after:
        found += [
            Operand(node, i, -1 - spatial)
            for i in (0, 1)
            if node.op_type == "Add" and uses.used_by(node) and node.input[i] in uses.weight
        ]
    return found


def _ending(uses: Uses, output: str) -> list[onnx.NodeProto]:
    """The nodes from the output back to the final product, which comes last."""
    name, nodes = output, list[onnx.NodeProto]()
    while name in uses.maker:
        node = uses.maker[name]
        nodes.append(node)
        if node.op_type in CLASS_AXIS and uses.weight.get(node.input[1]) in uses.tensors:
            return nodes
        biased = node.op_type == "Add" and len(uses.used_by(node)) == 1
        alike = node.op_type in ARITHMETIC and not uses.used_by(node)
        others = uses.others(node)
        if not others or (node.op_type not in PASSING and not biased and not alike):
            break
        name = others[0]
    met = f"{nodes[-1].op_type} (node {nodes[-1].name!r}) comes first" if nodes else "nothing makes it"
    raise CompileError("head", f"output {output!r} ends in no Gemm, MatMul or Conv with a weight: {met}")


def _check_targets(uses: Uses, output: str, old: int) -> None:
    """A Reshape to a fixed number of classes cannot follow a new one."""
    for node in _ending(uses, output):
        target = constant(uses.graph, node.input[1]) if node.op_type == "Reshape" else None
        if target is not None and old in target:
            raise CompileError("head", f"Reshape (node {node.name!r}) after the head fixes its {old} classes")


def _order(uses: Uses, name: str) -> tuple[str, list[int]]:
    """The weight that a tensor is, and which of its stored axes each axis of the tensor is."""
    weight, axes = uses.weight[name], uses.axes(name)
    if axes is None:
        raise CompileError("head", f"weight {weight!r} is reshaped before the final product uses it")
    return weight, axes


def _length(uses: Uses, operand: Operand) -> int:
    """The size of the axis of the classes as it is; 1 where the operand lacks it."""
    weight, order = _order(uses, operand.node.input[operand.index])
    return int(uses.tensors[weight].dims[order[operand.axis]]) if len(order) >= abs(operand.axis) else 1


def _replace(graph: onnx.GraphProto, uses: Uses, operand: Operand, classes: int) -> str:
    """Puts a new tensor in the place of a weight, or beside it where others use it too; returns its name."""
    weight, order = _order(uses, operand.node.input[operand.index])
    shared = len(uses.users[weight]) > 1
    old, axis = uses.tensors[weight], operand.axis if shared else order[operand.axis]
    shape = [old.dims[i] for i in order] if shared else list(old.dims)
    shape[axis] = classes
    name, dtype = f"{weight}.head" if shared else weight, helper.tensor_dtype_to_np_dtype(old.data_type)
    is_weight = operand.index == 1 and operand.node.op_type in CLASS_AXIS
    fan_in = math.prod(shape) // classes
    tensor = numpy_helper.from_array(he_normal(name, shape, fan_in, dtype) if is_weight else np.zeros(shape, dtype), name)
    if shared:
        graph.initializer.append(tensor)
        operand.node.input[operand.index] = name
        return name
    old.CopyFrom(tensor)
    for info in graph.input:  # before IR 4 initialisers are inputs too
        if info.name == name:
            info.CopyFrom(helper.make_tensor_value_info(name, old.data_type, shape))
    return name


def _infer_sizes(model: onnx.ModelProto, head: onnx.NodeProto) -> None:
    """Forgets the sizes of all that follows the head, and infers those of the outputs again."""
    graph, changed = model.graph, set(head.output)
    for node in graph.node:
        if changed.intersection(reads(node)):
            changed.update(node.output)
    kept = [info for info in graph.value_info if info.name not in changed]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    results = [info for info in graph.output if info.name in changed]
    before = [onnx.ValueInfoProto.FromString(info.SerializeToString()) for info in results]
    for info in results:
        info.type.tensor_type.ClearField("shape")
    inferred = {info.name: info for info in shape_inference.infer_shapes(model).graph.output}
    for info, old in zip(results, before, strict=True):
        known = inferred[info.name].type.tensor_type.HasField("shape")
        info.CopyFrom(inferred[info.name] if known else _open(old))


def _open(info: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """With all sizes open, where onnx cannot follow the model."""
    for dim in info.type.tensor_type.shape.dim:
        dim.Clear()
    return info
