"""The functions that gates of recurrent cells apply, with their slope told from the result.

Only functions whose slope follows from their value alone belong here: a cell then hands out the value and
nothing else. A function that is missing is refused by name where the layer is read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from whimbrel_server.compiler.graph.ir import Value


@dataclass(frozen=True)
class Gate:
    """An ONNX operator of one operand, and its derivative as a function of its result and parameters."""

    op: str
    derivative: Callable[[Value, Mapping[str, float]], Value]
    parameters: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, x: Value) -> Value:
        return x.graph.op(self.op, x, **self.parameters)

    def slope(self, y: Value) -> Value:
        return self.derivative(y, self.parameters)


def _hard_sigmoid_slope(y: Value, parameters: Mapping[str, float]) -> Value:
    """alpha strictly between the bounds, else 0."""
    return y.mask("Greater", 0.0) * y.mask("Less", 1.0) * parameters["alpha"]


def _softsign_slope(y: Value, _: Mapping[str, float]) -> Value:
    """(1 - |y|)²."""
    rest = 1.0 - y.graph.op("Abs", y)
    return rest * rest


GATES: Mapping[str, Gate] = {
    gate.op.lower(): gate
    for gate in (
        Gate("HardSigmoid", _hard_sigmoid_slope, {"alpha": 0.2, "beta": 0.5}),
        Gate("Relu", lambda y, _: y.mask("Greater", 0.0)),
        Gate("Sigmoid", lambda y, _: y - y * y),
        Gate("Softsign", _softsign_slope),
        Gate("Tanh", lambda y, _: 1.0 - y * y),
    )
}
