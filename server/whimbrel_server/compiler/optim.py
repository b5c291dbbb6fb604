"""Optimisers as graph builders: from a parameter and its gradient to the new parameter and new state.

`OPTIMIZERS` is the one table. Hyper-parameters are scalar graph inputs, so that one graph serves every
schedule; state is zero at the start.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from whimbrel_server.compiler.ir import Value

Values = Mapping[str, Value]


@dataclass(frozen=True)
class Optimizer:
    """`hypers`: input name to default (None: must be supplied); `states`: suffixes of the state tensors.

    `update(parameter, gradient, states by suffix, hypers by name)` gives the new parameter and new states.
    """

    hypers: Mapping[str, float | None]
    states: tuple[str, ...]
    update: Callable[[Value, Value, Values, Values], tuple[Value, Values]]


def proximal(parameter: Value, gradient: Value, anchor: Value, mu: Value) -> Value:
    """The gradient with FedProx' pull to the round's start: g + mu (p - anchor).

    Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, objective (2).
    """
    return gradient + mu * (parameter - anchor)


def _sgd(parameter: Value, gradient: Value, states: Values, hypers: Values) -> tuple[Value, Values]:
    """p - lr g; where g is one matrix product the step is fused into it and g is never stored."""
    node, rate = gradient.node, hypers["@lr"]
    if node is None or node.op != "Gemm" or node.has(2) or gradient.shape != parameter.shape:
        return parameter - rate * gradient, {}
    small, large = sorted((node[0], node[1]), key=lambda value: value.size)
    scaled = small * -rate
    factors = (scaled, large) if small is node[0] else (large, scaled)
    return parameter.graph.op("Gemm", *factors, parameter, **node.attrs), {}


def _momentum(parameter: Value, gradient: Value, states: Values, hypers: Values) -> tuple[Value, Values]:
    """m' = momentum m + g, p' = p - lr m'.

    Sutskever et al., "On the importance of initialization and momentum", ICML 2013, equations (1) and (2),
    with the learning rate outside of m so that a schedule acts at once.
    """
    moved = hypers["@momentum"] * states["m"] + gradient
    return parameter - hypers["@lr"] * moved, {"m": moved}


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer({"@lr": None}, (), _sgd),
    "momentum": Optimizer({"@lr": None, "@momentum": 0.9}, ("m",), _momentum),
}
