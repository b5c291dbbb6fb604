"""Where a function has no derivative: the gradient PyTorch gives, and never NaN where no gradient arrives.

Known answers, written down by hand; `weights` are the numbers that the results are multiplied with.
"""

from typing import Any

import numpy as np
import pytest

from tests.compiler.evaluation import Array, stock
from whimbrel_server.compiler.errors import Refusal
from whimbrel_server.compiler.grad import grad
from whimbrel_server.compiler.graph.ir import Graph
from whimbrel_server.compiler.rules import LOWERINGS

INF = float("inf")
# name: operator, operands (the first is differentiated), attributes, weights, expected gradient
ANSWERS: dict[str, tuple[str, list[Any], dict[str, Any], Any, Any]] = {
    "abs at 0": ("Abs", [[0.0, -2.0]], {}, [1, 1], [0, -1]),
    "clip at its bound": ("Clip", [[-2.0, -1.0, 0.0], -1.0], {}, [1, 1, 1], [0, 1, 1]),
    "clip at both bounds, as ReLU6": ("Clip", [[-1.0, 0.0, 1.0, 2.0], -1.0, 1.0], {}, [1, 1, 1, 1], [0, 1, 0, 0]),
    "elu at 0": ("Elu", [[0.0, 1.0]], {"alpha": 0.5}, [1, 1], [0.5, 1]),
    "hard sigmoid at its ends": ("HardSigmoid", [[-2.5, 0.0, 2.5]], {}, [1, 1, 1], [0, 0.2, 0]),
    "leaky relu at 0": ("LeakyRelu", [[0.0]], {"alpha": 0.1}, [1], [0.1]),
    "length of nothing": ("ReduceL2", [[0.0, 0.0]], {"keepdims": 0}, 5e20, [0, 0]),
    "log-sum-exp of nothing": ("ReduceLogSumExp", [[-INF, -INF]], {"keepdims": 0}, 1, [0, 0]),
    "max shares": ("Max", [[1.0, 3.0, 0.0], [1.0, 2.0, 0.0]], {}, [4, 4, 4], [2, 4, 2]),
    "mish far out": ("Mish", [[-1e4, 1e4]], {}, [1, 1], [0, 1]),
    "normalised zeros": ("LpNormalization", [[[0.0, 0.0], [3.0, 4.0]]], {}, [[1, 1], [1, 0]], [[0, 0], [0.128, -0.096]]),
    "power at 0": ("Pow", [[0.0, 0.0, 0.0], [0.0, 1.0, 2.5]], {}, [1, 1, 1], [0, 1, 0]),
    "product with one zero": ("ReduceProd", [[0.0, 2.0, 3.0]], {"keepdims": 0}, 1, [6, 0, 0]),
    "product with two zeros": ("ReduceProd", [[0.0, 2.0, 0.0]], {"keepdims": 0}, 1, [0, 0, 0]),
    "prelu at 0": ("PRelu", [[0.0, -1.0], [0.25]], {}, [1, 1], [0.25, 0.25]),
    "reduce max shares": ("ReduceMax", [[2.0, 1.0, 2.0]], {"keepdims": 0}, 1, [0.5, 0, 0.5]),
    "relu at 0": ("Relu", [[0.0, -0.0, 1e-20]], {}, [1, 1, 1], [0, 0, 1]),
    "root at 0 without gradient": ("Sqrt", [[0.0, 4.0]], {}, [0, 1], [0, 0.25]),
    "softplus far out": ("Softplus", [[-1e4, 1e4]], {}, [1, 1], [0, 1]),
}


def run(lowering: Any, operands: list[Any], attrs: dict[str, Any], weights: Any) -> dict[str, Array]:
    """The `result`, and the `gradient` of its weighted sum by the first operand, on onnxruntime."""
    graph, arrays = Graph(), [np.array(operand, np.float32) for operand in operands]
    x = graph.input("x", arrays[0].dtype, arrays[0].shape)
    y = lowering(graph, x, *(graph.constant(array) for array in arrays[1:]), **attrs)
    product = y * graph.constant(np.array(weights, np.float32))
    slope = grad(product.sum(range(product.rank), keepdims=False), {"x": x})["x"]
    found: dict[str, Array] = stock(graph.export([x], {"gradient": slope, "result": y}, "convention"))({"x": arrays[0]})
    return found


@pytest.mark.parametrize("name", ANSWERS)
def test_known_answer(name: str) -> None:
    op, operands, attrs, weights, expected = ANSWERS[name]
    lowering = LOWERINGS.get(op, lambda graph, *ins, **attrs: graph.op(op, *ins, **attrs))
    found = run(lowering, operands, attrs, weights)["gradient"]
    np.testing.assert_allclose(found, np.array(expected, np.float32), rtol=1e-6, atol=1e-6)


def test_noise_of_two_nodes_differs_and_lets_gradients_pass_beside_it() -> None:
    """y = m + s noise: dm = 1, ds = noise."""
    graph, noises = Graph(), []
    m, s = (graph.input(name, np.dtype(np.float32), (50,)) for name in "ms")
    for name in ("first", "second"):
        graph.origin = name
        noises.append(LOWERINGS["RandomNormalLike"](graph, m))
    slopes = grad((m + s * noises[0]).sum([0], keepdims=False), {"m": m, "s": s})
    results = {"dm": slopes["m"], "ds": slopes["s"], "noise": noises[0], "other": noises[1]}
    found = stock(graph.export([m, s], results, "noise"))({"m": np.ones(50, np.float32), "s": np.ones(50, np.float32)})
    assert (found["dm"] == 1).all() and np.array_equal(found["ds"], found["noise"])
    assert not np.array_equal(found["noise"], found["other"])


@pytest.mark.parametrize("gate_first", [False, True])
def test_silu_written_as_a_product_has_its_derivative(gate_first: bool) -> None:
    """s + x s (1 - s), with one more s (1 - s) where the gate itself is used as well."""

    def silu(graph: Graph, x: Any) -> Any:
        gate = graph.op("Sigmoid", x)
        return (gate * x if gate_first else x * gate) + gate

    points, weights = np.linspace(-4.0, 4.0, 9), np.arange(1.0, 10.0)
    gates = 1 / (1 + np.exp(-points))
    expected = weights * (gates + (points + 1) * gates * (1 - gates))
    np.testing.assert_allclose(run(silu, [points], {}, weights)["gradient"], expected, rtol=1e-5)


def test_attention_of_later_opsets_is_refused() -> None:
    graph = Graph()
    q, k, v = (graph.input(name, np.dtype(np.float32), (1, 2, 3, 4)) for name in "qkv")
    lengths = graph.constant(np.array([2]))
    with pytest.raises(Refusal, match="after opset 23"):
        LOWERINGS["Attention"](graph, q, k, v, None, None, None, lengths)
    with pytest.raises(Refusal, match="after opset 23"):
        LOWERINGS["Attention"](graph, q, k, v, left_window_size=1)
