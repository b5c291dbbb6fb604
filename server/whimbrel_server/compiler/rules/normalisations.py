"""Normalisations over axes of one example. Batch normalisation, which looks across examples, has a file of its own.

Layer normalisation (Ba, Kiros and Hinton 2016) is the one kernel; instance and group normalisation are it on a
reshaped tensor, for which onnxruntime has nothing faster.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from whimbrel_server.compiler.graph.ir import Graph, Node, Value
from whimbrel_server.compiler.rules.table import Gradients, Lowering, Rule


def _mean(value: Value, axes: Sequence[int]) -> Value:
    return value.graph.op("ReduceMean", value, value.graph.ints(axes), keepdims=1)


def _inverse_deviation(variance: Value, epsilon: float) -> Value:
    return variance.graph.op("Reciprocal", variance.graph.op("Sqrt", variance + epsilon))


def _layer_norm(n: Node, g: Value | None, g_mean: Value | None, g_inverse: Value | None) -> Gradients:
    """dx = (u - mean(u) - x_hat mean(u x_hat)) / deviation with u = g scale, and the two statistics' own parts."""
    x, (_, mean, inverse) = n[0], n.outs
    axes = range(int(n.attrs["axis"]) % x.rank, x.rank)
    x_hat, size = (x - mean) * inverse, float(np.prod([x.shape[axis] for axis in axes]))
    parts: list[Value] = []
    if g is not None:
        u = g * n[1]
        parts.append((u - (x_hat * _mean(u * x_hat, axes) + _mean(u, axes))) * inverse)
    if g_mean is not None:
        parts.append(g_mean * (1.0 / size))
    if g_inverse is not None:
        parts.append(x_hat * (g_inverse * (inverse * inverse) * (-1.0 / size)))
    dx = parts[0]
    for part in parts[1:]:
        dx = dx + part
    return dx, None if g is None else g * x_hat, g


RULES: dict[str, Rule] = {
    "LayerNormalization": _layer_norm,
}


def lower_layer_norm(
    graph: Graph, x: Value, scale: Value, bias: Value | None = None, *, axis: int = -1, epsilon: float = 1e-5, **_: Any
) -> tuple[Value, ...]:
    """The runtime's kernel with its statistics; its operator has none for float64, where it is written out."""
    if x.dtype == np.float32:
        ins = (x, scale) if bias is None else (x, scale, bias)
        return graph.multi("LayerNormalization", *ins, outputs=3, axis=axis, epsilon=epsilon)
    axes = range(axis % x.rank, x.rank)
    mean = _mean(x, axes)
    centred = x - mean
    inverse = _inverse_deviation(_mean(centred * centred, axes), epsilon)
    scaled = centred * inverse * scale
    return scaled if bias is None else scaled + bias, mean, inverse


def _normalised_rows(graph: Graph, x: Value, epsilon: float) -> Value:
    """Mean 0 and variance 1 along the last axis."""
    return lower_layer_norm(graph, x, x.like(1.0).expand([x.shape[-1]]), axis=-1, epsilon=epsilon)[0]


def _per_channel(value: Value, rank: int) -> Value:
    """`[C]` as it broadcasts with `[N, C, *spatial]`."""
    return value.reshape([value.size] + [1] * (rank - 2))


def _lower_instance_norm(graph: Graph, x: Value, scale: Value, bias: Value, *, epsilon: float = 1e-5) -> Value:
    """Ulyanov, Vedaldi and Lempitsky 2016."""
    x_hat = _normalised_rows(graph, x.reshape([*x.shape[:2], -1]), epsilon).reshape(x.shape)
    return x_hat * _per_channel(scale, x.rank) + _per_channel(bias, x.rank)


def _lower_group_norm(
    graph: Graph, x: Value, scale: Value, bias: Value, *, num_groups: int, epsilon: float = 1e-5, **_: Any
) -> Value:
    """Wu and He 2018. Scale and bias are one a group in opset 18, one a channel from 21: their size tells."""
    x_hat = _normalised_rows(graph, x.reshape([x.shape[0], num_groups, -1]), epsilon)
    if scale.size == num_groups:
        return (x_hat * _per_channel(scale, 3) + _per_channel(bias, 3)).reshape(x.shape)
    return x_hat.reshape(x.shape) * _per_channel(scale, x.rank) + _per_channel(bias, x.rank)


def _lower_rms_norm(graph: Graph, x: Value, scale: Value, *, axis: int = -1, epsilon: float = 1e-5, **_: Any) -> Value:
    """Zhang and Sennrich 2019."""
    return x * _inverse_deviation(_mean(x * x, range(axis % x.rank, x.rank)), epsilon) * scale


def _lower_lp_norm(graph: Graph, x: Value, *, axis: int = -1, p: int = 2) -> Value:
    """x / |x|_p; a vector of zeros stays, and gets no gradient."""
    axes = graph.ints([axis % x.rank])
    norm = graph.op("ReduceSum", graph.op("Abs", x), axes) if p == 1 else graph.op("ReduceL2", x, axes)
    return x * (norm.mask("Greater", 0.0) / (norm + norm.mask("Equal", 0.0)))


def _lower_mean_variance_norm(graph: Graph, x: Value, *, axes: Sequence[int] = (0, 2, 3)) -> Value:
    """The standard adds 1e-9 to the deviation."""
    centred = x - _mean(x, [axis % x.rank for axis in axes])
    deviation = graph.op("Sqrt", _mean(centred * centred, [axis % x.rank for axis in axes]))
    return centred / (deviation + 1e-9)


LOWERINGS: dict[str, Lowering] = {
    "GroupNormalization": _lower_group_norm,
    "InstanceNormalization": _lower_instance_norm,
    "LayerNormalization": lower_layer_norm,
    "LpNormalization": _lower_lp_norm,
    "MeanVarianceNormalization": _lower_mean_variance_norm,
    "RMSNormalization": _lower_rms_norm,
}
