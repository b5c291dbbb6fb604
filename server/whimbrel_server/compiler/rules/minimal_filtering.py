"""Convolutions by Winograd's minimal filtering: fewer multiplications than positions times taps.

A tile of r results along an axis of k taps takes P = r + k - 1 products instead of r k. Tiles, kernels and products are
brought there and back by small constant matrices, which also cut the map into tiles, pad it and put it together again.
With the samples on the last axis all of this is plain products, so that no gradient rule of its own is needed and the
gradients are as few products. Which convolutions are worth it is in `costs.py`.

Winograd, "Arithmetic Complexity of Computations", 1980; Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks", CVPR 2016.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from whimbrel_server.compiler.graph.ir import Array, Value
from whimbrel_server.compiler.graph.layout import channels_first, samples_first
from whimbrel_server.compiler.rules import costs
from whimbrel_server.compiler.rules.windows import Window

# Where the polynomials are taken, beside infinity, by taps: zero and pairs of reciprocals lose the fewest digits. In
# float32 a result is then off by 1e-6 (3 taps) and 3e-6 (5 taps) of its mean square, by 2e-7 if summed directly.
POINTS: Mapping[int, tuple[float, ...]] = {
    3: (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2),
    5: (0.0, 1 / 2, -1 / 2, 1.0, -1.0, 2.0, -2.0),
}


@dataclass(frozen=True)
class Axis:
    """Matrices for one axis of a kernel: y = result @ ((kernel @ w) * (tile @ x)).

    `kernel` `[P, k]`, `tile` `[P, P]`, `result` `[r, P]`.
    """

    kernel: Array
    tile: Array
    result: Array

    @property
    def points(self) -> int:
        return len(self.tile)

    @property
    def step(self) -> int:
        return len(self.result)

    def tiles(self, size: int, begin: int, count: int) -> Array:
        """`[P * count, size]`: `tile` of each of `count` tiles of an axis, the first `begin` places before it."""
        spread = np.zeros((self.points, count, size))
        for i in range(count):
            for place in range(self.points):
                at = i * self.step + place - begin
                if 0 <= at < size:
                    spread[:, i, at] = self.tile[:, place]
        return spread.reshape(-1, size)

    def results(self, size: int, count: int) -> Array:
        """`[size, P * count]`: the first `size` of the results of `count` tiles."""
        each = np.einsum("rp,ij->irpj", self.result, np.eye(count))
        return np.asarray(each.reshape(count * self.step, -1)[:size])


@cache
def axis_of(taps: int) -> Axis:
    """The matrices of Toom and Cook: products of polynomials from their values, transposed."""
    points = POINTS[taps]
    step = len(points) + 2 - taps
    others = [[other for other in points if other != point] for point in points]
    values = np.vander(points, max(taps, step), increasing=True)
    weights = np.array([np.prod(point - np.array(rest)) for point, rest in zip(points, others, strict=True)])
    kernel = np.vstack([values[:, :taps] / weights[:, None], np.eye(taps)[-1:]])
    tile = np.array([*([*np.poly(rest)[::-1], 0.0] for rest in others), np.poly(points)[::-1]])
    return Axis(kernel, tile, np.hstack([values[:, :step].T, np.eye(step)[:, -1:]]))


def pays(x: Value, w: Value, window: Window, group: int) -> bool:
    """Whether `filtered` takes this convolution and is faster: the transforms cost with the map's side, and save by channel."""
    whole = group == 1 and set(window.strides) == {1} and set(window.dilations) == {1}
    if not whole or x.rank != 4 or not POINTS.keys() >= set(window.kernel) or x.shape[0] < costs.FEWEST_FILTERED:
        return False
    return max(window.outputs(x.shape[2:])) <= min(*w.shape[:2], costs.LARGEST_FILTERED)


def filtered(x: Value, w: Value, bias: Value | None, window: Window) -> Value:
    """The convolution of `x [N, C, H, W]` with `w [M, C, *kernel]`, of stride 1 and taps in `POINTS`."""
    (n, c), m, sizes = x.shape[:2], w.shape[0], window.outputs(x.shape[2:])
    rows, columns = axes = [axis_of(taps) for taps in window.kernel]
    i, j = counts = [-(-size // axis.step) for size, axis in zip(sizes, axes, strict=True)]
    edges = zip(axes, x.shape[2:], window.begins, counts, strict=True)
    x = _spread(_samples_last(x), *(axis.tiles(size, begin, count) for axis, size, begin, count in edges))
    kernels = w.graph.op("Gemm", _constant(w, np.kron(rows.kernel, columns.kernel)), w.reshape([m * c, -1]), transB=1)
    kernels = kernels.reshape([rows.points, 1, columns.points, 1, m, c])
    products = kernels @ x.reshape([rows.points, i, columns.points, j, c, n])
    y = _gathered(products, *(axis.results(size, count) for axis, size, count in zip(axes, sizes, counts, strict=True)))
    y = y.reshape([-1, m * n]).transpose([1, 0]).reshape([m, n, *sizes])
    return samples_first(y if bias is None else y + bias.reshape([-1, 1, 1, 1]))


def _samples_last(x: Value) -> Value:
    """`[H, W, C * N]` of `[N, C, H, W]`: an exchange of two axes and a transposed matrix are quicker than any other way."""
    flat = channels_first(x).reshape([x.shape[0] * x.shape[1], -1])
    return flat.transpose([1, 0]).reshape([*x.shape[2:], -1])


def _spread(x: Value, rows: Array, columns: Array) -> Value:
    """`[*rows, *columns, rest]` of `x [H, W, rest]`: the product that is larger is the one done in many pieces."""
    across = _constant(x, rows) @ x.reshape([rows.shape[1], -1])
    return _constant(x, columns) @ across.reshape([rows.shape[0], columns.shape[1], -1])


def _gathered(x: Value, rows: Array, columns: Array) -> Value:
    """`[H, W * rest]` of `x [*rows, *columns, rest]`, in the opposite order."""
    across = _constant(x, columns) @ x.reshape([rows.shape[1], columns.shape[1], -1])
    return _constant(x, rows) @ across.reshape([rows.shape[1], -1])


def _constant(like: Value, matrix: Array) -> Value:
    return like.graph.constant(np.ascontiguousarray(matrix, like.dtype))
