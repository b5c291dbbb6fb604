"""The operators that no gradient passes, each with the reason why zero is the right gradient.

An operator belongs here only where its derivative is zero wherever it exists, or its result is no real
number. One whose gradient is merely unknown gets no rule at all, so that it is refused by name.
"""

from collections.abc import Mapping

from whimbrel_server.compiler.graph.ir import Node
from whimbrel_server.compiler.rules.table import Gradients

CONSTANT = "piecewise constant: its derivative is zero wherever it exists"
LOGICAL = "its result is logical"
INDEX = "its result is an index or a count"
DRAWN = "its result is drawn, and only the shape is read"
INTEGER = "its result is an integer"

STOPS: Mapping[str, str] = {
    **dict.fromkeys(("Ceil", "Floor", "Hardmax", "Round", "Sign"), CONSTANT),
    **dict.fromkeys(("And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual"), LOGICAL),
    **dict.fromkeys(("Not", "Or", "Xor"), LOGICAL),
    **dict.fromkeys(("ArgMax", "ArgMin", "Shape", "Size"), INDEX),
    **dict.fromkeys(("RandomNormalLike", "RandomUniformLike"), DRAWN),
    "QuantizeLinear": INTEGER,
}


def no_gradient(node: Node, *gradients: object) -> Gradients:
    return ()
