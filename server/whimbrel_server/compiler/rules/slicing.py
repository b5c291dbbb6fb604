"""Operators that keep a part of an axis or put margins around it: Slice, Split, Pad, CenterCropPad.

What is kept of an axis is a `range` of its positions, with any step, negative ones included. Operators that
select by a tensor of indices belong in `indexing.py`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from whimbrel_server.compiler.errors import Refusal
from whimbrel_server.compiler.graph.ir import Graph, Node, Value
from whimbrel_server.compiler.rules.table import Gradients, Lowering, Rule

Spots = Mapping[int, range]  # axis to the positions kept of it


def take(x: Value, spots: Spots) -> Value:
    """The given positions of the given axes, as one Slice; the axes left out stay whole."""
    cut = {axis: kept for axis, kept in spots.items() if kept != range(x.shape[axis])}
    if not cut:
        return x
    starts = [kept.start for kept in cut.values()]
    # Before position 0 there is no position to name: -1 would be the last one.
    stops = [kept.stop if kept.stop >= 0 else -x.shape[axis] - 1 for axis, kept in cut.items()]
    steps = [kept.step for kept in cut.values()]
    ints = x.graph.ints
    return x.graph.op("Slice", x, ints(starts), ints(stops), ints(list(cut)), ints(steps))


def spread(g: Value, shape: Sequence[int], spots: Spots) -> Value:
    """The transpose of `take`: zeros of `shape` with `g` at the given positions."""
    begins, ends = [0] * len(shape), [0] * len(shape)
    for axis, kept in spots.items():
        if kept.step < 0:
            g, kept = take(g, {axis: range(len(kept))[::-1]}), kept[::-1]
        step = kept.step if len(kept) > 1 else 1
        begins[axis] = kept.start // step * step
        g = _with_gaps(g, axis, step, kept.start % step)
        g = take(g, {axis: range(min(g.shape[axis], shape[axis] - begins[axis]))})
        ends[axis] = shape[axis] - begins[axis] - g.shape[axis]
    return g.pad(begins, ends)


def _with_gaps(g: Value, axis: int, step: int, place: int) -> Value:
    """Puts each position of `axis` at `place` among `step - 1` zeros."""
    if step == 1:
        return g
    before, size, behind = g.shape[:axis], g.shape[axis], g.shape[axis + 1 :]
    rows = g.reshape([*before, size, 1, *behind])
    still = [0] * len(behind)
    return rows.pad([place, *still], [step - 1 - place, *still]).reshape([*before, size * step, *behind])


def _spots(node: Node) -> dict[int, range]:
    """What a Slice keeps; its bounds are constants, because else its result has no static shape."""
    x, (starts, ends) = node[0], (_numbers(node[1]), _numbers(node[2]))
    axes = _numbers(node[3]) if node.has(3) else list(range(len(starts)))
    steps = _numbers(node[4]) if node.has(4) else [1] * len(starts)
    bounds = zip(axes, starts, ends, steps, strict=True)
    sizes = x.shape
    return {a % x.rank: range(sizes[a])[slice(start, end, step)] for a, start, end, step in bounds}


def _numbers(value: Value) -> list[int]:
    assert value.data is not None
    return [int(number) for number in value.data.ravel()]


def _concat(n: Node, g: Value) -> Gradients:
    axis = n.attrs["axis"] % g.rank
    ends = np.cumsum([value.shape[axis] for value in n.ins if value is not None]).tolist()
    return [take(g, {axis: range(end - n[i].shape[axis], end)}) for i, end in enumerate(ends)]


def _split(n: Node, *gradients: Value | None) -> Gradients:
    """One Concat, with zeros for the parts that no gradient reaches."""
    axis, graph = n.attrs.get("axis", 0), n[0].graph
    parts = [graph.zeros(y.shape, y.dtype) if g is None else g for y, g in zip(n.outs, gradients, strict=True)]
    return graph.op("Concat", *parts, axis=axis), None


def _pad(n: Node, g: Value) -> Gradients:
    """Undoes one axis after the other; what stands in the margins goes back to where it was copied from."""
    margins, mode = _numbers(n[1]), n.attrs.get("mode", "constant")
    dx = g
    for axis, (begin, end) in enumerate(zip(margins[: g.rank], margins[g.rank :], strict=True)):
        if begin or end:
            dx = _inner(dx, axis, begin, end, _MARGINS[mode])
    filled = n.has(2) and n[2].data is None
    everywhere = range(g.rank)
    return dx, None, g.sum(everywhere, keepdims=False) - dx.sum(everywhere, keepdims=False) if filled else None


_Margins = Callable[[int, int, int], Iterator[tuple[range, range]]]


def _inner(g: Value, axis: int, begin: int, end: int, margins: _Margins) -> Value:
    size = g.shape[axis] - begin - end
    inner = take(g, {axis: range(begin, begin + size)})
    for spots, origin in margins(size, begin, end):
        margin = take(g, {axis: spots})
        if len(origin) == 1:
            margin = margin.sum([axis])
        inner = inner + spread(margin, inner.shape, {axis: origin})
    return inner


def _no_margins(size: int, begin: int, end: int) -> Iterator[tuple[range, range]]:
    return iter(())


def _edge(size: int, begin: int, end: int) -> Iterator[tuple[range, range]]:
    if begin:
        yield range(begin), range(1)
    if end:
        yield range(begin + size, begin + size + end), range(size - 1, size)


def _reflect(size: int, begin: int, end: int) -> Iterator[tuple[range, range]]:
    if max(begin, end) >= size:
        raise Refusal(f"reflects {max(begin, end)} of {size} positions")
    if begin:
        yield range(begin)[::-1], range(1, begin + 1)
    if end:
        yield range(begin + size, begin + size + end)[::-1], range(size - 1 - end, size - 1)


def _wrap(size: int, begin: int, end: int) -> Iterator[tuple[range, range]]:
    if max(begin, end) > size:
        raise Refusal(f"repeats {max(begin, end)} of {size} positions")
    if begin:
        yield range(begin), range(size - begin, size)
    if end:
        yield range(begin + size, begin + size + end), range(end)


# For each mode: which margin positions are copies, and of which positions inside.
_MARGINS: dict[str, _Margins] = {"constant": _no_margins, "edge": _edge, "reflect": _reflect, "wrap": _wrap}

RULES: dict[str, Rule] = {
    "Concat": _concat,
    "Pad": _pad,
    "Slice": lambda n, g: (spread(g, n[0].shape, _spots(n)), *[None] * 4),
    "Split": _split,
}


def _lower_pad(
    graph: Graph, x: Value, pads: Value, fill: Value | None = None, axes: Value | None = None, *, mode: str = "constant"
) -> Value:
    """Margins for all axes, and negative ones as a Slice: onnx's reference evaluator does not know them."""
    if pads.data is None or (axes is not None and axes.data is None):
        return graph.op("Pad", x, pads, fill, axes, mode=mode)
    begins, ends = np.array(pads.data, np.int64).reshape(2, -1)
    margins = np.zeros((2, x.rank), np.int64)
    margins[:, range(x.rank) if axes is None else axes.data] = begins, ends
    crops = np.maximum(-margins, 0)
    x = take(x, {axis: range(b, n - e) for axis, (n, b, e) in enumerate(zip(x.shape, *crops.tolist(), strict=True))})
    margins = np.maximum(margins, 0)
    filling = () if fill is None else (fill,)
    return graph.op("Pad", x, graph.ints(margins.ravel().tolist()), *filling, mode=mode) if margins.any() else x


def _lower_slice(
    graph: Graph, x: Value, starts: Value, ends: Value, axes: Value | None = None, steps: Value | None = None
) -> Value:
    """A window of known length at a place that the data say is a Gather; all else stays a Slice."""
    length = _length(starts, ends, steps)
    if length is None or (axes is not None and axes.data is None):
        return graph.op("Slice", x, starts, ends, axes, steps)
    places = starts + graph.ints(range(length)).cast(starts.dtype)
    return graph.op("Gather", x, places, axis=0 if axes is None else _numbers(axes)[0])


def _length(starts: Value, ends: Value, steps: Value | None) -> int | None:
    """n where one slice goes from `starts` to `starts + n`, and `starts` depends on the data."""
    start, end = _without_reshape(starts), _without_reshape(ends)
    if start.data is not None or starts.size != 1 or (steps is not None and (steps.data is None or steps.data != 1)):
        return None
    if end.node is None or end.node.op != "Add":
        return None
    others = [value for value in (end.node[0], end.node[1]) if _without_reshape(value) is not start]
    return int(others[0].data) if len(others) == 1 and others[0].data is not None else None


def _without_reshape(value: Value) -> Value:
    return value.node[0] if value.node is not None and value.node.op == "Reshape" else value


def _lower_center_crop_pad(graph: Graph, x: Value, shape: Value, *, axes: Sequence[int] | None = None) -> Value:
    if shape.data is None:
        return graph.op("CenterCropPad", x, shape, **({} if axes is None else {"axes": list(axes)}))
    wanted = dict(zip(range(x.rank) if axes is None else axes, _numbers(shape), strict=True))
    wider = {axis % x.rank: size - x.shape[axis] for axis, size in wanted.items()}
    cut = {axis: -more // 2 for axis, more in wider.items() if more < 0}
    inside = take(x, {axis: range(begin, begin + x.shape[axis] + wider[axis]) for axis, begin in cut.items()})
    added = [max(0, wider.get(axis, 0)) for axis in range(x.rank)]
    return inside.pad([more // 2 for more in added], [more - more // 2 for more in added])


LOWERINGS: dict[str, Lowering] = {
    "CenterCropPad": _lower_center_crop_pad,
    "Pad": _lower_pad,
    "Slice": _lower_slice,
}
