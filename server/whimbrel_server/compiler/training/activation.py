"""The activation that ends a shipped model, found and cut off before a loss that includes it.

Most shipped classifiers end in Softmax or Sigmoid. A cross-entropy from logits is exact where the activation has
saturated, so it is trained on the activation's input; the published model keeps the activation. The formulas of losses
do not belong here.
"""

import math

from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.graph.draft import made_by
from whimbrel_server.compiler.graph.ir import Node, Value
from whimbrel_server.compiler.training.losses import Loss

OVER_CLASSES = ("Softmax", "LogSoftmax")
RENAMING = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")  # keep the order of the numbers


def without_activation(output: Value, loss: Loss) -> tuple[Value, str | None]:
    """The output without the final activation that `loss` replaces, and that activation's node; or the output itself.

    Raises CompileError ("class-axis") where the activation compares along another axis than the loss.
    """
    node, moves = _final(output)
    if node is None or node.op not in (*loss.cut, *OVER_CLASSES) or not loss.cut:
        return output, None
    if node.op in OVER_CLASSES:
        _check_axis(node, moves, output, loss)
    value = node[0]
    for move in reversed(moves):
        value = output.graph.op(move.op, value, *move.ins[1:], **move.attrs)
    return value, node.origin


def _final(output: Value) -> tuple[Node | None, list[Node]]:
    """The last node that computes something, and the nodes after it that only move numbers, last first."""
    node, moves = output.node, []
    while node is not None and node.op in (*RENAMING, "Transpose"):
        moves.append(node)
        node = node[0].node
    return (_written_out(node) or node if node is not None else None), moves


def _written_out(node: Node) -> Node | None:
    """The Softmax that e / sum(e) is, with e = exp(z) or exp(z - max), as exporters without the operator write it."""
    exponent = made_by(node[0], "Exp") if node.op == "Div" else None
    shrunk = made_by(node[1], "Reshape") if exponent else None
    total = made_by(shrunk[0] if shrunk else node[1], "ReduceSum") if exponent else None
    if exponent is None or total is None or total[0] is not exponent.y or not total.has(1) or total[1].data is None:
        return None
    axes = [int(axis) % exponent.y.rank for axis in total[1].data]
    kept = [1 if axis in axes else size for axis, size in enumerate(node.y.shape)]
    if len(axes) != 1 or list(node[1].shape) != kept:
        return None
    shifted = made_by(exponent[0], "Sub")
    alike = shifted is not None and shifted[1].rank == node.y.rank and shifted[1].shape[axes[0]] == 1
    node.y.graph.origin = node.origin
    return node.y.graph.op("Softmax", shifted[0] if shifted and alike else exponent[0], axis=axes[0]).node


def _check_axis(node: Node, moves: list[Node], output: Value, loss: Loss) -> None:
    where = f"{node.op} (node {node.origin!r})"
    axis = loss.cut_axis if loss.class_axis is None else loss.class_axis
    if axis is None:
        raise CompileError("class-axis", f"the model ends in {where}, which compares classes: use a cross-entropy")
    found, wanted = _class_axis(node, moves), axis % output.rank
    if found != wanted:
        place = f"axis {found}" if found >= 0 else "an axis that is merged into others afterwards"
        advice = "; token_cross_entropy compares along the last" if found == output.rank - 1 else ""
        raise CompileError("class-axis", f"the model ends in {where} over {place}, the loss needs axis {wanted}{advice}")


def _class_axis(node: Node, moves: list[Node]) -> int:
    """Where the axis that `node` normalises over is in the output, -1 if it is no axis of it."""
    axis = int(node.attrs.get("axis", -1)) % node.y.rank
    for move in reversed(moves):
        axis = _moved(move, axis)
        if axis < 0:
            break
    return axis


def _moved(move: Node, axis: int) -> int:
    if move.op == "Transpose":
        return list(move.attrs.get("perm", reversed(range(move.y.rank)))).index(axis)
    before, size = math.prod(move[0].shape[:axis]), move[0].shape[axis]
    fits = (k for k, other in enumerate(move.y.shape) if other == size and math.prod(move.y.shape[:k]) == before)
    return next(fits, -1)
