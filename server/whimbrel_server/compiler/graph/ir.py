"""The expression graph: values, nodes, and the one way to make a node.

`Graph.multi` (and its one-output form `Graph.op`) infers type and shape, folds small constants, applies the
rewrites of `simplify.py` and shares equal nodes, all at once; nothing else may create a node. Export keeps
only what the outputs need, so a rule may build gradients that nobody asks for. No gradient rule, loss or
model reading belongs here.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import defs, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.graph.draft import Draft
from whimbrel_server.compiler.graph.export import EMBED_LIMIT, IR_VERSION, Exporter, check, elem_type, inside, make_node
from whimbrel_server.compiler.graph.export import OPSET as OPSET
from whimbrel_server.compiler.graph.export import topological as topological
from whimbrel_server.compiler.graph.simplify import folds, rewrite

STEEP = 2.0**100
SHAPE_DATA_LIMIT = 1024  # elements a constant may have and still be shown to shape inference
ABSENT = np.dtype("V")
SHORT = 1024  # bytes up to which a constant is its own key

Array = NDArray[Any]
Attributes = Mapping[str, Any]
Number = int | float


@dataclass(eq=False, slots=True)
class Value:
    """A tensor in the graph: a constant (`data`), a graph input (`name` only) or a node's output (`node`)."""

    graph: "Graph" = field(repr=False)
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    name: str = ""
    data: Array | None = field(default=None, repr=False)
    node: "Node | None" = field(default=None, repr=False)

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_float(self) -> bool:
        return self.dtype.kind == "f"

    @property
    def absent(self) -> bool:
        """Whether this stands for an optional output that its node does not give."""
        return self.dtype == ABSENT

    def __add__(self, other: "Value | Number") -> "Value":
        return self.graph.op("Add", self, self.like(other))

    def __radd__(self, other: Number) -> "Value":
        return self.like(other) + self

    def __sub__(self, other: "Value | Number") -> "Value":
        return self.graph.op("Sub", self, self.like(other))

    def __rsub__(self, other: Number) -> "Value":
        return self.like(other) - self

    def __mul__(self, other: "Value | Number") -> "Value":
        return self.graph.op("Mul", self, self.like(other))

    def __rmul__(self, other: Number) -> "Value":
        return self.like(other) * self

    def __truediv__(self, other: "Value | Number") -> "Value":
        return self.graph.op("Div", self, self.like(other))

    def __matmul__(self, other: "Value") -> "Value":
        return self.graph.op("MatMul", self, other)

    def __neg__(self) -> "Value":
        return self.graph.op("Neg", self)

    def like(self, other: "Value | Number") -> "Value":
        """`other` as a value: a number becomes a scalar constant of this value's dtype."""
        return other if isinstance(other, Value) else self.graph.constant(np.array(other, self.dtype))

    def cast(self, dtype: np.dtype[Any]) -> "Value":
        return self.graph.op("Cast", self, to=helper.np_dtype_to_tensor_dtype(dtype))

    def mask(self, condition: str, other: "Value | Number") -> "Value":
        """1 where `condition` ("Greater", "Equal") holds, else 0, in this dtype.

        Comparison and Cast are several times faster on onnxruntime's CPU kernels than `Where` or `Sign`; "Greater"
        than zero is faster still as a sigmoid so steep that only numbers below 1e-30 fall on its slope.
        """
        if condition == "Greater" and not isinstance(other, Value) and other == 0 and self.dtype == np.float32:
            return self.graph.op("HardSigmoid", self, alpha=STEEP, beta=0.0)
        return self.graph.op(condition, self, self.like(other)).cast(self.dtype)

    def reshape(self, shape: Sequence[int]) -> "Value":
        return self.graph.op("Reshape", self, self.graph.ints(shape))

    def transpose(self, perm: Sequence[int]) -> "Value":
        return self.graph.op("Transpose", self, perm=list(perm))

    def expand(self, shape: Sequence[int]) -> "Value":
        return self.graph.op("Expand", self, self.graph.ints(shape))

    def sum(self, axes: Iterable[int], keepdims: bool = True) -> "Value":
        """Sum over `axes` (non-negative), one reduction per run of adjacent axes.

        Two reductions over adjacent axes beat one over scattered axes on onnxruntime, e.g. over [0, 2, 3].
        """
        total = self
        for run in reversed(_adjacent_runs(sorted(axes))):
            total = self.graph.op("ReduceSum", total, self.graph.ints(run), keepdims=int(keepdims))
        return total

    def slice(self, axis: int, start: int, stop: int, step: int = 1) -> "Value":
        bounds = (self.graph.ints([number]) for number in (start, stop, axis, step))
        return self.graph.op("Slice", self, *bounds)

    def pad(self, begins: Sequence[int], ends: Sequence[int]) -> "Value":
        """Zeros added before and after the last `len(begins)` axes."""
        if not any(begins) and not any(ends):
            return self
        lead = [0] * (self.rank - len(begins))
        return self.graph.op("Pad", self, self.graph.ints([*lead, *begins, *lead, *ends]))


@dataclass(frozen=True)
class Body:
    """What a Scan runs at each step: `results` as functions of `inputs`, the first `carries` of both carried over."""

    inputs: tuple[Value, ...]
    results: tuple[Value, ...]
    carries: int


@dataclass(eq=False, slots=True)
class Node:
    """One ONNX operator application; `origin` names the node of the source model that it came from.

    A Scan has a `body`, and reads the body's inputs followed by what the body captures. `gradient` takes the
    place of the operator's rule. `captures` are the names under which the graphs in `attrs` read the last of `ins`.
    """

    op: str
    ins: tuple[Value | None, ...]
    attrs: Attributes
    origin: str
    outs: tuple[Value, ...] = ()
    body: Body | None = None
    gradient: "Callable[..., Sequence[Value | None]] | None" = None
    domain: str = ""
    captures: tuple[str, ...] = ()

    def __getitem__(self, index: int) -> Value:
        """Input `index`, which the operator requires."""
        value = self.ins[index]
        if value is None:
            raise CompileError("model-invalid", f"{self.op} (node {self.origin!r}) lacks input {index}")
        return value

    def has(self, index: int) -> bool:
        return index < len(self.ins) and self.ins[index] is not None

    @property
    def y(self) -> Value:
        return self.outs[0]


class Graph:
    """A growing expression graph over the standard ONNX operators of opset 20."""

    def __init__(self) -> None:
        self.origin = ""
        self.any_batch = False  # whether no rule may cut the batch into pieces of a fixed size
        self.training = False  # whether lowerings take the form that an operator has while training ...
        self.updates: dict[Value, Value] = {}  # ... and what then becomes of inputs that no optimiser moves
        self.domains: dict[str, int] = {}  # operator sets beside the standard one, for nodes kept as they are
        self._trained: set[Value] = set()
        self._shared: dict[tuple[object, ...], tuple[Value, ...]] = {}

    def input(self, name: str, dtype: np.dtype[Any], shape: Sequence[int], trained: bool = False) -> Value:
        value = Value(self, np.dtype(dtype), tuple(shape), name)
        if trained:
            self._trained.add(value)
        return value

    def trains(self, values: Iterable[Value]) -> bool:
        """Whether one of `values` is or depends on a trained input: whether a gradient may be wanted there."""
        ends = list(values)
        return not self._trained.isdisjoint([*ends, *(value for node in topological(ends) for value in node.ins if value)])

    def constant(self, data: Array, name: str = "") -> Value:
        """A constant; equal constants of equal name are one value."""
        content = data.tobytes()
        digest = content if len(content) <= SHORT else hashlib.sha256(content).digest()
        key = ("constant", name, data.dtype.str, data.shape, digest)
        if key not in self._shared:
            self._shared[key] = (Value(self, data.dtype, data.shape, name, data),)
        return self._shared[key][0]

    def ints(self, numbers: Sequence[int]) -> Value:
        return self.constant(np.array(numbers, np.int64).reshape(len(numbers)))

    def zeros(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Value:
        return self.op("ConstantOfShape", self.ints(shape), value=numpy_helper.from_array(np.zeros(1, dtype)))

    def op(self, name: str, *ins: Value | None, **attrs: Any) -> Value:
        """The only output of operator `name` applied to `ins`."""
        return self.multi(name, *ins, **attrs)[0]

    def multi(self, name: str, *ins: Value | None, outputs: int = 1, **attrs: Any) -> tuple[Value, ...]:
        """The first `outputs` outputs of operator `name`.

        Raises CompileError when the operator does not exist, or its output types cannot be inferred.
        """
        key = (name, outputs, ins, _attribute_bytes(attrs))
        if key not in self._shared:
            self._shared[key] = self._make(name, ins, outputs, attrs)
        return self._shared[key]

    def _make(self, name: str, ins: tuple[Value | None, ...], outputs: int, attrs: Attributes) -> tuple[Value, ...]:
        types = self._infer(name, ins, outputs, attrs)
        if outputs == 1:
            draft = Draft(self, name, ins, attrs, *types[0])
            if folds(draft):
                return (self.constant(_evaluate(draft)),)
            simpler = rewrite(draft)
            if simpler is not None:
                return (simpler,)
        node = Node(name, ins, attrs, self.origin)
        node.outs = tuple(Value(self, dtype, shape, node=node) for dtype, shape in types)
        return node.outs

    def _infer(
        self, name: str, ins: tuple[Value | None, ...], outputs: int, attrs: Attributes
    ) -> list[tuple[np.dtype[Any], tuple[int, ...]]]:
        proto = _node_proto(name, ins, [f"y{i}" for i in range(outputs)], attrs)
        known = {f"x{i}": value for i, value in enumerate(ins) if value is not None}
        try:
            found = shape_inference.infer_node_outputs(
                defs.get_schema(name, OPSET, ""),
                proto,
                {key: _type_proto(elem_type(v), v.shape) for key, v in known.items()},
                {
                    key: numpy_helper.from_array(v.data)
                    for key, v in known.items()
                    if v.data is not None and v.size <= SHAPE_DATA_LIMIT
                },
                opset_imports=[helper.make_opsetid("", OPSET)],
                ir_version=IR_VERSION,
            )
        except (defs.SchemaError, shape_inference.InferenceError, onnx.checker.ValidationError) as error:
            shapes = [value.shape for value in known.values()]
            where = f"{name} (node {self.origin!r}) on shapes {shapes}"
            raise CompileError("shape-inference", f"{where}: {error}") from error
        return [self._static_type(name, found.get(output)) for output in proto.output]

    def _static_type(self, name: str, proto: onnx.TypeProto | None) -> tuple[np.dtype[Any], tuple[int, ...]]:
        where = f"{name} (node {self.origin!r})"
        if proto is None or not proto.HasField("tensor_type"):
            raise CompileError("shape-inference", f"{where}: the output's type is not known")
        tensor = proto.tensor_type
        sizes = tensor.shape.dim
        if not tensor.HasField("shape") or any(not size.HasField("dim_value") for size in sizes):
            raise CompileError("dynamic-shape", f"{where}: the output's shape depends on the data")
        return _np_dtype(tensor.elem_type), tuple(size.dim_value for size in sizes)

    def scan(
        self,
        step: Callable[..., tuple[Sequence[Value], Sequence[Value]]],
        carries: Sequence[Value],
        scanned: Sequence[Value],
        captured: Sequence[Value] = (),
        reverse: bool = False,
        gradient: Callable[..., Sequence[Value | None]] | None = None,
    ) -> tuple[Value, ...]:
        """ONNX's Scan: the last carries, then every result of the steps stacked on a new axis 0.

        `step(*carries, *slices)` builds one step in this graph and returns (next carries, results); the slices
        run over axis 0 of `scanned`, from the last to the first with `reverse` (results stay in the order of
        the slices). What the step reads from outside, constants apart, is `captured`. `gradient` is the node's
        gradient rule, with one gradient for each of carries, scanned and captured.
        """
        slices = [Value(self, value.dtype, value.shape[1:]) for value in scanned]
        inputs = (*(Value(self, value.dtype, value.shape) for value in carries), *slices)
        following, stacked = step(*inputs)
        body = Body(inputs, (*following, *stacked), len(carries))
        _check_body(body, captured)
        ways = {"scan_input_directions": [1] * len(slices), "scan_output_directions": [1] * len(stacked)}
        node = Node("Scan", (*carries, *scanned, *captured), ways if reverse else {}, self.origin, body=body, gradient=gradient)
        steps = scanned[0].shape[:1]
        shapes = [value.shape for value in following] + [(*steps, *value.shape) for value in stacked]
        node.outs = tuple(Value(self, v.dtype, shape, node=node) for v, shape in zip(body.results, shapes, strict=True))
        return node.outs

    def foreign(self, node: Node, types: Iterable[tuple[np.dtype[Any], tuple[int, ...]]]) -> tuple[Value, ...]:
        """The outputs, of the given types, of a node that is kept as the source model has it."""
        node.outs = tuple(Value(self, dtype, shape, node=node) for dtype, shape in types)
        return node.outs

    def export(
        self,
        inputs: Sequence[Value],
        outputs: Mapping[str, Value],
        name: str,
        external: bool = False,
        limit: int = EMBED_LIMIT,
    ) -> onnx.ModelProto:
        """A checked ONNX model with the given inputs and outputs, in the given order; `Exporter` tells the rest.

        Internal tensors are called `Operator@number`, which no input name can equal because '@' is
        reserved for the compiler. The same graph always gives the same bytes.
        """
        model = Exporter(outputs, external, limit).model(inputs, name, self.domains)
        check(model)
        return model


def _check_body(body: Body, captured: Sequence[Value]) -> None:
    """Carries keep their type, and nothing is read from outside that the Scan does not list."""
    pairs = zip(body.inputs[: body.carries], body.results, strict=False)
    assert all((a.dtype, a.shape) == (b.dtype, b.shape) for a, b in pairs), "a carry changes its type"
    inner = inside(body.inputs, body.results)
    known = {*body.inputs, *captured, *(value for node in inner for value in node.outs)}
    read = [value for node in inner for value in node.ins if value is not None and value.data is None]
    assert known.issuperset(read), "the body reads a value that is not listed as captured"


@lru_cache(maxsize=4096)
def _type_proto(kind: int, shape: tuple[int, ...]) -> onnx.TypeProto:
    """Made once for each type: onnx's inference only reads it."""
    return helper.make_tensor_type_proto(kind, shape)


def _adjacent_runs(axes: Sequence[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for axis in axes:
        if runs and axis == runs[-1][-1] + 1:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    return runs


def _attribute_bytes(attrs: Attributes) -> bytes:
    return bytes(make_node("", [], [], attrs).SerializeToString(deterministic=True))


def _node_proto(name: str, ins: Sequence[Value | None], outs: Sequence[str], attrs: Attributes) -> onnx.NodeProto:
    return make_node(name, [f"x{i}" if value is not None else "" for i, value in enumerate(ins)], outs, attrs)


def _evaluate(draft: Draft) -> Array:
    """The value of an operator on constants, by onnx's reference evaluator."""
    graph = helper.make_graph(
        [_node_proto(draft.op, draft.ins, ["y"], draft.attrs)],
        "fold",
        [],
        [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(draft.dtype), draft.shape)],
        [numpy_helper.from_array(v.data, f"x{i}") for i, v in enumerate(draft.ins) if v and v.data is not None],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    results: Any = ReferenceEvaluator(model).run(None, {})
    return np.asarray(results[0], draft.dtype).reshape(draft.shape)


def _np_dtype(elem_type: int) -> np.dtype[Any]:
    return np.dtype(helper.tensor_dtype_to_np_dtype(elem_type))
