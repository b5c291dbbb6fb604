"""From an ONNX inference model to the expression graph: what is read, lowered, promoted and kept as it is.

`read` walks a prepared model and makes the trained weights graph inputs. Bringing models to one form is
`prepare.py`'s, choosing weights `selection.py`'s; losses, gradients and optimisers do not belong here.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, defs, helper, numpy_helper

from whimbrel_server.compiler.contract import Run
from whimbrel_server.compiler.errors import CompileError, Refusal
from whimbrel_server.compiler.graph.export import EXTERNAL_FROM, OPSET, topological
from whimbrel_server.compiler.graph.ir import Array, Graph, Node, Value
from whimbrel_server.compiler.graph.nested import all_graphs, captured_names, reads, subgraphs
from whimbrel_server.compiler.rules import LOWERINGS
from whimbrel_server.compiler.source.inputs import Inputs, read_inputs
from whimbrel_server.compiler.source.measured import Measured
from whimbrel_server.compiler.source.opaque import Keeper, declared_types, refuse
from whimbrel_server.compiler.source.prepare import STANDARD_DOMAINS, opset_of
from whimbrel_server.compiler.source.sequences import RULES as SEQUENCES
from whimbrel_server.compiler.source.sequences import Items, resolve

NEWEST_OPSET = 23  # of the operators younger than the target's that are lowered while reading
UNKNOWN_SHAPE = ("dynamic-shape", "shape-inference")


@dataclass(frozen=True)
class Source:
    """A model read into a graph: its data inputs, its output, and its weights by name.

    `weights` are graph inputs for the weights to train; `frozen` names the float weights kept as constants.
    """

    graph: Graph
    data: tuple[Value, ...]
    output: Value
    weights: Mapping[str, Value]
    frozen: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """How a model is read. `values` fixes inputs. `run` executes what leads to a node whose shape cannot be inferred.
    With `training` operators take the form they have while training, with `any_batch` none depends on its size."""

    values: Mapping[str, float] = field(default_factory=dict)
    run: Run | None = None
    training: bool = False
    any_batch: bool = False


def read(
    prepared: onnx.ModelProto,
    output: str | None,
    batch: int,
    dims: Mapping[str, Sequence[int]],
    train: Iterable[str],
    how: Reading | None = None,
) -> Source:
    """Reads the nodes that `output` needs, with the weights named in `train` as graph inputs.

    `batch` becomes the unknown first dimension of each data input; `dims` gives whole shapes by input name.
    A name in `train` may also be the result of any node that depends on constants alone.
    """
    proto = prepared.graph
    name = output_name(proto, output)
    nodes, needed = _needed(proto, name)
    how, graph = how or Reading(), Graph()
    graph.training, graph.any_batch = how.training, how.any_batch
    graph.domains.update(
        {entry.domain: entry.version for entry in prepared.opset_import if entry.domain not in STANDARD_DOMAINS}
    )
    initialised = {tensor.name for tensor in proto.initializer}
    infos = [info for info in proto.input if info.name in needed and info.name not in initialised]
    reader = _Reader(prepared, graph, read_inputs(graph, infos, batch, dims, how.values), frozenset(train), how.run)
    for node in nodes:
        reader.node(node)
    return reader.source(name)


def output_name(proto: onnx.GraphProto, output: str | None) -> str:
    """The output that is trained on; raises CompileError ("output") where that is not clear."""
    names: list[str] = [info.name for info in proto.output]
    if output is None and len(names) == 1:
        return names[0]
    if output is None or output not in names:
        raise CompileError("output", f"choose one of the model's outputs {names!r}, not {output!r}")
    return output


def _needed(proto: onnx.GraphProto, output: str) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that lead to `output`, in order, and every tensor name they touch."""
    names, nodes = {output}, []
    for node in reversed(proto.node):
        if names.intersection(node.output):
            names.update(reads(node))
            nodes.append(node)
    return nodes[::-1], names


class _Reader:
    """The values of one model's tensors by name, as they become known; lives for one reading.

    What cannot be read is an error only where something needs it: a branch that is not taken may hold anything.
    """

    def __init__(self, prepared: onnx.ModelProto, graph: Graph, inputs: Inputs, train: frozenset[str], run: Run | None) -> None:
        self.graph = graph
        self.inputs = inputs
        self.train = train
        self.opset = opset_of(prepared)
        self.tensors = {tensor.name: tensor for tensor in prepared.graph.initializer}
        self.values: dict[str, Value | CompileError] = dict(inputs.by_name())
        self.sequences: dict[str, Items] = {}
        self.weights: dict[str, Value] = {}
        self.start: dict[str, Array] = {}
        self.used = {name for inner in all_graphs(prepared.graph) for node in inner.node for name in node.input}
        self.used.update(info.name for info in prepared.graph.output)
        whole = None if run is None else Measured(prepared, inputs, run)
        self.keeper = Keeper(graph, run, whole, declared_types(all_graphs(prepared.graph)), inputs.sizes, self.start)

    def source(self, output: str) -> Source:
        trained = {name: value for name, value in self.weights.items() if value.data is None}
        frozen = tuple(name for name, value in self.weights.items() if value.data is not None and value.rank > 0)
        return Source(self.graph, self.inputs.data, self.value(output), trained, frozen)

    def value(self, name: str) -> Value:
        """The tensor called `name`; raises what kept it from being read."""
        if name not in self.values and name in self.tensors:
            self.values[name] = self.weight(name, numpy_helper.to_array(self.tensors[name]))
        if name not in self.values and name in self.sequences:
            self.values[name] = self.keeper.sequence(self.sequences[name])
        value = self.values.get(name)
        if isinstance(value, CompileError):
            raise value
        if value is None:
            raise CompileError("model-invalid", f"nothing gives {name!r}")
        return value

    def weight(self, name: str, data: Array) -> Value:
        """A weight as graph input where it is trained, else as a constant; small constants are shared without name."""
        if name in self.train and data.dtype.kind == "f":
            self.start[name] = data
            self.weights[name] = self.graph.input(name, data.dtype, data.shape, trained=True)
            return self.weights[name]
        constant = self.graph.constant(data, name if data.nbytes >= EXTERNAL_FROM else "")
        if data.dtype.kind == "f":
            self.weights[name] = constant
        return constant

    def node(self, node: onnx.NodeProto) -> None:
        """Reads a node, or remembers for each of its outputs why it cannot be read."""
        self.graph.origin = node.name or next(filter(None, node.output), "")
        try:
            results = self.results(node)
        except CompileError as error:
            self.values.update(dict.fromkeys(node.output, error))
            return
        self.values.update({name: self.promoted(name, v) for name, v in zip(node.output, results, strict=False) if name})

    def promoted(self, name: str, value: Value) -> Value:
        """A graph input in place of a computed constant that is to be trained."""
        if name not in self.train or name in self.weights or not value.is_float or not _constant(value):
            return value
        self.weights[name] = self.graph.input(name, value.dtype, value.shape, trained=True)
        return self.weights[name]

    def results(self, node: onnx.NodeProto) -> Sequence[Value]:
        if node.op_type == "Constant" and node.domain in STANDARD_DOMAINS:
            return [self.weight(node.output[0], _constant_data(node, self.graph.origin))]
        resolved = self.resolved(node) if node.op_type in SEQUENCES else None
        if resolved is not None:
            return resolved
        ins = [self.value(name) if name else None for name in node.input]
        if node.op_type == "If" and ins[0] is not None and ins[0].data is not None:
            return self.branch(node, bool(ins[0].data.item()))
        if node.domain not in STANDARD_DOMAINS:
            return self.kept(node, ins, f"{node.domain} is no standard domain")
        if subgraphs(node):
            return self.kept(node, ins, "it contains a graph, and its condition or trip count is not a constant")
        return self.standard(node, ins)

    def resolved(self, node: onnx.NodeProto) -> Sequence[Value] | None:
        """A sequence operator on what is known; a sequence that it gives is noted, and is no value."""
        ins = [self.sequences[n] if n in self.sequences else self.value(n) if n else None for n in node.input]
        result = resolve(self.graph, node.op_type, ins, _attributes(node, self.opset, self.graph.origin))
        if not isinstance(result, tuple):
            return None if result is None else [result]
        self.sequences[node.output[0]] = result
        return []

    def branch(self, node: onnx.NodeProto, taken: bool) -> Sequence[Value]:
        """The branch of an If whose condition is known, read as if it stood there itself."""
        name = "then_branch" if taken else "else_branch"
        graph = next(attr.g for attr in node.attribute if attr.name == name)
        self.tensors.update({tensor.name: tensor for tensor in graph.initializer})
        for inner in graph.node:
            self.node(inner)
        return [self.value(info.name) for info in graph.output]

    def standard(self, node: onnx.NodeProto, ins: list[Value | None]) -> Sequence[Value]:
        """Through the table of lowerings, or as it stands: an operator without a gradient may still be run."""
        attrs = _attributes(node, self.opset, self.graph.origin)
        try:
            results = self.lowered(node, ins, attrs)
        except Refusal as refusal:
            return self.kept(node, ins, str(refusal))
        except CompileError as error:
            if error.code not in UNKNOWN_SHAPE or self.keeper.run is None:
                raise
            return self.kept(node, ins, None)
        if any(name in self.used for name in node.output[len(results) :]):
            return self.kept(node, ins, "an output is read that has no gradient")
        return results

    def lowered(self, node: onnx.NodeProto, ins: list[Value | None], attrs: dict[str, Any]) -> Sequence[Value]:
        lowering = LOWERINGS.get(node.op_type)
        if lowering is None and not defs.has(node.op_type, OPSET):
            raise CompileError("opset", f"{node.op_type} (node {self.graph.origin!r}) does not exist in opset {OPSET}")
        if lowering is None:
            while ins and ins[-1] is None:
                ins = ins[:-1]
            return self.graph.multi(node.op_type, *ins, outputs=len(node.output), **attrs)
        if "opset" in inspect.signature(lowering).parameters:
            attrs["opset"] = self.opset
        result = lowering(self.graph, *ins, **attrs)
        return result if isinstance(result, tuple) else (result,)

    def kept(self, node: onnx.NodeProto, ins: Sequence[Value | None], reason: str | None) -> Sequence[Value]:
        """The node as the file has it; with a `reason` no gradient passes it."""
        captures = list(dict.fromkeys(name for graph in subgraphs(node) for name in captured_names(graph)))
        attrs = _attributes(node, self.opset, self.graph.origin)
        made = Node(node.op_type, (*ins, *map(self.value, captures)), attrs, self.graph.origin, captures=tuple(captures))
        if node.domain not in STANDARD_DOMAINS:
            made.domain = node.domain
        if reason is not None:
            made.gradient = refuse(reason)
        return self.keeper.keep(made, list(node.output))


def _constant(value: Value) -> bool:
    leaves = {leaf for node in topological([value]) for leaf in node.ins if leaf is not None and leaf.node is None}
    return all(leaf.data is not None for leaf in leaves | ({value} if value.node is None else set()))


def _attributes(node: onnx.NodeProto, opset: int, origin: str) -> dict[str, Any]:
    """A node's attributes; what a newer opset added is left out where it changes nothing, and refused elsewhere."""
    attrs = {attr.name: _attribute(attr) for attr in node.attribute}
    known = OPSET if defs.has(node.op_type, OPSET) else NEWEST_OPSET
    if opset <= known or node.domain not in STANDARD_DOMAINS or not defs.has(node.op_type, known):
        return attrs
    newer, older = defs.get_schema(node.op_type, opset), defs.get_schema(node.op_type, known)
    if len(node.input) > older.max_input:
        name = newer.inputs[older.max_input].name
        raise CompileError("opset", f"{node.op_type} (node {origin!r}): {name!r} exists since opset {newer.since_version} only")
    added = [name for name in attrs if name not in older.attributes]
    for name in added:
        default = newer.attributes[name].default_value
        if helper.get_attribute_value(default) != attrs[name]:
            raise CompileError(
                "opset", f"{node.op_type} (node {origin!r}): {name!r} exists since opset {newer.since_version} only"
            )
        del attrs[name]
    return attrs


def _attribute(attr: AttributeProto) -> Any:
    value = helper.get_attribute_value(attr)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list) and not value:
        return attr
    if isinstance(value, list) and isinstance(value[0], bytes):
        return [item.decode() for item in value]
    return value


def _constant_data(node: onnx.NodeProto, origin: str) -> Array:
    (attr,) = node.attribute
    if attr.name == "value":
        return numpy_helper.to_array(attr.t)
    dtypes = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if attr.name not in dtypes:
        raise CompileError("constant", f"Constant (node {origin!r}) with {attr.name!r} is not supported")
    return np.array(helper.get_attribute_value(attr), dtypes[attr.name])
