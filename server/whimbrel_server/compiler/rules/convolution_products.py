"""Convolutions as matrix products with channels first, `[C, N, *spatial]`, where these beat the runtime's own kernel.

Each form is made of operators that have gradients, so it needs no rule of its own, and the products of its
gradients are as large and as few as its own. Which form is taken, and from what size on, is in `costs.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from whimbrel_server.compiler.graph.ir import Array, Value
from whimbrel_server.compiler.graph.layout import channels_first, samples_first
from whimbrel_server.compiler.rules import costs
from whimbrel_server.compiler.rules.minimal_filtering import filtered, pays
from whimbrel_server.compiler.rules.windows import Window, patches, shifted

LARGEST_CONSTANT = 2**17  # bytes for a band's constant; that of the edges is at most twice as large


def as_product(x: Value, w: Value, bias: Value | None, window: Window, group: int) -> Value | None:
    """The convolution of `x [N, C, *spatial]` with `w [M, C / group, *kernel]`, or None where the kernel is faster."""
    if not x.graph.trains([x, w]):  # with a constant weight the runtime packs the kernel beforehand
        return None
    if group == 1 and window.taps == 1 and not window.padded:
        return _pointwise(x, w, bias, window)
    narrow = group == 1 and x.shape[1] <= costs.MOST_PATCHED_CHANNELS and x.shape[1] * window.taps <= 2 * w.shape[0]
    if narrow and not x.graph.trains([x]):  # an input's gradient would have to be collected from the patches
        return _patched(x, w, bias, window)
    if pays(x, w, window, group):
        return filtered(x, w, bias, window)
    if group == x.shape[1] == w.shape[0]:
        blocks = _blocks(x.shape[2:], window, w.dtype.itemsize)
        return _banded(x, w, bias, window, blocks) if blocks else None
    return None


def _pointwise(x: Value, w: Value, bias: Value | None, window: Window) -> Value:
    """One product for all samples."""
    for axis, stride in enumerate(window.strides):
        if stride > 1:
            x = x.slice(2 + axis, 0, x.shape[2 + axis], stride)
    return _product(w, channels_first(x).reshape([x.shape[1], -1]), bias, (x.shape[0], *x.shape[2:]))


def _patched(x: Value, w: Value, bias: Value | None, window: Window) -> Value:
    """One product with the inputs of all windows, `[taps * C, N * L]`."""
    outputs = window.outputs(x.shape[2:])
    columns = patches(channels_first(x.pad(window.begins, window.ends)), outputs, window, 0)
    columns = columns.reshape([window.taps * x.shape[1], -1])
    taps_first = w.reshape([*w.shape[:2], window.taps]).transpose([0, 2, 1])
    return _product(taps_first, columns, bias, (x.shape[0], *outputs))


def _product(w: Value, columns: Value, bias: Value | None, sizes: Sequence[int]) -> Value:
    operands = [w.reshape([w.shape[0], -1]), columns, *([bias.reshape([-1, 1])] if bias is not None else [])]
    return samples_first(w.graph.op("Gemm", *operands).reshape([w.shape[0], *sizes]))


@dataclass(frozen=True)
class Blocks:
    """The first spatial axis cut into `count` blocks of `rows` output rows and `steps` input rows.

    A block also reads `above` rows of the block before it and `below` rows of the one behind.
    """

    count: int
    rows: int
    steps: int
    above: int
    below: int


def _blocks(sizes: Sequence[int], window: Window, itemsize: int) -> Blocks | None:
    """The largest blocks whose band matrix is small enough: the fewest edges. None: even the smallest is too large.

    The constant that spreads a kernel over its band holds the band once for each tap.
    """
    outputs, stride = window.outputs(sizes), window.strides[0]
    largest = min(costs.LARGEST_BAND, LARGEST_CONSTANT // (itemsize * window.taps))
    area = int(np.prod(sizes[1:], dtype=np.int64) * np.prod(outputs[1:], dtype=np.int64))
    if sizes[0] * outputs[0] * area <= largest:
        return Blocks(1, outputs[0], sizes[0], 0, 0)
    above, below = window.begins[0], max(window.extent(0) - window.begins[0] - stride, 0)
    for rows in range(outputs[0] // 2, 0, -1):
        steps = rows * stride
        fits = outputs[0] % rows == 0 and sizes[0] == outputs[0] * stride and max(above, below) <= steps
        if fits and rows * steps * area <= largest:
            return Blocks(outputs[0] // rows, rows, steps, above, below)
    return None


def _banded(x: Value, w: Value, bias: Value | None, window: Window, blocks: Blocks) -> Value:
    """A depthwise convolution: each channel's rows times the band matrix of its kernel, plus what crosses the blocks' edges."""
    (n, c), outputs = x.shape[:2], window.outputs(x.shape[2:])
    rows = channels_first(x).reshape([c, n, blocks.count, -1])
    y = rows.reshape([c, n * blocks.count, -1]) @ _band(w, window, x.shape[2:], blocks, [*range(blocks.steps)])
    if blocks.count > 1 and blocks.above + blocks.below:
        edges = _edges(rows, blocks)
        reached = [*range(-blocks.above, 0), *range(blocks.steps, blocks.steps + blocks.below)]
        y = y + edges.reshape([c, n * blocks.count, -1]) @ _band(w, window, x.shape[2:], blocks, reached)
    y = y.reshape([c, n, *outputs])
    return samples_first(y if bias is None else y + bias.reshape([-1, *[1] * (y.rank - 1)]))


def has_diagonals(x: Value, g: Value, window: Window) -> bool:
    """Whether `depthwise_weight_gradient` takes maps of this rank and width."""
    return x.rank == 4 and window.kernel[1] * x.shape[3] * g.shape[3] * g.dtype.itemsize <= 2 * LARGEST_CONSTANT


def depthwise_weight_gradient(x: Value, g: Value, window: Window) -> Value:
    """For maps too large for bands of both axes: `[C, taps]`, two spatial axes only.

    Per kernel row one product over all samples and rows, `[W', N H'] @ [N H', W]`, of which each tap sums a diagonal.
    """
    (n, c), (height, _) = g.shape[:2], g.shape[2:]
    across = channels_first(g).reshape([c, n * height, -1]).transpose([0, 2, 1])
    rows = channels_first(x).pad([window.begins[0], 0], [window.ends[0], 0])
    diagonals = _connections(window, 1, range(x.shape[3]), g.shape[3]).transpose([0, 2, 1])
    ones = g.graph.constant(diagonals.reshape(len(diagonals), -1).astype(g.dtype))
    parts = []
    for offset in range(window.kernel[0]):
        met = shifted(rows, 0, offset, g.shape[2:], window).reshape([c, n * height, -1])
        parts.append(g.graph.op("Gemm", (across @ met).reshape([c, -1]), ones, transB=1))
    return g.graph.op("Concat", *parts, axis=1)


def _edges(rows: Value, blocks: Blocks) -> Value:
    """For each block of `rows [C, N, blocks, row]` what it reads of its neighbours; zeros beyond the first and last."""
    width, row, last = rows.shape[3] // blocks.steps, rows.shape[3], blocks.count - 1
    parts = []
    if blocks.above:
        parts.append(_cut(rows, (0, row - blocks.above * width), (last, row)).pad([1, 0], [0, 0]))
    if blocks.below:
        parts.append(_cut(rows, (1, 0), (blocks.count, blocks.below * width)).pad([0, 0], [1, 0]))
    return rows.graph.op("Concat", *parts, axis=3)


def _cut(rows: Value, starts: Sequence[int], ends: Sequence[int]) -> Value:
    """A slice of the last two axes at once."""
    return rows.graph.op("Slice", rows, *(rows.graph.ints(numbers) for numbers in (starts, ends, (2, 3))))


def _band(w: Value, window: Window, sizes: Sequence[int], blocks: Blocks, reached: Sequence[int]) -> Value:
    """`[C, inputs, outputs]`: the weights where a tap connects an input of the `reached` rows to an output of a block."""
    outputs = (blocks.rows, *window.outputs(sizes)[1:])
    places = [reached, *(range(size) for size in sizes[1:])]
    ones = np.ones((1, 1, 1), w.dtype)
    for axis, (inputs, count) in enumerate(zip(places, outputs, strict=True)):
        joined = np.einsum("aio,bjp->abijop", ones, _connections(window, axis, inputs, count))
        ones = joined.reshape(joined.shape[0] * joined.shape[1], -1, joined.shape[4] * joined.shape[5])
    spread = w.reshape([w.shape[0], -1]) @ w.graph.constant(ones.reshape(len(ones), -1).astype(w.dtype))
    return spread.reshape([w.shape[0], *ones.shape[1:]])


def _connections(window: Window, axis: int, inputs: Sequence[int], outputs: int) -> Array:
    """`[taps, inputs, outputs]`: 1 where tap t of output o reads input i."""
    taps = np.arange(window.kernel[axis])[:, None, None] * window.dilations[axis]
    reads = np.arange(outputs)[None, None, :] * window.strides[axis] + taps - window.begins[axis]
    return np.asarray(reads == np.asarray(inputs)[None, :, None], np.float32)
