"""The gradient compiler: an inference model, a loss and an optimiser become one plain ONNX train step.

Knows onnx and numpy only; pure: no clock, no files, no runtime. Only the public names belong in this file.
"""

from whimbrel_server.compiler.contract import (
    Adapters,
    Binding,
    CompiledStep,
    EvalStep,
    Parameter,
    Run,
    StepSpec,
    TrainStep,
)
from whimbrel_server.compiler.errors import CompileError, UnsupportedOperator
from whimbrel_server.compiler.parameters import export_inference, frozen_weights, initial_parameters
from whimbrel_server.compiler.step import compile_eval, compile_step

__all__ = [
    "Adapters",
    "Binding",
    "CompileError",
    "CompiledStep",
    "EvalStep",
    "Parameter",
    "Run",
    "StepSpec",
    "TrainStep",
    "UnsupportedOperator",
    "compile_eval",
    "compile_step",
    "export_inference",
    "frozen_weights",
    "initial_parameters",
]
