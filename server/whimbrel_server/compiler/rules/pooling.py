"""Pooling over sliding windows or whole maps, and normalisation over neighbouring channels.

Tensors are `[N, C, *spatial]`. While a model is read, `ceil_mode` and `auto_pad` become explicit pads.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from whimbrel_server.compiler.errors import Refusal
from whimbrel_server.compiler.graph.draft import made_by
from whimbrel_server.compiler.graph.ir import Graph, Node, Value
from whimbrel_server.compiler.rules.convolution import input_gradient
from whimbrel_server.compiler.rules.table import Lowering, Rule
from whimbrel_server.compiler.rules.windows import Window, explicit, window_of

LARGEST_SUMMED_ROW = 64  # from here on a product that sums windows costs more than the pooling kernel
LEAST_POWER = 1e-30  # under the root of a norm: an all-zero window gets the gradient 0 and not NaN


def lower_average_pool(graph: Graph, x: Value, **attrs: Any) -> Value:
    """Pads of `ceil_mode` are never counted, so counted ones are put on beforehand."""
    rounds_up, counts = attrs.get("ceil_mode", 0), attrs.pop("count_include_pad", 0)
    padded = explicit(x, attrs["kernel_shape"], {**attrs, "ceil_mode": 0})
    window = explicit(x, attrs["kernel_shape"], attrs)
    if not (counts and padded.padded):
        return graph.op("AveragePool", x, **window.attributes())
    if not rounds_up:
        return graph.op("AveragePool", x, **window.attributes(), count_include_pad=1)
    more = tuple(end - counted for end, counted in zip(window.ends, padded.ends, strict=True))
    rest = replace(window, begins=(0,) * len(more), ends=more)
    return graph.op("AveragePool", x.pad(padded.begins, padded.ends), **rest.attributes())


def lower_max_pool(graph: Graph, x: Value, **attrs: Any) -> tuple[Value, ...]:
    """Always made with its indices; export drops the second output where nobody reads it.

    The larger of two numbers stays so behind a Relu, which is cheaper, forward and back, on what pooling leaves.
    """
    how = {**explicit(x, attrs["kernel_shape"], attrs).attributes(), **attrs}
    y, indices = graph.multi("MaxPool", x, outputs=2, **how)
    relu = made_by(x, "Relu")
    return graph.op("Relu", graph.multi("MaxPool", relu[0], outputs=2, **how)[0]) if relu else y, indices


def lower_lp_pool(graph: Graph, x: Value, **attrs: Any) -> Value:
    """(sum |x|^p)^(1/p) over each window: the average of the powers, times the number of taps."""
    power = attrs.pop("p", 2)
    window = explicit(x, attrs["kernel_shape"], attrs)
    mean = graph.op("AveragePool", _absolute_power(x, power), **window.attributes(), count_include_pad=1)
    return _root(mean * window.taps, power)


def lower_global_lp_pool(graph: Graph, x: Value, *, p: int = 2) -> Value:
    return _root(_absolute_power(x, p).sum(range(2, x.rank)), p)


def _absolute_power(x: Value, power: int) -> Value:
    return x * x if power == 2 else x.graph.op("Pow", x.graph.op("Abs", x), x.like(power))


def _root(total: Value, power: int) -> Value:
    total = total.graph.op("Max", total, total.like(LEAST_POWER))
    return total.graph.op("Sqrt", total) if power == 2 else total.graph.op("Pow", total, total.like(1.0 / power))


def lower_local_response(
    graph: Graph, x: Value, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Value:
    """x / (bias + alpha mean(x^2))^beta, the mean over `size` neighbouring channels, zeros beyond the first and last.

    Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", 2012, section 3.3.
    """
    squares = (x * x).reshape([x.shape[0], 1, x.shape[1], -1])
    before, after = (size - 1) // 2, size // 2
    window = Window((size, 1), (1, 1), (before, 0), (after, 0), (1, 1))
    mean = graph.op("AveragePool", squares, **window.attributes(), count_include_pad=1).reshape(x.shape)
    return x * graph.op("Pow", mean * alpha + bias, x.like(-beta))


def max_pool_gradients(node: Node, g: Value, _: Value | None = None) -> tuple[Value]:
    """To the largest input of each window; where windows lie side by side, equal ones share."""
    window, x, y = window_of(node), node[0], node.y
    if node.attrs.get("storage_order", 0):
        raise Refusal("storage_order is not 0")
    if not _tiles(x, window):
        return (_scatter_to_largest(x, node.outs[1], g),)
    chosen = x.mask("Equal", _repeat(y, window))
    return (chosen * _repeat(g / _window_sum(chosen, window), window),)


def _tiles(x: Value, window: Window) -> bool:
    return window.tiles and all(n % k == 0 for n, k in zip(x.shape[2:], window.kernel, strict=True))


def _scatter_to_largest(x: Value, indices: Value, g: Value) -> Value:
    zeros = g.graph.zeros([x.size], g.dtype)
    flat = indices.reshape([g.size]), g.reshape([g.size])
    return g.graph.op("ScatterElements", zeros, *flat, axis=0, reduction="add").reshape(x.shape)


def _window_sum(x: Value, window: Window) -> Value:
    """Sums over windows that lie side by side: for narrow planes one product with a constant of zeros and ones."""
    if x.rank != 4 or x.shape[3] > LARGEST_SUMMED_ROW:
        return x.graph.op("AveragePool", x, **window.attributes()) * window.taps
    (_, _, height, width), (rows, columns) = x.shape, window.kernel
    sums = np.tile(np.repeat(np.eye(width // columns, dtype=x.dtype), columns, axis=0), (rows, 1))
    product = x.reshape([-1, rows * width]) @ x.graph.constant(sums)
    return product.reshape([*x.shape[:2], height // rows, width // columns])


def average_pool_gradients(node: Node, g: Value) -> tuple[Value]:
    """Each window's gradient, divided by the number of inputs it averaged, spread over the window."""
    window, x = window_of(node), node[0]
    share = g / _averaged(node, g, window)
    if _tiles(x, window):
        return (_repeat(share, window),)
    ones = g.graph.constant(np.ones((1, 1, *window.kernel), g.dtype))
    planes = share.reshape([-1, 1, *g.shape[2:]])
    return (input_gradient(planes, ones, x.shape[2:], window, 1).reshape(x.shape),)


def _averaged(node: Node, g: Value, window: Window) -> Value:
    """How many inputs each window averages: `[1, 1, *spatial]`, or a scalar where all are equal."""
    if node.attrs.get("count_include_pad", 0) or not window.padded:
        return g.like(window.taps)
    axes = []
    for i, (n, outputs) in enumerate(zip(node[0].shape[2:], g.shape[2:], strict=True)):
        starts = np.arange(outputs)[:, None] * window.strides[i] - window.begins[i]
        reads = starts + np.arange(window.kernel[i]) * window.dilations[i]
        axes.append(((reads >= 0) & (reads < n)).sum(axis=1))
    counts = axes[0] if len(axes) == 1 else np.prod(np.meshgrid(*axes, indexing="ij"), axis=0)
    return g.graph.constant(counts.astype(g.dtype)[None, None])


def _repeat(value: Value, window: Window) -> Value:
    """Each element repeated over its window; for windows that lie side by side."""
    scales = value.graph.constant(np.array([1, 1, *window.kernel], np.float32))
    how = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    return value.graph.op("Resize", value, None, scales, **how)


RULES: dict[str, Rule] = {
    "AveragePool": average_pool_gradients,
    "MaxPool": max_pool_gradients,
}

LOWERINGS: dict[str, Lowering] = {
    "AveragePool": lower_average_pool,
    "GlobalLpPool": lower_global_lp_pool,
    "GlobalMaxPool": lambda graph, x: graph.op("ReduceMax", x, graph.ints(range(2, x.rank)), keepdims=1),
    "LRN": lower_local_response,
    "LpPool": lower_lp_pool,
    "MaxPool": lower_max_pool,
}
