"""Convolution and transposed convolution: their lowering and their gradients.

Each is the other's gradient, so both share one form for the input's and one for the weight's. The forms are
chosen for onnxruntime's CPU kernels with weights that are graph inputs. Tensors are `[N, C, *spatial]`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from whimbrel_server.compiler.graph.ir import Graph, Node, Value
from whimbrel_server.compiler.rules import costs
from whimbrel_server.compiler.rules.convolution_products import as_product, depthwise_weight_gradient, has_diagonals
from whimbrel_server.compiler.rules.table import Lowering, Rule
from whimbrel_server.compiler.rules.windows import Window, explicit, patches, shifted, window_of


def lower_convolution(graph: Graph, x: Value, w: Value, bias: Value | None = None, **attrs: Any) -> Value:
    window, group = explicit(x, w.shape[2:], attrs), attrs.get("group", 1)
    product = as_product(x, w, bias, window, group)
    if product is not None:
        return product
    return graph.op("Conv", *_present(x, w, bias), **window.attributes(), **_grouping(group))


def lower_transposed(graph: Graph, x: Value, w: Value, bias: Value | None = None, **attrs: Any) -> Value:
    """With explicit pads only. Where the output reaches past every window, it is the bias alone."""
    shape = graph.op("ConvTranspose", *_present(x, w, bias), **attrs).shape
    group = attrs.pop("group", 1)
    window, rest = _covering(x, w.shape[2:], shape[2:], attrs)
    how = {**window.attributes(), **_grouping(group)}
    if not any(rest):
        return graph.op("ConvTranspose", *_present(x, w, bias), **how)
    y = graph.op("ConvTranspose", x, w, **how).pad([0] * len(rest), rest)
    return y if bias is None else y + bias.reshape([-1, *[1] * len(rest)])


def _covering(x: Value, kernel: Sequence[int], outputs: Sequence[int], attrs: dict[str, Any]) -> tuple[Window, list[int]]:
    """The window whose pads give `outputs`, as far as windows reach, and how much they fall short of it.

    A given `output_shape` is cut evenly; the odd element goes to the end with SAME_UPPER and else to the start.
    """
    mode, given = attrs.get("auto_pad", "NOTSET"), attrs.pop("output_shape", None)
    attrs.pop("output_padding", None)
    if mode.startswith("SAME") or given:
        attrs |= {"auto_pad": "NOTSET", "pads": [0] * 2 * len(kernel)}
    window, begins, ends, rest = explicit(x, kernel, attrs), [], [], []
    for i, (size, output) in enumerate(zip(x.shape[2:], outputs, strict=True)):
        surplus = window.strides[i] * (size - 1) + window.extent(i) - output
        cut = max(surplus, 0)
        evenly = cut // 2 if mode == "SAME_UPPER" else cut - cut // 2
        begins.append(evenly if mode.startswith("SAME") or given else window.begins[i])
        ends.append(max(surplus - begins[i], 0))
        rest.append(max(begins[i] - surplus, 0))
    return replace(window, begins=tuple(begins), ends=tuple(ends)), rest


def _present(*ins: Value | None) -> list[Value]:
    return [value for value in ins if value is not None]


def _grouping(group: int) -> dict[str, int]:
    return {"group": group} if group != 1 else {}


def convolution_gradients(node: Node, g: Value) -> tuple[Value | None, ...]:
    window, group = window_of(node), node.attrs.get("group", 1)
    dw = weight_gradient(node[0], g, window, group).reshape(node[1].shape)
    return input_gradient(g, node[1], node[0].shape[2:], window, group), dw, _bias_gradient(node, g)


def transposed_gradients(node: Node, g: Value) -> tuple[Value | None, ...]:
    """Of a ConvTranspose whose windows cover its output exactly: the convolution that it is the transpose of."""
    window, group = window_of(node), node.attrs.get("group", 1)
    dx = g.graph.op("Conv", g, node[1], **window.attributes(), **_grouping(group))
    dw = weight_gradient(g, node[0], window, group).reshape(node[1].shape)
    return dx, dw, _bias_gradient(node, g)


def _bias_gradient(node: Node, g: Value) -> Value | None:
    return g.sum([0, *range(2, g.rank)], keepdims=False) if node.has(2) else None


def input_gradient(g: Value, w: Value, sizes: Sequence[int], window: Window, group: int) -> Value:
    """The transposed convolution to spatial `sizes`; positions at the end that no window reached get zeros."""
    if window.pointwise and group == 1:
        return g.graph.op("Conv", g, w.transpose([1, 0, *range(2, w.rank)]), **window.attributes())
    ends, short = [], []
    for i, outputs in enumerate(g.shape[2:]):
        reached = window.strides[i] * (outputs - 1) + window.extent(i)
        rest = sizes[i] + window.begins[i] + window.ends[i] - reached
        ends.append(max(0, window.ends[i] - rest))
        short.append(max(0, rest - window.ends[i]))
    dx = g.graph.op("ConvTranspose", g, w, **replace(window, ends=tuple(ends)).attributes(), **_grouping(group))
    return dx.pad([0] * len(short), short)


def weight_gradient(x: Value, g: Value, window: Window, group: int) -> Value:
    """Products of `x [N, C, *spatial]` with `g [N, M, *outputs]` over all positions: `[groups, M / groups, C / groups, taps]`,
    possibly with axes of one merged."""
    padded = x.pad(window.begins, window.ends)
    if group == x.shape[1] == g.shape[1] and has_diagonals(x, g, window):
        return depthwise_weight_gradient(x, g, window)
    if group > 1 or window.taps == 1:
        return _product_per_sample(padded, g, window, group)
    collected = x.shape[0] * x.shape[1] * window.taps * int(np.prod(g.shape[2:]))
    wide = x.shape[1] >= costs.WIDE_CHANNELS and collected > costs.PATCHES_IN_CACHE
    channels_first = [1, 0, *range(2, x.rank)]
    product = _product_per_tap if wide else _one_product
    return product(padded.transpose(channels_first), g.transpose(channels_first), window)


def _product_per_tap(x: Value, g: Value, window: Window) -> Value:
    """One product `g [M, N*L] @ x_tap [C, N*L]^T` per kernel tap, from padded `x` and `g`, channels first.

    Returns `[M, C, taps]`.
    """
    rows, products = g.reshape([g.shape[0], -1]), []
    for tap in itertools.product(*(range(k) for k in window.kernel)):
        moved = x
        for axis, offset in reversed([*enumerate(tap)]):  # columns first: few short runs, then many long ones
            moved = shifted(moved, axis, offset, g.shape[2:], window)
        products.append(x.graph.op("Gemm", rows, moved.reshape([x.shape[0], -1]), transB=1))
    stacked = x.graph.op("Concat", *products, axis=0)
    return stacked.reshape([window.taps, g.shape[0], x.shape[0]]).transpose([1, 2, 0])


def _one_product(x: Value, g: Value, window: Window) -> Value:
    """One product of `g [M, N*L]` with all patches `[taps*C, N*L]`; operands and result as per tap."""
    m, columns = g.shape[0], patches(x, g.shape[2:], window, 0)
    product = x.graph.op("Gemm", g.reshape([m, -1]), columns.reshape([window.taps * x.shape[0], -1]), transB=1)
    return product.reshape([m, window.taps, x.shape[0]]).transpose([0, 2, 1])


def _product_per_sample(x: Value, g: Value, window: Window, group: int) -> Value:
    """One product per sample and group (they share the batch axis), summed over the samples.

    The smaller operand is the one transposed. Returns `[groups, M / groups, C / groups, taps]`.
    """
    n, m, c = x.shape[0], g.shape[1] // group, x.shape[1] // group
    grouped = x.reshape([n * group, c, *x.shape[2:]])
    columns = patches(grouped, g.shape[2:], window, 1).reshape([n * group, window.taps * c, -1])
    rows = g.reshape([n * group, m, -1])
    if window.taps * c <= m:
        total = (rows @ columns.transpose([0, 2, 1])).reshape([n, -1]).sum([0])
        return total.reshape([group, m, window.taps, c]).transpose([0, 1, 3, 2])
    total = (columns @ rows.transpose([0, 2, 1])).reshape([n, -1]).sum([0])
    return total.reshape([group, window.taps, c, m]).transpose([0, 3, 2, 1])


RULES: dict[str, Rule] = {
    "Conv": convolution_gradients,
    "ConvTranspose": transposed_gradients,
}

LOWERINGS: dict[str, Lowering] = {
    "Conv": lower_convolution,
    "ConvTranspose": lower_transposed,
}
