"""Reductions over axes, and what is defined by them (softmax)."""

import numpy as np

from whimbrel_server.compiler.errors import Refusal
from whimbrel_server.compiler.ir import Node, Value
from whimbrel_server.compiler.rules.table import Gradients, Lowering, Rule


def _softmax(n: Node, g: Value) -> Gradients:
    weighted = g * n.y
    return (weighted - n.y * weighted.sum([_axis(n)]),)


def _log_softmax(n: Node, g: Value) -> Gradients:
    return (g - g.graph.op("Exp", n.y) * g.sum([_axis(n)]),)


def _axis(n: Node) -> int:
    return int(n.attrs.get("axis", -1)) % n[0].rank


def _reduced_axes(n: Node) -> list[int]:
    """The axes a reduction runs over (operand 1 since opset 18; all when absent)."""
    axes = n[1].data if n.has(1) else np.arange(0 if n.attrs.get("noop_with_empty_axes") else n[0].rank)
    if axes is None:
        raise Refusal("its axes are computed at run time")
    return sorted(int(axis) % n[0].rank for axis in axes)


def _kept(n: Node, value: Value) -> Value:
    """A reduction's result or its gradient, with the reduced axes put back as ones."""
    axes = _reduced_axes(n)
    return value.reshape([1 if axis in axes else size for axis, size in enumerate(n[0].shape)])


def _reduce_mean(n: Node, g: Value) -> Gradients:
    return _kept(n, g) * (n.y.size / n[0].size), None


def _reduce_extreme(n: Node, g: Value) -> Gradients:
    """Equal extremes share the gradient."""
    chosen = n[0].mask("Equal", _kept(n, n.y))
    return chosen * (_kept(n, g) / chosen.sum(_reduced_axes(n))), None


RULES: dict[str, Rule] = {
    "LogSoftmax": _log_softmax,
    "ReduceMax": _reduce_extreme,
    "ReduceMean": _reduce_mean,
    "ReduceMin": _reduce_extreme,
    "ReduceSum": lambda n, g: (_kept(n, g), None),
    "Softmax": _softmax,
}


LOWERINGS: dict[str, Lowering] = {
    "GlobalAveragePool": lambda graph, x: graph.op("ReduceMean", x, graph.ints(range(2, x.rank)), keepdims=1),
}
