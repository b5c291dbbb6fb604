"""Which weights a model has, and which of them a specification trains.

Knows names and roles of tensors in the source model; how they are read or differentiated is not known here.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

TRAINABLE_TYPES = (np.dtype(np.float32), np.dtype(np.float64))

# Operands that configure an operator; a weight used as one is never trained.
SETTINGS: Mapping[str, frozenset[int]] = {
    "BatchNormalization": frozenset({3, 4}),
    "Clip": frozenset({1, 2}),
    "Dropout": frozenset({1, 2}),
    "Pad": frozenset({1, 2, 3}),
    "Pow": frozenset({1}),
    "Resize": frozenset({1, 2, 3}),
}


def weights_of(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Floating-point initialisers and `Constant` nodes of a graph by name, in the file's order."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    floats = {helper.np_dtype_to_tensor_dtype(dtype) for dtype in TRAINABLE_TYPES}
    return {name: tensor for name, tensor in tensors.items() if tensor.data_type in floats}


def matches(pattern: str, name: str) -> bool:
    """Glob with `*` and `?` only: real weight names contain brackets, so `[` stands for itself."""
    expression = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(expression, name, re.DOTALL) is not None


def trainable_names(graph: onnx.GraphProto, patterns: Sequence[str]) -> list[str]:
    """The weights that `patterns` select: float tensors that are no settings; scalars only by exact name."""
    settings = {name for node in graph.node for index, name in enumerate(node.input) if index in SETTINGS.get(node.op_type, ())}
    return [
        name
        for name, tensor in weights_of(graph).items()
        if name not in settings
        and (name in patterns if not tensor.dims else any(matches(pattern, name) for pattern in patterns))
    ]
