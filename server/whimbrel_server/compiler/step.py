"""From a model and a specification to a train step or an evaluation: the contract of inputs and outputs.

A step is one plain ONNX graph plus the table of its inputs and outputs; a client binds by role from the
table and never parses names. Parameters and optimiser state are inputs and outputs, so the graph holds no
trained weights and stays valid over all rounds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import onnx
from onnx import numpy_helper

from whimbrel_server.compiler import metrics, optim
from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.grad import grad
from whimbrel_server.compiler.ir import OPSET, Array, Value
from whimbrel_server.compiler.losses import LOSSES, without_activation
from whimbrel_server.compiler.prepare import inline_functions, prepare
from whimbrel_server.compiler.reader import Source, read
from whimbrel_server.compiler.selection import trainable_names, weights_of

Role = Literal["data", "label", "weight", "param", "state", "anchor", "hyper", "metric"]


@dataclass(frozen=True)
class StepSpec:
    """What to compile.

    `train` holds glob patterns over weight names (`*` and `?`), `output` the model output to train on (needed
    where there are several), `dims` the whole shapes of data inputs that the model leaves open. `proximal`
    adds FedProx' anchor inputs. `batch` is the static number of examples a step takes.
    """

    loss: Literal["cross_entropy", "mse"]
    optimizer: Literal["sgd", "momentum"]
    batch: int
    train: tuple[str, ...] = ("*",)
    proximal: bool = False
    output: str | None = None
    dims: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Binding:
    """One input or output of a step. `default` fills the whole tensor where the client has no value; None:
    the client must supply one. Outputs have role param, state or metric."""

    role: Role
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    default: float | None = None


@dataclass(frozen=True)
class Parameter:
    """A trained weight, under its name in the source model."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class CompiledStep:
    """A graph and its table.

    Outputs of role param (and state) come in the order of the inputs of that role, so they can be paired by
    position. `unused` are selected weights the loss does not depend on, `frozen` the float weights kept as
    constants, `cut` the source node of the final activation that a cross-entropy was put in front of.
    """

    model: onnx.ModelProto
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    parameters: tuple[Parameter, ...]
    unused: tuple[str, ...]
    frozen: tuple[str, ...]
    cut: str | None
    operators: tuple[str, ...]
    opset: int = OPSET


@dataclass(frozen=True)
class TrainStep(CompiledStep):
    """One optimiser step: new parameters and state, `@loss` before the update, and the metric sums."""


@dataclass(frozen=True)
class EvalStep(CompiledStep):
    """The metric sums of one batch for given parameters."""


@dataclass(frozen=True)
class _Differentiated:
    """A model with its loss and the gradient of every trained weight."""

    source: Source
    label: Value
    weight: Value
    loss: Value
    sums: dict[str, Value]
    gradients: dict[str, Value]
    unused: tuple[str, ...]
    cut: str | None


def compile_step(model: onnx.ModelProto, spec: StepSpec) -> TrainStep:
    """The train step of `model`; raises CompileError."""
    done = _differentiate(model, spec)
    inputs, optimizer = _InputTable(done), optim.OPTIMIZERS[spec.optimizer]
    hypers = inputs.hypers(optimizer.hypers)
    if spec.proximal:
        hypers |= inputs.hypers({"@mu": 0.0})
    new_parameters: list[_Output] = []
    new_states: list[_Output] = []
    for name, gradient in done.gradients.items():
        done.source.graph.origin = name
        parameter = done.source.weights[name]
        if spec.proximal:
            anchor = inputs.beside(parameter, "anchor", "anchor", None)
            gradient = optim.proximal(parameter, gradient, anchor, hypers["@mu"])
        states = {suffix: inputs.beside(parameter, "state", suffix, 0.0) for suffix in optimizer.states}
        updated, moved = optimizer.update(parameter, gradient, states, hypers)
        new_parameters.append(("param", f"{name}@new", updated))
        new_states += [("state", f"{name}@{suffix}@new", value) for suffix, value in moved.items()]
    reported: list[_Output] = [("metric", name, value) for name, value in {"@loss": done.loss, **done.sums}.items()]
    return TrainStep(**_export(done, inputs.table(), new_parameters + new_states + reported, "train_step"))


def compile_eval(model: onnx.ModelProto, spec: StepSpec) -> EvalStep:
    """The evaluation that fits the train step of the same specification: same parameters, sums only."""
    done = _differentiate(model, spec)
    outputs: list[_Output] = [("metric", name, value) for name, value in done.sums.items()]
    return EvalStep(**_export(done, _InputTable(done).table(), outputs, "evaluation"))


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
    kind, (output, cut) = LOSSES[spec.loss], (source.output, None)
    if kind.classes:
        output, cut = without_activation(output)
    if not output.is_float or output.shape[:1] != (spec.batch,):
        raise CompileError("output", f"the output must be float with batch {spec.batch} first, not {output.shape}")
    label = source.graph.input("@label", *kind.label_type(output))
    weight = source.graph.input("@weight", output.dtype, kind.positions(output))
    sums = metrics.weighted_sums(kind.per_position(output, label), weight)
    loss = metrics.weighted_mean(sums)
    if kind.classes:
        sums["@correct_sum"] = metrics.correct_sum(output, label, weight)
    return _Differentiated(source, label, weight, loss, sums, grad(loss, source.weights), (), cut)


class _InputTable:
    """Collects a step's inputs by role, in the order of the contract."""

    def __init__(self, done: _Differentiated) -> None:
        self._graph = done.source.graph
        self._dtype = done.loss.dtype
        self._rows: dict[Role, list[tuple[Value, float | None]]] = {
            "data": [(value, None) for value in done.source.data],
            "label": [(done.label, None)],
            "weight": [(done.weight, 1.0)],
            "param": [(done.source.weights[name], None) for name in done.gradients],
            "state": [],
            "anchor": [],
            "hyper": [],
        }

    def hypers(self, defaults: Mapping[str, float | None]) -> dict[str, Value]:
        values = {name: self._graph.input(name, self._dtype, ()) for name in defaults}
        self._rows["hyper"] += [(values[name], default) for name, default in defaults.items()]
        return values

    def beside(self, parameter: Value, role: Role, suffix: str, default: float | None) -> Value:
        """A new input `<param>@<suffix>` of the parameter's type and shape."""
        value = self._graph.input(f"{parameter.name}@{suffix}", parameter.dtype, parameter.shape)
        self._rows[role].append((value, default))
        return value

    def table(self) -> list[tuple[Role, Value, float | None]]:
        return [(role, value, default) for role, rows in self._rows.items() for value, default in rows]


_Output = tuple[Role, str, Value]


def _export(
    done: _Differentiated,
    inputs: Sequence[tuple[Role, Value, float | None]],
    outputs: Sequence[_Output],
    name: str,
) -> dict[str, Any]:
    """The fields of a CompiledStep."""
    results = {label: value for _, label, value in outputs}
    model = done.source.graph.export([value for _, value, _ in inputs], results, name)
    names = list(done.gradients)
    return {
        "model": model,
        "inputs": tuple(Binding(role, v.name, v.dtype, v.shape, default) for role, v, default in inputs),
        "outputs": tuple(Binding(role, label, v.dtype, v.shape) for role, label, v in outputs),
        "parameters": tuple(Parameter(n, done.source.weights[n].shape, done.source.weights[n].dtype) for n in names),
        "unused": done.unused,
        "frozen": done.source.frozen,
        "cut": done.cut,
        "operators": tuple(sorted({node.op_type for node in model.graph.node})),
    }
