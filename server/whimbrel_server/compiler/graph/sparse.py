"""Rewrites that keep mostly-zero gradients sparse: scatter-adds into zeros, and zero margins.

An embedding's SGD update then adds to the rows that were looked up, and no gradient of the whole table is ever
made; the gradients of slices of one tensor are put side by side instead of being padded and added.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from whimbrel_server.compiler.graph.draft import Draft, filled, made_by, zeros

if TYPE_CHECKING:
    from whimbrel_server.compiler.graph.ir import Node, Value


def _sparse(value: "Value") -> "Node | None":
    """The scatter-add that makes `value` out of zeros, if one does, or the last of several in a row."""
    node = made_by(value, "ScatterElements", "ScatterND")
    if node is None or node.attrs.get("reduction") != "add":
        return None
    return node if zeros(node[0]) or _sparse(node[0]) else None


def _scatter(like: "Node", base: "Value", updates: "Value") -> "Value":
    return base.graph.op(like.op, base, like[1], updates, **like.attrs)


def _sum_of_scatter(d: Draft) -> "Value | None":
    """sum(Scatter(0, i, u)) over the scattered axis is sum(u)."""
    scatter = _sparse(d[0])
    axes = d[1].data if scatter and len(d.ins) > 1 else None
    if scatter is None or axes is None or not zeros(scatter[0]) or axes.tolist() != [scatter.attrs.get("axis")]:
        return None
    return d.graph.op("ReduceSum", scatter[2], d[1], **d.attrs)


def _scale_of_scatter(d: Draft) -> "Value | None":
    """s * Scatter(0, i, u) = Scatter(0, i, s*u) for a scalar s."""
    for index in (0, 1):
        scatter, scale = _sparse(d[index]), d[1 - index]
        if scatter and scale.size == 1 and d.shape == d[index].shape:
            base = scatter[0] if zeros(scatter[0]) else scatter[0] * scale
            return _scatter(scatter, base, scatter[2] * scale)
    return None


def _share_of_scatter(d: Draft) -> "Value | None":
    """Scatter(0, i, u) / s = Scatter(0, i, u/s) for a scalar s."""
    scatter, scale = _sparse(d[0]), d[1]
    if scatter is None or scale.size != 1 or d.shape != d[0].shape:
        return None
    base = scatter[0] if zeros(scatter[0]) else scatter[0] / scale
    return _scatter(scatter, base, scatter[2] / scale)


def _negate_scatter(d: Draft) -> "Value | None":
    """-Scatter(0, i, u) = Scatter(0, i, -u)."""
    scatter = _sparse(d[0])
    if scatter is None:
        return None
    return _scatter(scatter, scatter[0] if zeros(scatter[0]) else -scatter[0], -scatter[2])


def _add_scatter(d: Draft) -> "Value | None":
    """w + Scatter(0, i, u) = Scatter(w, i, u)."""
    for index in (0, 1):
        scatter, other = _sparse(d[index]), d[1 - index]
        if scatter and d[0].shape == d[1].shape:
            base = other if zeros(scatter[0]) else other + scatter[0]
            return _scatter(scatter, base, scatter[2])
    return None


def _sub_scatter(d: Draft) -> "Value | None":
    """w - Scatter(0, i, u) = Scatter(w, i, -u), and Scatter(0, i, u) - w = Scatter(-w, i, u)."""
    if d[0].shape != d[1].shape:
        return None
    right, left = _sparse(d[1]), _sparse(d[0])
    if right:
        return _scatter(right, d[0] if zeros(right[0]) else d[0] - right[0], -right[2])
    if left:
        return _scatter(left, -d[1] if zeros(left[0]) else left[0] - d[1], left[2])
    return None


def _margins(value: "Value") -> tuple[list[int], list[int]] | None:
    """The numbers of zeros before and after each axis, where that is what a Pad adds."""
    node = made_by(value, "Pad")
    if node is None or node.attrs.get("mode", "constant") != "constant" or len(node.ins) > 3:
        return None
    if node[1].data is None or node[1].data.min() < 0 or (node.has(2) and not filled(node[2], 0.0)):
        return None
    margins = node[1].data.tolist()
    return margins[: value.rank], margins[value.rank :]


def _scale_of_margins(d: Draft) -> "Value | None":
    """s * Pad(x) = Pad(s*x) for a scalar s."""
    for index in (0, 1):
        margins, scale = _margins(d[index]), d[1 - index]
        if margins and scale.size == 1 and d.shape == d[index].shape:
            node = made_by(d[index], "Pad")
            assert node is not None
            return (node[0] * scale).pad(*margins)
    return None


def _join_neighbours(d: Draft) -> "Value | None":
    """Pad(a) + Pad(b) = Pad(Concat(a, b)) where both have margins on one axis only and b begins where a ends.

    Also below a Reshape of both, as the gradients of every second position and of those between meet.
    """
    inner = [made_by(value, "Reshape") for value in (d[0], d[1])]
    if inner[0] is None or inner[1] is None:
        return _joined(d[0], d[1]) or _joined(d[1], d[0])
    first, second = inner[0][0], inner[1][0]
    joined = (_joined(first, second) or _joined(second, first)) if first.shape == second.shape else None
    return joined.reshape(d.shape) if joined else None


def _joined(first: "Value", second: "Value") -> "Value | None":
    ahead, behind = _margins(first), _margins(second)
    if not ahead or not behind or first.shape != second.shape:
        return None
    axes = [axis for axis in range(first.rank) if any(side[axis] for side in (*ahead, *behind))]
    if len(axes) != 1 or first.shape[axes[0]] - ahead[1][axes[0]] != behind[0][axes[0]]:
        return None
    parts = [*_parts(first, axes[0]), *_parts(second, axes[0])]
    return first.graph.op("Concat", *parts, axis=axes[0]).pad(ahead[0], behind[1])


def _parts(padded: "Value", axis: int) -> "Sequence[Value | None]":
    """What a Pad was put around, taken apart if it was joined along the same axis."""
    assert padded.node is not None
    inner = made_by(padded.node[0], "Concat")
    return inner.ins if inner and inner.attrs["axis"] == axis else padded.node.ins[:1]


SPARSE: dict[str, tuple[Callable[[Draft], "Value | None"], ...]] = {
    "Add": (_add_scatter, _join_neighbours),
    "Div": (_share_of_scatter,),
    "Mul": (_scale_of_scatter, _scale_of_margins),
    "Neg": (_negate_scatter,),
    "ReduceSum": (_sum_of_scatter,),
    "Sub": (_sub_scatter,),
}
