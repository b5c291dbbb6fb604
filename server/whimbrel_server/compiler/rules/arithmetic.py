"""Elementwise operators: arithmetic, activations, comparisons. A rule here is a formula of operands and result."""

from whimbrel_server.compiler.ir import Graph, Value
from whimbrel_server.compiler.rules.table import Lowering, Rule

RULES: dict[str, Rule] = {
    "Abs": lambda n, g: (g * g.graph.op("Sign", n[0]),),
    "Add": lambda n, g: (g, g),
    "Cast": lambda n, g: (g.cast(n[0].dtype),),
    "Div": lambda n, g: (g / n[1], -(g * n.y) / n[1]),
    "Exp": lambda n, g: (g * n.y,),
    "Log": lambda n, g: (g / n[0],),
    "Mul": lambda n, g: (g * n[1], g * n[0]),
    "Neg": lambda n, g: (-g,),
    "Relu": lambda n, g: (g * n.y.mask("Greater", 0.0),),
    "Sigmoid": lambda n, g: (g * (n.y * (1.0 - n.y)),),
    "Sqrt": lambda n, g: (g / (n.y * 2.0),),
    "Sub": lambda n, g: (g, -g),
    "Tanh": lambda n, g: (g * (1.0 - n.y * n.y),),
}


def _lower_sum(graph: Graph, first: Value, *others: Value) -> Value:
    for other in others:
        first = first + other
    return first


LOWERINGS: dict[str, Lowering] = {
    "Dropout": lambda graph, x, *_, **attrs: x,  # as in inference; random masks are not drawn
    "Sum": _lower_sum,
}
