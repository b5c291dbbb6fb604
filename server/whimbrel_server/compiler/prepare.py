"""Brings any supported model to one form: checked, functions inlined, every operator at opset 20.

What an operator means stays as it was; choosing weights and reading nodes are the business of others.
"""

import onnx
from onnx import external_data_helper, inliner, version_converter

from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.ir import OPSET

OLDEST_OPSET = 7  # onnx's version converter and broadcasting rules are dependable from here
STANDARD_DOMAINS = ("", "ai.onnx")


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with functions inlined and every operator at opset 20.

    Raises CompileError: "model-invalid", "external-data" or "opset".
    """
    if any(external_data_helper.uses_external_data(tensor) for tensor in model.graph.initializer):
        raise CompileError("external-data", "the model keeps weights in other files; save it as one file")
    try:
        onnx.checker.check_model(model)
        flat = inline_functions(model)
        if flat.ir_version < 4:  # there an initialiser must also be an input, which the converter rejects
            flat.ir_version = 8
        return _raise_opset(flat)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CompileError("model-invalid", str(error)) from error


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model without local functions."""
    if model.functions:
        return inliner.inline_local_functions(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _raise_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    opset = next((entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS), 0)
    if opset == OPSET:
        return model
    if opset < OLDEST_OPSET:
        raise CompileError("opset", f"the model uses opset {opset}; export it with opset {OLDEST_OPSET} to {OPSET}")
    try:
        return version_converter.convert_version(model, OPSET)
    except (RuntimeError, version_converter.ConvertError) as error:
        raise CompileError("opset", f"opset {opset} cannot be brought to {OPSET}: {error}") from error
