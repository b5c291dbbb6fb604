"""Start values for a model that is shipped without its weights: `--init he`.

What belongs here: which constants of a file are placeholders, and what replaces each. What does not: weights of a model that
has some; they are never touched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from whimbrel_lab.check.runtime import Array

# The operand that a rank-1 placeholder is, by operator and position: neither 0 nor He fits a scale or a variance.
ONES: Mapping[str, frozenset[int]] = {"BatchNormalization": frozenset({1, 4}), "Mul": frozenset({0, 1}), "Div": frozenset({1})}
SAME_ELEMENTS = frozenset({"Unsqueeze", "Squeeze", "Reshape", "Identity", "Cast"})


@dataclass(frozen=True)
class _Placeholder:
    name: str
    shape: tuple[int, ...]
    value: float


def initialise(model: onnx.ModelProto, seed: int) -> tuple[onnx.ModelProto, int]:
    """The model with values instead of `ConstantOfShape` weights and all-zero matrices, and how many it replaced.

    Weights of rank 2 and more are normal with variance 2 / fan-in (He et al., "Delving Deep into Rectifiers", ICCV 2015,
    equation 10); scales and variances are 1, all else of rank 1 is 0.
    """
    filled = onnx.ModelProto()
    filled.CopyFrom(model)
    rng, ones = np.random.default_rng(seed), _scales(model)
    found = {place.name: place for place in [*_generated(model), *_zeros(model)]}
    kept = [tensor for tensor in filled.graph.initializer if tensor.name not in found]
    nodes = [node for node in filled.graph.node if not (node.output and node.output[0] in found)]
    del filled.graph.initializer[:], filled.graph.node[:]
    filled.graph.initializer.extend(kept)
    filled.graph.node.extend(nodes)
    for place in found.values():
        filled.graph.initializer.append(numpy_helper.from_array(_values(rng, place, ones), place.name))
    filled.ir_version = max(filled.ir_version, 4)  # before 4 each initialiser had to be an input as well
    return filled, len(found)


def _values(rng: np.random.Generator, place: _Placeholder, ones: frozenset[str]) -> Array:
    if len(place.shape) < 2:
        return np.full(place.shape, float(place.name in ones), np.float32)
    matrix = len(place.shape) == 2
    fan_in = math.prod(place.shape[1:]) if not matrix else max(place.shape)
    return rng.standard_normal(place.shape, np.float32) * np.float32(math.sqrt(2.0 / fan_in))


def _generated(model: onnx.ModelProto) -> list[_Placeholder]:
    """Float tensors that a `ConstantOfShape` of known shape makes."""
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.data_type == 7}
    places = []
    for node in model.graph.node:
        if node.op_type == "ConstantOfShape" and node.input[0] in shapes:
            value = numpy_helper.to_array(node.attribute[0].t) if node.attribute else np.zeros(1, np.float32)
            if value.dtype == np.float32 and shapes[node.input[0]].size:
                shape = tuple(int(size) for size in shapes[node.input[0]])
                places.append(_Placeholder(node.output[0], shape, float(value[0])))
    return places


def _zeros(model: onnx.ModelProto) -> list[_Placeholder]:
    tensors = [tensor for tensor in model.graph.initializer if tensor.data_type == 1 and len(tensor.dims) >= 2]
    return [_Placeholder(t.name, tuple(t.dims), 0.0) for t in tensors if not numpy_helper.to_array(t).any()]


def _scales(model: onnx.ModelProto) -> frozenset[str]:
    """Names of what ends, perhaps reshaped, as a scale or a variance."""
    scales: set[str] = set()
    for node in reversed(model.graph.node):
        scales.update(node.input[i] for i in ONES.get(node.op_type, ()) if i < len(node.input))
        if node.op_type in SAME_ELEMENTS and scales.intersection(node.output):
            scales.add(node.input[0])
    return frozenset(scales)
