"""The reverse sweep: from a scalar loss to the gradient of each trained weight.

`fit` is the only place that undoes broadcasting. What an operator's gradient is stands in `rules/`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from whimbrel_server.compiler.errors import Refusal, UnsupportedOperator
from whimbrel_server.compiler.ir import Node, Value, topological
from whimbrel_server.compiler.rules import RULES, Gradients


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
        rule = node.gradient or RULES.get(node.op)
        if rule is None:
            raise Refusal("")
        node.y.graph.origin = node.origin
        results = rule(node, *arrived)
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
