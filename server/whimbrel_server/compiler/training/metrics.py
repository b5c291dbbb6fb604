"""What a step reports: sums that can be added over steps, devices and masks, and the mean that is trained on.

| output | what is summed with the weights | metrics that need it |
|---|---|---|
| `@loss_sum` | the loss | loss: always there; perplexity is exp of the mean |
| `@weight_sum` | 1 | always there |
| `@correct_sum` | 1 where the largest logit is the label's (binary: share of outputs on its side) | accuracy: always there |
| `@top<k>_sum` | 1 where the label's logit is among the k largest | top<k> (top5, top3, ...) |
| `@abs_error_sum` | the mean absolute difference of output and label | mae |
| `@confusion` | 1 at `[class of the label, class of the largest logit]`: `[C, C]` | confusion |
"""

import re
from collections.abc import Iterable, Mapping

from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.graph.ir import Value
from whimbrel_server.compiler.training.losses import Loss, like_output, mean_from

LEAST_WEIGHT = 1e-12  # an all-zero mask gives a mean of 0 and not NaN


def weighted_sums(losses: Value, weight: Value) -> dict[str, Value]:
    """`@loss_sum` = sum(w*l) and `@weight_sum` = sum(w), scalars."""
    return {"@loss_sum": _weighted(losses, weight), "@weight_sum": weight.sum(range(weight.rank), keepdims=False)}


def weighted_mean(sums: Mapping[str, Value]) -> Value:
    """sum(w*l) / max(sum(w), 1e-12)."""
    total, weight = sums["@loss_sum"], sums["@weight_sum"]
    return total / weight.graph.op("Max", weight, weight.like(LEAST_WEIGHT))


def metric_sums(names: Iterable[str], loss: Loss, output: Value, label: Value | None, weight: Value) -> dict[str, Value]:
    """The sums that the named metrics need beside those of the loss.

    Raises CompileError ("spec") for a metric that does not exist or does not fit the loss.
    """
    sums = {}
    if label is not None and loss.class_axis is not None:
        sums["@correct_sum"] = _weighted(_hits(loss, output, label), weight)
    elif label is not None and "Sigmoid" in loss.cut:
        sums["@correct_sum"] = _weighted(_binary_hits(output, label), weight)
    for name in names:
        sums |= _requested(name, loss, output, label, weight, sums)
    return sums


def _requested(
    name: str, loss: Loss, output: Value, label: Value | None, weight: Value, sums: Mapping[str, Value]
) -> dict[str, Value]:
    classes, top = loss.class_axis is not None, re.fullmatch(r"top(\d+)", name)
    if name == "loss" or (name == "accuracy" and "@correct_sum" in sums):
        return {}
    if label is not None and classes and top:
        return {f"@{name}_sum": _weighted(_top_hits(int(top[1]), loss, output, label), weight)}
    if label is not None and classes and name == "confusion":
        return {"@confusion": _confusion(loss, output, label, weight)}
    if label is not None and loss.label is like_output and not loss.cut and name == "mae":
        return {"@abs_error_sum": _weighted(mean_from(output.graph.op("Abs", output - label), weight.rank), weight)}
    raise CompileError("spec", f"the metric {name!r} does not exist or cannot be counted with this loss")


def _weighted(values: Value, weight: Value) -> Value:
    return (weight * values).sum(range(weight.rank), keepdims=False)


def _ids(loss: Loss, label: Value) -> Value:
    """The label as class ids."""
    return label.graph.op("ArgMax", label, axis=loss.class_axis, keepdims=0) if loss.soft else label


def _hits(loss: Loss, logits: Value, label: Value) -> Value:
    """1 where no logit is larger than the label's, unless all are equal: two reductions, several times faster than ArgMax."""
    graph, ids, axis = logits.graph, _ids(loss, label), (loss.class_axis or 0) % logits.rank
    dims = list(logits.shape)
    dims[axis] = 1
    own = graph.op("GatherElements", logits, ids.reshape(dims), axis=axis)
    most, least = (graph.op(op, logits, graph.ints([axis]), keepdims=1) for op in ("ReduceMax", "ReduceMin"))
    best = graph.op("And", graph.op("Equal", own, most), graph.op("Greater", most, least))
    return best.cast(logits.dtype).reshape(ids.shape)


def _binary_hits(logits: Value, label: Value) -> Value:
    """The share of an example's outputs on the side of the label: `[N]`."""
    graph = logits.graph
    sides = graph.op("Greater", logits, logits.like(0.0)), graph.op("Greater", label, label.like(0.5))
    hits = graph.op("Equal", *sides).cast(logits.dtype)
    return mean_from(hits, 1)


def _top_hits(count: int, loss: Loss, logits: Value, label: Value) -> Value:
    axis = (loss.class_axis or 0) % logits.rank
    if not 0 < count < logits.shape[axis]:
        raise CompileError("spec", f"the metric top{count} needs more classes than the {logits.shape[axis]} there are")
    _, best = logits.graph.multi("TopK", logits, logits.graph.ints([count]), outputs=2, axis=axis)
    ids = _ids(loss, label)
    dims = [1 if index == axis else size for index, size in enumerate(logits.shape)]
    hits = logits.graph.op("Equal", best, ids.reshape(dims)).cast(logits.dtype)
    return hits.sum([axis], keepdims=False)


def _confusion(loss: Loss, logits: Value, label: Value, weight: Value) -> Value:
    graph, count = logits.graph, logits.shape[loss.class_axis or 0]
    classes = graph.ints(range(count))
    best = graph.op("ArgMax", logits, axis=loss.class_axis, keepdims=0)
    true, guessed = (graph.op("Equal", ids.reshape([-1, 1]), classes).cast(weight.dtype) for ids in (_ids(loss, label), best))
    return (true * weight.reshape([-1, 1])).transpose([1, 0]) @ guessed
