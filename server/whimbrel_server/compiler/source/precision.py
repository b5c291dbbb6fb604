"""Half-precision models in single precision: the types of a whole model, changed in place.

On processors half precision gains no time and loses digits, so devices train in float32; what a model's file
keeps its weights in is decided where new weights are written to it.
"""

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, numpy_helper

from whimbrel_server.compiler.graph.nested import all_graphs

HALF = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "stash_type"})


def to_single(graph: GraphProto) -> None:
    """Makes every float16 and bfloat16 tensor, type and target of a cast in `graph` float32."""
    for inner in all_graphs(graph):
        for tensor in inner.initializer:
            _widen(tensor)
        for info in (*inner.input, *inner.output, *inner.value_info):
            if info.type.tensor_type.elem_type in HALF:
                info.type.tensor_type.elem_type = TensorProto.FLOAT
        for node in inner.node:
            _widen_attributes(node)


def _widen_attributes(node: NodeProto) -> None:
    for attr in node.attribute:
        if attr.type == AttributeProto.TENSOR:
            _widen(attr.t)
        elif attr.name in TYPE_ATTRIBUTES and attr.i in HALF:
            attr.i = TensorProto.FLOAT


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type in HALF:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
