"""Writing a graph as an ONNX model: names, order, constants kept inside or handed over by the client.

The operator set that everything is written in is stated here. No node is made or changed here.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, defs, helper, numpy_helper

from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.graph.nested import rename, subgraphs

if TYPE_CHECKING:
    from whimbrel_server.compiler.graph.ir import Body, Node, Value

OPSET = 20
IR_VERSION = 9  # the newest that onnxruntime 1.17 reads
EMBED_LIMIT = 256 * 1024  # bytes of one constant; with larger ones a step is no longer a small file
EXTERNAL_FROM = 1024  # bytes from which a named constant may be left to the client
EXTERNAL_LOCATION = "frozen"


class Exporter:
    """Names values and writes them as protobuf; lives for one export.

    With `external`, named constants of a kilobyte or more are declared without their bytes, as external data: whoever
    runs the model hands them to the runtime by name. `limit` bounds the bytes of any other constant.
    """

    def __init__(self, outputs: "Mapping[str, Value]", external: bool = False, limit: int = EMBED_LIMIT) -> None:
        self.outputs = outputs
        self.external = external
        self.limit = limit
        self.names: dict[Value, str] = {}
        for name, value in outputs.items():
            if value.node is not None:
                self.names.setdefault(value, name)
        self.order = topological(outputs.values())
        self.read = {value for node in self.order for value in node.ins if value} | set(outputs.values())
        self.given = {value.name for value in self.read} | set(outputs)
        self.constants: list[TensorProto] = []

    def model(self, inputs: "Sequence[Value]", name: str, domains: Mapping[str, int]) -> onnx.ModelProto:
        """The model, with the operator sets in `domains` beside the standard one where they are used."""
        nodes = [self._node(node) for node in self.order]
        nodes += self._identities(self.outputs)
        infos = [value_info(value.name, value) for value in inputs]
        results = [value_info(output, value) for output, value in self.outputs.items()]
        graph = helper.make_graph(nodes, name, infos, results, self.constants)
        used = {node.domain for node in self.order}
        opsets = [helper.make_opsetid("", OPSET)]
        opsets += [helper.make_opsetid(domain, version) for domain, version in domains.items() if domain in used]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="whimbrel")

    def _identities(self, outputs: "Mapping[str, Value]") -> list[onnx.NodeProto]:
        renamed = [(self._name(value), output) for output, value in outputs.items() if self._name(value) != output]
        return [helper.make_node("Identity", [name], [output]) for name, output in renamed]

    def _node(self, node: "Node") -> onnx.NodeProto:
        ins = [self._name(value) if value is not None else "" for value in node.ins]
        outs = [self._name(value) if self._wanted(node, i) else "" for i, value in enumerate(node.outs)]
        if node.body is not None:
            return self._scan(node, node.body, ins)
        while not outs[-1]:
            outs.pop()
        own = len(ins) - len(node.captures)
        proto = make_node(node.op, ins[:own], outs, node.attrs, node.domain)
        for graph in subgraphs(proto):
            rename(graph, dict(zip(node.captures, ins[own:], strict=True)))
        return proto

    def _wanted(self, node: "Node", output: int) -> bool:
        value = node.outs[output]
        return not value.absent and (value in self.read or bool(node.domain) or not _optional(node.op, output))

    def _scan(self, node: "Node", body: "Body", ins: Sequence[str]) -> onnx.NodeProto:
        """Results that nobody reads are left out of the body, and so is what only they need."""
        kept = [i for i, value in enumerate(node.outs) if i < body.carries or value in self.read]
        outs = [self._name(node.outs[i]) for i in kept]
        graph = self._body(body, {f"{out}@step": body.results[i] for i, out in zip(kept, outs, strict=True)})
        scans = len(body.inputs) - body.carries
        ways = {name: way[: len(kept) - body.carries] if "output" in name else way for name, way in node.attrs.items()}
        ways = {name: way for name, way in ways.items() if way}
        return helper.make_node("Scan", ins[: len(body.inputs)], outs, body=graph, num_scan_inputs=scans, **ways)

    def _body(self, body: "Body", results: "Mapping[str, Value]") -> onnx.GraphProto:
        """Every result under a name of its own, also where the body hands on an input or gives a value twice."""
        inner = inside(body.inputs, results.values())
        self.read.update(value for node in inner for value in node.ins if value is not None)
        self.read.update(results.values())
        for name, value in results.items():
            if value.node in inner:
                self.names.setdefault(value, name)
        nodes = [self._node(node) for node in inner]
        nodes += self._identities(results)
        infos = [value_info(self._name(value), value) for value in body.inputs]
        return helper.make_graph(nodes, "step", infos, [value_info(name, value) for name, value in results.items()])

    def _name(self, value: "Value") -> str:
        if value not in self.names:
            kind = value.node.op if value.node else "Step" if value.data is None else "Constant"
            label = value.name or self._fresh(kind)
            self.names[value] = label
            if value.data is not None:
                self.constants.append(self._constant(label, value.data, bool(value.name)))
        return self.names[value]

    def _fresh(self, kind: str) -> str:
        """A name of our own; sources may use '@' in the names of constants too."""
        label = f"{kind}@{len(self.names)}"
        while label in self.given:
            label += "_"
        return label

    def _constant(self, label: str, data: np.ndarray[Any, Any], named: bool) -> TensorProto:
        if self.external and named and data.nbytes >= EXTERNAL_FROM:
            return _declared(label, data)
        if data.nbytes > self.limit:
            advice = "the step must be compiled with external=True" if named else "no step may carry that"
            raise CompileError("large-constant", f"constant {label!r} has {data.nbytes} bytes; {advice}")
        return numpy_helper.from_array(data, label)


def check(model: onnx.ModelProto) -> None:
    """onnx's checker and shape inference, strict; external constants count as inputs, as their bytes are elsewhere.

    Models with nodes of other domains, whose types onnx cannot follow, are checked without inference.
    """
    checked, external = onnx.ModelProto(), external_constants(model)
    checked.CopyFrom(model)
    del checked.graph.initializer[:]
    checked.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name not in external)
    checked.graph.input.extend(
        helper.make_tensor_value_info(name, tensor.data_type, tensor.dims) for name, tensor in external.items()
    )
    onnx.checker.check_model(checked, full_check=len(model.opset_import) == 1)


def external_constants(model: onnx.ModelProto) -> dict[str, TensorProto]:
    """The constants of a model that the client hands over, by name: type and shape without bytes."""
    return {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL}


def make_node(op: str, ins: Sequence[str], outs: Sequence[str], attrs: Mapping[str, Any], domain: str = "") -> onnx.NodeProto:
    """A node; attributes are Python values, or protobufs where a value does not tell its type (an empty list)."""
    node = helper.make_node(op, ins, outs, domain=domain)
    for name in sorted(attrs):
        value = attrs[name]
        node.attribute.append(value if isinstance(value, AttributeProto) else helper.make_attribute(name, value))
    return node


def _declared(label: str, data: np.ndarray[Any, Any]) -> TensorProto:
    tensor = TensorProto(name=label, data_type=helper.np_dtype_to_tensor_dtype(data.dtype), dims=data.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", EXTERNAL_LOCATION), ("length", str(data.nbytes))):
        tensor.external_data.add(key=key, value=text)
    return tensor


def _optional(op: str, output: int) -> bool:
    """Whether the operator may run without this output; onnxruntime crashes over a missing one that it requires."""
    formal = defs.get_schema(op, OPSET).outputs
    return formal[min(output, len(formal) - 1)].option == defs.OpSchema.FormalParameterOption.Optional


def topological(targets: "Iterable[Value]") -> "list[Node]":
    """All nodes that `targets` need, each after the nodes it reads from; deterministic."""
    order: list[Node] = []
    done: set[Node] = set()
    stack = [(value.node, False) for value in reversed(list(targets)) if value.node]
    while stack:
        node, ready = stack.pop()
        if node in done:
            continue
        if ready:
            done.add(node)
            order.append(node)
            continue
        stack.append((node, True))
        stack.extend((v.node, False) for v in reversed(node.ins) if v is not None and v.node is not None)
    return order


def inside(inputs: "Iterable[Value]", targets: "Iterable[Value]") -> "list[Node]":
    """The nodes that `targets` need and that depend on `inputs`: a body without what it captures."""
    known, inner = set(inputs), []
    for node in topological(targets):
        if not known.isdisjoint(value for value in node.ins if value is not None):
            known.update(node.outs)
            inner.append(node)
    return inner


def elem_type(value: "Value") -> int:
    return helper.np_dtype_to_tensor_dtype(value.dtype)


def value_info(name: str, value: "Value") -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, elem_type(value), value.shape)
