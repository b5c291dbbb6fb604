"""The gradient compiler: an inference model, a loss and an optimiser become one plain ONNX train step.

Knows onnx and numpy only; pure: no clock, no files, no runtime. Only the public names belong in this file.
"""

from whimbrel_server.compiler.errors import CompileError, UnsupportedOperator
from whimbrel_server.compiler.step import (
    Binding,
    CompiledStep,
    EvalStep,
    Parameter,
    StepSpec,
    TrainStep,
    compile_eval,
    compile_step,
    export_inference,
    initial_parameters,
)

__all__ = [
    "Binding",
    "CompileError",
    "CompiledStep",
    "EvalStep",
    "Parameter",
    "StepSpec",
    "TrainStep",
    "UnsupportedOperator",
    "compile_eval",
    "compile_step",
    "export_inference",
    "initial_parameters",
]
