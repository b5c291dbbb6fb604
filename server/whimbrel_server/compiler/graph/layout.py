"""Transposes pushed towards the outputs, so that those of neighbouring operators meet and cancel.

Operators that are fastest with channels first, `[C, N, *spatial]`, transpose what they read and what they
return (`channels_first`, `samples_first`); the rewrites here move the second past all that works element by
element or reduces. Rewrites that change no layout belong to `simplify.py`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from whimbrel_server.compiler.graph.draft import Draft, made_by

if TYPE_CHECKING:
    from whimbrel_server.compiler.graph.ir import Node, Value

# fmt: off
ELEMENTWISE = (
    "Abs", "Add", "Cast", "Celu", "Clip", "Div", "Elu", "Equal", "Erf", "Exp", "Gelu", "Greater", "HardSigmoid", "HardSwish",
    "LeakyRelu", "Less", "Log", "Mish", "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign",
    "Sqrt", "Sub", "Tanh", "ThresholdedRelu",
)
# fmt: on
REDUCTIONS = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")
SMALL = 8  # an operand this many times smaller than the result is transposed rather than the result


def channels_first(x: "Value") -> "Value":
    """`[N, C, *spatial]` as `[C, N, *spatial]`."""
    return x.transpose([1, 0, *range(2, x.rank)])


def samples_first(x: "Value") -> "Value":
    """`[C, N, *spatial]` as `[N, C, *spatial]`."""
    return x.transpose([1, 0, *range(2, x.rank)])


def swapped_planes(x: "Value") -> "Value | None":
    """The tensor whose first two axes were exchanged to make `x`, if that is how it was made."""
    node = made_by(x, "Transpose")
    return node[0] if node and _perm(node) == [1, 0, *range(2, x.rank)] else None


def _perm(node: "Node") -> list[int]:
    return list(node.attrs.get("perm", reversed(range(node[0].rank))))


def _past_elementwise(d: Draft) -> "Value | None":
    """op(Transpose(x), y) = Transpose(op(x, y')) where y' is y transposed back, or small, or one number."""
    outer = next((node for value in d.ins if value is not None and (node := made_by(value, "Transpose"))), None)
    if outer is None or outer.y.shape != d.shape or outer[0].data is not None:
        return None
    back = [int(axis) for axis in np.argsort(_perm(outer))]
    moved = []
    for value in d.ins:
        inner = value if value is None or value.size == 1 else _moved(value, back, d)
        if inner is None and value is not None:
            return None
        moved.append(inner)
    return d.graph.op(d.op, *moved, **d.attrs).transpose(_perm(outer))


def _moved(value: "Value", back: list[int], d: Draft) -> "Value | None":
    node = made_by(value, "Transpose")
    same = node is not None and [int(axis) for axis in np.argsort(_perm(node))] == back
    if not same and value.size * SMALL > d.size:
        return None
    return value.reshape([1] * (len(d.shape) - value.rank) + list(value.shape)).transpose(back)


def _past_reduction(d: Draft) -> "Value | None":
    """reduce(Transpose(x), axes) = Transpose(reduce(x, the axes they came from))."""
    node = made_by(d[0], "Transpose")
    axes = d[1].data if node and len(d.ins) > 1 else None
    if node is None or axes is None or not axes.size:
        return None
    perm = _perm(node)
    origin = sorted(perm[int(axis)] for axis in axes)
    reduced = d.graph.op(d.op, node[0], d.graph.ints(origin), **{**d.attrs, "keepdims": 1})
    return reduced.transpose(perm).reshape(d.shape)


LAYOUT: dict[str, tuple[Callable[[Draft], "Value | None"], ...]] = {
    **dict.fromkeys(ELEMENTWISE, (_past_elementwise,)),
    **dict.fromkeys(REDUCTIONS, (_past_reduction,)),
}
