"""Constants of a file as arrays; and weights it only states the shape of, written out as initialisers."""

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from whimbrel_server.compiler.graph.ir import Array


def constant(graph: onnx.GraphProto, name: str) -> Array | None:
    """The initialiser or numeric `Constant` called `name`, None where it is neither."""
    for tensor in graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(tensor)
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] == name:
            value = helper.get_attribute_value(node.attribute[0])
            return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.array(value)
    return None


def write_out(graph: onnx.GraphProto, names: Iterable[str]) -> None:
    """Turns the floating-point ConstantOfShape results among `names`, whose shape is a constant, into initialisers,
    in place. Any other name is left as it is."""
    wanted = set(names)
    for node in [node for node in graph.node if node.op_type == "ConstantOfShape" and node.output[0] in wanted]:
        fill = numpy_helper.to_array(helper.get_node_attr_value(node, "value")) if node.attribute else np.zeros(1, np.float32)
        shape = constant(graph, node.input[0])
        if shape is not None and fill.dtype.kind == "f":
            graph.initializer.append(numpy_helper.from_array(np.full(shape, fill[0], fill.dtype), node.output[0]))
            graph.node.remove(node)
