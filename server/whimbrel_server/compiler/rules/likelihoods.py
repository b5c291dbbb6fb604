"""Losses that stand in a model as operators: cross-entropy and negative log-likelihood, for models that bring their own.

Class ids `[N, ...]` against `[N, C, ...]`; what is ignored has weight 0, and if all is, the mean is 0.
"""

from typing import Any

import numpy as np

from whimbrel_server.compiler.graph.ir import Graph, Value
from whimbrel_server.compiler.rules.table import Lowering, Rule

RULES: dict[str, Rule] = {}


def _lower_likelihood(
    graph: Graph,
    log_p: Value,
    label: Value,
    weight: Value | None = None,
    *,
    reduction: str = "mean",
    ignore_index: int | None = None,
) -> Value:
    """-weight[label] log_p[label], and its sum or weighted mean over all positions."""
    shares = None if weight is None and ignore_index is None else log_p.like(1.0).expand(label.shape)
    if ignore_index is not None:
        counted = graph.op("Not", graph.op("Equal", label, label.like(ignore_index)))
        label = graph.op("Where", counted, label, label.like(0))  # an ignored id may be none of the classes
        shares = counted.cast(log_p.dtype)
    if weight is not None and shares is not None:
        shares = shares * graph.op("Gather", weight, label, axis=0)
    positions = [label.shape[0], 1, *label.shape[1:]]
    loss = -graph.op("GatherElements", log_p, label.reshape(positions), axis=1).reshape(label.shape)
    loss = loss if shares is None else loss * shares
    if reduction == "none":
        return loss
    total = loss.sum(range(loss.rank), keepdims=False)
    if reduction == "sum":
        return total
    if shares is None:
        return total * (1.0 / loss.size)
    whole = shares.sum(range(shares.rank), keepdims=False)
    return total / graph.op("Max", whole, whole.like(float(np.finfo(whole.dtype).tiny)))


def _lower_cross_entropy(graph: Graph, scores: Value, *operands: Value, **attrs: Any) -> tuple[Value, Value]:
    log_p = graph.op("LogSoftmax", scores, axis=1)
    return _lower_likelihood(graph, log_p, *operands, **attrs), log_p


LOWERINGS: dict[str, Lowering] = {
    "NegativeLogLikelihoodLoss": _lower_likelihood,
    "SoftmaxCrossEntropyLoss": _lower_cross_entropy,
}
