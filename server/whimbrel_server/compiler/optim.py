"""Optimisers as graph builders: from a parameter and its gradient to the new parameter and new state.

Hyper-parameters are scalar graph inputs, so that one graph serves every schedule.
"""

from collections.abc import Mapping

from whimbrel_server.compiler.ir import Value

STATES: dict[str, tuple[str, ...]] = {"sgd": (), "momentum": ("m",)}
HYPERS: dict[str, dict[str, float | None]] = {
    "sgd": {"@lr": None},
    "momentum": {"@lr": None, "@momentum": 0.9},
}  # by optimiser: name and default; None must be supplied


def proximal(parameter: Value, gradient: Value, anchor: Value, mu: Value) -> Value:
    """The gradient with FedProx' pull to the round's start: g + mu (p - anchor).

    Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, objective (2).
    """
    return gradient + mu * (parameter - anchor)


def sgd(parameter: Value, gradient: Value, hypers: Mapping[str, Value]) -> Value:
    """p - lr g; where g is one matrix product the step is fused into it and g is never stored."""
    node, rate = gradient.node, hypers["@lr"]
    if node is None or node.op != "Gemm" or node.has(2) or gradient.shape != parameter.shape:
        return parameter - rate * gradient
    small, large = sorted((node[0], node[1]), key=lambda value: value.size)
    scaled = small * -rate
    ins = (scaled, large) if small is node[0] else (large, scaled)
    return parameter.graph.op("Gemm", *ins, parameter, **node.attrs)


def momentum(parameter: Value, gradient: Value, velocity: Value, hypers: Mapping[str, Value]) -> tuple[Value, Value]:
    """m' = momentum m + g, p' = p - lr m'; returns (p', m'). The form of Sutskever et al. as PyTorch has it."""
    moved = hypers["@momentum"] * velocity + gradient
    return parameter - hypers["@lr"] * moved, moved
