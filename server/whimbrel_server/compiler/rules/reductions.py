"""Reductions over axes, and the two softmax functions."""

from typing import Any

import numpy as np

from whimbrel_server.compiler.errors import Refusal
from whimbrel_server.compiler.graph.ir import Graph, Node, Value
from whimbrel_server.compiler.rules.table import Gradients, Lowering, Rule


def _softmax(n: Node, g: Value) -> Gradients:
    weighted = g * n.y
    return (weighted - n.y * weighted.sum([_axis(n)]),)


def _log_softmax(n: Node, g: Value) -> Gradients:
    return (g - g.graph.op("Exp", n.y) * g.sum([_axis(n)]),)


def _axis(n: Node) -> int:
    return int(n.attrs.get("axis", -1)) % n[0].rank


def _reduced_axes(n: Node) -> list[int]:
    """The axes a reduction runs over (operand 1 since opset 18); all when absent or empty, unless that means none."""
    axes = n[1].data if n.has(1) else np.empty(0, np.int64)
    if axes is None:
        raise Refusal("its axes are computed at run time")
    if axes.size == 0 and not n.attrs.get("noop_with_empty_axes"):
        return list(range(n[0].rank))
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


def _reduce_l2(n: Node, g: Value) -> Gradients:
    """g x / y, and 0 at the origin."""
    norm = _kept(n, n.y)
    return n[0] * (_kept(n, g) / (norm + norm.mask("Equal", 0.0))), None


def _reduce_log_sum_exp(n: Node, g: Value) -> Gradients:
    """The softmax; where all operands are -inf it is 0 and not NaN."""
    least = n.y.like(float(np.finfo(n.y.dtype).min))
    total = g.graph.op("Max", _kept(n, n.y), least)
    return g.graph.op("Exp", n[0] - total) * _kept(n, g), None


def _reduce_prod(n: Node, g: Value) -> Gradients:
    """The product of all others: total / x where no other is 0, the product of the others at the only 0, else 0."""
    axes = _reduced_axes(n)
    zero = n[0].mask("Equal", 0.0)
    nonzero = n[0] + zero
    product = g.graph.op("ReduceProd", nonzero, g.graph.ints(axes), keepdims=1, noop_with_empty_axes=1)
    others_are_not_zero = (zero.sum(axes) - zero).mask("Equal", 0.0)
    return others_are_not_zero * ((product * _kept(n, g)) / nonzero), None


RULES: dict[str, Rule] = {
    "LogSoftmax": _log_softmax,
    "ReduceL2": _reduce_l2,
    "ReduceLogSumExp": _reduce_log_sum_exp,
    "ReduceMax": _reduce_extreme,
    "ReduceMean": _reduce_mean,
    "ReduceMin": _reduce_extreme,
    "ReduceProd": _reduce_prod,
    "ReduceSum": lambda n, g: (_kept(n, g), None),
    "Softmax": _softmax,
}


def _sum(graph: Graph, x: Value, axes: tuple[Value | None, ...], attrs: dict[str, Any]) -> Value:
    return graph.op("ReduceSum", x, *axes, **attrs)


LOWERINGS: dict[str, Lowering] = {
    "GlobalAveragePool": lambda graph, x: graph.op("ReduceMean", x, graph.ints(range(2, x.rank)), keepdims=1),
    "ReduceL1": lambda graph, x, *axes, **attrs: _sum(graph, graph.op("Abs", x), axes, attrs),
    "ReduceLogSum": lambda graph, x, *axes, **attrs: graph.op("Log", _sum(graph, x, axes, attrs)),
    "ReduceSumSquare": lambda graph, x, *axes, **attrs: _sum(graph, x * x, axes, attrs),
}
