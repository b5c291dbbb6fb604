"""Elementwise operators that calculate: sums, products, powers, extremes, trigonometry. Activations have a file of their own.

A rule is a formula of operands and result. Where a function has no derivative the gradient is the one that
PyTorch gives, and never NaN where no gradient arrives: a padded example must not poison the others.
"""

import math
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from whimbrel_server.compiler.graph.ir import STEEP, Graph, Node, Value
from whimbrel_server.compiler.rules.table import Gradients, Lowering, Rule


def _root_of(value: Value) -> Value:
    return value.graph.op("Sqrt", value)


def _sqrt(n: Node, g: Value) -> Gradients:
    """g / 2y; at 0 large for any gradient that arrives, and 0 if none does."""
    least = float(np.finfo(n.y.dtype).tiny)
    return (g / (g.graph.op("Max", n.y, n.y.like(least)) * 2.0),)


def _mul(n: Node, g: Value) -> Gradients:
    """A square, and x sigmoid(x) (SiLU) in either order, have their whole derivative at once: fewer passes."""
    a, b = n[0], n[1]
    if a is b:
        return g * 2.0 * a, None
    for x, gate, place in ((a, b, 0), (b, a, 1)):
        if gate.node is not None and gate.node.op == "Sigmoid" and gate.node[0] is x:
            slope = g * (gate + n.y * (1.0 - gate))
            return (slope, None) if place == 0 else (None, slope)
    return g * b, g * a


def _pow(n: Node, g: Value) -> Gradients:
    """The masks keep 0 * 0^-1 (at exponent 0) and 0^p * log 0 at 0."""
    base, exponent = n[0], n[1].cast(n[0].dtype)
    lower = exponent - 1.0 + exponent.mask("Equal", 0.0)
    logarithm = g.graph.op("Log", base + base.mask("Equal", 0.0))
    return g * (exponent * g.graph.op("Pow", base, lower)), g * (n.y * logarithm)


def _clip(n: Node, g: Value) -> Gradients:
    """Passes where nothing was moved: one comparison instead of two. What was moved follows its bound."""
    low = g * n[0].mask("Less", n[1]) if n.has(1) else None
    high = g * n[0].mask("Greater", n[2]) if n.has(2) else None
    return g * _kept(n), low, high


def _kept(n: Node) -> Value:
    """1 where Clip moved nothing, and where it can be told from the result alone, so that the operand need not be kept:
    inside of bounds whose middle and half distance are exact."""
    bounds = [n[i].data if n.has(i) else None for i in (1, 2)]
    if bounds[0] is None or bounds[1] is None or n.y.dtype != np.float32:
        return n[0].mask("Equal", n.y)
    low, high = (np.float32(bound) for bound in bounds)
    middle, half = (low + high) / 2, (high - low) / 2
    if not (middle - half == low and middle + half == high and 2.0**-20 < half < 2.0**20):
        return n[0].mask("Equal", n.y)
    distance = n.y.graph.op("Abs", n.y - float(middle))
    return n.y.graph.op("HardSigmoid", distance, alpha=-STEEP, beta=float(half) * STEEP)


def _extreme(n: Node, g: Value) -> Gradients:
    """Equal extremes share the gradient."""
    chosen = [value.mask("Equal", n.y) for value in n.ins if value is not None]
    share = g / reduce(add, chosen)
    return [mask * share for mask in chosen]


def _inverse(square_sign: int, offset: float, sign: float = 1.0) -> Rule:
    """d/dx = sign / sqrt(offset + square_sign * x^2), of the inverse sine and its relatives."""
    return lambda n, g: ((g * sign) / _root_of((n[0] * n[0]) * float(square_sign) + offset),)


RULES: dict[str, Rule] = {
    "Abs": lambda n, g: (g * g.graph.op("Sign", n[0]),),
    "Acos": _inverse(-1, 1.0, -1.0),
    "Acosh": _inverse(1, -1.0),
    "Add": lambda n, g: (g, g),
    "Asin": _inverse(-1, 1.0),
    "Asinh": _inverse(1, 1.0),
    "Atan": lambda n, g: (g / (n[0] * n[0] + 1.0),),
    "Atanh": lambda n, g: (g / (1.0 - n[0] * n[0]),),
    "Cast": lambda n, g: (g.cast(n[0].dtype),),
    "Clip": _clip,
    "Cos": lambda n, g: (-(g * g.graph.op("Sin", n[0])),),
    "Cosh": lambda n, g: (g * g.graph.op("Sinh", n[0]),),
    "Div": lambda n, g: (g / n[1], -(g * n.y) / n[1]),
    "Erf": lambda n, g: (g * (g.graph.op("Exp", -(n[0] * n[0])) * (2.0 / math.sqrt(math.pi))),),
    "Exp": lambda n, g: (g * n.y,),
    "Log": lambda n, g: (g / n[0],),
    "Max": _extreme,
    "Min": _extreme,
    "Mod": lambda n, g: (g, -(g * ((n[0] - n.y) / n[1]))),  # of floats: x - truncated(x / m) * m
    "Mul": _mul,
    "Neg": lambda n, g: (-g,),
    "Pow": _pow,
    "Reciprocal": lambda n, g: (-(g * (n.y * n.y)),),
    "Sin": lambda n, g: (g * g.graph.op("Cos", n[0]),),
    "Sinh": lambda n, g: (g * g.graph.op("Cosh", n[0]),),
    "Sqrt": _sqrt,
    "Sub": lambda n, g: (g, -g),
    "Tan": lambda n, g: (g * (n.y * n.y + 1.0),),
}


def _lower_pow(graph: Graph, x: Value, exponent: Value) -> Value:
    """The usual constant powers as the cheap operators that they are."""
    plain = x.is_float and exponent.data is not None and exponent.size == 1 and exponent.rank <= x.rank
    power = float(exponent.data.item()) if plain and exponent.data is not None else None
    if power in (1.0, 2.0, 3.0):
        return reduce(lambda product, factor: product * factor, [x] * int(power))
    if power in (0.5, -1.0):
        return graph.op("Sqrt" if power == 0.5 else "Reciprocal", x)
    return graph.op("Pow", x, exponent)


def _lower_extreme(op: str) -> Lowering:
    return lambda graph, *values: values[0] if len(values) == 1 else graph.op(op, *values)


def _lower_cast_like(graph: Graph, x: Value, like: Value, **attrs: Any) -> Value:
    return x.cast(like.dtype)


LOWERINGS: dict[str, Lowering] = {
    "CastLike": _lower_cast_like,
    "Max": _lower_extreme("Max"),
    "Mean": lambda graph, *values: reduce(add, values) * (1.0 / len(values)),
    "Min": _lower_extreme("Min"),
    "Pow": _lower_pow,
    "Sum": lambda graph, *values: reduce(add, values),
}
