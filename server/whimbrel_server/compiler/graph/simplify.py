"""Local rewrites, applied the moment a node is made.

Each rewrite looks at one operator and its direct operands and returns a simpler value or None. A rewrite
must give the same numbers up to rounding for every input, NaN and infinity included where they can occur.
Gradient rules and lowerings for speed do not belong here.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from whimbrel_server.compiler.graph.draft import Draft, filled, made_by
from whimbrel_server.compiler.graph.layout import LAYOUT
from whimbrel_server.compiler.graph.sparse import SPARSE

if TYPE_CHECKING:
    from whimbrel_server.compiler.graph.ir import Value

FOLD_LIMIT = {"Expand": 64, "ConstantOfShape": 64}  # elements; larger constants would blow the file up
INTEGERS_FOLD_LIMIT = 4096
FLOATS_FOLD_LIMIT = 256  # where they are made of weights, these are stored already
# Shape arithmetic and the small tensors that gradients are made of.
# fmt: off
FOLDABLE = frozenset({
    "Add", "And", "Cast", "Ceil", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Floor", "Gather",
    "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow",
    "Range", "Reciprocal", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Round", "Slice", "Sqrt",
    "Squeeze", "Sub", "Unsqueeze", "Where", "Xor",
})
# Index arithmetic. Folded floats would be stored again, beside the weights that they are made of.
FOLDABLE_TO_INTEGERS = frozenset({
    "Abs", "CumSum", "GatherElements", "GatherND", "Pad", "ScatterElements", "ScatterND", "Tile",
    "Transpose", "Trilu",
})
# fmt: on


def folds(draft: Draft) -> bool:
    """Whether the node is to be replaced by its constant value."""
    constant = all(value is None or value.data is not None for value in draft.ins)
    limit = FOLD_LIMIT.get(draft.op, FLOATS_FOLD_LIMIT if draft.dtype.kind == "f" else INTEGERS_FOLD_LIMIT)
    foldable = draft.op in FOLDABLE or (draft.op in FOLDABLE_TO_INTEGERS and draft.dtype.kind != "f")
    return constant and foldable and draft.size <= limit


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


def _read_static_size(d: Draft) -> "Value | None":
    return d.graph.constant(np.array(d[0].size))


def _resolve_target(d: Draft) -> "Value | None":
    """Writes out the 0 and -1 of a Reshape, so that equal reshapes become one node."""
    target = d[1].data
    if target is not None and tuple(target.tolist()) == d.shape and "allowzero" not in d.attrs:
        return None
    return d[0].reshape(d.shape)


def _merge_reshapes(d: Draft) -> "Value | None":
    """A named constant stays as it is: a client may be the one who has it."""
    inner = made_by(d[0], "Reshape")
    if d[0].data is not None and not d[0].name:
        return d.graph.constant(d[0].data.reshape(d.shape))
    return inner[0].reshape(d.shape) if inner else None


def _transpose(d: Draft) -> "Value | None":
    perm = list(d.attrs.get("perm", reversed(range(d[0].rank))))
    moved = [axis for axis in perm if d[0].shape[axis] != 1]
    if moved == sorted(moved):
        return d[0].reshape(d.shape)
    inner = made_by(d[0], "Transpose")
    if inner is None:
        return None
    first = list(inner.attrs.get("perm", reversed(range(inner[0].rank))))
    return inner[0].transpose([first[axis] for axis in perm])


def _drop_expand(d: Draft) -> "Value | None":
    """Lets a broadcasting operator do the expanding."""
    for index in (0, 1):
        inner = made_by(d[index], "Expand")
        if inner and np.broadcast_shapes(inner[0].shape, d[1 - index].shape) == d.shape:
            pair = (inner[0], d[1]) if index == 0 else (d[0], inner[0])
            return d.graph.op(d.op, *pair)
    return None


def _scale_before_expand(d: Draft) -> "Value | None":
    for index in (0, 1):
        inner, scale = made_by(d[index], "Expand"), d[1 - index]
        if inner and scale.size == 1 and scale.rank <= inner[0].rank:
            return (inner[0] * scale).expand(d.shape)
    return None


def _add_zero(d: Draft) -> "Value | None":
    for index in (0, 1):
        if filled(d[index], 0.0) and d[1 - index].shape == d.shape:
            return d[1 - index]
    return None


def _sub_zero(d: Draft) -> "Value | None":
    return d[0] if filled(d[1], 0.0) and d[0].shape == d.shape else None


def _mul_unit(d: Draft) -> "Value | None":
    for index in (0, 1):
        other = d[1 - index]
        if other.shape == d.shape and filled(d[index], 1.0):
            return other
        if other.shape == d.shape and filled(d[index], -1.0):
            return -other
    return None


def _div_one(d: Draft) -> "Value | None":
    return d[0] if filled(d[1], 1.0) and d[0].shape == d.shape else None


def _negate(d: Draft) -> "Value | None":
    """-(-x) = x, also through a Reshape; -(a*b) negates the smaller factor."""
    inner, moved = made_by(d[0], "Neg"), made_by(d[0], "Reshape")
    if inner:
        return inner[0]
    if moved:
        return (-moved[0]).reshape(d.shape)
    product = made_by(d[0], "Mul")
    if product is None:
        return None
    small, large = sorted((product[0], product[1]), key=lambda value: value.size)
    return -small * large if small.size < d.size else None


def _sum_unit_axes(d: Draft) -> "Value | None":
    return d[0].reshape(d.shape) if d[0].size == d.size else None


def _drop_lone_concat(d: Draft) -> "Value | None":
    return d[0] if len(d.ins) == 1 else None


_GENERAL: dict[str, tuple[Callable[[Draft], "Value | None"], ...]] = {
    "Identity": (_drop_identity,),
    "Cast": (_drop_same_type,),
    "Concat": (_drop_lone_concat,),
    "Shape": (_read_static_shape,),
    "Size": (_read_static_size,),
    "Reshape": (_drop_same_shape, _merge_reshapes, _resolve_target),
    "Transpose": (_transpose,),
    "Expand": (_drop_same_shape,),
    "Add": (_add_zero, _drop_expand),
    "Sub": (_sub_zero, _drop_expand),
    "Mul": (_mul_unit, _drop_expand, _scale_before_expand),
    "Div": (_div_one, _drop_expand),
    "Neg": (_negate,),
    "ReduceSum": (_sum_unit_axes,),
}
REWRITES = {op: (*_GENERAL.get(op, ()), *SPARSE.get(op, ()), *LAYOUT.get(op, ())) for op in _GENERAL | SPARSE | LAYOUT}
