"""GridSample: a picture read at places between its pixels, both of which may be trained (spatial transformers).

Jaderberg et al., "Spatial Transformer Networks", NeurIPS 2015, equations (5) to (7).
"""

import itertools
from typing import Any

import numpy as np

from whimbrel_server.compiler.graph.ir import Graph, Value
from whimbrel_server.compiler.rules.table import Lowering, Rule

INT64 = np.dtype(np.int64)
RULES: dict[str, Rule] = {}


def _lower_grid_sample(graph: Graph, x: Value, grid: Value, **attrs: Any) -> Value:
    """`x` `[N, C, H, W]` at `grid` `[N, H', W', 2]` (x, then y, each from -1 to 1): `[N, C, H', W']`.

    Written out where something behind it is trained: the four pixels around each place, weighted by their distance.
    Other modes and volumes stay as they are.
    """
    linear = attrs.get("mode", "linear") in ("linear", "bilinear")
    if not linear or x.rank != 4 or not graph.trains([x, grid]):
        return graph.op("GridSample", x, grid, **attrs)
    axes = [_neighbours(_place(grid, i, x.shape[3 - i], attrs), x.shape[3 - i], attrs) for i in (1, 0)]
    total = None
    for (row, row_share), (column, column_share) in itertools.product(*axes):
        part = _pixels(x, row * x.shape[3] + column) * (row_share * column_share)
        total = part if total is None else total + part
    assert total is not None
    return total.transpose([0, 3, 1, 2])


def _place(grid: Value, coordinate: int, size: int, attrs: dict[str, Any]) -> Value:
    """One coordinate in pixels, `[N, H', W', 1]`."""
    ratio = grid.slice(3, coordinate, coordinate + 1) + 1.0
    aligned = attrs.get("align_corners", 0)
    place = ratio * ((size - 1) / 2) if aligned else ratio * (size / 2) - 0.5
    padding = attrs.get("padding_mode", "zeros")
    if padding == "reflection":
        place = _reflected(place, size, 0.0 if aligned else 0.5)
    return place if padding == "zeros" else _clipped(place, size)


def _reflected(place: Value, size: int, margin: float) -> Value:
    """Folded at the first and the last pixel, or half a pixel beyond them: a triangle wave."""
    span = size - 1 + 2 * margin
    if span == 0:
        return place * 0.0
    around = place.graph.op("Abs", place + margin)
    rounds = place.graph.op("Floor", around / (2 * span))
    within = around - rounds * (2 * span)
    return span - place.graph.op("Abs", within - span) - margin


def _clipped(place: Value, size: int) -> Value:
    return place.graph.op("Clip", place, place.like(0.0), place.like(float(size - 1)))


def _neighbours(place: Value, size: int, attrs: dict[str, Any]) -> list[tuple[Value, Value]]:
    """The pixels before and behind each place (int64) with their shares; pixels outside have none."""
    before = place.graph.op("Floor", place)
    behind = place - before
    pairs = [(before, 1.0 - behind), (before + 1.0, behind)]
    return [(_clipped(pixel, size).cast(INT64), share * pixel.mask("Equal", _clipped(pixel, size))) for pixel, share in pairs]


def _pixels(x: Value, positions: Value) -> Value:
    """All channels of the pixels at `positions` `[N, H', W', 1]` (row-major in each picture): `[N, H', W', C]`."""
    n, c, h, w = x.shape
    rows = x.transpose([0, 2, 3, 1]).reshape([n * h * w, c])
    firsts = (x.graph.op("Range", *(x.graph.constant(np.array(i)) for i in (0, n, 1))) * (h * w)).reshape([n, 1, 1, 1])
    return x.graph.op("Gather", rows, (positions + firsts).reshape(positions.shape[:3]), axis=0)


LOWERINGS: dict[str, Lowering] = {"GridSample": _lower_grid_sample}
