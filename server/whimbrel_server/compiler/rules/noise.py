"""Operators that draw random numbers: each node from a generator of its own, which a session starts once.

Their derivatives by what they read are zero, as they read a shape only (`stops.py`): a variational autoencoder's gradient
reaches its encoder through the noise's mean and deviation. Dropout belongs to `activations.py`.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from whimbrel_server.compiler.graph.ir import Graph, Value
from whimbrel_server.compiler.rules.table import Lowering, Rule

RULES: dict[str, Rule] = {}


def _drawn(op: str, like: Value, attrs: dict[str, Any]) -> Value:
    """With a seed from the node's name where the file gives none: else equal shapes would draw equal numbers."""
    return like.graph.op(op, like, **{"seed": float(zlib.crc32(like.graph.origin.encode()) % 2**20), **attrs})


def _like(op: str) -> Lowering:
    return lambda graph, like, **attrs: _drawn(op, like, attrs)


def _of_shape(op: str) -> Lowering:
    def lower(graph: Graph, *, shape: Sequence[int], dtype: int = TensorProto.FLOAT, **attrs: Any) -> Value:
        zeros = graph.zeros(shape, np.dtype(helper.tensor_dtype_to_np_dtype(dtype)))
        return _drawn(f"{op}Like", zeros, attrs)

    return lower


LOWERINGS: dict[str, Lowering] = {
    "RandomNormal": _of_shape("RandomNormal"),
    "RandomNormalLike": _like("RandomNormalLike"),
    "RandomUniform": _of_shape("RandomUniform"),
    "RandomUniformLike": _like("RandomUniformLike"),
}
