"""Sequences of tensors whose length is known: what they hold goes on as single tensors, and no sequence is left.

Some exporters write a split or an unbinding through a sequence. An operator that needs more than the file tells (a
position that data decide) gives None here, and is kept as it is.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from whimbrel_server.compiler.graph.ir import Graph, Value

Items = tuple[Value, ...]
Operand = Value | Items | None
Resolved = Value | Items | None


def _at(graph: Graph, items: Items, position: Value) -> Resolved:
    place = _number(position)
    return None if place is None or not -len(items) <= place < len(items) else items[place]


def _insert(graph: Graph, items: Items, item: Value, position: Value | None = None) -> Resolved:
    place = len(items) if position is None else _number(position)
    return None if place is None else (*items[:place], item, *items[place:])


def _erase(graph: Graph, items: Items, position: Value | None = None) -> Resolved:
    place = -1 if position is None else _number(position)
    return None if place is None else tuple(v for i, v in enumerate(items) if i != place % len(items))


def _concat(graph: Graph, items: Items, *, axis: int, new_axis: int = 0) -> Resolved:
    if new_axis:
        items = tuple(graph.op("Unsqueeze", value, graph.ints([axis])) for value in items)
    return graph.op("Concat", *items, axis=axis)


def _split(graph: Graph, x: Value, split: Value | None = None, *, axis: int = 0, keepdims: int = 1) -> Resolved:
    size, axis = x.shape[axis], axis % x.rank
    if split is not None and split.data is None:
        return None
    if split is None:
        parts = [1] * size
    elif split.rank:
        parts = split.data.tolist() if split.data is not None else []
    else:
        step = int(_number(split) or 1)
        parts = [min(step, size - start) for start in range(0, size, step)]
    pieces = tuple(x.slice(axis, start, stop) for start, stop in pairwise(accumulate(parts, initial=0)))
    if split is None and not keepdims:
        return tuple(piece.reshape([n for i, n in enumerate(piece.shape) if i != axis]) for piece in pieces)
    return pieces


def _number(value: Value) -> int | None:
    return None if value.data is None else int(value.data.item())


RULES: dict[str, Callable[..., Resolved]] = {
    "ConcatFromSequence": _concat,
    "SequenceAt": _at,
    "SequenceConstruct": lambda graph, *items: items,
    "SequenceEmpty": lambda graph, **attrs: (),
    "SequenceErase": _erase,
    "SequenceInsert": _insert,
    "SequenceLength": lambda graph, items: graph.constant(np.array(len(items), np.int64)),
    "SplitToSequence": _split,
}
MAKERS = ("SequenceConstruct", "SequenceEmpty", "SplitToSequence")  # all others read a sequence first


def resolve(graph: Graph, op: str, ins: Sequence[Operand], attrs: dict[str, Any]) -> Resolved:
    """The tensors that a sequence operator gives, or None where only a run can tell."""
    if op not in MAKERS and not isinstance(ins[0], tuple):
        return None
    return RULES[op](graph, *ins, **attrs)
