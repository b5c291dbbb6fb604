"""How far a case is off: forward against onnxruntime, gradient against finite differences, float32 against float64.

Everything is measured and nothing judged here: the tests, and the table of operators in the docs, hold the
numbers to their bounds.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from unittest.mock import patch

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as MissingKernel

from tests.compiler.cases.case import Case, is_differentiable, opsets
from tests.compiler.evaluation import Array, directional_difference, in_double, reference, stock
from whimbrel_server.compiler.choice import selection
from whimbrel_server.compiler.grad import grad
from whimbrel_server.compiler.rules import STOPS, costs
from whimbrel_server.compiler.source import prepare, reader


def largest_errors(case: Case) -> dict[int, dict[str, float]]:
    """By opset: "forward" and, where a result is float, "gradient" and "float32"; relative to max(1, |true value|)."""
    errors: dict[bytes, dict[str, float]] = {}
    for form, opset in distinct_forms(case).items():
        measures = {"gradient": gradient_error, "float32": rounding_error} if is_differentiable(case) else {}
        errors[form] = {name: measure(case, opset) for name, measure in measures.items()}
    return {opset: {"forward": forward_error(case, opset), **errors[form_of(case, opset)]} for opset in opsets(case)}


def distinct_forms(case: Case) -> dict[bytes, int]:
    """Each different graph that the case is read into, and its first opset; equal graphs have equal gradients."""
    forms: dict[bytes, int] = {}
    for opset in opsets(case):
        forms.setdefault(form_of(case, opset), opset)
    return forms


@cache
def form_of(case: Case, opset: int) -> bytes:
    """The bytes of the graphs of all outputs."""
    return b"".join(model.SerializeToString() for model in _forward_models(case, opset).values())


def forward_error(case: Case, opset: int) -> float:
    """Over all outputs: the graph they are read into, on onnxruntime, against the operator itself."""
    expected = operator_results(case, opset)
    values = _point(case, opset)
    errors = []
    for name, forward in _forward_models(case, opset).items():
        found = stock(forward)(values)[name]
        assert (found.shape, found.dtype) == (expected[name].shape, expected[name].dtype), name
        errors.append(relative_error(found, expected[name]))
    return max(errors)


@cache
def operator_results(case: Case, opset: int) -> dict[str, Array]:
    """By onnxruntime; by onnx's reference evaluator where that lacks this version of the operator."""
    model = case.model(opset)
    try:
        run = stock(model)
    except MissingKernel:
        run = reference(model)
    results: dict[str, Array] = run({})
    return results


def gradient_error(case: Case, opset: int) -> float:
    """In float64 on the reference evaluator, against a central difference in one random direction an operand."""
    run, rng, errors = reference(_in_double(case, opset)), np.random.default_rng(7), [0.0]
    point = {name: np.float64(array) for name, array in _point(case, opset).items()}
    found = run(point)
    for name, array in point.items():
        direction = rng.normal(size=array.shape)
        moved = lambda there, name=name: run({**point, name: there})["loss"]  # noqa: E731
        expected = directional_difference(moved, array, direction, case.eps)
        slope = float((found[f"{name}@grad"] * direction).sum()) if f"{name}@grad" in found else 0.0
        errors.append(abs(slope - expected) / max(1.0, abs(expected)))
    return max(errors)


def rounding_error(case: Case, opset: int) -> float:
    """Loss and gradients in float32 on onnxruntime, against float64 on the reference evaluator."""
    values = _point(case, opset)
    exact = reference(_in_double(case, opset))({name: np.float64(array) for name, array in values.items()})
    found = single_gradients(case, opset)
    return max(relative_error(found[name], exact[name]) for name in exact)


def single_gradients(case: Case, opset: int) -> dict[str, Array]:
    """`loss` and `<operand>@grad` in float32 on onnxruntime."""
    run = stock(_gradient_model(case, opset, lambda prepared: prepared))
    results: dict[str, Array] = run(_point(case, opset))
    return results


def projections(case: Case, opset: int) -> dict[str, Array]:
    """The random numbers that each float result is multiplied with to make the loss: a column for each, by name."""
    rng, results = np.random.default_rng(5), operator_results(case, opset)
    return {name: rng.normal(size=(a.size, 1)).astype(a.dtype) for name, a in results.items() if a.dtype.kind == "f"}


def relative_error(found: Array, expected: Array) -> float:
    """The largest error, relative to max(1, |expected|); infinite where only one of the two is NaN."""
    if expected.dtype.kind == "b":
        return float(np.any(found != expected))
    with np.errstate(invalid="ignore"):
        error = np.abs(np.float64(found) - expected) / np.maximum(1.0, np.abs(expected))
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    return float(np.max(np.nan_to_num(np.where(same, 0.0, error), nan=np.inf), initial=0.0))


@cache
def _prepared(case: Case, opset: int) -> onnx.ModelProto:
    return prepare.prepare(case.model(opset))


def _trained(case: Case, opset: int) -> list[str]:
    """The float operands that are no settings of the operator."""
    graph = _prepared(case, opset).graph
    return selection.trainable_names(graph, [tensor.name for tensor in graph.initializer])


def _point(case: Case, opset: int) -> dict[str, Array]:
    names = _trained(case, opset)
    return {name: array for name, array in case.values().items() if name in names}


@cache
def _forward_models(case: Case, opset: int) -> dict[str, onnx.ModelProto]:
    """For each output the graph that it is read into; inputs are the trained operands."""
    models = {}
    with _as_the_case_asks(case):
        for name in filter(None, case.outputs):
            source = reader.read(_prepared(case, opset), name, 1, {}, _trained(case, opset))
            models[name] = source.graph.export(list(source.weights.values()), {name: source.output}, "forward")
    return models


@cache
def _in_double(case: Case, opset: int) -> onnx.ModelProto:
    return _gradient_model(case, opset, in_double)


def _gradient_model(case: Case, opset: int, precision: Callable[[onnx.ModelProto], onnx.ModelProto]) -> onnx.ModelProto:
    """Inputs: the trained operands; outputs: a fixed random projection of all float results, and its gradients."""
    projected = _projected(_prepared(case, opset), projections(case, opset))
    with _as_the_case_asks(case):
        source = reader.read(precision(projected), "projection", 1, {}, _trained(case, opset))
        loss = source.output.reshape([])
        gradients = grad(loss, source.weights)
    expected = [] if case.op in STOPS else list(source.weights)
    assert list(gradients) == expected, "a gradient is missing, or one flows where none is defined"
    outputs = {"loss": loss, **{f"{name}@grad": value for name, value in gradients.items()}}
    return source.graph.export(list(source.weights.values()), outputs, "gradient")


def _projected(prepared: onnx.ModelProto, columns: Mapping[str, Array]) -> onnx.ModelProto:
    """The model with one more output, `projection` `[1, 1]`: all float results times their columns, added up."""
    model = onnx.ModelProto()
    model.CopyFrom(prepared)
    parts, graph = [], model.graph
    for name, column in columns.items():
        graph.initializer.append(numpy_helper.from_array(column, f"{name}.column"))
        graph.node.append(helper.make_node("Reshape", [name, "row"], [f"{name}.row"]))
        graph.node.append(helper.make_node("MatMul", [f"{name}.row", f"{name}.column"], [f"{name}.part"]))
        parts.append(f"{name}.part")
    graph.initializer.append(numpy_helper.from_array(np.array([1, -1]), "row"))
    graph.node.append(helper.make_node("Sum", parts, ["projection"]))
    graph.output.append(onnx.ValueInfoProto(name="projection"))
    return model


@contextmanager
def _as_the_case_asks(case: Case) -> Iterator[None]:
    with patch.object(costs, "PATCHES_IN_CACHE", 0 if case.wide else costs.PATCHES_IN_CACHE):
        yield
