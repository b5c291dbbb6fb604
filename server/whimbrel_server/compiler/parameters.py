"""What becomes of weights: start values for a step, and the inference model that is published.

Compiling does not belong here.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from whimbrel_server.compiler.contract import CompiledStep
from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.ir import Array
from whimbrel_server.compiler.prepare import inline_functions
from whimbrel_server.compiler.selection import weights_of


def initial_parameters(model: onnx.ModelProto, step: CompiledStep) -> dict[str, Array]:
    """The model's own weights for each of the step's parameters, in the step's order."""
    tensors = weights_of(inline_functions(model).graph)
    missing = [parameter.name for parameter in step.parameters if parameter.name not in tensors]
    if missing:
        raise CompileError("parameters", f"the model has no weights {missing!r}; was the step compiled from it?")
    return {p.name: numpy_helper.to_array(tensors[p.name]).copy() for p in step.parameters}


def export_inference(model: onnx.ModelProto, params: Mapping[str, Array]) -> onnx.ModelProto:
    """The inference model with new weights; all else, opset included, stays as shipped.

    Raises CompileError ("parameters") for an unknown name or a weight of another shape.
    """
    shipped = inline_functions(model)
    tensors = weights_of(shipped.graph)
    for name, array in params.items():
        if name not in tensors:
            raise CompileError("parameters", f"the model has no weight {name!r}")
        old = numpy_helper.to_array(tensors[name])
        if old.shape != array.shape:
            raise CompileError("parameters", f"weight {name!r} has shape {old.shape}, not {array.shape}")
        tensors[name].CopyFrom(numpy_helper.from_array(np.asarray(array, old.dtype), name))
    return shipped
