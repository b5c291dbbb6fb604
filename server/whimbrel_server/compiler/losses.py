"""Losses as graph builders: one number per labelled position, before weighting.

`LOSSES` is the one table. A position is an example, or a token or pixel of one where each has its own class. Which
activation of the model a loss replaces stands in `activation.py`, weighted sums over positions in `metrics.py`.
Where a class id is negative it counts from the last class; an id too large stops the runtime: give padding any valid id
and weight 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.ir import Value

Shape = tuple[int, ...]
LEAST_SQUARE = 1e-16  # added to a squared norm, so that a zero embedding has a gradient
TRIPLET_OFFSET = 1e-6  # added to each difference, so that the distance of equal embeddings has one
MARGIN = 1.0


@dataclass(frozen=True)
class Loss:
    """A loss on an output `[N, ...]`.

    `label` gives the label's dtype and shape for an output (None: no label), `positions` the shape of the weights,
    `per_position(output, label, smoothing)` the losses of that shape. `class_axis` is where logits are compared,
    `soft` whether labels are distributions over it; `cut` names the final activations that the loss replaces.
    """

    per_position: Callable[[Value, Any, float], Value]
    positions: Callable[[Value], Shape]
    label: Callable[[Value], tuple[np.dtype[Any], Shape]] | None
    class_axis: int | None = None
    soft: bool = False
    cut: tuple[str, ...] = ()
    smooths: bool = False


def like_output(output: Value) -> tuple[np.dtype[Any], Shape]:
    return output.dtype, output.shape


def _classes_on(axis: int) -> Callable[[Value], Shape]:
    def positions(logits: Value) -> Shape:
        """The logits' shape without its class axis."""
        if logits.rank < 2 or logits.shape[axis] < 2:
            expected = "[N, C, ...]" if axis == 1 else "[N, ..., C]"
            raise CompileError("class-axis", f"the loss needs an output {expected} with C >= 2, not {list(logits.shape)}")
        return tuple(size for index, size in enumerate(logits.shape) if index != axis % logits.rank)

    return positions


def _class_ids_on(axis: int) -> Callable[[Value], tuple[np.dtype[Any], Shape]]:
    return lambda logits: (np.dtype(np.int64), _classes_on(axis)(logits))


def _cross_entropy(class_axis: int) -> Callable[[Value, Value, float], Value]:
    def per_position(logits: Value, label: Value, smoothing: float) -> Value:
        """-log softmax(logits)[label]; with smoothing s, (1 - s) of it and s times its mean over all classes.

        Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016, section 7.
        """
        graph, dims, axis = logits.graph, list(logits.shape), class_axis % logits.rank
        dims[axis] = 1
        log_p = graph.op("LogSoftmax", logits, axis=axis)
        loss = -graph.op("GatherElements", log_p, label.reshape(dims), axis=axis).reshape(label.shape)
        if smoothing:
            uniform = log_p.sum([axis], keepdims=False) * (-smoothing / logits.shape[axis])
            loss = loss * (1.0 - smoothing) + uniform
        return loss

    return per_position


def _soft_cross_entropy(logits: Value, label: Value, smoothing: float) -> Value:
    """-sum over classes of label * log softmax(logits); smoothing mixes the label with the uniform distribution."""
    if smoothing:
        label = label * (1.0 - smoothing) + smoothing / logits.shape[1]
    return -(label * logits.graph.op("LogSoftmax", logits, axis=1)).sum([1], keepdims=False)


def mean_from(value: Value, axis: int) -> Value:
    """The mean over `axis` and all axes after it."""
    count = int(np.prod(value.shape[axis:], dtype=np.int64))
    return value.sum(range(axis, value.rank), keepdims=False) * (1.0 / count)


def _elementwise(formula: Callable[[Value, Value], Value]) -> Callable[[Value, Value, float], Value]:
    return lambda output, label, smoothing: mean_from(formula(output, label), 1)


def _binary_cross_entropy(logits: Value, label: Value, smoothing: float) -> Value:
    """softplus(y) - y t, that is -t log sigmoid(y) - (1 - t) log(1 - sigmoid(y)), without overflow.

    Smoothing s moves the label to (1 - s) t + s / 2.
    """
    if smoothing:
        label = label * (1.0 - smoothing) + smoothing / 2.0
    return mean_from(logits.graph.op("Softplus", logits) - logits * label, 1)


def _huber(error: Value) -> Value:
    """e^2 / 2 up to |e| = 1, |e| - 1/2 beyond (Huber, 1964): c (e - c / 2) with c = e cut to [-1, 1]."""
    cut = error.graph.op("Clip", error, error.like(-1.0), error.like(1.0))
    return cut * (error - cut * 0.5)


def _cosine(output: Value, label: Value, smoothing: float) -> Value:
    """1 - cos(output, label) along the last axis."""

    def squared(left: Value, right: Value) -> Value:
        return (left * right).sum([left.rank - 1], keepdims=False)

    norms = [output.graph.op("Sqrt", squared(value, value) + LEAST_SQUARE) for value in (output, label)]
    return 1.0 - squared(output, label) / (norms[0] * norms[1])


def _triplet(output: Value, label: None, smoothing: float) -> Value:
    """max(0, |a - p| - |a - n| + 1) for embeddings `[N, 3, D]` of an anchor, one of its class, one of another.

    Schroff et al., "FaceNet", CVPR 2015, section 3.1, with distances in place of squares, as PyTorch has it.
    """
    anchor, positive, negative = (output.slice(1, index, index + 1) for index in range(3))

    def distance(other: Value) -> Value:
        difference = anchor - other + TRIPLET_OFFSET
        return output.graph.op("Sqrt", (difference * difference).sum([2], keepdims=True))

    hinge = output.graph.op("Relu", distance(positive) - distance(negative) + MARGIN)
    return hinge.reshape(output.shape[:1])


def _triplets(output: Value) -> Shape:
    if output.rank != 3 or output.shape[1] != 3:
        raise CompileError("output", f"triplet needs an output [N, 3, D] (anchor, same, other), not {list(output.shape)}")
    return output.shape[:1]


def _examples(output: Value) -> Shape:
    return output.shape[:1]


def _regression(formula: Callable[[Value], Value]) -> Loss:
    return Loss(_elementwise(lambda output, label: formula(output - label)), _examples, like_output)


LOSSES: dict[str, Loss] = {
    "bce_with_logits": Loss(_binary_cross_entropy, _examples, like_output, cut=("Sigmoid",), smooths=True),
    "cosine": Loss(_cosine, lambda output: output.shape[:-1], like_output),
    "cross_entropy": Loss(
        _cross_entropy(1),
        _classes_on(1),
        _class_ids_on(1),
        class_axis=1,
        cut=("Softmax", "LogSoftmax", "Sigmoid"),
        smooths=True,
    ),
    "huber": _regression(_huber),
    "l1": _regression(lambda error: error.graph.op("Abs", error)),
    "mse": _regression(lambda error: error * error),
    "output": Loss(lambda output, label, smoothing: output, _examples, None),
    "soft_cross_entropy": Loss(
        _soft_cross_entropy,
        _classes_on(1),
        like_output,
        class_axis=1,
        soft=True,
        cut=("Softmax", "LogSoftmax", "Sigmoid"),
        smooths=True,
    ),
    "token_cross_entropy": Loss(
        _cross_entropy(-1),
        _classes_on(-1),
        _class_ids_on(-1),
        class_axis=-1,
        cut=("Softmax", "LogSoftmax", "Sigmoid"),
        smooths=True,
    ),
    "triplet": Loss(_triplet, _triplets, None),
}
