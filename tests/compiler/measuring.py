"""How far a case is off: forward against onnxruntime, gradient against finite differences, float32 against float64.

Everything is measured and nothing judged here: the tests, and the table of operators in the docs, hold the
numbers to their bounds.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from unittest.mock import patch

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.compiler.cases.case import FLOATS, Case, is_differentiable, opsets
from tests.compiler.evaluation import Array, directional_difference, in_double, reference, stock
from whimbrel_server.compiler import prepare, reader, selection
from whimbrel_server.compiler.grad import grad
from whimbrel_server.compiler.rules import STOPS, convolution


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
    with _as_the_case_asks(case):
        return b"".join(model.SerializeToString() for model in _forward_models(case.model(opset)).values())


def forward_error(case: Case, opset: int) -> float:
    """Over all outputs: the graph they are read into, on onnxruntime, against the operator itself there."""
    model = case.model(opset)
    expected = stock(model)({})
    values = {name: case.values()[name] for name in trained(model)}
    errors = []
    for name, forward in _forward_models(model).items():
        found = stock(forward)(values)[name]
        assert (found.shape, found.dtype) == (expected[name].shape, expected[name].dtype), name
        errors.append(relative_error(found, expected[name]))
    return max(errors)


def gradient_error(case: Case, opset: int) -> float:
    """In float64 on the reference evaluator, against a central difference in one random direction an operand."""
    model = case.model(opset)
    run, names = reference(_gradient_model(case, model, in_double)), trained(model)
    point = {name: np.float64(case.values()[name]) for name in names}
    found, rng, errors = run(point), np.random.default_rng(7), [0.0]
    for name, array in point.items():
        direction = rng.normal(size=array.shape)
        moved = lambda there, name=name: run({**point, name: there})["loss"]  # noqa: E731
        expected = directional_difference(moved, array, direction, case.eps)
        slope = float((found[f"{name}@grad"] * direction).sum()) if f"{name}@grad" in found else 0.0
        errors.append(abs(slope - expected) / max(1.0, abs(expected)))
    return max(errors)


def rounding_error(case: Case, opset: int) -> float:
    """Loss and gradients in float32 on onnxruntime, against float64 on the reference evaluator."""
    single = case.model(opset)
    values = {name: case.values()[name] for name in trained(single)}
    exact = reference(_gradient_model(case, single, in_double))({name: np.float64(a) for name, a in values.items()})
    found = stock(_gradient_model(case, single, lambda prepared: prepared))(values)
    return max(relative_error(found[name], exact[name]) for name in exact)


def relative_error(found: Array, expected: Array) -> float:
    """The largest error, relative to max(1, |expected|); infinite where only one of the two is NaN."""
    if expected.dtype.kind == "b":
        return float(np.any(found != expected))
    with np.errstate(invalid="ignore"):
        error = np.abs(np.float64(found) - expected) / np.maximum(1.0, np.abs(expected))
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    return float(np.max(np.nan_to_num(np.where(same, 0.0, error), nan=np.inf), initial=0.0))


def trained(model: onnx.ModelProto) -> list[str]:
    """The float operands of a case's model that are no settings of its operator."""
    graph = prepare.prepare(model).graph
    return selection.trainable_names(graph, [tensor.name for tensor in graph.initializer])


def _forward_models(model: onnx.ModelProto) -> dict[str, onnx.ModelProto]:
    """For each output the graph that it is read into; inputs are the trained operands."""
    models = {}
    for name in [output.name for output in model.graph.output]:
        prepared = prepare.prepare(model)
        source = reader.read(prepared, name, 1, {}, trained(model))
        models[name] = source.graph.export(list(source.weights.values()), {name: source.output}, "forward")
    return models


def _gradient_model(
    case: Case, model: onnx.ModelProto, precision: Callable[[onnx.ModelProto], onnx.ModelProto]
) -> onnx.ModelProto:
    """Inputs: the trained operands; outputs: a fixed random projection of all float results, and its gradients."""
    with _as_the_case_asks(case):
        projected = _projected(prepare.prepare(model), model.graph.output)
        source = reader.read(precision(projected), "projection", 1, {}, trained(model))
        loss = source.output.reshape([])
        gradients = grad(loss, source.weights)
    expected = [] if case.op in STOPS else list(source.weights)
    assert list(gradients) == expected, "a gradient is missing, or one flows where none is defined"
    outputs = {"loss": loss, **{f"{name}@grad": value for name, value in gradients.items()}}
    return source.graph.export(list(source.weights.values()), outputs, "gradient")


def _projected(model: onnx.ModelProto, results: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
    """The model with one more output, `projection` `[1, 1]`: all float results times random numbers, added up."""
    rng, parts, graph = np.random.default_rng(5), [], model.graph
    for result in results:
        tensor, name = result.type.tensor_type, result.name
        size = int(np.prod([dim.dim_value for dim in tensor.shape.dim], dtype=np.int64))
        if tensor.elem_type in FLOATS:
            column = rng.normal(size=(size, 1)).astype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
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
    with patch.object(convolution, "PATCHES_IN_CACHE", 0 if case.wide else convolution.PATCHES_IN_CACHE):
        yield
