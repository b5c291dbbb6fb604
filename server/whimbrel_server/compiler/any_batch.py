"""A step for any batch, from the same step for a few: the graph of `symbolic.py` and the table that belongs to it."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import onnx

from whimbrel_server.compiler.contract import ANY, Binding, CompiledStep, StepSpec
from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.graph.nested import all_graphs
from whimbrel_server.compiler.graph.symbolic import generalise
from whimbrel_server.compiler.source.inputs import dims_at

Step = TypeVar("Step", bound=CompiledStep)


def for_any_batch(compiled: Callable[[StepSpec], Step], model: onnx.ModelProto, spec: StepSpec) -> Step:
    """The step that `compiled` gives for each batch, in one; sizes that grow with the batch are `ANY` in its table.

    Raises CompileError ("symbolic-batch") where the graph's form depends on the batch.
    """
    step = compiled(spec)
    general = generalise(lambda batch: _sized(compiled, model, spec, batch), spec.batch)
    graph = general.graph
    return replace(
        step,
        model=general,
        inputs=tuple(_open(binding, info) for binding, info in zip(step.inputs, graph.input, strict=True)),
        outputs=tuple(_open(binding, info) for binding, info in zip(step.outputs, graph.output, strict=True)),
        operators=tuple(sorted({node.op_type for inner in all_graphs(graph) for node in inner.node})),
    )


def _sized(compiled: Callable[[StepSpec], Step], model: onnx.ModelProto, spec: StepSpec, batch: int) -> onnx.ModelProto:
    dims = dims_at(model.graph.input, spec.dims, spec.batch, batch)
    try:
        return compiled(replace(spec, batch=batch, dims=dims)).model
    except CompileError as error:  # the step for the batch that was asked for compiled: it is the size that is at fault
        raise CompileError("symbolic-batch", f"the model takes no batch of {batch}: {error}") from error


def _open(binding: Binding, info: onnx.ValueInfoProto) -> Binding:
    sizes = (dim.dim_value if dim.HasField("dim_value") else ANY for dim in info.type.tensor_type.shape.dim)
    return replace(binding, shape=tuple(sizes))
