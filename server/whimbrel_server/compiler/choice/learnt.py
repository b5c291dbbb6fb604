"""Which float constants of a file were learnt, as far as the file shows it, and which somebody wrote down.

A file does not tell weights from rotary tables, anchors, strides, masks, or the mean and deviation of a preprocessing. Two
things do: what the nodes do with a constant, and its numbers. Names are not looked at: exporters invent them.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from whimbrel_server.compiler.graph.ir import Array
from whimbrel_server.compiler.graph.nested import reads, subgraphs

# The operand that holds what was learnt, where an operator has one.
LEARNING: Mapping[str, frozenset[int]] = {
    **dict.fromkeys(("Conv", "ConvInteger", "ConvTranspose", "Gemm", "PRelu", "QLinearConv"), frozenset({1, 2})),
    **dict.fromkeys(("Einsum", "MatMul", "MatMulInteger", "QLinearMatMul"), frozenset(range(8))),
    **dict.fromkeys(("DynamicQuantizeLSTM", "GRU", "LSTM", "RNN"), frozenset({1, 2, 3})),
    "BatchNormalization": frozenset({1, 2, 3, 4}),
    **dict.fromkeys(("GroupNormalization", "InstanceNormalization", "LayerNormalization"), frozenset({1, 2})),
    "RMSNormalization": frozenset({1}),
    "Gather": frozenset({0}),
}
# A constant that meets the data in these is a number of a formula: a mean, a deviation, a bound, an anchor.
WRITTEN = frozenset({"Cos", "Div", "Equal", "Greater", "Less", "Max", "Min", "Mod", "Sin", "Sub"})
# Through these a table passes whole or in part, also where the data says which part.
MOVING = frozenset(
    {"Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
LEAST_ROW = 6  # numbers that a row must have for its law to show: a law has two coefficients
SEEN = 64  # numbers of a row, and rows, that are looked at
LAWFUL = 1e-4  # how far numbers may be from a law, relative to their size; tables are written in float32
VARIED = 1e-2  # how much they must differ, relative to their size, for that to mean anything


class Roles:
    """What a graph does with its constants: for each name `firmly` whether an operator learns in that place, `loosely`
    whether a bias, a scale, or a table that is added may stand there."""

    def __init__(self, graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto], sizes: Mapping[str, Sequence[int]]) -> None:
        """`nodes` in an order in which each comes after what it reads; `sizes` are those of all constants."""
        self.vector = {name: sum(size > 1 for size in dims) <= 1 for name, dims in sizes.items()}
        self._fixed = set(sizes)
        for node in nodes:
            self._pass_on(node)
        self.behind = self._behind(nodes)
        self.firmly = {info.name for node in nodes for inner in subgraphs(node) for info in inner.output}
        self.firmly.update(info.name for info in graph.output)
        self.loosely: set[str] = set()
        for node in reversed(nodes):
            self._ask(node)

    def _pass_on(self, node: onnx.NodeProto) -> None:
        """What is computed from constants alone is one; a part of a table is a table."""
        known = [name in self.vector for name in node.input if name]
        if known and (all(known) or (node.op_type in MOVING and known[0])):
            self.vector.update(dict.fromkeys(node.output, all(self.vector.get(name, True) for name in node.input)))
        if known and self._fixed.issuperset(filter(None, node.input)):
            self._fixed.update(node.output)

    def _behind(self, nodes: Sequence[onnx.NodeProto]) -> set[str]:
        """The tensors behind an operator that learns; all, where there is none."""
        found, makers = set[str](), {name: node for node in nodes for name in node.output}
        for node in nodes:
            if not found.isdisjoint(reads(node)) or self._learns(node) or _divides_by_deviation(node, makers):
                found.update(node.output)
        return found or {name for node in nodes for name in reads(node)}

    def _learns(self, node: onnx.NodeProto) -> bool:
        places = LEARNING.get(node.op_type, frozenset()) if _standard(node) else frozenset(range(len(node.input)))
        return any(name in self.vector for place, name in enumerate(node.input) if place in places)

    def _ask(self, node: onnx.NodeProto) -> None:
        passes = self._fixed.issuperset(node.output) or (node.op_type in MOVING and node.input[0] in self.vector)
        for place, name in enumerate(node.input):
            if passes:
                self.firmly.update({name} if self.firmly.intersection(node.output) else ())
                self.loosely.update({name} if self.loosely.intersection(node.output) else ())
            elif not _standard(node) or place in LEARNING.get(node.op_type, ()):
                self.firmly.add(name)
            elif self._may_learn(node, place):
                self.loosely.add(name)

    def _may_learn(self, node: onnx.NodeProto, place: int) -> bool:
        if node.op_type not in ("Add", "Mul"):
            return node.op_type not in WRITTEN
        vector = self.vector.get(node.input[place], True)
        return (vector and node.input[1 - place] in self.behind) or (node.op_type == "Add" and not vector)


def was_learnt(roles: Roles, tensor: onnx.TensorProto, name: str) -> bool:
    """Whether a constant stands where weights stand, and its numbers follow no law."""
    if name not in roles.firmly and name not in roles.loosely:
        return False
    array = numpy_helper.to_array(tensor)
    return not lawful(array) and (name in roles.firmly or not repeats(array))


def lawful(array: Array) -> bool:
    """Whether along one axis all rows are waves, straight lines or geometric sequences: x[t+1] = b x[t] + c x[t-1].

    Positions, grids, rotary tables and their frequencies are; what was learnt is not. Rows of about one number tell nothing.
    """
    return any(_lawful_along(np.moveaxis(array, axis, 0)) for axis in range(array.ndim) if array.shape[axis] >= LEAST_ROW)


def _lawful_along(array: Array) -> bool:
    rows = array[:SEEN].reshape(min(len(array), SEEN), -1)[:, :SEEN].T.astype(np.float64)
    told = [row for row in rows if np.std(row[2:]) > VARIED * np.sqrt(np.mean(row[2:] ** 2))]
    return bool(told) and all(_deviation(row) < LAWFUL for row in told)


def _deviation(row: Array) -> float:
    """How far a row is from the nearest law, relative to its numbers."""
    before, target = np.stack([row[1:-1], row[:-2]], axis=1), row[2:]
    law = np.linalg.lstsq(before, target, rcond=None)[0]
    return float(np.linalg.norm(before @ law - target) / np.linalg.norm(target))


def repeats(array: Array) -> bool:
    """Whether few numbers, though more than one, fill a tensor: strides, grids and masks do, learnt numbers do not."""
    return 1 < len(np.unique(array)) <= math.isqrt(array.size)


def _standard(node: onnx.NodeProto) -> bool:
    return node.domain in ("", "ai.onnx")


def _divides_by_deviation(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> bool:
    root = makers.get(node.input[-1]) if node.op_type in ("Div", "Reciprocal") else None
    return root is not None and root.op_type == "Sqrt"
