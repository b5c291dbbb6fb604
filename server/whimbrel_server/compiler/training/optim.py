"""Optimisers as graph builders: from parameters and their gradients to new parameters and new state.

`OPTIMIZERS` is the one table, `optimize` the one way to use it. Hyper-parameters are scalar graph inputs, so that
one graph serves every schedule; state is zero at the start. The order of what happens to a gradient is fixed:
FedProx' pull is part of it, then the norm over all trained weights is clipped, then weight decay, then the rule.
How a gradient is computed does not belong here.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from whimbrel_server.compiler.graph.ir import Value

Values = Mapping[str, Value]
STEPS = "@t"
"""The state that counts the steps taken; a float, exact up to 2^24."""
LEAST_NORM = 1e-6  # added to a norm before dividing by it, as torch.nn.utils.clip_grad_norm_ does


class Inputs(Protocol):
    """Declares inputs of the step; each name once."""

    def scalar(self, role: Literal["hyper", "state"], name: str, default: float | None) -> Value:
        """A new input of shape []."""

    def beside(self, parameter: Value, role: Literal["state"], suffix: str, default: float | None) -> Value:
        """A new input `<param>@<suffix>` of the parameter's type and shape."""


@dataclass(frozen=True)
class Optimizer:
    """`hypers`: input name to default (None: must be supplied); `states`: suffixes of the state tensors.

    `update(parameter, gradient, states by suffix, hypers by name)` gives the new parameter and new states; it finds
    "@weight_decay" among the hypers where weights decay, and "@t", the number of this step from 1, if it `counts`.
    """

    update: Callable[[Value, Value, Values, Values], tuple[Value, Values]]
    hypers: Mapping[str, float | None] = field(default_factory=lambda: {"@lr": None})
    states: tuple[str, ...] = ()
    counts: bool = False


@dataclass(frozen=True)
class Updated:
    """New parameters by name, and new states by the name of their input."""

    parameters: dict[str, Value]
    states: dict[str, Value]


def optimize(
    optimizer: Optimizer, weights: Values, gradients: Values, inputs: Inputs, clip_norm: bool, weight_decay: bool
) -> Updated:
    """One step for every weight that has a gradient, in the order of `gradients`.

    Declares the hyper-parameters and state that the step needs: `@clip_norm` (0 or infinite: no clipping) with
    `clip_norm`, `@weight_decay` with `weight_decay`.
    """
    defaults = dict(optimizer.hypers)
    if weight_decay:
        defaults.setdefault("@weight_decay", 0.0)
    hypers = {name: inputs.scalar("hyper", name, default) for name, default in defaults.items()}
    scale = clip_scale(gradients.values(), inputs.scalar("hyper", "@clip_norm", 0.0)) if clip_norm else None
    updated = Updated({}, {})
    if optimizer.counts:
        hypers["@t"] = updated.states[STEPS] = inputs.scalar("state", STEPS, 0.0) + 1.0
    for name, gradient in gradients.items():
        parameter = weights[name]
        parameter.graph.origin = name
        clipped = gradient if scale is None else gradient * scale
        states = {suffix: inputs.beside(parameter, "state", suffix, 0.0) for suffix in optimizer.states}
        updated.parameters[name], moved = optimizer.update(parameter, clipped, states, hypers)
        updated.states.update({f"{name}@{suffix}": value for suffix, value in moved.items()})
    return updated


def proximal(parameter: Value, gradient: Value, anchor: Value, mu: Value) -> Value:
    """The gradient with FedProx' pull to the round's start: g + mu (p - anchor).

    Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, objective (2).
    """
    return gradient + mu * (parameter - anchor)


def clip_scale(gradients: Iterable[Value], limit: Value) -> Value:
    """The factor that brings the Euclidean norm over all gradients together down to `limit`, at most 1.

    Pascanu et al., "On the difficulty of training recurrent neural networks", ICML 2013, algorithm 1. A limit of 0
    is none, so that a header that says nothing clips nothing.
    """
    graph = limit.graph
    squares = [graph.op("ReduceSumSquare", gradient, keepdims=0) for gradient in gradients]
    norm = graph.op("Sqrt", graph.op("Sum", *squares))
    bound = graph.op("Where", graph.op("Greater", limit, limit.like(0.0)), limit, limit.like(np.inf))
    return graph.op("Min", bound / (norm + LEAST_NORM), limit.like(1.0))


def _plus(base: Value, gradient: Value, scale: Value | None = None) -> Value:
    """base + scale * gradient; where the gradient is one matrix product the sum is fused into it, and it is never stored."""
    node = gradient.node
    if node is None or node.op != "Gemm" or node.has(2) or gradient.shape != base.shape:
        return base + gradient if scale is None else base - -scale * gradient
    left, right = node[0], node[1]
    if scale is not None and min(left.size, right.size) > 2 * base.size:  # to scale a factor would cost more than the sum
        return base - -scale * gradient
    if scale is not None:
        left, right = (left * scale, right) if left.size <= right.size else (left, right * scale)
    return base.graph.op("Gemm", left, right, base, **{key: attr for key, attr in node.attrs.items() if key != "beta"})


def _shrunk(parameter: Value, hypers: Values) -> Value:
    """(1 - lr weight_decay) p: for a plain gradient step the same as weight decay in the gradient, for AdamW its definition."""
    decay = hypers.get("@weight_decay")
    return parameter if decay is None else parameter * (1.0 - hypers["@lr"] * decay)


def _decayed(parameter: Value, gradient: Value, hypers: Values) -> Value:
    """g + weight_decay p: the gradient of the loss with an L2 penalty."""
    decay = hypers.get("@weight_decay")
    return gradient if decay is None else gradient + decay * parameter


def _sgd(parameter: Value, gradient: Value, states: Values, hypers: Values) -> tuple[Value, Values]:
    """p - lr g."""
    return _plus(_shrunk(parameter, hypers), gradient, -hypers["@lr"]), {}


def _momentum(parameter: Value, gradient: Value, states: Values, hypers: Values) -> tuple[Value, Values]:
    """m' = momentum m + g, p' = p - lr m'.

    Sutskever et al., "On the importance of initialization and momentum", ICML 2013, equations (1) and (2),
    with the learning rate outside of m so that a schedule acts at once.
    """
    moved = _plus(_decayed(parameter, hypers["@momentum"] * states["m"], hypers), gradient)
    return parameter - hypers["@lr"] * moved, {"m": moved}


def _nesterov(parameter: Value, gradient: Value, states: Values, hypers: Values) -> tuple[Value, Values]:
    """m' = momentum m + g, p' = p - lr (g + momentum m'): equations (3) and (4) there, seen from the point looked ahead to."""
    gradient, momentum = _decayed(parameter, gradient, hypers), hypers["@momentum"]
    moved = momentum * states["m"] + gradient
    return parameter - hypers["@lr"] * (gradient + momentum * moved), {"m": moved}


def _adam(parameter: Value, gradient: Value, states: Values, hypers: Values) -> tuple[Value, Values]:
    """Kingma & Ba, "Adam", ICLR 2015, algorithm 1.

    The states are sums, not means: m / (1 - beta1) and v / (1 - beta2) of the paper. These factors, the bias corrections
    and epsilon's share of them act on scalars instead, which saves four passes over the weights.
    """
    beta1, beta2, graph = hypers["@beta1"], hypers["@beta2"], parameter.graph
    first, second = beta1 * states["m"] + gradient, beta2 * states["v"] + gradient * gradient
    share1, share2 = ((1.0 - beta) / (1.0 - graph.op("Pow", beta, hypers["@t"])) for beta in (beta1, beta2))
    root = graph.op("Sqrt", share2)
    step = first / (graph.op("Sqrt", second) + hypers["@eps"] / root)
    return parameter - (hypers["@lr"] * share1 / root) * step, {"m": first, "v": second}


def _adam_with_penalty(parameter: Value, gradient: Value, states: Values, hypers: Values) -> tuple[Value, Values]:
    return _adam(parameter, _decayed(parameter, gradient, hypers), states, hypers)


def _adamw(parameter: Value, gradient: Value, states: Values, hypers: Values) -> tuple[Value, Values]:
    """Loshchilov & Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2 (decay times lr, as in PyTorch)."""
    return _adam(_shrunk(parameter, hypers), gradient, states, hypers)


_ADAM: Mapping[str, float | None] = {"@lr": None, "@beta1": 0.9, "@beta2": 0.999, "@eps": 1e-8}
_MOMENTUM: Mapping[str, float | None] = {"@lr": None, "@momentum": 0.9}

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer(_sgd),
    "momentum": Optimizer(_momentum, _MOMENTUM, ("m",)),
    "nesterov": Optimizer(_nesterov, _MOMENTUM, ("m",)),
    "adam": Optimizer(_adam_with_penalty, _ADAM, ("m", "v"), counts=True),
    "adamw": Optimizer(_adamw, {**_ADAM, "@weight_decay": 0.01}, ("m", "v"), counts=True),
}
