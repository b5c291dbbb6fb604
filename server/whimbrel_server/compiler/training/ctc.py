"""Connectionist temporal classification: the loss of a sequence of labels that no frame is aligned with.

Graves et al., "Connectionist Temporal Classification", ICML 2006, section 4.1, in the domain of logarithms: one
Scan over the frames sums up the ways to the labels, its gradient is one Scan back. Other losses are in `losses.py`.
"""

import numpy as np

from whimbrel_server.compiler.graph.ir import Node, Value
from whimbrel_server.compiler.rules.table import Gradients

BLANK = 0
NEVER = -1e30  # the logarithm of a probability of 0, finite so that differences are numbers
IMPOSSIBLE = 1e29  # a loss above this: no alignment is short enough for the frames


def ctc(logits: Value, label: Value, weight: Value) -> Value:
    """The loss of each example, divided by its frames and repeated over them: `[N, T]`.

    `logits` are `[N, T, C]` with class 0 the blank, `label` int64 `[N, L]` with 0 or -1 behind its end, and `weight`
    `[N, T]` is 0 behind an example's last frame. So a weighted mean over frames is the loss per frame. An example
    whose labels need more frames than it has costs 0 and moves nothing.
    """
    graph, frames = logits.graph, logits.shape[1]
    classes = _with_blanks(label)
    log_p = graph.op("LogSoftmax", logits, axis=2)
    index = graph.op("Expand", classes.reshape([-1, 1, classes.shape[1]]), graph.ints([1, frames, 1]))
    emitted = graph.op("GatherElements", log_p, index, axis=2).transpose([1, 0, 2])
    real = weight.mask("Greater", 0.0)
    last = _sum_of_ways(emitted, real.transpose([1, 0]).reshape([frames, -1, 1]), _skips(classes, logits.dtype))
    loss = -graph.op("ReduceLogSumExp", last + _ends(label, logits.dtype), graph.ints([1]), keepdims=1)
    count = graph.op("Max", real.sum([1]), real.like(1.0))
    return (loss * loss.mask("Less", IMPOSSIBLE) / count).expand(weight.shape)


def _with_blanks(label: Value) -> Value:
    """A blank before, between and behind the labels: `[N, S]` with `S = 2 L + 1`."""
    graph, columns = label.graph, label.reshape([-1, label.shape[1], 1])
    classes = graph.op("Max", columns, label.like(BLANK))
    blanks = classes * 0
    pairs = graph.op("Concat", blanks, classes, axis=2).reshape([-1, 2 * label.shape[1]])
    return graph.op("Concat", pairs, blanks.slice(1, 0, 1).reshape([-1, 1]), axis=1)


def _skips(classes: Value, dtype: np.dtype[np.generic]) -> Value:
    """`[N, S]`: 0 where a way may come from two places before (past a blank, to another label), else NEVER."""
    graph, width = classes.graph, classes.shape[1]
    same = graph.op("Equal", classes.slice(1, 2, width), classes.slice(1, 0, width - 2)).cast(dtype)
    return (same * NEVER).pad([2], [0])


def _ends(label: Value, dtype: np.dtype[np.generic]) -> Value:
    """`[N, S]`: 0 at the last label and the blank behind it, else NEVER."""
    graph = label.graph
    place = graph.constant(np.arange(2 * label.shape[1] + 1, dtype=dtype)[None])
    end = label.mask("Greater", BLANK).sum([1]).cast(dtype) * 2.0
    return (1.0 - place.mask("Equal", end) - place.mask("Equal", end - 1.0)) * NEVER


def _sum_of_ways(emitted: Value, real: Value, skips: Value) -> Value:
    """The logarithm of the probability of all ways to each place after the last frame, `[N, S]`.

    From `emitted` `[T, N, S]`, the log-probabilities of the places' classes, and `real` `[T, N, 1]`. Two places
    that nothing reaches stand in front, so that a step back is a slice.
    """
    graph, width = emitted.graph, emitted.shape[2]
    start = np.full((1, width + 2), NEVER, emitted.dtype)
    start[0, 2] = 0.0

    def step(ways: Value, emitted: Value, real: Value) -> tuple[list[Value], list[Value]]:
        arriving = _arriving(ways, skips)
        largest = graph.op("Max", *arriving)
        new = largest + graph.op("Log", _total([graph.op("Exp", way - largest) for way in arriving])) + emitted
        new = graph.op("Concat", ways.slice(1, 0, 2), new, axis=1)
        return [new * real + ways * (1.0 - real)], [ways]

    def gradient(node: Node, arrived: Value | None, *_: Value | None) -> Gradients:
        """A place passes its gradient to those it came from, in the shares that they had of it."""
        assert arrived is not None, "only the last ways are read"
        shares = _shares(node.outs[1], skips)

        def back(gradient: Value, real: Value, *shares: Value) -> tuple[list[Value], list[Value]]:
            moved = gradient.slice(1, 2, width + 2) * real
            sent = [(moved * share).pad([2 - k], [k]) for k, share in enumerate(shares)]
            return [_total([*sent, gradient * (1.0 - real)])], [moved]

        return None, graph.scan(back, [arrived], [node[2], *shares], reverse=True)[1], None, None

    ways = graph.constant(start).expand([emitted.shape[1], width + 2])
    last = graph.scan(step, [ways], [emitted, real], [skips], gradient=gradient)[0]
    return last.slice(1, 2, width + 2)


def _arriving(ways: Value, skips: Value) -> list[Value]:
    """What reaches each place from itself, from the place before, and from two places before."""
    axis, width = ways.rank - 1, ways.shape[-1]
    return [ways.slice(axis, 2, width), ways.slice(axis, 1, width - 1), ways.slice(axis, 0, width - 2) + skips]


def _shares(ways: Value, skips: Value) -> list[Value]:
    """The parts of a place's probability that arrive from each of the three places, at all frames."""
    arriving = _arriving(ways, skips)
    largest = ways.graph.op("Max", *arriving)
    parts = [ways.graph.op("Exp", way - largest) for way in arriving]
    total = _total(parts)
    return [part / total for part in parts]


def _total(values: list[Value]) -> Value:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
