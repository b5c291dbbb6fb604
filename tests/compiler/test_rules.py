"""Every gradient rule against central finite differences, and every lowering against stock onnxruntime.

A case is one operator with all float operands trained; a rule or lowering without a case fails the suite.
"""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.compiler.cases import CASES
from tests.compiler.cases.case import Case
from tests.compiler.evaluation import Array, directional_difference, in_double, reference, stock
from whimbrel_server.compiler import prepare, reader, selection
from whimbrel_server.compiler.grad import grad
from whimbrel_server.compiler.rules import LOWERINGS, RULES, windows

EPS = 1e-6
ACCEPT = 1e-5


def test_every_rule_and_lowering_has_a_case() -> None:
    assert {case.op for case in CASES.values()} >= set(RULES) | set(LOWERINGS)


@pytest.fixture(params=CASES, name="case")
def _case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Case:
    case = CASES[request.param]
    if case.wide:
        monkeypatch.setattr(windows, "PATCHES_IN_CACHE", 0)
    return case


def operands(case: Case) -> dict[str, Array]:
    rng = np.random.default_rng(3)
    return {
        f"x{i}": operand if isinstance(operand, np.ndarray) else rng.uniform(case.least, 1.0, operand).astype(np.float32)
        for i, operand in enumerate(case.operands)
    }


def one_node_model(case: Case) -> onnx.ModelProto:
    values = operands(case)
    node = helper.make_node(case.op, list(values), ["y"], "tested", **case.attrs)
    tensors = [numpy_helper.from_array(array, name) for name, array in values.items()]
    result = onnx.ValueInfoProto(name="y")
    result.type.tensor_type.elem_type = TensorProto.FLOAT
    graph = helper.make_graph([node], "case", [], [result], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def read(model: onnx.ModelProto) -> reader.Source:
    prepared = prepare.prepare(model)
    return reader.read(prepared, None, 1, {}, selection.trainable_names(prepared.graph, ["*", "x0", "x1", "x2"]))


def test_forward_equals_onnxruntime(case: Case) -> None:
    model = one_node_model(case)
    source = read(model)
    exported = source.graph.export(list(source.weights.values()), {"y": source.output}, "forward")
    weights = {name: array for name, array in operands(case).items() if name in source.weights}
    np.testing.assert_allclose(stock(exported)(weights)["y"], stock(model)({})["y"], rtol=1e-6, atol=1e-6)


def gradient_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """Inputs: the float operands; outputs: a fixed random projection of the result, and its gradients."""
    source = read(model)
    projection = np.random.default_rng(5).normal(size=source.output.shape).astype(source.output.dtype)
    product = source.output * source.graph.constant(projection)
    loss = product.sum(range(product.rank), keepdims=False)
    gradients = grad(loss, source.weights)
    assert list(gradients) == list(source.weights), "a gradient is missing"
    outputs = {"loss": loss, **{f"{name}@grad": value for name, value in gradients.items()}}
    return source.graph.export(list(source.weights.values()), outputs, "gradient")


def test_gradient_equals_finite_difference(case: Case) -> None:
    run = reference(gradient_model(in_double(one_node_model(case))))
    point = {name: np.float64(array) for name, array in operands(case).items() if array.dtype.kind == "f"}
    rng = np.random.default_rng(7)
    # a cast to float32 rounds the forward, so its difference must be taken further apart
    eps, accept = (1e-2, 3e-3) if case.op == "Cast" else (EPS, ACCEPT)
    found = run(point)
    for name, array in point.items():
        direction = rng.normal(size=array.shape)
        expected = directional_difference(lambda moved, name=name: run({**point, name: moved})["loss"], array, direction, eps)
        slope = float((found[f"{name}@grad"] * direction).sum())
        assert abs(slope - expected) <= accept * max(1.0, abs(expected)), name


def test_gradient_on_onnxruntime_equals_float64(case: Case) -> None:
    double, single = in_double(one_node_model(case)), one_node_model(case)
    values = {name: array for name, array in operands(case).items() if array.dtype.kind == "f"}
    exact = reference(gradient_model(double))({name: np.float64(array) for name, array in values.items()})
    found = stock(gradient_model(single))(values)
    for name in found:
        np.testing.assert_allclose(found[name], exact[name], rtol=1e-4, atol=1e-5, err_msg=name)
