"""Which axis of an output is the batch's, followed from the inputs: sizes alone do not tell where two are equal.

Only layouts that operators keep, move or add are known here; what becomes of the axis is the loss's business.
"""

import math

from whimbrel_server.compiler.graph.ir import Node, Value, topological

MOVING = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")  # the order of the numbers stays
RECURRENT = ("GRU", "LSTM", "RNN")


def batch_axis(output: Value, batch: int) -> int | None:
    """The axis of `output` that comes from the first axis of a data input of `batch` examples; None where it is lost.

    The way is followed by the number of blocks before the batch, that is by the product of the sizes before its axis: so it
    is not lost where axes are merged and split again.
    """
    blocks: dict[Value, int] = {}
    for node in topological([output]):
        for value in node.ins:
            if value is not None and value.node is None and value.shape[:1] == (batch,) and _is_data(value):
                blocks[value] = 1
        known = next((index for index, value in enumerate(node.ins) if value in blocks), None)
        operand = None if known is None else node.ins[known]
        for position, out in enumerate(node.outs):
            after = None if known is None or operand is None else _after(node, position, known, blocks[operand], batch)
            if after is not None:
                blocks[out] = after
    return _axis(output.shape, blocks[output], batch) if output in blocks else None


def _is_data(leaf: Value) -> bool:
    return leaf.data is None and not leaf.graph.trains([leaf])


def _axis(shape: tuple[int, ...], before: int, batch: int) -> int | None:
    return next((k for k, size in enumerate(shape) if size == batch and math.prod(shape[:k]) == before), None)


def _after(node: Node, position: int, index: int, before: int, batch: int) -> int | None:
    """The blocks before the batch in a result of a node, from those in the operand `index`."""
    operand, result = node.ins[index], node.outs[position]
    assert operand is not None, "only known operands have a batch"
    if node.op in MOVING:
        return before
    if node.op == "Gemm" and index == 1 and node.attrs.get("transB", 0):  # rows become columns
        return result.shape[0] * before if operand.shape[0] % (before * batch) == 0 else None
    axis = _axis(operand.shape, before, batch)
    if axis is None:  # inside of a merged one
        return before if operand.shape[:1] == result.shape[:1] else None
    moved = _moved(node, position, index, axis)
    return math.prod(result.shape[:moved]) if 0 <= moved < result.rank and result.shape[moved] == batch else None


def _moved(node: Node, position: int, index: int, axis: int) -> int:
    """Where `axis` of operand `index` is in a result; -1 where it is nowhere."""
    operand, result = node.ins[index], node.outs[position]
    assert operand is not None, "only known operands have a batch"
    if node.op == "Transpose":
        return list(node.attrs.get("perm", reversed(range(operand.rank)))).index(axis)
    if node.op in RECURRENT:  # [T, N, I] gives [T, D, N, H], and [D, N, H] at the end
        return axis + 1 if position == 0 else axis
    if node.op == "Gather":
        along = int(node.attrs.get("axis", 0))
        return axis + along if index == 1 else axis + (result.rank - operand.rank if axis > along else 0)
    if node.op.startswith(("Arg", "Reduce")) and result.rank < operand.rank:
        kept = _axis(result.shape, math.prod(operand.shape[:axis]), operand.shape[axis])
        return -1 if kept is None else kept
    return axis + result.rank - operand.rank  # broadcasting aligns the last axes
