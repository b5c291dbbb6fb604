"""Activation functions of one tensor, and dropout, which is off. Softmax and its kin, which look along an axis, are reductions.

The forms avoid what is slow on onnxruntime's CPU kernels: `Where`, `Sign` and second passes. At a kink the
gradient is the one of PyTorch.
"""

import math
from collections.abc import Callable

import numpy as np

from whimbrel_server.compiler.graph.ir import Graph, Node, Value
from whimbrel_server.compiler.rules.table import Gradients, Lowering, Rule


def _min(value: Value, bound: float) -> Value:
    return value.graph.op("Min", value, value.like(bound))


def _elu(n: Node, g: Value) -> Gradients:
    """1 above 0, else y + alpha; for alpha 1 the two are one formula."""
    alpha = n.attrs.get("alpha", 1.0)
    return (g * _bent(n, alpha, 1.0),)


def _selu(n: Node, g: Value) -> Gradients:
    alpha, gamma = n.attrs.get("alpha", 1.67326319217681884765625), n.attrs.get("gamma", 1.05070102214813232421875)
    return (g * _bent(n, alpha * gamma, gamma),)


def _bent(n: Node, offset: float, above: float) -> Value:
    """`above` where x > 0, else y + offset."""
    slope = _min(n.y, 0.0) + offset
    return slope if offset == above else slope + n[0].mask("Greater", 0.0) * (above - offset)


def _leaky_relu(n: Node, g: Value) -> Gradients:
    alpha, positive = n.attrs.get("alpha", 0.01), n[0].mask("Greater", 0.0)
    if 0.0 <= alpha <= 1.0:
        return (g * g.graph.op("Max", positive, positive.like(alpha)),)
    return (g * (positive * (1.0 - alpha) + alpha),)


def _prelu(n: Node, g: Value) -> Gradients:
    x, slope = n[0], n[1]
    return g * (x.mask("Greater", 0.0) * (1.0 - slope) + slope), g * _min(x, 0.0)


def _hard_sigmoid(n: Node, g: Value) -> Gradients:
    """Passes strictly between 0 and 1: where squeezing into the open interval moves nothing."""
    inside = (float(np.finfo(n.y.dtype).tiny), 1.0 - float(np.finfo(n.y.dtype).epsneg))
    squeezed = g.graph.op("Clip", n.y, *(n.y.like(bound) for bound in inside))
    return (g * (n.y.mask("Equal", squeezed) * n.attrs.get("alpha", 0.2)),)


def _softsign(n: Node, g: Value) -> Gradients:
    """(1 - |y|)^2."""
    slope = 1.0 - g.graph.op("Abs", n.y)
    return (g * (slope * slope),)


def _shrink(n: Node, g: Value) -> Gradients:
    return (g * g.graph.op("Abs", n[0]).mask("Greater", n.attrs.get("lambd", 0.5)),)


RULES: dict[str, Rule] = {
    "Elu": _elu,
    "HardSigmoid": _hard_sigmoid,
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "Relu": lambda n, g: (g * n.y.mask("Greater", 0.0),),
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": lambda n, g: (g * (n.y * (1.0 - n.y)),),
    "Softplus": lambda n, g: (g * g.graph.op("Sigmoid", n[0]),),
    "Softsign": _softsign,
    "Tanh": lambda n, g: (g * (1.0 - n.y * n.y),),
    "ThresholdedRelu": lambda n, g: (g * n[0].mask("Greater", n.attrs.get("alpha", 1.0)),),
}


def _gated(x: Value, gate: Value, slope: Callable[[], Value]) -> Value:
    """x * gate, where the gate is a function of x; `slope()` is the whole derivative, in fewer passes than the parts'."""
    y = x * gate
    if y.node is not None and y.node.ins == (x, gate):
        y.node.gradient = lambda n, g: (g * slope(), None)
    return y


def _lower_gelu(graph: Graph, x: Value, *, approximate: str = "none") -> Value:
    """x Phi(x) (Hendrycks and Gimpel 2016), apart, so that the gradient Phi(x) + x phi(x) shares the costly Phi."""
    if approximate == "tanh":
        inner = graph.op("Tanh", (x * (x * x * 0.044715 + 1.0)) * math.sqrt(2.0 / math.pi))
        return x * (inner * 0.5 + 0.5)
    phi = graph.op("Erf", x * math.sqrt(0.5)) * 0.5 + 0.5
    return _gated(x, phi, lambda: phi + x * (graph.op("Exp", x * (x * -0.5)) * math.sqrt(0.5 / math.pi)))


def _lower_hard_swish(graph: Graph, x: Value) -> Value:
    """x h(x) with h the hard sigmoid of slope 1/6 (Howard et al. 2019)."""
    hard = graph.op("HardSigmoid", x, alpha=1.0 / 6.0, beta=0.5)
    return _gated(x, hard, lambda: hard + x * ((3.0 - graph.op("Abs", x)).mask("Greater", 0.0) * (1.0 / 6.0)))


def _lower_mish(graph: Graph, x: Value) -> Value:
    """x tanh(softplus(x)) (Misra 2019), with tanh(log(1 + e)) = n / (n + 2), n = e (e + 2), e = exp(x).

    An eighth of the time of `Softplus`, and no digit is lost; from 20 on the quotient is 1.
    """
    e = graph.op("Exp", _min(x, 20.0))
    n = e * (e + 2.0)
    gate = n / (n + 2.0)
    return _gated(x, gate, lambda: gate + x * ((1.0 - gate * gate) * graph.op("Sigmoid", x)))


LOWERINGS: dict[str, Lowering] = {
    "Celu": lambda graph, x, alpha=1.0: graph.op("Elu", x * (1.0 / alpha)) * alpha,
    # Off in training too: masks of the runtime come from a session that a resumed round does not have.
    "Dropout": lambda graph, x, *_, **attrs: x,
    "Gelu": _lower_gelu,
    "HardSwish": _lower_hard_swish,
    "Mish": _lower_mish,
}
