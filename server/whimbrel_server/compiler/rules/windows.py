"""Sliding-window operators: convolution and pooling, their lowering and their gradients.

The forms are chosen for onnxruntime's CPU kernels with weights that are graph inputs. Everything works for
one, two or three spatial axes. Tensors are `[N, C, *spatial]`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whimbrel_server.compiler.errors import Refusal
from whimbrel_server.compiler.ir import Graph, Node, Value
from whimbrel_server.compiler.rules.table import Lowering, Rule

WIDE_CHANNELS = 16  # from here on one product per kernel tap beats collecting the patches ...
PATCHES_IN_CACHE = 512 * 1024  # ... unless all patches together (floats) stay in the cache


@dataclass(frozen=True)
class Window:
    """The geometry of one sliding-window node, one entry per spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    dilations: tuple[int, ...]

    @property
    def padded(self) -> bool:
        return any(self.begins) or any(self.ends)

    @property
    def taps(self) -> int:
        return int(np.prod(self.kernel))

    @property
    def tiles(self) -> bool:
        """Whether the windows lie side by side without gap, overlap or padding."""
        return self.kernel == self.strides and not self.padded and set(self.dilations) == {1}

    @property
    def pointwise(self) -> bool:
        return self.taps == 1 and set(self.strides) == {1} and not self.padded

    def extent(self, axis: int) -> int:
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1

    def outputs(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Window positions per axis over an input of `sizes` (floor mode)."""
        spans = (n + b + e for n, b, e in zip(sizes, self.begins, self.ends, strict=True))
        return tuple((span - self.extent(i)) // self.strides[i] + 1 for i, span in enumerate(spans))

    def attributes(self) -> dict[str, list[int]]:
        return {
            "kernel_shape": list(self.kernel),
            "strides": list(self.strides),
            "pads": [*self.begins, *self.ends],
            "dilations": list(self.dilations),
        }


def window_of(node: Node) -> Window:
    """The geometry of a lowered node, whose attributes are all explicit."""
    attrs = node.attrs
    pads, rank = attrs["pads"], len(attrs["kernel_shape"])
    parts = (attrs["kernel_shape"], attrs["strides"], pads[:rank], pads[rank:], attrs["dilations"])
    return Window(*(tuple(part) for part in parts))


def _explicit(x: Value, kernel: Sequence[int], attrs: dict[str, Any]) -> Window:
    """Removes the geometry from a source node's attributes and writes out its defaults and `auto_pad`."""
    rank = len(kernel)
    attrs.pop("kernel_shape", None)
    strides = tuple(attrs.pop("strides", [1] * rank))
    dilations = tuple(attrs.pop("dilations", [1] * rank))
    pads = tuple(attrs.pop("pads", [0] * 2 * rank))
    mode = attrs.pop("auto_pad", "NOTSET")
    if mode == "VALID":
        pads = (0,) * 2 * rank
    window = Window(tuple(kernel), strides, pads[:rank], pads[rank:], dilations)
    return _same_padding(window, x.shape[2:], mode) if mode.startswith("SAME") else window


def _same_padding(window: Window, sizes: Sequence[int], mode: str) -> Window:
    """ONNX's SAME_UPPER / SAME_LOWER: ceil(size / stride) outputs, the odd zero at the end / the start."""
    totals = []
    for i, size in enumerate(sizes):
        stride = window.strides[i]
        span = (-(-size // stride) - 1) * stride + window.extent(i)
        totals.append(max(span - size, 0))
    less, more = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
    begins, ends = (less, more) if mode == "SAME_UPPER" else (more, less)
    return Window(window.kernel, window.strides, begins, ends, window.dilations)


def lower_convolution(graph: Graph, x: Value, w: Value, bias: Value | None = None, **attrs: Any) -> Value:
    window = _explicit(x, w.shape[2:], attrs)
    group = {"group": attrs["group"]} if attrs.get("group", 1) != 1 else {}
    ins = (x, w) if bias is None else (x, w, bias)
    return graph.op("Conv", *ins, **window.attributes(), **group)


def lower_average_pool(graph: Graph, x: Value, **attrs: Any) -> Value:
    window = _explicit(x, attrs["kernel_shape"], attrs)
    return graph.op("AveragePool", x, **window.attributes(), **attrs)


def lower_max_pool(graph: Graph, x: Value, **attrs: Any) -> tuple[Value, ...]:
    """Always made with its indices; export drops the second output where nobody reads it."""
    window = _explicit(x, attrs["kernel_shape"], attrs)
    return graph.multi("MaxPool", x, outputs=2, **window.attributes(), **attrs)


def convolution_gradients(node: Node, g: Value) -> tuple[Value | None, ...]:
    bias = g.sum([0, *range(2, g.rank)], keepdims=False) if node.has(2) else None
    return _input_gradient(node, g), _weight_gradient(node, g), bias


def _input_gradient(node: Node, g: Value) -> Value:
    """The transposed convolution; positions at the end that no window reached get zeros."""
    x, w, window, group = node[0], node[1], window_of(node), node.attrs.get("group", 1)
    if window.pointwise and group == 1:
        return g.graph.op("Conv", g, w.transpose([1, 0, *range(2, w.rank)]), **window.attributes())
    ends, short = [], []
    for i, outputs in enumerate(g.shape[2:]):
        reached = window.strides[i] * (outputs - 1) + window.extent(i)
        rest = x.shape[2 + i] + window.begins[i] + window.ends[i] - reached
        ends.append(max(0, window.ends[i] - rest))
        short.append(max(0, rest - window.ends[i]))
    shape = Window(window.kernel, window.strides, window.begins, tuple(ends), window.dilations).attributes()
    dx = g.graph.op("ConvTranspose", g, w, **shape, **({"group": group} if group != 1 else {}))
    return dx.pad([0] * len(short), short)


def _weight_gradient(node: Node, g: Value) -> Value:
    x, window, group = node[0], window_of(node), node.attrs.get("group", 1)
    padded = x.pad(window.begins, window.ends)
    if group > 1 or window.taps == 1:
        return _product_per_sample(padded, g, window, group).reshape(node[1].shape)
    patches = x.shape[0] * x.shape[1] * window.taps * int(np.prod(g.shape[2:]))
    wide = x.shape[1] >= WIDE_CHANNELS and patches > PATCHES_IN_CACHE
    channels_first = [1, 0, *range(2, x.rank)]
    product = _product_per_tap if wide else _one_product
    return product(padded.transpose(channels_first), g.transpose(channels_first), window).reshape(node[1].shape)


def _product_per_tap(x: Value, g: Value, window: Window) -> Value:
    """One product `g [M, N*L] @ x_tap [C, N*L]^T` per kernel tap, from padded `x` and `g`, channels first.

    Returns `[M, C, taps]`.
    """
    rows, products = g.reshape([g.shape[0], -1]), []
    for tap in itertools.product(*(range(k) for k in window.kernel)):
        shifted = x
        for axis, offset in enumerate(tap):
            shifted = _shifted(shifted, axis, offset, g, window)
        products.append(x.graph.op("Gemm", rows, shifted.reshape([x.shape[0], -1]), transB=1))
    stacked = x.graph.op("Concat", *products, axis=0)
    return stacked.reshape([window.taps, g.shape[0], x.shape[0]]).transpose([1, 2, 0])


def _one_product(x: Value, g: Value, window: Window) -> Value:
    """One product of `g [M, N*L]` with all patches `[taps*C, N*L]`; operands and result as per tap."""
    m, columns = g.shape[0], _patches(x, g, window, 0)
    product = x.graph.op("Gemm", g.reshape([m, -1]), columns.reshape([window.taps * x.shape[0], -1]), transB=1)
    return product.reshape([m, window.taps, x.shape[0]]).transpose([0, 2, 1])


def _product_per_sample(x: Value, g: Value, window: Window, group: int) -> Value:
    """One product per sample and group (they share the batch axis), summed over the samples.

    The smaller operand is the one transposed. Returns `[groups, M / groups, C / groups, taps]`.
    """
    n, m, c = x.shape[0], g.shape[1] // group, x.shape[1] // group
    grouped = x.reshape([n * group, c, *x.shape[2:]])
    columns = _patches(grouped, g, window, 1).reshape([n * group, window.taps * c, -1])
    rows = g.reshape([n * group, m, -1])
    if window.taps * c <= m:
        total = (rows @ columns.transpose([0, 2, 1])).reshape([n, -1]).sum([0])
        return total.reshape([group, m, window.taps, c]).transpose([0, 1, 3, 2])
    total = (columns @ rows.transpose([0, 2, 1])).reshape([n, -1]).sum([0])
    return total.reshape([group, window.taps, c, m]).transpose([0, 3, 2, 1])


def _patches(x: Value, g: Value, window: Window, channel_axis: int) -> Value:
    """The inputs of each window, taps before channels on `channel_axis`, gathered axis by axis.

    Two short runs of slices for a k*k kernel instead of k*k of them.
    """
    for axis in reversed(range(len(window.kernel))):
        taps = [_shifted(x, axis, offset, g, window) for offset in range(window.kernel[axis])]
        x = x.graph.op("Concat", *taps, axis=channel_axis) if len(taps) > 1 else taps[0]
    return x


def _shifted(x: Value, axis: int, offset: int, g: Value, window: Window) -> Value:
    """What kernel position `offset` of spatial `axis` meets at each output position of `g`."""
    start, stride = offset * window.dilations[axis], window.strides[axis]
    stop = start + stride * (g.shape[2 + axis] - 1) + 1
    if (start, stop, stride) == (0, x.shape[2 + axis], 1):
        return x
    return x.slice(2 + axis, start, stop, stride)


def max_pool_gradients(node: Node, g: Value, _: Value | None = None) -> tuple[Value]:
    """To the largest input of each window; where windows lie side by side, equal ones share."""
    window, x, y = window_of(node), node[0], node.y
    if node.attrs.get("storage_order", 0):
        raise Refusal("storage_order is not 0")
    if not window.tiles or any(n % k for n, k in zip(x.shape[2:], window.kernel, strict=True)):
        return (_scatter_to_largest(x, node.outs[1], g),)
    chosen = x.mask("Equal", _repeat(y, window))
    count = g.graph.op("AveragePool", chosen, **window.attributes()) * window.taps
    return (chosen * _repeat(g / count, window),)


def _scatter_to_largest(x: Value, indices: Value, g: Value) -> Value:
    zeros = g.graph.zeros([x.size], g.dtype)
    flat = indices.reshape([g.size]), g.reshape([g.size])
    return g.graph.op("ScatterElements", zeros, *flat, axis=0, reduction="add").reshape(x.shape)


def average_pool_gradients(node: Node, g: Value) -> tuple[Value]:
    """Each window's gradient, divided by the number of inputs it averaged, spread over the window."""
    window, x = window_of(node), node[0]
    if g.shape[2:] != window.outputs(x.shape[2:]):
        raise Refusal("ceil_mode adds windows that reach past the padding")
    share = g / _averaged(node, g, window)
    if window.tiles and all(n % k == 0 for n, k in zip(x.shape[2:], window.kernel, strict=True)):
        return (_repeat(share, window),)
    planes = share.reshape([-1, 1, *g.shape[2:]])
    ones = g.graph.constant(np.ones((1, 1, *window.kernel), g.dtype))
    source = x.reshape([-1, 1, *x.shape[2:]])
    forward = g.graph.op("Conv", source, ones, **window.attributes()).node
    assert forward is not None, "a convolution of data is never folded"
    return (_input_gradient(forward, planes).reshape(x.shape),)


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
    "Conv": convolution_gradients,
    "MaxPool": max_pool_gradients,
}

LOWERINGS: dict[str, Lowering] = {
    "AveragePool": lower_average_pool,
    "Conv": lower_convolution,
    "MaxPool": lower_max_pool,
}
