"""Operators that only move numbers: reshape, transpose, gather, scatter, slice, pad."""

import numpy as np

from whimbrel_server.compiler.ir import Graph, Node, Value
from whimbrel_server.compiler.rules.table import Gradients, Lowering, Rule


def _gather_elements(n: Node, g: Value) -> Gradients:
    zeros = g.graph.zeros(n[0].shape, g.dtype)
    axis = n.attrs.get("axis", 0) % n[0].rank
    return g.graph.op("ScatterElements", zeros, n[1], g, axis=axis, reduction="add"), None


def _transpose(n: Node, g: Value) -> Gradients:
    perm = n.attrs.get("perm", list(reversed(range(n[0].rank))))
    return (g.transpose([int(axis) for axis in np.argsort(perm)]),)


RULES: dict[str, Rule] = {
    "Expand": lambda n, g: (g, None),
    "GatherElements": _gather_elements,
    "Reshape": lambda n, g: (g.reshape(n[0].shape), None),
    "Transpose": _transpose,
}


def _lower_flatten(graph: Graph, x: Value, *, axis: int = 1) -> Value:
    split = axis % x.rank if axis < x.rank else x.rank
    return x.reshape([int(np.prod(x.shape[:split])), int(np.prod(x.shape[split:]))])


def _as_reshape(op: str) -> Lowering:
    """For operators that only rename axes: any such result is a Reshape to the inferred shape."""
    return lambda graph, x, *ins, **attrs: x.reshape(graph.op(op, x, *ins, **attrs).shape)


LOWERINGS: dict[str, Lowering] = {
    "Flatten": _lower_flatten,
    "Squeeze": _as_reshape("Squeeze"),
    "Unsqueeze": _as_reshape("Unsqueeze"),
}
