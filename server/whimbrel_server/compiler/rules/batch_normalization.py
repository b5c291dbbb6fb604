"""Batch normalisation, by the running statistics or by those of the batch, and its gradients.

Tensors are `[N, C, ...]`; everything else is `[C]`. Ioffe & Szegedy, "Batch Normalization", ICML 2015.
"""

from collections.abc import Sequence
from typing import Any

from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.graph.ir import Graph, Node, Value
from whimbrel_server.compiler.graph.layout import samples_first, swapped_planes
from whimbrel_server.compiler.rules.batch_moments import by_moments
from whimbrel_server.compiler.rules.table import Gradients, Lowering, Rule

EPSILON, MOMENTUM = 1e-5, 0.9  # ONNX's defaults


def lower_batch_normalization(
    graph: Graph, x: Value, scale: Value, bias: Value, mean: Value, variance: Value, **attrs: Any
) -> tuple[Value, Value, Value]:
    """The result and the running statistics after it.

    The batch's statistics are used where the graph trains and the running ones are its inputs.
    """
    epsilon = attrs.get("epsilon", EPSILON)
    moving = all(value.node is None and graph.trains([value]) for value in (mean, variance))
    if not graph.training or not moving:
        return graph.op("BatchNormalization", x, scale, bias, mean, variance, epsilon=epsilon), mean, variance
    return _by_batch(graph, (x, scale, bias), (mean, variance), epsilon, attrs.get("momentum", MOMENTUM))


def _by_batch(
    graph: Graph, ins: tuple[Value, Value, Value], running: tuple[Value, Value], epsilon: float, momentum: float
) -> tuple[Value, Value, Value]:
    """Normalises by the batch and moves the running statistics: new = momentum old + (1 - momentum) batch.

    Their variance is the unbiased one (algorithm 2 there, and PyTorch). onnxruntime's kernel writes the batch's
    statistics into the buffers of operands 3 and 4, whoever else reads them: each call gets its own temporaries.
    A layer that is used twice moves its statistics twice.
    """
    count = ins[0].size // ins[0].shape[1]
    if count < 2:
        raise CompileError("batch-norm", f"node {graph.origin!r} has one number per channel: no variance to train with")
    old = [graph.updates.get(value, value) for value in running]
    y, *batch = by_moments(*ins, epsilon) or _by_kernel(ins, [value * 0.0 for value in old], epsilon)
    batch[1] = batch[1] * (count / (count - 1))
    new = [before * momentum + now * (1.0 - momentum) for before, now in zip(old, batch, strict=True)]
    graph.updates.update(zip(running, new, strict=True))
    return y, new[0], new[1]


def _by_kernel(ins: tuple[Value, Value, Value], buffers: Sequence[Value], epsilon: float) -> tuple[Value, ...]:
    """The runtime's kernel in training mode; a tensor that was made with channels first stays so, as one long sample."""
    planes, how = swapped_planes(ins[0]), {"training_mode": 1, "momentum": 0.0, "epsilon": epsilon}
    x = ins[0] if planes is None else planes.reshape([1, planes.shape[0], -1])
    y, *batch = x.graph.multi("BatchNormalization", x, *ins[1:], *buffers, outputs=3, **how)
    return y if planes is None else samples_first(y.reshape(planes.shape)), *batch


def _gradients(n: Node, g: Value, *_: Value | None) -> Gradients:
    """dbias = sum g, dscale = sum g x^, dx = scale / deviation (g - [mean g + x^ mean (g x^)]_by batch).

    x^ is the normalised x. The bracket is an affine function of x per channel: one more normalisation.
    """
    x, scale, axes = n[0], n[1], [0, *range(2, n[0].rank)]
    trained = bool(n.attrs.get("training_mode", 0))
    mean, variance = (n.outs[1], n.outs[2]) if trained else (n[3], n[4])
    per_channel = [1, -1, *[1] * (x.rank - 2)]
    inverse = g.graph.op("Reciprocal", g.graph.op("Sqrt", variance + n.attrs["epsilon"]))
    centred = x - mean.reshape(per_channel)
    dbias = g.sum(axes, keepdims=False)
    dscale = (g * centred).sum(axes, keepdims=False) * inverse
    slope = scale * inverse
    dx = g * slope.reshape(per_channel)
    if trained:
        share = slope * (-x.shape[1] / x.size)
        statistics = (share * dscale, share * dbias, mean, variance)
        dx = dx + x.graph.op("BatchNormalization", x, *statistics, epsilon=n.attrs["epsilon"])
    return dx, dscale, dbias, None, None


RULES: dict[str, Rule] = {"BatchNormalization": _gradients}

LOWERINGS: dict[str, Lowering] = {"BatchNormalization": lower_batch_normalization}
