"""One graph for every batch size, from the graphs of a few: what grows with the batch is computed when it runs.

Graphs for batches that differ must have one form; each constant that differs between them is taken for a formula of
the batch N, fitted to two of them and verified on the third. Works on finished models and knows no operator but those
it writes, and Reshape, which can find one size by itself. Why so: docs/adr/0009.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.graph.export import check, make_node
from whimbrel_server.compiler.graph.ir import Array

BATCH = "N"
COUNT = "Shape@batch"
ATTEMPTS = 3
RELATIVE = 1e-6  # float constants are rounded to float32


def generalise(compiled: Callable[[int], ModelProto], batch: int) -> ModelProto:
    """The model that `compiled(b)` gives for a batch of b, for any b; forms are chosen as for about `batch`.

    Raises CompileError ("symbolic-batch") where the form of the graph depends on the batch.
    """
    primes = [n for n in range(max(batch, 7), 4 * max(batch, 7) + 50) if all(n % d for d in range(2, int(n**0.5) + 1))]
    for attempt in range(ATTEMPTS):  # a size that equals one of the model's own lets two things look alike
        sizes = primes[3 * attempt : 3 * attempt + 3]
        try:
            return merge(dict(zip(sizes, map(compiled, sizes), strict=True)))
        except CompileError as error:
            if error.code != "symbolic-batch" or attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def merge(models: Mapping[int, ModelProto]) -> ModelProto:
    """The model for a batch of any size, from models for three sizes; its inputs and outputs say where N is."""
    return _Merger(list(models), list(models.values())).model()


class _Merger:
    """Walks the models side by side; `nodes` are those that compute what grows, `constants` what is kept."""

    def __init__(self, sizes: list[int], models: list[ModelProto]) -> None:
        self.sizes = sizes
        self.models = models
        self.tensors = [{tensor.name: tensor for tensor in model.graph.initializer} for model in models]
        self.names: list[dict[str, str]] = [{"": ""} for _ in models]
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.known: dict[object, str] = {}
        self.counts = False

    def model(self) -> ModelProto:
        merged = ModelProto()
        merged.CopyFrom(self.models[0])
        graph = self.graph([model.graph for model in self.models])
        leading = [info.name for info in graph.input if _leads(info)]
        if self.counts and not leading:
            raise _refusal("no input has the batch as its first size")
        counting = [helper.make_node("Shape", leading[:1], [COUNT], start=0, end=1)] if self.counts else []
        nodes = [*counting, *self.nodes, *graph.node]
        merged.graph.CopyFrom(helper.make_graph(nodes, graph.name, graph.input, graph.output, list(self.constants.values())))
        check(merged)
        return merged

    def graph(self, graphs: Sequence[GraphProto]) -> GraphProto:
        """The first of the graphs, with sizes and constants made general; constants are the outermost graph's."""
        merged = GraphProto(name=graphs[0].name)
        merged.input.extend(self.info(infos) for infos in _zipped(graphs, "input"))
        merged.node.extend(self.node(nodes) for nodes in _zipped(graphs, "node"))
        merged.output.extend(self.info(infos) for infos in _zipped(graphs, "output"))
        return merged

    def info(self, infos: Sequence[onnx.ValueInfoProto]) -> onnx.ValueInfoProto:
        self.same_names([info.name for info in infos], "tensor")
        shapes = [[dim.dim_value for dim in info.type.tensor_type.shape.dim] for info in infos]
        merged = onnx.ValueInfoProto()
        merged.CopyFrom(infos[0])
        for dim, sizes in zip(merged.type.tensor_type.shape.dim, zip(*shapes, strict=True), strict=True):
            if len(set(sizes)) > 1:
                grows, rest = self.linear(np.array(sizes), infos[0].name)
                dim.dim_param = f"{grows}*{BATCH}+{rest}".removeprefix("1*").removesuffix("+0")
        return merged

    def node(self, nodes: Sequence[NodeProto]) -> NodeProto:
        first = nodes[0]
        if len({(n.op_type, n.domain, len(n.input), len(n.output), *(a.name for a in n.attribute)) for n in nodes}) > 1:
            raise _refusal(f"{first.op_type} ({first.output[0]!r}) stands where other batches have {nodes[1].op_type}")
        merged = NodeProto(op_type=first.op_type, domain=first.domain, name=first.name)
        for index in range(len(first.input)):
            merged.input.append(self.operand([node.input[index] for node in nodes], first, index))
        for attrs in zip(*(node.attribute for node in nodes), strict=True):
            merged.attribute.append(self.attribute(attrs, first))
        for outputs in zip(*(node.output for node in nodes), strict=True):
            self.same_names(outputs, first.op_type)
            merged.output.append(outputs[0])
        return merged

    def attribute(self, attrs: Sequence[AttributeProto], node: NodeProto) -> AttributeProto:
        merged = AttributeProto()
        merged.CopyFrom(attrs[0])
        if attrs[0].type == AttributeProto.GRAPH:
            merged.g.CopyFrom(self.graph([attr.g for attr in attrs]))
        elif len({attr.SerializeToString(deterministic=True) for attr in attrs}) > 1:
            raise _refusal(f"the attribute {attrs[0].name!r} of {node.op_type} ({node.output[0]!r}) depends on the batch")
        return merged

    def same_names(self, names: Sequence[str], what: str) -> None:
        """Notes that these names mean the same in each model."""
        for known, name in zip(self.names, names, strict=True):
            if known.setdefault(name, names[0]) != names[0]:
                raise _refusal(f"{what} {name!r} stands for two things")

    def operand(self, names: Sequence[str], node: NodeProto, index: int) -> str:
        tensors = [tensors.get(name) for tensors, name in zip(self.tensors, names, strict=True)]
        found = [tensor for tensor in tensors if tensor is not None]
        if not found:
            if len({known.get(name) for known, name in zip(self.names, names, strict=True)}) > 1:
                raise _refusal(f"{node.op_type} ({node.output[0]!r}) reads other values than for other batches")
            return names[0]
        if len(found) < len(tensors):
            raise _refusal(f"{node.op_type} ({node.output[0]!r}) reads a constant for some batches only")
        return self.constant(found, node, index)

    def constant(self, tensors: Sequence[TensorProto], node: NodeProto, index: int) -> str:
        if len({tensor.SerializeToString(deterministic=True) for tensor in _nameless(tensors)}) == 1:
            self.constants[tensors[0].name] = tensors[0]
            return tensors[0].name
        arrays = [numpy_helper.to_array(tensor) for tensor in tensors]
        where = f"input {index} of {node.op_type} ({node.output[0]!r})"
        if node.op_type == "Reshape" and index == 1 and not any(attr.name == "allowzero" for attr in node.attribute):
            return self.target(arrays, where)
        return self.tensor(arrays, where)

    def target(self, arrays: Sequence[Array], where: str) -> str:
        """Sizes of a Reshape: the only one that grows is left to the operator."""
        stacked = np.stack(arrays) if len({a.shape for a in arrays}) == 1 else None
        if stacked is not None:
            grows = (stacked != stacked[0]).any(axis=0)
            if grows.sum() == 1 and not (stacked <= 0).any():
                return self.fixed(np.where(grows, -1, stacked[0]))
        return self.tensor(arrays, where)

    def tensor(self, arrays: Sequence[Array], where: str) -> str:
        """A constant that differs between the models, as a value computed from N."""
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            return self.grown(arrays, where)
        if all((array == arrays[0]).all() for array in arrays):
            return self.fixed(arrays[0])
        formula = self.integers if arrays[0].dtype.kind == "i" else self.floats
        return formula(arrays, where)

    def integers(self, arrays: Sequence[Array], where: str) -> str:
        """a N + c."""
        grows, rest = self.linear(np.stack(arrays), where)
        if np.any(grows + rest < 0) and not any(np.any(array < 0) for array in arrays):
            raise _refusal(f"{where} has no meaning for a batch of 1")
        value = self.batch()
        if np.any(grows != 1) or grows.size > 1:
            value = self.computed("Mul", value, self.fixed(grows.astype(np.int64)))
        if np.any(rest):
            value = self.computed("Add", value, self.fixed(rest.astype(np.int64)))
        if not arrays[0].ndim:
            value = self.computed("Reshape", value, self.fixed(np.zeros(0, np.int64)))
        if arrays[0].dtype != np.int64:
            value = self.computed("Cast", value, to=helper.np_dtype_to_tensor_dtype(arrays[0].dtype))
        return value

    def floats(self, arrays: Sequence[Array], where: str) -> str:
        """c N, c / N, or n / (n - 1) for n = k N, as in an unbiased variance."""
        dtype, wide = arrays[0].dtype, [np.asarray(array, np.float64) for array in arrays]
        batch = self.computed("Cast", self.batch(), to=helper.np_dtype_to_tensor_dtype(dtype))
        if not arrays[0].ndim:
            batch = self.computed("Reshape", batch, self.fixed(np.zeros(0, np.int64)))
        for op, scaled in (
            ("Div", [array * size for array, size in zip(wide, self.sizes, strict=True)]),
            ("Mul", [array / size for array, size in zip(wide, self.sizes, strict=True)]),
        ):
            if all(np.allclose(array, scaled[0], RELATIVE, 0.0) for array in scaled):
                factor = self.fixed(scaled[0].astype(dtype))
                return self.computed(op, factor, batch)
        return self.unbiased(wide, batch, dtype, where)

    def unbiased(self, wide: Sequence[Array], batch: str, dtype: np.dtype[Any], where: str) -> str:
        first = float(wide[0].flat[0])
        count = round(first / (first - 1.0) / self.sizes[0]) if first != 1.0 else 0
        expected = [count * size / (count * size - 1.0) if count * size > 1 else 0.0 for size in self.sizes]
        if not all(np.allclose(a, e, RELATIVE, 0.0) for a, e in zip(wide, expected, strict=True)):
            raise _refusal(f"{where} depends on the batch in a way that is not known")
        total = self.computed("Mul", batch, self.fixed(np.full(wide[0].shape, count, dtype)))
        one = self.fixed(np.full(wide[0].shape, 1, dtype))
        return self.computed("Div", total, self.computed("Max", one, self.computed("Sub", total, one)))

    def grown(self, arrays: Sequence[Array], where: str) -> str:
        """A constant with an axis that grows, along which it is constant or counts in equal steps."""
        if len({array.ndim for array in arrays}) > 1:
            raise _refusal(f"{where} has another rank for other batches")
        axes = [axis for axis in range(arrays[0].ndim) if len({array.shape[axis] for array in arrays}) > 1]
        base = self.tensor([array[_first(array.ndim, axes)] for array in arrays], where)
        steps = {step for array in arrays for axis in axes for step in np.unique(np.diff(array, axis=axis)).tolist()}
        shape = self.tensor([np.array(array.shape, np.int64) for array in arrays], where)
        if not steps - {0}:
            return self.computed("Expand", base, shape)
        if len(steps) > 1 or len(axes) > 1:
            raise _refusal(f"{where} grows with the batch in a way that is not known")
        return self.counted(base, steps.pop(), arrays, axes[0], where)

    def counted(self, base: str, step: float, arrays: Sequence[Array], axis: int, where: str) -> str:
        """`base` + `step` i at place i of `axis`."""
        length = self.tensor([np.array(array.shape[axis], np.int64) for array in arrays], where)
        zero, one = (self.fixed(np.array(number, np.int64)) for number in (0, 1))
        along = self.fixed(np.array([-1 if i == axis else 1 for i in range(arrays[0].ndim)], np.int64))
        count = self.computed("Reshape", self.computed("Range", zero, length, one), along)
        if arrays[0].dtype != np.int64:
            count = self.computed("Cast", count, to=helper.np_dtype_to_tensor_dtype(arrays[0].dtype))
        return self.computed("Add", base, self.computed("Mul", count, self.fixed(np.array(step, arrays[0].dtype))))

    def linear(self, values: Array, where: str) -> tuple[Array, Array]:
        """a and c, exact, with values = a N + c; `values` has one row a batch size."""
        (small, large), first = self.sizes[:2], values[0]
        grows = (values[1] - first) // (large - small)
        rest = first - grows * small
        if any(np.any(row != grows * size + rest) for row, size in zip(values, self.sizes, strict=True)):
            raise _refusal(f"{where} is no linear function of the batch")
        return grows, rest

    def batch(self) -> str:
        """N, int64 `[1]`."""
        self.counts = True
        return COUNT

    def fixed(self, array: Array) -> str:
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.known:
            name = self.known[key] = f"Constant@batch{len(self.known)}"
            self.constants[name] = numpy_helper.from_array(array, name)
        return self.known[key]

    def computed(self, op: str, *ins: str, **attrs: Any) -> str:
        key = (op, ins, *attrs.items())
        if key not in self.known:
            name = self.known[key] = f"{op}@batch{len(self.known)}"
            self.nodes.append(make_node(op, ins, [name], attrs))
        return self.known[key]


def _zipped(graphs: Sequence[GraphProto], part: str) -> list[tuple[Any, ...]]:
    parts = [getattr(graph, part) for graph in graphs]
    if len({len(items) for items in parts}) > 1:
        raise _refusal(f"graphs have {[len(items) for items in parts]} {part}s for different batches")
    return list(zip(*parts, strict=True))


def _nameless(tensors: Sequence[TensorProto]) -> list[TensorProto]:
    copies = []
    for tensor in tensors:
        copies.append(TensorProto())
        copies[-1].CopyFrom(tensor)
        copies[-1].ClearField("name")
    return copies


def _first(rank: int, axes: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(rank))


def _leads(info: onnx.ValueInfoProto) -> bool:
    return [dim.dim_param for dim in info.type.tensor_type.shape.dim[:1]] == [BATCH]


def _refusal(reason: str) -> CompileError:
    return CompileError("symbolic-batch", f"{reason}; compile for a static batch")
