"""Weights that a file only states the shape of: results of `ConstantOfShape`, written out as initialisers."""

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper


def write_out(graph: onnx.GraphProto, names: Iterable[str]) -> None:
    """Turns the floating-point ConstantOfShape results among `names`, whose shape is a constant, into initialisers,
    in place. Any other name is left as it is."""
    shapes = {tensor.name: tensor for tensor in graph.initializer}
    shapes |= {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    wanted = set(names)
    for node in [node for node in graph.node if node.op_type == "ConstantOfShape" and node.output[0] in wanted]:
        fill = numpy_helper.to_array(helper.get_node_attr_value(node, "value")) if node.attribute else np.zeros(1, np.float32)
        if node.input[0] in shapes and fill.dtype.kind == "f":
            filled = np.full(numpy_helper.to_array(shapes[node.input[0]]), fill[0], fill.dtype)
            graph.initializer.append(numpy_helper.from_array(filled, node.output[0]))
            graph.node.remove(node)
