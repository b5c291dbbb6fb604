"""From a model and a specification to a train step or an evaluation.

A step is one plain ONNX graph plus the table of its inputs and outputs (`contract.py`); a client binds by role
from the table and never parses names. Parameters and optimiser state are inputs and outputs, so the graph holds
no trained weights and stays valid over all rounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx

from whimbrel_server.compiler import optim
from whimbrel_server.compiler.bindings import InputTable, Output, export
from whimbrel_server.compiler.contract import Binding, EvalStep, Run, StepSpec, TrainStep
from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.grad import grad
from whimbrel_server.compiler.ir import Value
from whimbrel_server.compiler.losses import LOSSES
from whimbrel_server.compiler.objective import Objective, objective
from whimbrel_server.compiler.prepare import prepare
from whimbrel_server.compiler.reader import Source, read
from whimbrel_server.compiler.selection import trainable_names, weights_of


@dataclass(frozen=True)
class _Differentiated:
    """A model with its loss and the gradient of every trained weight."""

    source: Source
    objective: Objective
    gradients: dict[str, Value]
    unused: tuple[str, ...] = ()

    def inputs(self) -> InputTable:
        table = InputTable(self.source.graph, self.objective.loss.dtype)
        table.add("data", self.source.data)
        table.add("label", self.objective.labels)
        table.add("weight", [self.objective.weight], 1.0)
        table.add("param", [self.source.weights[name] for name in self.gradients])
        return table


def compile_step(model: onnx.ModelProto, spec: StepSpec, run: Run | None = None) -> TrainStep:
    """The train step of `model`; raises CompileError. `run` may execute parts whose shapes onnx cannot infer."""
    done = _differentiate(model, spec)
    inputs, weights, gradients = done.inputs(), done.source.weights, done.gradients
    if spec.proximal:
        gradients = _with_proximal(done, inputs)
    updated = optim.optimize(optim.OPTIMIZERS[spec.optimizer], weights, gradients, inputs, spec.clip_norm, spec.weight_decay)
    outputs: list[Output] = [("param", f"{name}@new", value) for name, value in updated.parameters.items()]
    outputs += [("state", f"{name}@new", updated.states[name]) for name in inputs.names("state")]
    outputs += [("metric", name, value) for name, value in {"@loss": done.objective.loss, **done.objective.sums}.items()]
    return TrainStep(**_fields(done, spec, inputs, outputs, "train_step"))


def compile_eval(model: onnx.ModelProto, spec: StepSpec, run: Run | None = None) -> EvalStep:
    """The evaluation that fits the train step of the same specification: same parameters, sums only."""
    done = _differentiate(model, spec)
    outputs: list[Output] = [("metric", name, value) for name, value in done.objective.sums.items()]
    return EvalStep(**_fields(done, spec, done.inputs(), outputs, "evaluation"))


def _with_proximal(done: _Differentiated, inputs: InputTable) -> dict[str, Value]:
    mu = inputs.scalar("hyper", "@mu", 0.0)
    pulled = {}
    for name, gradient in done.gradients.items():
        parameter = done.source.weights[name]
        pulled[name] = optim.proximal(parameter, gradient, inputs.beside(parameter, "anchor", "anchor", None), mu)
    return pulled


def _check_spec(spec: StepSpec) -> None:
    if spec.loss not in LOSSES:
        raise CompileError("spec", f"loss {spec.loss!r} is none of {sorted(LOSSES)}")
    if spec.optimizer not in optim.OPTIMIZERS:
        raise CompileError("spec", f"optimizer {spec.optimizer!r} is none of {sorted(optim.OPTIMIZERS)}")
    if spec.batch < 1:
        raise CompileError("spec", f"batch is {spec.batch}, at least 1 is needed")


def _differentiate(model: onnx.ModelProto, spec: StepSpec) -> _Differentiated:
    """Reads the model, builds the loss and sweeps; again without the weights that turn out not to matter."""
    _check_spec(spec)
    prepared = prepare(model)
    selected = trainable_names(prepared.graph, spec.train)
    if not selected:
        raise CompileError("nothing-to-train", f"train={spec.train!r} selects none of {list(weights_of(prepared.graph))}")
    done = _attempt(prepared, spec, selected)
    used = [name for name in selected if name in done.gradients]
    if not used:
        raise CompileError("nothing-to-train", f"the loss depends on none of {selected!r}")
    if len(used) < len(selected):
        unused = tuple(name for name in selected if name not in used)
        done = replace(_attempt(prepared, spec, used), unused=unused)
    return done


def _attempt(prepared: onnx.ModelProto, spec: StepSpec, train: Sequence[str]) -> _Differentiated:
    source = read(prepared, spec.output, spec.batch, spec.dims, train)
    source.graph.origin = "loss"
    target = objective(source.output, spec)
    return _Differentiated(source, target, grad(target.loss, source.weights))


def _fields(done: _Differentiated, spec: StepSpec, inputs: InputTable, outputs: Sequence[Output], name: str) -> dict[str, Any]:
    """The fields of a CompiledStep."""
    model = export(done.source.graph, inputs, outputs, name)
    return {
        "model": model,
        "spec": spec,
        "inputs": inputs.bindings(),
        "outputs": tuple(Binding(role, label, v.dtype, v.shape) for role, label, v in outputs),
        "parameters": inputs.parameters("param"),
        "local": inputs.parameters("local"),
        "running": inputs.parameters("running"),
        "unused": done.unused,
        "frozen": done.source.frozen,
        "frozen_automatically": (),
        "external": (),
        "cut": done.objective.cut,
        "operators": tuple(sorted({node.op_type for node in model.graph.node})),
    }
