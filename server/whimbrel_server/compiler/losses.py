"""Losses as graph builders: one number per labelled position, before weighting.

`LOSSES[name](output, label)` gives the loss of each position; the label's dtype and shape follow from the
output. Weighted sums over positions are in `metrics.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.ir import Value

CUT_BEFORE = ("Softmax", "LogSoftmax", "Sigmoid")


@dataclass(frozen=True)
class Loss:
    """A loss: its label's type and shape for an output, its value per position, whether it has classes."""

    label_type: Callable[[Value], tuple[np.dtype[Any], tuple[int, ...]]]
    positions: Callable[[Value], tuple[int, ...]]
    per_position: Callable[[Value, Value], Value]
    classes: bool


def without_activation(output: Value) -> tuple[Value, str | None]:
    """The input of the activation that ends a classifier, and that activation's name; or the output itself.

    Cross-entropy is computed from logits: exact where the activation has saturated.
    """
    node = output.node
    if node is None or node.op not in CUT_BEFORE:
        return output, None
    axis = node.attrs.get("axis", -1) % output.rank
    if node.op != "Sigmoid" and axis != 1:
        raise CompileError("class-axis", f"{node.op} (node {node.origin!r}) runs over axis {axis}, not 1")
    return node[0], node.origin


def _class_positions(logits: Value) -> tuple[int, ...]:
    """The logits' shape `[N, C, *extra]` without its class axis 1."""
    if logits.rank < 2 or logits.shape[1] < 2:
        raise CompileError("class-axis", f"cross_entropy needs an output [N, C, ...] with C >= 2, not {logits.shape}")
    return (logits.shape[0], *logits.shape[2:])


def _cross_entropy(logits: Value, label: Value) -> Value:
    """-log softmax(logits)[label], classes on axis 1; the label is int64 of the remaining axes."""
    graph, index = logits.graph, label.reshape([label.shape[0], 1, *label.shape[1:]])
    likelihood = graph.op("GatherElements", graph.op("LogSoftmax", logits, axis=1), index, axis=1)
    return -likelihood.reshape(label.shape)


def _squared_error(output: Value, label: Value) -> Value:
    """Mean of (output - label)^2 over all axes but the first: `[N]`."""
    error = output - label
    squares = (error * error).reshape([output.shape[0], -1])
    return squares.sum([1], keepdims=False) * (1.0 / squares.shape[1])


LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(
        label_type=lambda logits: (np.dtype(np.int64), _class_positions(logits)),
        positions=_class_positions,
        per_position=_cross_entropy,
        classes=True,
    ),
    "mse": Loss(
        label_type=lambda output: (output.dtype, output.shape),
        positions=lambda output: output.shape[:1],
        per_position=_squared_error,
        classes=False,
    ),
}
