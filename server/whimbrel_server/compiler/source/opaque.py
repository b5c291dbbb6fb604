"""Nodes that are kept as the source model has them: other domains, inner graphs, operators without a lowering.

Such a node needs the types of its outputs and nothing more: they come from onnx's inference, from the file, or from
running what leads to the node. A gradient that reaches one is refused.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import onnx
from onnx import TypeProto, helper, numpy_helper, shape_inference

from whimbrel_server.compiler.contract import Run
from whimbrel_server.compiler.errors import CompileError, Refusal
from whimbrel_server.compiler.graph.export import IR_VERSION, OPSET, Exporter, elem_type, make_node
from whimbrel_server.compiler.graph.ir import ABSENT, SHAPE_DATA_LIMIT, Array, Graph, Node, Value
from whimbrel_server.compiler.source.inputs import static_shape
from whimbrel_server.compiler.source.measured import FILLS, NO_TENSOR, Measured, Type, filled, type_of

GIVEN_UP: Type = (ABSENT, ())  # an output that the node does not give
WITHOUT_LIMIT = 1 << 62


@dataclass(frozen=True)
class Keeper:
    """Makes kept nodes in `graph`.

    `declared` holds the types the file states, `sizes` what their symbols stand for. `whole` is the model as it is, run
    once; `run` executes what leads to a single node, where `start` gives trained weights their shipped values.
    """

    graph: Graph
    run: Run | None
    whole: Measured | None = None
    declared: Mapping[str, TypeProto] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    start: Mapping[str, Array] = field(default_factory=dict)

    def keep(self, node: Node, outputs: Sequence[str]) -> tuple[Value, ...]:
        """The outputs of `node`, called `outputs` in the file ("" where it gives none)."""
        inferred = _inferred(node, len(outputs), self.graph.domains)
        stated = [_static(self.declared.get(name), self.sizes) for name in outputs]
        types = [GIVEN_UP if not name else a or b for name, a, b in zip(outputs, inferred, stated, strict=True)]
        if any(found is None for found in types):
            return self.graph.foreign(node, self._measured(node, outputs))
        return self.graph.foreign(node, [found for found in types if found is not None])

    def sequence(self, items: Sequence[Value]) -> Value:
        """A sequence as a value, for a kept node that reads one."""
        op = "SequenceConstruct" if items else "SequenceEmpty"
        node = Node(op, tuple(items), {}, self.graph.origin, gradient=refuse("a sequence carries none"))
        return self.graph.foreign(node, [NO_TENSOR])[0]

    def _measured(self, node: Node, outputs: Sequence[str]) -> list[Type]:
        where = f"{node.op} (node {node.origin!r})"
        if self.run is None:
            raise CompileError("shape-inference", f"{where}: neither onnx nor the file tells the shape of {list(outputs)!r}")
        known = {"": GIVEN_UP, **(self.whole.types if self.whole else {})}
        if not known.keys() >= set(outputs):
            known.update(self._measured_alone(node, outputs, where))
        types = [found for found in map(known.get, outputs) if found is not None]
        if len(types) < len(outputs):
            raise CompileError("dynamic-shape", f"{where}: the output's shape depends on the data")
        return types

    def _measured_alone(self, node: Node, outputs: Sequence[str], where: str) -> dict[str, Type | None]:
        names = list(filter(None, outputs))
        first, *others = (self._results(node, outputs, where, fill) for fill in FILLS)
        second = others[0] or first
        return {name: a if a == b else None for name, a, b in zip(names, first, second, strict=True)}

    def _results(self, node: Node, outputs: Sequence[str], where: str, fill: float) -> list[Type]:
        """The types that the node's outputs have when all data is `fill`; none where it cannot run on zeros."""
        assert self.run is not None, "asked only where something may be run"
        self.graph.foreign(node, [NO_TENSOR if name else GIVEN_UP for name in outputs])
        exporter = Exporter({f"{i}@kept": v for i, v in enumerate(node.outs) if not v.absent}, limit=WITHOUT_LIMIT)
        leaves = {v: None for n in exporter.order for v in n.ins if v is not None and v.node is None and v.data is None}
        model = exporter.model(list(leaves), "prefix", self.graph.domains)
        for info in model.graph.output:
            info.ClearField("type")
        feeds = {**filled(list(leaves), fill), **{v.name: self.start[v.name] for v in leaves if v.name in self.start}}
        try:
            return [type_of(result) for result in self.run(model, feeds)]
        except Exception as error:  # whatever a runtime raises: it is not known here
            if not fill:
                return []
            raise CompileError("shape-inference", f"{where} does not run: {error}") from error


def refuse(reason: str) -> Callable[..., NoReturn]:
    """The gradient rule of a kept node."""

    def gradient(*_: object) -> NoReturn:
        raise Refusal(reason)

    return gradient


def _inferred(node: Node, count: int, domains: Mapping[str, int]) -> list[Type | None]:
    """What onnx's inference tells of the node alone, given the types of what it reads, its small constants included."""
    own = len(node.ins) - len(node.captures)
    names = [f"{i}@in" if value is not None else "" for i, value in enumerate(node.ins[:own])]
    known = {name: value for name, value in zip([*names, *node.captures], node.ins, strict=True) if value is not None}
    outs = [f"{i}@out" for i in range(count)]
    graph = helper.make_graph(
        [make_node(node.op, names, outs, node.attrs, node.domain)],
        "node",
        [helper.make_tensor_value_info(name, elem_type(v), v.shape) for name, v in known.items()],
        [],
        [
            numpy_helper.from_array(v.data, name)
            for name, v in known.items()
            if v.data is not None and v.size <= SHAPE_DATA_LIMIT
        ],
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in {"": OPSET, **domains}.items()]
    model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
    try:
        found = {info.name: info.type for info in shape_inference.infer_shapes(model, data_prop=True).graph.value_info}
    except shape_inference.InferenceError:
        found = {}
    return [_static(found.get(name), {}) for name in outs]


def _static(proto: TypeProto | None, sizes: Mapping[str, int]) -> Type | None:
    """A type without open sizes, or None."""
    if proto is None or proto.WhichOneof("value") is None:
        return None
    if not proto.HasField("tensor_type"):
        return NO_TENSOR
    shape = static_shape(proto.tensor_type, sizes)
    if not proto.tensor_type.HasField("shape") or None in shape:
        return None
    return np.dtype(helper.tensor_dtype_to_np_dtype(proto.tensor_type.elem_type)), tuple(n for n in shape if n is not None)


def declared_types(graphs: Iterator[onnx.GraphProto]) -> dict[str, TypeProto]:
    """The types that a file states for its tensors, by name."""
    return {info.name: info.type for graph in graphs for info in (*graph.value_info, *graph.output)}
