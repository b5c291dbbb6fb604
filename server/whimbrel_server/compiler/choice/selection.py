"""Which weights a model has, and which of them a specification trains.

`train` entries are globs over weight names, or one of these words: "all", "auto" and "*" (every weight that was learnt, as
far as `learnt.py` can tell), "last:K" (the last K layers), "biases", "norms" (scale and bias of normalisations). Knows names
and roles of tensors in the source model; how they are read or differentiated is not known here.
"""

import itertools
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import onnx
from onnx import helper, numpy_helper

from whimbrel_server.compiler.choice.learnt import Roles, was_learnt
from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.graph.nested import reads, subgraphs

TRAINABLE_TYPES = (np.dtype(np.float32), np.dtype(np.float64))

# Operands that configure an operator; a weight used as one is never trained.
SETTINGS: Mapping[str, frozenset[int]] = {
    "BatchNormalization": frozenset({3, 4}),
    "CastLike": frozenset({1}),
    "Clip": frozenset({1, 2}),
    "DequantizeLinear": frozenset({1, 2}),
    "Dropout": frozenset({1, 2}),
    "DynamicQuantizeLSTM": frozenset({8, 9, 10, 11}),
    "NegativeLogLikelihoodLoss": frozenset({2}),
    "OneHot": frozenset({2}),
    "Pad": frozenset({1, 2, 3}),
    "Pow": frozenset({1}),
    "QuantizeLinear": frozenset({1, 2}),
    "Range": frozenset({0, 1, 2}),
    "Resize": frozenset({1, 2, 3}),
    "SoftmaxCrossEntropyLoss": frozenset({2}),
    "ThresholdedRelu": frozenset({1}),
    "Upsample": frozenset({1}),
}
BIASES: Mapping[str, int] = {
    "BatchNormalization": 2,
    "Conv": 2,
    "ConvTranspose": 2,
    "GRU": 3,
    "Gemm": 2,
    "GroupNormalization": 2,
    "InstanceNormalization": 2,
    "LSTM": 3,
    "LayerNormalization": 2,
    "RNN": 3,
}
NORMALISATIONS = (
    "BatchNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "RMSNormalization",
)
MASKED = -1e4  # no trained weight is as low; the least of what exporters write for minus infinity in half precision
# Through these a weight reaches its use, and a product its bias.
RESHAPING = ("Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def weights_of(graph: onnx.GraphProto, half: bool = False) -> dict[str, onnx.TensorProto]:
    """Floating-point initialisers and `Constant` nodes of a graph by name, in the file's order; those of half precision,
    which a prepared model has no longer, if asked for."""
    types = (*TRAINABLE_TYPES, np.dtype(np.float16)) if half else TRAINABLE_TYPES
    floats = {helper.np_dtype_to_tensor_dtype(dtype) for dtype in types}
    return {name: tensor for name, tensor in constants_of(graph).items() if tensor.data_type in floats}


def constants_of(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Initialisers and `Constant` nodes of any type by name, in the file's order."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    return tensors


def matches(pattern: str, name: str) -> bool:
    """Glob with `*` and `?` only: real weight names contain brackets, so `[` stands for itself."""
    expression = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(expression, name, re.DOTALL) is not None


def trainable_names(graph: onnx.GraphProto, train: Sequence[str], output: str | None = None) -> list[str]:
    """The weights that `train` selects, in the file's order: float tensors that are no settings; scalars only by
    exact name. "last:K" counts the layers that lead to `output` (to any output when None).

    Raises CompileError ("train") for "last:K" without a positive number.
    """
    uses = Uses(graph)
    chosen = {name for name in uses.tensors if name in train}
    for entry in train:
        chosen.update(_selected(uses, entry, output))
    return [name for name in uses.tensors if name in chosen]


def _selected(uses: "Uses", entry: str, output: str | None) -> Iterable[str]:
    word, _, count = entry.partition(":")
    if word == "last" and count:
        if not count.isdecimal() or int(count) < 1:
            raise CompileError("train", f"{entry!r}: after 'last:' comes the number of layers, at least 1")
        return itertools.chain(*layers(uses, output)[-int(count) :])
    if entry in WORDS:
        return WORDS[entry](uses)
    return [name for name in uses.candidates() if matches(entry, name)]


class Uses:
    """A graph's weights that may be trained (`tensors`), and what the nodes use them for.

    `weight` maps the name of a tensor to the weight that it is, reshaped or as it stands; `maker` maps the name of a
    tensor to the node that makes it; `outer` are the tensors made by nodes that are in no graph inside another node.
    """

    def __init__(self, graph: onnx.GraphProto, half: bool = False) -> None:
        self.graph = graph
        self.nodes = list(all_nodes(graph))
        self.tensors = weights_of(graph, half)
        self.outer = {name for node in graph.node for name in node.output}
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.weight = {name: name for name in self.tensors}
        for node in self.nodes:
            if node.op_type in RESHAPING and node.input[0] in self.weight:
                self.weight[node.output[0]] = self.weight[node.input[0]]
        for name in self._settings():
            self.tensors.pop(name, None)

    def _settings(self) -> set[str]:
        """The operands that configure operators, and the constants that these are computed from."""
        constant = {tensor.name for tensor in self.graph.initializer}
        for node in self.nodes:
            if constant.issuperset(filter(None, node.input)):
                constant.update(node.output)
        found: set[str] = set()
        open_ = [n.input[i] for n in self.nodes for i in SETTINGS.get(n.op_type, ()) if i < len(n.input)]
        while open_:
            name = open_.pop()
            if name in constant and name not in found:
                found.add(name)
                open_ += self.maker[name].input if name in self.maker else ()
        return found

    def candidates(self) -> list[str]:
        """All but scalars and the numbers of a formula (factors, bounds, masks, fillings), which only their name trains."""
        return [name for name, tensor in self.tensors.items() if tensor.dims and not self._in_formula(name)]

    @cached_property
    def learnt(self) -> list[str]:
        """The candidates that were learnt, and those that nothing uses: what is trained unless names say otherwise."""
        sizes = {name: list(tensor.dims) for name, tensor in constants_of(self.graph).items()}
        roles = Roles(self.graph, self.nodes, sizes)
        return [n for n in self.candidates() if n not in self.users or was_learnt(roles, self.tensors[n], n)]

    def _in_formula(self, name: str) -> bool:
        """A factor is one number in a product or quotient, or a bound; a mask has entries that stand for minus infinity;
        one number everywhere is filled in where a condition says so, or as a state to begin with."""
        tensor, users = self.tensors[name], self.users.get(name, [])
        ops = {node.op_type for node in users}
        if ops <= {"Div", "Max", "Min", "Mul"} and set(tensor.dims) == {1}:
            return True
        array = numpy_helper.to_array(tensor)
        if not np.isfinite(array).all():
            return True
        if all(node.op_type == "Where" or self._begins_with(node, name) for node in users) and (array == array.flat[:1]).all():
            return bool(users)
        return ops <= {"Add", "Where"} and bool((array <= MASKED).any())

    def _begins_with(self, node: onnx.NodeProto, name: str) -> bool:
        """Whether a recurrent layer reads a tensor as its initial state."""
        return node.op_type in ("GRU", "LSTM", "RNN") and name in (self.weight.get(other) for other in node.input[5:7])

    def used_by(self, node: onnx.NodeProto) -> list[str]:
        """The weights among a node's operands."""
        found = (self.weight.get(name, "") for name in node.input)
        return [name for name in found if name in self.tensors and self.tensors[name].dims]

    def others(self, node: onnx.NodeProto) -> list[str]:
        """A node's operands that are no weights."""
        return [name for name in node.input if name and name not in self.weight]

    def is_vector(self, name: str) -> bool:
        """Whether a weight has one axis longer than 1, or none."""
        return sum(1 for size in self.tensors[name].dims if size > 1) <= 1

    @cached_property
    def users(self) -> dict[str, list[onnx.NodeProto]]:
        """For each weight the nodes that use it, however it reaches them; a node around a graph that does so included."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            if self.weight.keys().isdisjoint(node.output):
                for weight in dict.fromkeys(self.weight[name] for name in reads(node) if name in self.weight):
                    found.setdefault(weight, []).append(node)
        return found

    def axes(self, name: str) -> list[int] | None:
        """For each axis of a tensor that is a weight, which axis of the stored weight it is; None where these were
        merged, split or repeated."""
        if name in self.tensors:
            return list(range(len(self.tensors[name].dims)))
        node = self.maker[name]
        inner = self.axes(node.input[0]) if node.op_type in ("Cast", "Identity", "Transpose") else None
        if inner is None or node.op_type != "Transpose":
            return inner
        given = [helper.get_attribute_value(attr) for attr in node.attribute if attr.name == "perm"]
        return [inner[axis] for axis in given[0]] if given else inner[::-1]

    def made_by(self, name: str, op: str) -> onnx.NodeProto | None:
        node = self.maker.get(name)
        return node if node is not None and node.op_type == op else None


def layers(uses: Uses, output: str | None = None) -> list[list[str]]:
    """The learnt weights of each layer that leads to `output`, in the order of the file, which is topological.

    A layer is what one node uses, and what is added to that node's result.
    """
    found: list[list[str]] = []
    layer_of: dict[str, list[str]] = {}
    learnt = set(uses.learnt)
    for node in leading_to(uses.graph, output):
        names, others = [name for name in uses.used_by(node) if name in learnt], uses.others(node)
        if not others or node.output[0] in uses.weight:
            continue
        above = layer_of.get(others[0])
        if names and (node.op_type != "Add" or above is None):
            above = []
            found.append(above)
        if above is not None and (names or node.op_type in RESHAPING):
            above += names
            layer_of.update(dict.fromkeys(node.output, above))
    return found


def last_layers(graph: onnx.GraphProto, names: Container[str], output: str | None = None) -> int:
    """The largest K for which "last:K" selects `names` only."""
    found = layers(Uses(graph), output)
    return next((k for k, layer in enumerate(reversed(found)) if any(name not in names for name in layer)), len(found))


def leading_to(graph: onnx.GraphProto, output: str | None) -> list[onnx.NodeProto]:
    """The nodes that `output` (or any output) needs, in the file's order, those inside an If before it."""
    names = {info.name for info in graph.output} if output is None else {output}
    nodes = []
    for node in reversed(list(all_nodes(graph))):
        if names.intersection(node.output):
            names.update(reads(node), (info.name for inner in subgraphs(node) for info in inner.output))
            nodes.append(node)
    return nodes[::-1]


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph, each after those of the graphs inside it."""
    for node in graph.node:
        for inner in subgraphs(node):
            yield from all_nodes(inner)
        yield node


def _biases(uses: Uses) -> set[str]:
    found = set()
    for node in uses.nodes:
        index = BIASES.get(node.op_type, len(node.input))
        if index < len(node.input):
            found.add(uses.weight.get(node.input[index], ""))
        if node.op_type == "Add":
            found.update(name for name in uses.used_by(node) if uses.is_vector(name))
    return found.intersection(uses.learnt)


def _norms(uses: Uses) -> set[str]:
    """Scale and bias of normalisations, of those too that an exporter wrote out as x / sqrt(variance + epsilon)."""
    found: set[str] = set()
    normal: set[str] = set()
    for node in uses.nodes:
        if node.op_type in NORMALISATIONS:
            found.update(uses.used_by(node))
        elif _divides_by_deviation(uses, node):
            normal.update(node.output)
        elif node.op_type in ("Mul", "Add", *RESHAPING) and normal.intersection(node.input):
            normal.update(node.output if node.op_type != "Add" else ())
            found.update(name for name in uses.used_by(node) if uses.is_vector(name))
    return found.intersection(uses.learnt)


def _divides_by_deviation(uses: Uses, node: onnx.NodeProto) -> bool:
    if node.op_type not in ("Div", "Reciprocal"):
        return False
    root = uses.made_by(node.input[-1], "Sqrt")
    return root is not None and uses.made_by(root.input[0], "Add") is not None


WORDS: Mapping[str, Callable[[Uses], Iterable[str]]] = {
    "*": lambda uses: uses.learnt,
    "all": lambda uses: uses.learnt,
    "auto": lambda uses: uses.learnt,
    "biases": _biases,
    "norms": _norms,
}
