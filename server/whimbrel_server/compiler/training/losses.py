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
from whimbrel_server.compiler.graph.ir import Value
from whimbrel_server.compiler.training.ctc import ctc

Shape = tuple[int, ...]
LEAST_SQUARE = 1e-16  # added to a squared norm, so that a zero embedding has a gradient
TRIPLET_OFFSET = 1e-6  # added to each difference, so that the distance of equal embeddings has one
MARGIN = 1.0
FAR = 1e9  # a distance that no embedding of the batch has


@dataclass(frozen=True)
class Target:
    """What an output is held against: the label (of no meaning where the loss has none), the weights, label smoothing."""

    label: Value
    weight: Value
    smoothing: float


@dataclass(frozen=True)
class Loss:
    """A loss on an output `[N, ...]`.

    `label` gives the label's dtype and shape for an output (None: no label), `positions` the shape of the weights,
    `per_position(output, target)` the losses of that shape. `class_axis` is where logits are compared,
    `soft` whether labels are distributions over it; `cut` names the final activations that the loss replaces, and
    `cut_axis` the axis that they compare along where the label has no class for each position of `class_axis`.
    """

    per_position: Callable[[Value, Target], Value]
    positions: Callable[[Value], Shape]
    label: Callable[[Value], tuple[np.dtype[Any], Shape]] | None
    class_axis: int | None = None
    soft: bool = False
    cut: tuple[str, ...] = ()
    cut_axis: int | None = None
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


def _cross_entropy(class_axis: int) -> Callable[[Value, Target], Value]:
    def per_position(logits: Value, target: Target) -> Value:
        """-log softmax(logits)[label]; with smoothing s, (1 - s) of it and s times its mean over all classes.

        Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016, section 7.
        """
        graph, dims, axis = logits.graph, list(logits.shape), class_axis % logits.rank
        dims[axis], label, smoothing = 1, target.label, target.smoothing
        log_p = graph.op("LogSoftmax", logits, axis=axis)
        loss = -graph.op("GatherElements", log_p, label.reshape(dims), axis=axis).reshape(label.shape)
        if smoothing:
            uniform = log_p.sum([axis], keepdims=False) * (-smoothing / logits.shape[axis])
            loss = loss * (1.0 - smoothing) + uniform
        return loss

    return per_position


def _soft_cross_entropy(logits: Value, target: Target) -> Value:
    """-sum over classes of label * log softmax(logits); smoothing mixes the label with the uniform distribution."""
    label, smoothing = target.label, target.smoothing
    if smoothing:
        label = label * (1.0 - smoothing) + smoothing / logits.shape[1]
    return -(label * logits.graph.op("LogSoftmax", logits, axis=1)).sum([1], keepdims=False)


def mean_from(value: Value, axis: int) -> Value:
    """The mean over `axis` and all axes after it."""
    count = int(np.prod(value.shape[axis:], dtype=np.int64))
    return value.sum(range(axis, value.rank), keepdims=False) * (1.0 / count)


def _elementwise(formula: Callable[[Value, Value], Value]) -> Callable[[Value, Target], Value]:
    return lambda output, target: mean_from(formula(output, target.label), 1)


def _binary_cross_entropy(logits: Value, target: Target) -> Value:
    """softplus(y) - y t, that is -t log sigmoid(y) - (1 - t) log(1 - sigmoid(y)), without overflow.

    Smoothing s moves the label to (1 - s) t + s / 2.
    """
    label, smoothing = target.label, target.smoothing
    if smoothing:
        label = label * (1.0 - smoothing) + smoothing / 2.0
    return mean_from(logits.graph.op("Softplus", logits) - logits * label, 1)


def _huber(error: Value) -> Value:
    """e^2 / 2 up to |e| = 1, |e| - 1/2 beyond (Huber, 1964): c (e - c / 2) with c = e cut to [-1, 1]."""
    cut = error.graph.op("Clip", error, error.like(-1.0), error.like(1.0))
    return cut * (error - cut * 0.5)


def _cosine(output: Value, target: Target) -> Value:
    """1 - cos(output, label) along the last axis."""
    label = target.label

    def squared(left: Value, right: Value) -> Value:
        return (left * right).sum([left.rank - 1], keepdims=False)

    norms = [output.graph.op("Sqrt", squared(value, value) + LEAST_SQUARE) for value in (output, label)]
    return 1.0 - squared(output, label) / (norms[0] * norms[1])


def _distance(left: Value, right: Value) -> Value:
    """Euclidean, along the last axis, which goes."""
    difference = left - right + TRIPLET_OFFSET
    return left.graph.op("Sqrt", (difference * difference).sum([difference.rank - 1], keepdims=False))


def _hinge(same: Value, other: Value) -> Value:
    return same.graph.op("Relu", same - other + MARGIN)


def _triplet(output: Value, target: Target) -> Value:
    """max(0, |a - p| - |a - n| + 1) for embeddings `[N, 3, D]` of an anchor, one of its class, one of another.

    Schroff et al., "FaceNet", CVPR 2015, section 3.1, with distances in place of squares, as PyTorch has it.
    """
    anchor, positive, negative = (output.slice(1, index, index + 1) for index in range(3))
    return _hinge(_distance(anchor, positive), _distance(anchor, negative)).reshape(output.shape[:1])


def _hard_triplet(output: Value, target: Target) -> Value:
    """The same for embeddings `[N, D]` with class ids: each is an anchor, against the farthest of its class in the batch
    and the nearest of another.

    Hermans et al., "In Defense of the Triplet Loss", 2017, equation 5. Rows of weight 0 are in nobody's way; an anchor
    without another class costs nothing.
    """
    graph, (count, size) = output.graph, output.shape
    distances = _distance(output.reshape([count, 1, size]), output.reshape([1, count, size]))
    rows, columns = target.label.reshape([count, 1]), target.label.reshape([1, count])
    same, real = graph.op("Equal", rows, columns).cast(output.dtype), target.weight.mask("Greater", 0.0)
    far = (1.0 - (1.0 - same) * real) * FAR
    positive = graph.op("ReduceMax", distances * (same * real), graph.ints([1]), keepdims=0)
    return _hinge(positive, graph.op("ReduceMin", distances + far, graph.ints([1]), keepdims=0))


def _embeddings(output: Value) -> Shape:
    if output.rank != 2:
        raise CompileError("output", f"hard_triplet needs an output [N, D], not {list(output.shape)}")
    return output.shape[:1]


def _triplets(output: Value) -> Shape:
    if output.rank != 3 or output.shape[1] != 3:
        raise CompileError("output", f"triplet needs an output [N, 3, D] (anchor, same, other), not {list(output.shape)}")
    return output.shape[:1]


def _frames(output: Value) -> Shape:
    if output.rank != 3 or output.shape[2] < 2:
        raise CompileError("class-axis", f"ctc needs an output [N, T, C] with C >= 2, not {list(output.shape)}")
    return output.shape[:2]


def _sequence(output: Value) -> tuple[np.dtype[Any], Shape]:
    """As many class ids as the frames can show however often they repeat: a blank goes between equal ones."""
    count, frames = _frames(output)
    return np.dtype(np.int64), (count, (frames + 1) // 2)


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
    "ctc": Loss(
        lambda output, target: ctc(output, target.label, target.weight),
        _frames,
        _sequence,
        cut=("Softmax", "LogSoftmax"),
        cut_axis=-1,
    ),
    "hard_triplet": Loss(_hard_triplet, _embeddings, lambda output: (np.dtype(np.int64), output.shape[:1])),
    "huber": _regression(_huber),
    "l1": _regression(lambda error: error.graph.op("Abs", error)),
    "mse": _regression(lambda error: error * error),
    "output": Loss(lambda output, target: output, _examples, None),
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
