"""The one table of gradients, the reverse sweep over it, and what a reader lowers to operators in the table.

`RULES[op](node, *gradients)` gets the gradient of each output (None where no gradient arrives) and returns
one gradient or None per input, about a line an operator. A rule may return any gradient whose shape
broadcasts with its operand's: `fit` is the only place that undoes broadcasting. Rules of sliding-window
operators are in `live.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from whimbrel_server.compiler import windows
from whimbrel_server.compiler.errors import Refusal, UnsupportedOperator
from whimbrel_server.compiler.ir import Graph, Node, Value, topological

Gradients = Sequence[Value | None]
Rule = Callable[..., Gradients]
Lowering = Callable[..., Value | tuple[Value, ...]]


def fit(gradient: Value, shape: Sequence[int]) -> Value:
    """Brings a gradient to its operand's shape: sums over axes the operand was broadcast along, repeats
    along axes the gradient lacks."""
    lead = gradient.rank - len(shape)
    if lead > 0:
        gradient = gradient.sum(range(lead), keepdims=False)
    if lead < 0:
        gradient = gradient.reshape([1] * -lead + list(gradient.shape))
    gradient = gradient.sum([i for i, n in enumerate(shape) if n == 1 and gradient.shape[i] != 1])
    return gradient.expand(shape)


def _swap_last(value: Value) -> Value:
    axes = list(range(value.rank))
    return value.transpose([*axes[:-2], axes[-1], axes[-2]])


def _matmul(n: Node, g: Value) -> Gradients:
    a, b = n[0], n[1]
    if b.rank > 2:
        return g @ _swap_last(b), _swap_last(a) @ g
    rows, flat = a.reshape([-1, a.shape[-1]]), g.reshape([-1, g.shape[-1]])
    return (
        g.graph.op("Gemm", flat, b, transB=1).reshape(a.shape),
        g.graph.op("Gemm", rows, flat, transA=1),
    )


def _gemm(n: Node, g: Value) -> Gradients:
    """Y = alpha A' B' + beta C; the transposes are flags of the products, so nothing is copied."""
    a, b = n[0], n[1]
    across, down = n.attrs.get("transA", 0), n.attrs.get("transB", 0)
    scale = {"alpha": n.attrs["alpha"]} if n.attrs.get("alpha", 1.0) != 1.0 else {}
    da = _product(b, g, down, 1, scale) if across else _product(g, b, 0, 1 - down, scale)
    db = _product(g, a, 1, across, scale) if down else _product(a, g, 1 - across, 0, scale)
    return da, db, g * n.attrs.get("beta", 1.0) if n.has(2) else None


def _product(a: Value, b: Value, across: int, down: int, scale: Mapping[str, float]) -> Value:
    flags = {name: 1 for name, flag in (("transA", across), ("transB", down)) if flag}
    return a.graph.op("Gemm", a, b, **flags, **scale)


def _softmax(n: Node, g: Value) -> Gradients:
    weighted = g * n.y
    return (weighted - n.y * weighted.sum([_axis(n)]),)


def _log_softmax(n: Node, g: Value) -> Gradients:
    return (g - g.graph.op("Exp", n.y) * g.sum([_axis(n)]),)


def _gather_elements(n: Node, g: Value) -> Gradients:
    zeros = g.graph.zeros(n[0].shape, g.dtype)
    axis = n.attrs.get("axis", 0) % n[0].rank
    return g.graph.op("ScatterElements", zeros, n[1], g, axis=axis, reduction="add"), None


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


def _transpose(n: Node, g: Value) -> Gradients:
    perm = n.attrs.get("perm", list(reversed(range(n[0].rank))))
    return (g.transpose([int(axis) for axis in np.argsort(perm)]),)


RULES: dict[str, Rule] = {
    "Abs": lambda n, g: (g * g.graph.op("Sign", n[0]),),
    "Add": lambda n, g: (g, g),
    "AveragePool": windows.average_pool_gradients,
    "Cast": lambda n, g: (g.cast(n[0].dtype),),
    "Conv": windows.convolution_gradients,
    "Div": lambda n, g: (g / n[1], -(g * n.y) / n[1]),
    "Exp": lambda n, g: (g * n.y,),
    "Expand": lambda n, g: (g, None),
    "GatherElements": _gather_elements,
    "Gemm": _gemm,
    "Log": lambda n, g: (g / n[0],),
    "LogSoftmax": _log_softmax,
    "MatMul": _matmul,
    "MaxPool": windows.max_pool_gradients,
    "Mul": lambda n, g: (g * n[1], g * n[0]),
    "Neg": lambda n, g: (-g,),
    "ReduceMax": _reduce_extreme,
    "ReduceMean": _reduce_mean,
    "ReduceMin": _reduce_extreme,
    "ReduceSum": lambda n, g: (_kept(n, g), None),
    "Relu": lambda n, g: (g * n.y.mask("Greater", 0.0),),
    "Reshape": lambda n, g: (g.reshape(n[0].shape), None),
    "Sigmoid": lambda n, g: (g * (n.y * (1.0 - n.y)),),
    "Softmax": _softmax,
    "Sqrt": lambda n, g: (g / (n.y * 2.0),),
    "Sub": lambda n, g: (g, -g),
    "Tanh": lambda n, g: (g * (1.0 - n.y * n.y),),
    "Transpose": _transpose,
}


def _lower_flatten(graph: Graph, x: Value, *, axis: int = 1) -> Value:
    split = axis % x.rank if axis < x.rank else x.rank
    return x.reshape([int(np.prod(x.shape[:split])), int(np.prod(x.shape[split:]))])


def _lower_matmul(graph: Graph, a: Value, b: Value) -> Value:
    """Vectors become matrices of one row or column, so that the rule sees matrices only."""
    product = graph.op("MatMul", a, b)
    if a.rank > 1 and b.rank > 1:
        return product
    rows = a if a.rank > 1 else a.reshape([1, a.size])
    columns = b if b.rank > 1 else b.reshape([b.size, 1])
    return (rows @ columns).reshape(product.shape)


def _lower_sum(graph: Graph, first: Value, *others: Value) -> Value:
    for other in others:
        first = first + other
    return first


def _as_reshape(op: str) -> Lowering:
    """For operators that only rename axes: any such result is a Reshape to the inferred shape."""
    return lambda graph, x, *ins, **attrs: x.reshape(graph.op(op, x, *ins, **attrs).shape)


# Source operators rewritten while a model is read, into operators that have rules: fn(graph, *ins, **attrs).
LOWERINGS: dict[str, Lowering] = {
    "AveragePool": windows.lower_average_pool,
    "Conv": windows.lower_convolution,
    "Dropout": lambda graph, x, *_, **attrs: x,  # as in inference; random masks are not drawn
    "Flatten": _lower_flatten,
    "GlobalAveragePool": lambda graph, x: graph.op("ReduceMean", x, graph.ints(range(2, x.rank)), keepdims=1),
    "MatMul": _lower_matmul,
    "MaxPool": windows.lower_max_pool,
    "Squeeze": _as_reshape("Squeeze"),
    "Sum": _lower_sum,
    "Unsqueeze": _as_reshape("Unsqueeze"),
}


def grad(loss: Value, wrt: Mapping[str, Value]) -> dict[str, Value]:
    """The gradient of the scalar `loss` with respect to each named value, by one reverse sweep.

    A name is missing from the result when the loss does not depend on its value differentiably.
    Raises UnsupportedOperator when a node between the loss and one of the values has no usable rule.
    """
    order = topological([loss])
    live = _live_values(order, wrt.values())
    gradients = {loss: loss.like(1.0).expand(loss.shape)}
    refused: dict[Node, str] = {}
    for node in reversed(order):
        arrived = [gradients.get(value) for value in node.outs]
        if not live.isdisjoint(node.outs) and any(arrived):
            _propagate(node, arrived, gradients, live, refused)
    if refused:
        raise _unsupported(order, refused, wrt)
    return {name: gradients[value] for name, value in wrt.items() if value in gradients}


def _live_values(order: Sequence[Node], sources: Any) -> set[Value]:
    """What depends on `sources` through floating-point tensors only."""
    live = set(sources)
    for node in order:
        if any(value in live for value in node.ins if value is not None):
            live.update(value for value in node.outs if value.is_float)
    return live


def _propagate(
    node: Node,
    arrived: Gradients,
    gradients: dict[Value, Value],
    live: set[Value],
    refused: dict[Node, str],
) -> None:
    try:
        if node.op not in RULES:
            raise Refusal("")
        node.y.graph.origin = node.origin
        results = RULES[node.op](node, *arrived)
    except Refusal as refusal:
        refused[node] = str(refusal)
        return
    for value, result in zip(node.ins, results, strict=False):
        if value is not None and result is not None and value in live:
            fitted = fit(result, value.shape)
            gradients[value] = gradients[value] + fitted if value in gradients else fitted


def _unsupported(order: Sequence[Node], refused: Mapping[Node, str], wrt: Mapping[str, Value]) -> UnsupportedOperator:
    """The error for the refused node nearest the data, with the weights that stay trainable."""
    node = next(node for node in order if node in refused)
    behind = {name for name, value in wrt.items() if _meets(order, value, refused)}
    blocked = next(name for name, value in wrt.items() if _meets(order, value, {node: ""}))
    trainable = [name for name in wrt if name not in behind]
    return UnsupportedOperator(node.op, node.origin, refused[node], blocked, trainable)


def _meets(order: Sequence[Node], source: Value, nodes: Mapping[Node, str]) -> bool:
    live = _live_values(order, [source])
    return any(not live.isdisjoint(node.outs) for node in nodes)
