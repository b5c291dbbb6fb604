"""Every gradient rule against central finite differences, and every lowering against stock onnxruntime.

A case is one operator with all float operands trained; a rule or lowering without a case fails the suite.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.compiler.evaluation import Array, directional_difference, in_double, reference, stock
from whimbrel_server.compiler import reader, windows
from whimbrel_server.compiler.rules import LOWERINGS, RULES, grad

EPS = 1e-6
ACCEPT = 1e-5


@dataclass(frozen=True)
class Case:
    """`operands`: shapes of trained float operands, arrays of constant ones, None for one left out."""

    op: str
    operands: tuple[Any, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    least: float = -1.0
    opset: int = 20
    wide: bool = False  # forces the convolution lowering for maps too large for the cache


def ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


CASES = {
    "abs": Case("Abs", ([3, 4],)),
    "add-broadcast": Case("Add", ([2, 1, 4], [3, 1])),
    "add-scalar": Case("Add", ([], [2, 3])),
    "average-pool-tiles": Case("AveragePool", ([2, 3, 4, 6],), {"kernel_shape": [2, 3], "strides": [2, 3]}),
    "average-pool-overlap": Case("AveragePool", ([1, 2, 7, 6],), {"kernel_shape": [3, 2], "strides": [2, 1]}),
    "average-pool-pads": Case(
        "AveragePool", ([2, 2, 6, 5],), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 1, 2]}
    ),
    "average-pool-counts-pads": Case(
        "AveragePool", ([1, 2, 5, 5],), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    ),
    "average-pool-line": Case("AveragePool", ([2, 2, 9],), {"kernel_shape": [3], "pads": [1, 1], "dilations": [2]}),
    "cast": Case("Cast", ([2, 3],), {"to": TensorProto.FLOAT}),
    "conv": Case("Conv", ([2, 3, 6, 5], [4, 3, 3, 2], [4])),
    "conv-stride-pads": Case("Conv", ([2, 2, 8, 7], [3, 2, 3, 3]), {"strides": [2, 3], "pads": [1, 0, 2, 1]}),
    "conv-unreached-end": Case("Conv", ([1, 2, 8, 9], [3, 2, 2, 2]), {"strides": [3, 4]}),
    "conv-dilated": Case("Conv", ([1, 2, 8, 8], [2, 2, 3, 2], [2]), {"dilations": [2, 3], "pads": [2, 1, 1, 2]}),
    "conv-pointwise": Case("Conv", ([2, 3, 4, 4], [5, 3, 1, 1], [5])),
    "conv-pointwise-narrowing": Case("Conv", ([2, 5, 4, 4], [3, 5, 1, 1])),
    "conv-pointwise-stride": Case("Conv", ([2, 3, 5, 5], [4, 3, 1, 1]), {"strides": [2, 2]}),
    "conv-grouped": Case("Conv", ([2, 4, 5, 5], [6, 2, 3, 3], [6]), {"group": 2, "strides": [2, 2]}),
    "conv-depthwise": Case("Conv", ([2, 3, 6, 6], [3, 1, 3, 3]), {"group": 3, "pads": [1, 1, 1, 1]}),
    "conv-same-upper": Case("Conv", ([1, 2, 6, 7], [2, 2, 3, 4]), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "conv-same-lower": Case("Conv", ([1, 2, 6, 7], [2, 2, 2, 4]), {"auto_pad": "SAME_LOWER"}),
    "conv-valid": Case("Conv", ([1, 2, 6, 7], [2, 2, 2, 4]), {"auto_pad": "VALID"}),
    "conv-line": Case("Conv", ([2, 3, 10], [4, 3, 3], [4]), {"strides": [2], "pads": [1, 1]}),
    "conv-volume": Case("Conv", ([1, 2, 4, 4, 3], [2, 2, 2, 2, 2]), {"pads": [0, 1, 0, 0, 0, 1]}),
    "conv-wide": Case("Conv", ([2, 16, 5, 5], [3, 16, 3, 2], [3]), {"pads": [1, 1, 1, 0]}, wide=True),
    "conv-wide-stride": Case("Conv", ([1, 16, 7, 6], [2, 16, 2, 3]), {"strides": [2, 2]}, wide=True),
    "div-broadcast": Case("Div", ([2, 3, 4], [3, 1]), least=0.5),
    "dropout": Case("Dropout", ([2, 3],)),
    "exp": Case("Exp", ([2, 3],)),
    "expand": Case("Expand", ([3, 1], ints(2, 3, 4))),
    "flatten": Case("Flatten", ([2, 3, 4],), {"axis": 1}),
    "flatten-all": Case("Flatten", ([2, 3, 4],), {"axis": 3}),
    "flatten-last": Case("Flatten", ([2, 3, 4],), {"axis": -1}),
    "gather-elements": Case("GatherElements", ([3, 4], np.array([[1, 1], [3, 0], [2, 2]])), {"axis": 1}),
    "gather-elements-rows": Case("GatherElements", ([3, 2], np.array([[2, 0]])), {"axis": -2}),
    "gemm": Case("Gemm", ([2, 3], [3, 4], [4])),
    "gemm-across": Case("Gemm", ([3, 2], [3, 4], [2, 1]), {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    "gemm-down": Case("Gemm", ([2, 3], [4, 3], []), {"transB": 1, "beta": -1.0}),
    "gemm-both": Case("Gemm", ([3, 2], [4, 3]), {"transA": 1, "transB": 1, "alpha": -0.3}),
    "global-average-pool": Case("GlobalAveragePool", ([2, 3, 4, 5],)),
    "log": Case("Log", ([2, 3],), least=0.5),
    "log-softmax": Case("LogSoftmax", ([2, 3, 4],), {"axis": 1}),
    "matmul": Case("MatMul", ([2, 3], [3, 4])),
    "matmul-rows": Case("MatMul", ([2, 5, 3], [3, 4])),
    "matmul-batched": Case("MatMul", ([2, 1, 2, 3], [4, 3, 2])),
    "matmul-wide-right": Case("MatMul", ([2, 3], [4, 3, 2])),
    "matmul-vectors": Case("MatMul", ([3], [3])),
    "matmul-vector-left": Case("MatMul", ([3], [2, 3, 4])),
    "matmul-vector-right": Case("MatMul", ([2, 3], [3])),
    "max-pool-tiles": Case("MaxPool", ([2, 3, 4, 6],), {"kernel_shape": [2, 3], "strides": [2, 3]}),
    "max-pool-ragged": Case("MaxPool", ([1, 2, 5, 7],), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "max-pool-overlap": Case("MaxPool", ([2, 2, 6, 6],), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "max-pool-line": Case("MaxPool", ([2, 2, 6],), {"kernel_shape": [2], "strides": [2]}),
    "max-pool-same": Case("MaxPool", ([1, 2, 5, 5],), {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}),
    "mul-broadcast": Case("Mul", ([2, 3, 4], [3, 1])),
    "neg": Case("Neg", ([2, 3],)),
    "reduce-max": Case("ReduceMax", ([3, 4, 2], ints(1)), {"keepdims": 0}),
    "reduce-mean": Case("ReduceMean", ([3, 4, 2], ints(0, -1)), {"keepdims": 1}),
    "reduce-mean-axes-attribute": Case("ReduceMean", ([3, 4, 2],), {"axes": [1], "keepdims": 0}, opset=13),
    "reduce-min-all": Case("ReduceMin", ([3, 4],)),
    "reduce-sum": Case("ReduceSum", ([3, 4, 2], ints(0, 2)), {"keepdims": 0}),
    "reduce-sum-nothing": Case("ReduceSum", ([3, 4],), {"noop_with_empty_axes": 1}),
    "relu": Case("Relu", ([3, 5],)),
    "reshape": Case("Reshape", ([2, 3, 4], ints(0, -1))),
    "sigmoid": Case("Sigmoid", ([2, 3],)),
    "softmax": Case("Softmax", ([2, 3, 4],), {"axis": 1}),
    "softmax-last": Case("Softmax", ([2, 3],)),
    "softmax-old": Case("Softmax", ([2, 3, 4],), {"axis": 1}, opset=11),
    "sqrt": Case("Sqrt", ([2, 3],), least=0.5),
    "squeeze": Case("Squeeze", ([2, 1, 3], ints(1))),
    "sub-broadcast": Case("Sub", ([4], [2, 3, 1])),
    "sum": Case("Sum", ([2, 3], [3], [1])),
    "tanh": Case("Tanh", ([2, 3],)),
    "transpose": Case("Transpose", ([2, 3, 4],), {"perm": [2, 0, 1]}),
    "transpose-default": Case("Transpose", ([2, 3, 4],)),
    "unsqueeze": Case("Unsqueeze", ([2, 3], ints(0, 3))),
}


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
    prepared = reader.prepare(model)
    return reader.read(prepared, None, 1, {}, reader.trainable_names(prepared.graph, ["*", "x0", "x1", "x2"]))


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
