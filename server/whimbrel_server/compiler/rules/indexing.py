"""Operators that select or place by tensors of indices: the Gather and Scatter families, and TopK.

Scatter-adds that start from zeros stay sparse as long as nobody needs them dense (`sparse.py`): an embedding's
update then touches only the rows that were looked up.
"""

import math
from collections.abc import Sequence

import numpy as np

from whimbrel_server.compiler.errors import Refusal
from whimbrel_server.compiler.graph.ir import Array, Graph, Node, Value
from whimbrel_server.compiler.rules.slicing import take
from whimbrel_server.compiler.rules.table import Gradients, Lowering, Rule

INT64 = np.dtype(np.int64)

# onnxruntime spreads a ScatterND over its threads without a lock, so that additions to one row get lost, once
# elements x rows pass 210,000 (its cost model: one cycle an element, 100,000 cycles to start, 100,000 a thread).
# Below that it runs in the calling thread alone.
UNSHARED_ELEMENTS = 200_000
# Every further ScatterND copies the whole base; beyond this size one ScatterElements, ten times slower an element
# but never shared between threads, costs less.
COPYABLE_ELEMENTS = 4_000_000


def scatter_add(base: Value, rows: Value, updates: Value) -> Value:
    """`base` `[n, ...]` with `updates` `[m, ...]` added to `rows` (int64 `[m]`); rows may repeat."""
    count, width = rows.shape[0], math.prod(updates.shape[1:])
    if base.graph.any_batch or (updates.size > UNSHARED_ELEMENTS and base.size > COPYABLE_ELEMENTS):
        wide = rows.reshape([count, *[1] * (base.rank - 1)]).expand(updates.shape)
        return base.graph.op("ScatterElements", base, wide, updates, axis=0, reduction="add")
    step = max(1, UNSHARED_ELEMENTS // max(width, 1))
    for start in range(0, count, step):
        part = {0: range(start, min(start + step, count))}
        places = take(rows, part).reshape([-1, 1])
        base = base.graph.op("ScatterND", base, places, take(updates, part), reduction="add")
    return base


def _gather(n: Node, g: Value) -> Gradients:
    """Indices and what they index go to the front, where whole rows are added; a mere reordering is undone."""
    x, indices, axis = n[0], n[1], n.attrs.get("axis", 0) % n[0].rank
    if indices.data is not None and sorted(places := _positions(indices.data, x.shape[axis])) == list(range(x.shape[axis])):
        return g.graph.op("Gather", g.reshape(x.shape), g.graph.ints(np.argsort(places).tolist()), axis=axis), None
    front = [*range(axis, axis + indices.rank), *range(axis), *range(axis + indices.rank, g.rank)]
    others = [*x.shape[:axis], *x.shape[axis + 1 :]]
    updates = g.transpose(front).reshape([indices.size, *others])
    zeros = g.graph.zeros([x.shape[axis], *others], g.dtype)
    summed = scatter_add(zeros, indices.cast(INT64).reshape([indices.size]), updates)
    return summed.transpose([*range(1, axis + 1), 0, *range(axis + 1, x.rank)]), None


def _gather_elements(n: Node, g: Value) -> Gradients:
    return _add_elements(n, n[1], g), None


def _top_k(n: Node, g: Value, _: None) -> Gradients:
    return _add_elements(n, n.outs[1], g), None


def _add_elements(n: Node, indices: Value, g: Value) -> Value:
    axis = n.attrs.get("axis", 0 if n.op == "GatherElements" else -1) % n[0].rank
    return g.graph.op("ScatterElements", g.graph.zeros(n[0].shape, g.dtype), indices, g, axis=axis, reduction="add")


def _scatter(n: Node, g: Value) -> Gradients:
    """ScatterElements, and ScatterND with rows for indices."""
    graph, reduction = g.graph, n.attrs.get("reduction", "none")
    chosen = _chosen(n, g)
    if reduction == "add":
        return g, None, chosen
    if reduction == "none":
        return _placed(n, g, graph.zeros(n[2].shape, g.dtype), "none"), None, _not_overwritten(n, chosen)
    if reduction in ("max", "min"):
        return _scatter_extreme(n, g)
    raise Refusal(f"reduction {reduction!r}: one zero among the factors hides the gradient of the others")


def _scatter_extreme(n: Node, g: Value) -> Gradients:
    """All that reached the extreme share its gradient."""
    kept, reached = n[0].mask("Equal", n.y), n[2].mask("Equal", _chosen(n, n.y))
    share = g / _placed(n, kept, reached, "add")
    return kept * share, None, reached * _chosen(n, share)


def _not_overwritten(n: Node, chosen: Value) -> Value:
    """Zero for updates whose place a later one took: each leaves its number, and finds it again or another's."""
    graph, rows = n.y.graph, n.op == "ScatterND"
    if n[1].data is not None and rows and len(set(_positions(n[1].data, n[0].shape[0]))) == n[1].size:
        return chosen
    shape = [n[1].size, *[1] * (n[2].rank - 1)] if rows else list(n[1].shape)
    numbers = graph.op("Range", *(graph.constant(np.array(k)) for k in (0, math.prod(shape), 1))).reshape(shape)
    places = graph.zeros([n[0].shape[0], *shape[1:]] if rows else n[0].shape, np.dtype(np.int64))
    found = _chosen(n, _placed(n, places, numbers, "none"))
    return chosen * graph.op("Equal", found, numbers).cast(chosen.dtype)


def _chosen(n: Node, x: Value) -> Value:
    """What of `x` stands where the node's updates went."""
    if n.op == "ScatterElements":
        return x.graph.op("GatherElements", x, n[1], axis=n.attrs.get("axis", 0) % x.rank)
    return x.graph.op("Gather", x, n[1].reshape([n[1].size]), axis=0)


def _placed(n: Node, base: Value, updates: Value, reduction: str) -> Value:
    axis = {"axis": n.attrs.get("axis", 0) % base.rank} if n.op == "ScatterElements" else {}
    if n.op == "ScatterND" and reduction == "add":
        return scatter_add(base, n[1].reshape([n[1].size]), updates)
    return base.graph.op(n.op, base, n[1], updates, reduction=reduction, **axis)


RULES: dict[str, Rule] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "TopK": _top_k,
}


def _positions(indices: Array, size: int) -> list[int]:
    """Constant indices in their order, the negative ones counted from the end."""
    return [int(index) % size for index in indices.ravel()]


def _lower_gather(graph: Graph, x: Value, indices: Value, *, axis: int = 0) -> Value:
    """Evenly spaced constant indices are a Slice, whose gradient needs no scattering."""
    axis %= x.rank
    if x.data is None and indices.data is not None and indices.size:
        places = _positions(indices.data, x.shape[axis])
        step = places[1] - places[0] if len(places) > 1 else 1
        even = range(places[0], places[0] + step * len(places), step) if step else range(0)
        if list(even) == places:
            return take(x, {axis: even}).reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])
    return graph.op("Gather", x, indices, axis=axis)


def _lower_gather_nd(graph: Graph, x: Value, indices: Value, *, batch_dims: int = 0) -> Value:
    """A Gather of rows, after the indexed axes have been merged into one."""
    depth = indices.shape[-1]
    merged = x.reshape([math.prod(x.shape[: batch_dims + depth]), *x.shape[batch_dims + depth :]])
    rows = _row_numbers(indices, x.shape[batch_dims : batch_dims + depth])
    batches = x.shape[:batch_dims]
    if batches:
        firsts = np.arange(math.prod(batches)).reshape(*batches, *[1] * (rows.rank - batch_dims))
        rows = rows + graph.constant(firsts * math.prod(x.shape[batch_dims : batch_dims + depth]))
    return graph.op("Gather", merged, rows, axis=0)


def _lower_scatter_nd(graph: Graph, x: Value, indices: Value, updates: Value, *, reduction: str = "none") -> Value:
    """To rows of `x` with the indexed axes merged into one; `indices` are then `[m, 1]`."""
    depth = indices.shape[-1]
    merged = x.reshape([math.prod(x.shape[:depth]), *x.shape[depth:]])
    rows = _row_numbers(indices, x.shape[:depth])
    flat, values = rows.reshape([rows.size]), updates.reshape([rows.size, *x.shape[depth:]])
    if reduction == "add":
        return scatter_add(merged, flat, values).reshape(x.shape)
    places = flat.reshape([rows.size, 1])
    return graph.op("ScatterND", merged, places, values, reduction=reduction).reshape(x.shape)


def _row_numbers(indices: Value, sizes: Sequence[int]) -> Value:
    """`[..., k]` coordinates as `[...]` positions in an array of `sizes` (row-major), none of them negative."""
    graph, strides = indices.graph, [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    positive = graph.op("Mod", indices, graph.ints(sizes))
    return (positive * graph.ints(strides)).sum([indices.rank - 1], keepdims=False)


def _lower_top_k(graph: Graph, x: Value, k: Value, **attrs: int) -> tuple[Value, ...]:
    """With both results, because the gradient needs the indices."""
    return graph.multi("TopK", x, k, outputs=2, **attrs)


def _lower_non_zero(graph: Graph, x: Value) -> Value:
    """Resolved where it can be: of data, its shape is not static."""
    return graph.op("NonZero", x) if x.data is None else graph.constant(np.stack(np.nonzero(x.data)).astype(np.int64))


LOWERINGS: dict[str, Lowering] = {
    "Gather": _lower_gather,
    "GatherND": _lower_gather_nd,
    "NonZero": _lower_non_zero,
    "ScatterND": _lower_scatter_nd,
    "TopK": _lower_top_k,
}
