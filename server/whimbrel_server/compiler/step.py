"""From a model and a specification to a train step or an evaluation.

A step is one plain ONNX graph plus the table of its inputs and outputs (`contract.py`); a client binds by role
from the table and never parses names. Parameters and optimiser state are inputs and outputs, so the graph holds
no trained weights and stays valid over all rounds.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from whimbrel_server.compiler.any_batch import Step, for_any_batch
from whimbrel_server.compiler.bindings import InputTable, Output, export
from whimbrel_server.compiler.contract import Binding, EvalStep, Parameter, Role, Run, StepSpec, TrainStep
from whimbrel_server.compiler.differentiation import Differentiated, differentiate
from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.graph.export import external_constants
from whimbrel_server.compiler.graph.ir import Value
from whimbrel_server.compiler.graph.nested import all_graphs
from whimbrel_server.compiler.training import optim
from whimbrel_server.compiler.training.losses import LOSSES
from whimbrel_server.compiler.training.objective import judged


def compile_step(model: onnx.ModelProto, spec: StepSpec, run: Run | None = None) -> TrainStep:
    """The train step of `model`; raises CompileError. `run` may execute parts whose shapes onnx cannot infer."""
    _check_spec(spec)
    return _for_batch(_train_step, model, spec, run)


def _train_step(model: onnx.ModelProto, spec: StepSpec, run: Run | None) -> TrainStep:
    done = differentiate(model, spec, training=True, run=run)
    inputs, graph = _inputs(done), done.source.graph
    gradients = _with_proximal(done, inputs) if spec.proximal else done.gradients
    optimizer, weights = optim.OPTIMIZERS[spec.optimizer], done.source.weights
    updated = optim.optimize(optimizer, weights, gradients, inputs, spec.clip_norm, spec.weight_decay)
    moved = {name: graph.updates[weights[name]] for name in done.running}
    new = {**updated.parameters, **moved, **updated.states}
    outputs: list[Output] = [
        (role, f"{name}@new", new[name]) for role in ("param", "local", "running", "state") for name in inputs.names(role)
    ]
    loss = judged(done.objective.loss, done.source.data)
    outputs += [("metric", name, value) for name, value in {"@loss": loss, **done.objective.sums}.items()]
    drop_ragged = bool(done.running) or done.objective.whole
    return TrainStep(**_fields(done, spec, inputs, outputs, "train_step"), drop_ragged=drop_ragged)


def compile_eval(model: onnx.ModelProto, spec: StepSpec, run: Run | None = None) -> EvalStep:
    """The evaluation that fits the train step of the same specification: same parameters, sums only."""
    _check_spec(spec)
    return _for_batch(_evaluation, model, spec, run)


def _evaluation(model: onnx.ModelProto, spec: StepSpec, run: Run | None) -> EvalStep:
    done = differentiate(model, spec, training=False, run=run)
    outputs: list[Output] = [("metric", name, value) for name, value in done.objective.sums.items()]
    return EvalStep(**_fields(done, spec, _inputs(done), outputs, "evaluation"))


def _for_batch(
    compiled: Callable[[onnx.ModelProto, StepSpec, Run | None], Step], model: onnx.ModelProto, spec: StepSpec, run: Run | None
) -> Step:
    if spec.symbolic:
        return for_any_batch(lambda sized: compiled(model, sized, run), model, spec)
    return compiled(model, spec, run)


def _check_spec(spec: StepSpec) -> None:
    if spec.loss not in LOSSES:
        raise CompileError("spec", f"loss {spec.loss!r} is none of {sorted(LOSSES)}")
    if spec.optimizer not in optim.OPTIMIZERS:
        raise CompileError("spec", f"optimizer {spec.optimizer!r} is none of {sorted(optim.OPTIMIZERS)}")
    if spec.batch < 1:
        raise CompileError("spec", f"batch is {spec.batch}, at least 1 is needed")
    for name, allowed in (("batch_norm", ("frozen", "train")), ("freeze", ("refuse", "auto"))):
        if getattr(spec, name) not in allowed:
            raise CompileError("spec", f"{name} {getattr(spec, name)!r} is none of {list(allowed)}")


def _inputs(done: Differentiated) -> InputTable:
    """All inputs but the optimiser's. What is local stays on the device: weights and, where named so, statistics."""
    table, weights = InputTable(done.source.graph, done.objective.loss.dtype), done.source.weights
    shared = [name for name in done.gradients if name not in done.local]
    table.add("data", done.source.data)
    table.add("label", done.objective.labels)
    table.add("weight", [done.objective.weight], 1.0)
    table.add("param", [weights[name] for name in shared])
    table.add("local", [weights[name] for name in done.local])
    table.add("running", [weights[name] for name in done.running if name not in done.local])
    return table


def _with_proximal(done: Differentiated, inputs: InputTable) -> dict[str, Value]:
    """The gradients with FedProx' pull; what never leaves the device has no common start to be pulled to."""
    mu, pulled = inputs.scalar("hyper", "@mu", 0.0), dict(done.gradients)
    for name in inputs.names("param"):
        parameter = done.source.weights[name]
        done.source.graph.origin = name
        pulled[name] = optim.proximal(parameter, pulled[name], inputs.beside(parameter, "anchor", "anchor", None), mu)
    return pulled


def _fields(done: Differentiated, spec: StepSpec, inputs: InputTable, outputs: Sequence[Output], name: str) -> dict[str, Any]:
    """The fields of a CompiledStep."""
    model = export(done.source.graph, inputs, outputs, name, spec.external)
    external = external_constants(model)
    roles: dict[Role, str] = {"param": "parameters", "local": "local", "running": "running"}
    return {
        "model": model,
        "spec": spec,
        "inputs": inputs.bindings(),
        "outputs": tuple(Binding(role, label, v.dtype, v.shape) for role, label, v in outputs),
        **{field: inputs.parameters(role) for role, field in roles.items()},
        "unused": done.unused,
        "frozen": done.source.frozen,
        "frozen_automatically": done.given_up,
        "external": tuple(_parameter(tensor) for tensor in external.values()),
        "adapters": done.choice.adapters,
        "cut": done.objective.cut,
        "operators": tuple(sorted({node.op_type for graph in all_graphs(model.graph) for node in graph.node})),
    }


def _parameter(tensor: onnx.TensorProto) -> Parameter:
    return Parameter(tensor.name, tuple(tensor.dims), np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)))
