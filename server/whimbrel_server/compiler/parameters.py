"""What becomes of weights: start values for a step, frozen weights for a client, the model that is published.

Compiling does not belong here.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from whimbrel_server.compiler.choice.adapters import merged, start_value
from whimbrel_server.compiler.choice.chosen import task_model
from whimbrel_server.compiler.choice.selection import constants_of
from whimbrel_server.compiler.contract import Adapter, CompiledStep, Parameter
from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.graph.ir import Array
from whimbrel_server.compiler.source.prepare import flatten


def initial_parameters(model: onnx.ModelProto, step: CompiledStep) -> dict[str, Array]:
    """Start values of everything that a step changes: parameters, then local ones, then running statistics.

    The model's own weights; adapters and new heads start at random, always the same. Raises CompileError ("parameters").
    """
    return _values(model, step, [*step.parameters, *step.local, *step.running])


def frozen_weights(model: onnx.ModelProto, step: CompiledStep) -> dict[str, Array]:
    """The values of the weights that a step leaves to the client (`external`)."""
    return _values(model, step, step.external)


def _values(model: onnx.ModelProto, step: CompiledStep, wanted: Iterable[Parameter]) -> dict[str, Array]:
    tensors = constants_of(task_model(model, step.spec)[0].graph)
    factors = {name: adapter for adapter in step.adapters for name in (adapter.a, adapter.b)}
    values: dict[str, Array] = {}
    for one in wanted:
        if one.name not in factors and one.name not in tensors:
            raise CompileError("parameters", f"the model has no weight {one.name!r}; was the step compiled from it?")
        adapter = factors.get(one.name)
        value = start_value(adapter, one.name) if adapter else numpy_helper.to_array(tensors[one.name])
        values[one.name] = value.astype(one.dtype)
    return values


def export_inference(model: onnx.ModelProto, params: Mapping[str, Array], step: CompiledStep | None = None) -> onnx.ModelProto:
    """The inference model with new weights; all else, opset included, stays as shipped.

    `params` holds any of a step's parameters, local ones and running statistics; what is not given stays as it was at the
    start. `step` is needed where it has adapters,
    which are merged into their weights, or a new head, or wrote out weights. Raises CompileError ("parameters") for an
    unknown name or a weight of another shape.
    """
    shipped = task_model(model, step.spec)[0] if step else flatten(model)
    tensors = constants_of(shipped.graph)
    adapters = step.adapters if step else ()
    factors = {name for adapter in adapters for name in (adapter.a, adapter.b)}
    for name, array in params.items():
        if name not in factors:
            _write(tensors, name, array)
    for adapter in adapters:
        _merge(tensors, adapter, params)
    return shipped


def _write(tensors: Mapping[str, onnx.TensorProto], name: str, array: Array) -> None:
    old = numpy_helper.to_array(tensors[name]) if name in tensors else None
    if old is None or old.dtype.kind != "f":
        raise CompileError("parameters", f"the model has no weight {name!r}")
    if old.shape != array.shape:
        raise CompileError("parameters", f"weight {name!r} has shape {old.shape}, not {array.shape}")
    tensors[name].CopyFrom(numpy_helper.from_array(np.asarray(array, old.dtype), name))


def _merge(tensors: Mapping[str, onnx.TensorProto], adapter: Adapter, params: Mapping[str, Array]) -> None:
    """A factor that is not given is as it was at the start."""
    a, b = (params.get(name, start_value(adapter, name)) for name in (adapter.a, adapter.b))
    rank = adapter.spec.rank
    if a.shape != (adapter.inputs, rank) or b.shape != (rank, adapter.outputs):
        raise CompileError("parameters", f"adapter of {adapter.weight!r}: {a.shape} and {b.shape} are not its factors' shapes")
    weight = numpy_helper.to_array(tensors[adapter.weight])
    _write(tensors, adapter.weight, merged(weight, adapter, a, b))
