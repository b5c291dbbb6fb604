"""Local rewrites, applied the moment a node is made.

Each rewrite looks at one operator and its direct operands and returns a simpler value or None. A rewrite
must give the same numbers up to rounding for every input, NaN and infinity included where they can occur.
Gradient rules and lowerings for speed do not belong here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx.numpy_helper import to_array

if TYPE_CHECKING:
    from whimbrel_server.compiler.ir import Graph, Node, Value

FOLD_LIMIT = {"Expand": 64, "ConstantOfShape": 64}  # elements; larger constants would blow the file up
DEFAULT_FOLD_LIMIT = 4096
# Shape arithmetic and the small tensors that gradients are made of.
# fmt: off
FOLDABLE = frozenset({
    "Add", "And", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Floor", "Gather",
    "Greater", "Less", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Range", "ReduceMax",
    "ReduceMin", "ReduceProd", "ReduceSum", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where",
})
# fmt: on


@dataclass(frozen=True)
class Draft:
    """A node about to be made, with the dtype and shape of its only output."""

    graph: "Graph"
    op: str
    ins: "tuple[Value | None, ...]"
    attrs: Mapping[str, Any]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __getitem__(self, index: int) -> "Value":
        value = self.ins[index]
        assert value is not None, f"{self.op} requires input {index}"
        return value

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


def folds(draft: Draft) -> bool:
    """Whether the node is to be replaced by its constant value."""
    constant = all(value is None or value.data is not None for value in draft.ins)
    limit = FOLD_LIMIT.get(draft.op, DEFAULT_FOLD_LIMIT)
    return constant and draft.op in FOLDABLE and draft.size <= limit


def rewrite(draft: Draft) -> "Value | None":
    """A simpler value equal to the draft's output, or None."""
    for rule in REWRITES.get(draft.op, ()):
        simpler = rule(draft)
        if simpler is not None:
            return simpler
    return None


def _drop_identity(d: Draft) -> "Value | None":
    return d[0]


def _drop_same_type(d: Draft) -> "Value | None":
    return d[0] if d[0].dtype == d.dtype else None


def _drop_same_shape(d: Draft) -> "Value | None":
    return d[0] if d[0].shape == d.shape else None


def _read_static_shape(d: Draft) -> "Value | None":
    start, end = d.attrs.get("start", 0), d.attrs.get("end")
    return d.graph.ints(d[0].shape[start:end])


def _resolve_target(d: Draft) -> "Value | None":
    """Writes out the 0 and -1 of a Reshape, so that equal reshapes become one node."""
    target = d[1].data
    if target is not None and tuple(target.tolist()) == d.shape and "allowzero" not in d.attrs:
        return None
    return d[0].reshape(d.shape)


def _merge_reshapes(d: Draft) -> "Value | None":
    inner = _made_by(d[0], "Reshape")
    if d[0].data is not None:
        return d.graph.constant(d[0].data.reshape(d.shape))
    return inner[0].reshape(d.shape) if inner else None


def _transpose(d: Draft) -> "Value | None":
    perm = list(d.attrs.get("perm", reversed(range(d[0].rank))))
    moved = [axis for axis in perm if d[0].shape[axis] != 1]
    if moved == sorted(moved):
        return d[0].reshape(d.shape)
    inner = _made_by(d[0], "Transpose")
    if inner is None:
        return None
    first = list(inner.attrs.get("perm", reversed(range(inner[0].rank))))
    return inner[0].transpose([first[axis] for axis in perm])


def _drop_expand(d: Draft) -> "Value | None":
    """Lets a broadcasting operator do the expanding."""
    for index in (0, 1):
        inner = _made_by(d[index], "Expand")
        if inner and np.broadcast_shapes(inner[0].shape, d[1 - index].shape) == d.shape:
            pair = (inner[0], d[1]) if index == 0 else (d[0], inner[0])
            return d.graph.op(d.op, *pair)
    return None


def _scale_before_expand(d: Draft) -> "Value | None":
    for index in (0, 1):
        inner, scale = _made_by(d[index], "Expand"), d[1 - index]
        if inner and scale.size == 1 and scale.rank <= inner[0].rank:
            return (inner[0] * scale).expand(d.shape)
    return None


def _add_zero(d: Draft) -> "Value | None":
    for index in (0, 1):
        if _filled(d[index], 0.0) and d[1 - index].shape == d.shape:
            return d[1 - index]
    return None


def _sub_zero(d: Draft) -> "Value | None":
    return d[0] if _filled(d[1], 0.0) and d[0].shape == d.shape else None


def _mul_unit(d: Draft) -> "Value | None":
    for index in (0, 1):
        other = d[1 - index]
        if other.shape == d.shape and _filled(d[index], 1.0):
            return other
        if other.shape == d.shape and _filled(d[index], -1.0):
            return -other
    return None


def _div_one(d: Draft) -> "Value | None":
    return d[0] if _filled(d[1], 1.0) and d[0].shape == d.shape else None


def _negate(d: Draft) -> "Value | None":
    """-(-x) = x, also through a Reshape; -(a*b) negates the smaller factor."""
    inner, moved = _made_by(d[0], "Neg"), _made_by(d[0], "Reshape")
    if inner:
        return inner[0]
    if moved:
        return (-moved[0]).reshape(d.shape)
    product = _made_by(d[0], "Mul")
    if product is None:
        return None
    small, large = sorted((product[0], product[1]), key=lambda value: value.size)
    return -small * large if small.size < d.size else None


def _sum_unit_axes(d: Draft) -> "Value | None":
    return d[0].reshape(d.shape) if d[0].size == d.size else None


def _sum_of_scatter(d: Draft) -> "Value | None":
    """sum(Scatter(0, i, u)) over the scattered axis is sum(u)."""
    scatter = _sparse(d[0])
    axes = d[1].data if scatter and len(d.ins) > 1 else None
    if scatter is None or axes is None or axes.tolist() != [scatter.attrs["axis"]]:
        return None
    return d.graph.op("ReduceSum", scatter[2], d[1], **d.attrs)


def _scale_of_scatter(d: Draft) -> "Value | None":
    """s * Scatter(0, i, u) = Scatter(0, i, s*u) for a scalar s."""
    for index in (0, 1):
        scatter, scale = _sparse(d[index]), d[1 - index]
        if scatter and scale.size == 1 and d.shape == d[index].shape:
            return _scatter(scatter, scatter[0], scatter[2] * scale)
    return None


def _add_scatter(d: Draft) -> "Value | None":
    """w + Scatter(0, i, u) = Scatter(w, i, u)."""
    for index in (0, 1):
        scatter = _sparse(d[index])
        if scatter and d[0].shape == d[1].shape:
            return _scatter(scatter, d[1 - index], scatter[2])
    return None


def _sub_scatter(d: Draft) -> "Value | None":
    """w - Scatter(0, i, u) = Scatter(w, i, -u), and Scatter(0, i, u) - w = Scatter(-w, i, u)."""
    if d[0].shape != d[1].shape:
        return None
    right, left = _sparse(d[1]), _sparse(d[0])
    if right:
        return _scatter(right, d[0], -right[2])
    return _scatter(left, -d[1], left[2]) if left else None


def _made_by(value: "Value", op: str) -> "Node | None":
    return value.node if value.node is not None and value.node.op == op else None


def _filled(value: "Value", number: float) -> bool:
    return value.data is not None and value.is_float and bool(np.all(value.data == number))


def _sparse(value: "Value") -> "Node | None":
    """The scatter-add into zeros that makes `value`, if one does."""
    node = _made_by(value, "ScatterElements")
    if node is None or node.attrs.get("reduction") != "add":
        return None
    return node if _filled(node[0], 0.0) or _zeros(node[0]) else None


def _zeros(value: "Value") -> bool:
    node = _made_by(value, "ConstantOfShape")
    return node is not None and ("value" not in node.attrs or not np.any(to_array(node.attrs["value"])))


def _scatter(like: "Node", base: "Value", updates: "Value") -> "Value":
    return base.graph.op("ScatterElements", base, like[1], updates, **like.attrs)


REWRITES: dict[str, tuple[Callable[[Draft], "Value | None"], ...]] = {
    "Identity": (_drop_identity,),
    "Cast": (_drop_same_type,),
    "Shape": (_read_static_shape,),
    "Reshape": (_drop_same_shape, _merge_reshapes, _resolve_target),
    "Transpose": (_transpose,),
    "Expand": (_drop_same_shape,),
    "Add": (_add_zero, _drop_expand, _add_scatter),
    "Sub": (_sub_zero, _drop_expand, _sub_scatter),
    "Mul": (_mul_unit, _drop_expand, _scale_before_expand, _scale_of_scatter),
    "Div": (_div_one, _drop_expand),
    "Neg": (_negate,),
    "ReduceSum": (_sum_unit_axes, _sum_of_scatter),
}
