"""The reverse sweep: from a scalar loss to the gradient of each trained weight.

`fit` is the only place that undoes broadcasting. What an operator's gradient is stands in `rules/`.
"""

from collections import deque
from collections.abc import Container, Iterable, Mapping, Sequence

from whimbrel_server.compiler.errors import Refusal, UnsupportedOperator
from whimbrel_server.compiler.graph.ir import Node, Value, topological
from whimbrel_server.compiler.rules import RULES, Gradients

LOSS = "loss"  # the origin of the nodes that no source node stands for


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
        raise _unsupported(order, refused, wrt, gradients)
    return {name: gradients[value] for name, value in wrt.items() if value in gradients}


def _live_values(order: Sequence[Node], sources: Iterable[Value]) -> set[Value]:
    """What depends on `sources` through tensors that carry gradients only."""
    live = set(sources)
    for node in order:
        if any(value in live for value in node.ins if value is not None):
            live.update(value for value in node.outs if _carries(value))
    return live


def _carries(value: Value) -> bool:
    """Real numbers, and sequences, which may hold them: a gradient that ends there must not pass for zero."""
    return value.is_float or value.dtype.kind == "O"


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


def _unsupported(
    order: Sequence[Node], refused: Mapping[Node, str], wrt: Mapping[str, Value], reached: Container[Value]
) -> UnsupportedOperator:
    """The error for the refused node nearest the data, with the weights that stay trainable."""
    node = next(node for node in order if node in refused)
    behind = _leading_to(order, refused)
    trainable = {name: value for name, value in wrt.items() if value in reached and value not in behind}
    after = _live_values(order, trainable.values())
    return UnsupportedOperator(
        f"{node.domain}.{node.op}" if node.domain else node.op,
        node.origin,
        refused[node],
        _path(node, wrt),
        {name: value.size for name, value in trainable.items()},
        len({node.origin for node in order if not after.isdisjoint(node.outs)} - {LOSS}),
    )


def _leading_to(order: Sequence[Node], targets: Mapping[Node, str]) -> set[Value]:
    """The values from which one of the nodes is reached."""
    leading = {value for node in targets for value in node.ins if value is not None}
    for node in reversed(order):
        if any(value in leading and _carries(value) for value in node.outs):
            leading.update(value for value in node.ins if value is not None)
    return leading


def _path(node: Node, wrt: Mapping[str, Value]) -> list[str]:
    """The source nodes from `node` back to the nearest of the weights, and that weight."""
    names = {value: name for name, value in wrt.items()}
    queue, seen = deque([(node, [node.origin])]), {node}
    while queue:
        current, path = queue.popleft()
        for value in (value for value in current.ins if value is not None and _carries(value)):
            if value in names:
                return [*dict.fromkeys(path), names[value]]
            if value.node is not None and value.node not in seen:
                seen.add(value.node)
                queue.append((value.node, [*path, value.node.origin]))
    raise AssertionError("no weight lies behind a node that a gradient refused")
