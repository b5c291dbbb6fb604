"""Recurrent layers: LSTM, GRU and RNN nodes of the source model, taken apart into one cell for each direction.

A layer with something trained in it or before it becomes ordinary products and one Scan over time, which
hands out what its gradient needs: that takes onnxruntime as long as the fused operator, and the backward
computes nothing twice. A frozen layer stays fused. The cells themselves are in `cells.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from whimbrel_server.compiler.errors import Refusal
from whimbrel_server.compiler.graph.draft import zeros
from whimbrel_server.compiler.graph.ir import Graph, Node, Value
from whimbrel_server.compiler.rules import costs
from whimbrel_server.compiler.rules.cells import Layer, gru, gru_reset_first, lstm, rnn
from whimbrel_server.compiler.rules.gates import GATES, Gate
from whimbrel_server.compiler.rules.table import Gradients, Lowering, Rule

Operands = Sequence[Value | None]
FIRST_STATES = 5  # the operand from which the first h (and c) stand
PEEPHOLES = 7
VECTOR = 16  # floats of a register: fewer samples on the last axis would leave products half idle


@dataclass(frozen=True)
class Kind:
    """What tells the operators apart: the gate functions of one direction when none are named, and the states."""

    gates: tuple[str, ...]
    states: int


KINDS: Mapping[str, Kind] = {
    "GRU": Kind(("Sigmoid", "Tanh"), 1),
    "LSTM": Kind(("Sigmoid", "Tanh", "Tanh"), 2),
    "RNN": Kind(("Tanh",), 1),
}


def _lower(op: str, graph: Graph, *ins: Value | None, layout: int = 0, **attrs: Any) -> tuple[Value, ...]:
    """The steps are brought to the front: onnxruntime runs no other layout."""
    batch_first = {0, FIRST_STATES, FIRST_STATES + 1} if layout else set()
    operands = [_swapped(value) if value and i in batch_first else value for i, value in enumerate(ins)]
    trains = graph.trains(value for value in operands if value is not None)
    form = _taken_apart if trains and not _obstacle(op, operands, attrs) else _fused
    outputs = form(op, graph, operands, attrs)
    return tuple(_unswapped(value) for value in outputs) if layout else outputs


def _swapped(value: Value) -> Value:
    return value.transpose([1, 0, 2])


def _unswapped(value: Value) -> Value:
    """`[N, T, D, H]` of `[T, D, N, H]`, `[N, D, H]` of `[D, N, H]`."""
    return value.transpose([2, 0, 1, 3]) if value.rank == 4 else _swapped(value)


def _fused(op: str, graph: Graph, ins: Operands, attrs: Mapping[str, Any]) -> tuple[Value, ...]:
    last = max(i for i, value in enumerate(ins) if value is not None)
    return graph.multi(op, *ins[: last + 1], outputs=1 + KINDS[op].states, **attrs)


def _obstacle(op: str, ins: Operands, attrs: Mapping[str, Any]) -> str:
    """Why the layer cannot be taken apart, or nothing."""
    missing = [name for name in _gate_names(op, attrs) if name.lower() not in GATES]
    if missing:
        return f"activation {missing[0]}"
    if "clip" in attrs:
        return "clip"
    if attrs.get("input_forget", 0):
        return "input_forget"
    return "peepholes" if len(ins) > PEEPHOLES and ins[PEEPHOLES] is not None else ""


def _refuse(op: str, node: Node, *gradients: Value | None) -> Gradients:
    raise Refusal(_obstacle(op, node.ins, node.attrs))


def _taken_apart(op: str, graph: Graph, ins: Operands, attrs: Mapping[str, Any]) -> tuple[Value, ...]:
    """`Y` `[T, D, N, H]`, then the last states, each `[D, N, H]`."""
    results = [_results(_cell(op, attrs), layer) for layer in _layers(op, graph, ins, attrs)]
    y, *states = zip(*results, strict=True)
    return _stack(y, 1), *(_stack(state, 0) for state in states)


def _results(cell: Callable[[Layer], tuple[Value, ...]], layer: Layer) -> tuple[Value, ...]:
    """Of a cell that works with its samples on the last axis where that is faster."""
    if layer.hidden < costs.TURNED_HIDDEN or layer.x.shape[1] % VECTOR:
        return cell(layer)
    biases, states = (bias.reshape([-1, 1]) for bias in layer.biases), map(_turned, layer.states)
    mask = None if layer.mask is None else _turned(layer.mask)
    turned = replace(layer, biases=tuple(biases), states=tuple(states), mask=mask, samples_last=True)
    return tuple(_turned(value) for value in cell(turned))


def _turned(value: Value) -> Value:
    """`[..., H, N]` of `[..., N, H]`, and the reverse."""
    axes = [*range(value.rank - 2), value.rank - 1, value.rank - 2]
    if zeros(value):
        return value.graph.zeros([value.shape[axis] for axis in axes], value.dtype)
    return value.transpose(axes)


def _stack(values: Sequence[Value], axis: int) -> Value:
    parts = [value.reshape([*value.shape[:axis], 1, *value.shape[axis:]]) for value in values]
    return parts[0].graph.op("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0]


def _cell(op: str, attrs: Mapping[str, Any]) -> Callable[[Layer], tuple[Value, ...]]:
    if op == "GRU":
        return gru if attrs.get("linear_before_reset", 0) else gru_reset_first
    return lstm if op == "LSTM" else rnn


def _layers(op: str, graph: Graph, ins: Operands, attrs: Mapping[str, Any]) -> list[Layer]:
    """The operands of each direction."""
    padded = [*ins, *[None] * (FIRST_STATES + 2)]
    x, w, r, b, lengths = padded[:FIRST_STATES]
    assert x is not None and w is not None and r is not None, "the schema requires them"
    count, rows, hidden = r.shape
    start = graph.zeros([count, x.shape[1], hidden], x.dtype)
    states = [_rows(value or start) for value in padded[FIRST_STATES : FIRST_STATES + KINDS[op].states]]
    biases: list[list[Value]] = [[] for _ in range(count)]
    if b is not None:
        biases = [_rows(part) for part in _rows(b.reshape([count, 2, rows]))]
    mask = None if lengths is None else _mask(x.shape[0], lengths, x.dtype)
    ways = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[attrs.get("direction", "forward")]
    columns = zip(_rows(w), _rows(r), biases, zip(*states, strict=True), ways, _gates(op, attrs, count), strict=True)
    return [Layer(x, w, r, tuple(bias), state, mask, way, gates) for w, r, bias, state, way, gates in columns]


def _rows(value: Value) -> list[Value]:
    """`value` cut into what stands along axis 0."""
    count, shape = value.shape[0], value.shape[1:]
    parts = value.graph.multi("Split", value, outputs=count, axis=0, num_outputs=count) if count > 1 else [value]
    return [part.reshape(shape) for part in parts]


def _mask(steps: int, lengths: Value, dtype: np.dtype[Any]) -> Value | None:
    """`[T, N, 1]`: 1 at the steps before each sequence's length; None where all are known to run to the end."""
    time = lengths.graph.constant(np.arange(steps, dtype=lengths.dtype).reshape(steps, 1, 1))
    mask = lengths.graph.op("Less", time, lengths.reshape([1, -1, 1])).cast(dtype)
    return None if mask.data is not None and mask.data.all() else mask


def _gate_names(op: str, attrs: Mapping[str, Any]) -> list[str]:
    directions = 2 if attrs.get("direction") == "bidirectional" else 1
    return list(attrs.get("activations", KINDS[op].gates * directions))


def _gates(op: str, attrs: Mapping[str, Any], count: int) -> list[tuple[Gate, ...]]:
    """The functions of each direction; those with parameters take them from the attributes' lists in order."""
    given = {name: iter(attrs.get(f"activation_{name}", ())) for name in ("alpha", "beta")}
    gates = []
    for name in _gate_names(op, attrs):
        gate = GATES[name.lower()]
        gates.append(replace(gate, parameters={key: next(given[key], value) for key, value in gate.parameters.items()}))
    each = len(gates) // count
    return [tuple(gates[i * each : (i + 1) * each]) for i in range(count)]


RULES: dict[str, Rule] = {op: partial(_refuse, op) for op in KINDS}

LOWERINGS: dict[str, Lowering] = {op: partial(_lower, op) for op in KINDS}
