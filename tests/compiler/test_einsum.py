"""Einsum as matrix products against NumPy's, for any equation without a repeated index; and the one that is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.compiler.evaluation import stock
from whimbrel_server.compiler.errors import UnsupportedOperator
from whimbrel_server.compiler.grad import grad
from whimbrel_server.compiler.graph.ir import Graph
from whimbrel_server.compiler.rules import LOWERINGS

SIZES = {"a": 2, "b": 3, "c": 1, "d": 4}


@st.composite
def equations(draw: st.DrawFn) -> str:
    terms = [draw(st.permutations(list(SIZES)))[: draw(st.integers(0, 3))] for _ in range(draw(st.integers(1, 3)))]
    seen = sorted(set().union(*terms))
    kept = draw(st.permutations(seen))[: draw(st.integers(0, len(seen)))]
    return ",".join("".join(term) for term in terms) + "->" + "".join(kept)


@given(equation=equations(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_result_and_gradient_equal_numpy(equation: str, seed: int) -> None:
    """The result is linear in each operand, so that its slope in a direction is the result with the direction in its place."""
    rng, graph = np.random.default_rng(seed), Graph()
    terms = equation.split("->")[0].split(",")
    shapes = [[SIZES[label] for label in term] for term in terms]
    arrays = [np.asarray(rng.normal(size=shape), np.float32) for shape in shapes]
    inputs = {f"x{i}": graph.input(f"x{i}", np.dtype(np.float32), array.shape) for i, array in enumerate(arrays)}
    y = LOWERINGS["Einsum"](graph, *inputs.values(), equation=equation)
    expected = np.einsum(equation, *arrays)
    weights = np.asarray(rng.normal(size=expected.shape), np.float32)
    product = y * graph.constant(weights)
    slopes = grad(product.sum(range(product.rank), keepdims=False), inputs)
    model = graph.export(list(inputs.values()), {"y": y, **{f"{name}@grad": slope for name, slope in slopes.items()}}, "einsum")
    found = stock(model)(dict(zip(inputs, arrays, strict=True)))
    np.testing.assert_allclose(found["y"], expected, rtol=1e-4, atol=1e-4)
    for i, array in enumerate(arrays):
        direction = rng.normal(size=array.shape)
        moved = np.einsum(equation, *arrays[:i], direction, *arrays[i + 1 :])
        assert (found[f"x{i}@grad"] * direction).sum() == pytest.approx((moved * weights).sum(), rel=1e-3, abs=1e-3)


def test_a_repeated_index_is_refused_where_it_would_be_trained() -> None:
    graph = Graph()
    x = graph.input("x", np.dtype(np.float32), (3, 3))
    y = LOWERINGS["Einsum"](graph, x, equation="ii->")
    np.testing.assert_allclose(stock(graph.export([x], {"y": y}, "trace"))({"x": np.eye(3, dtype=np.float32)})["y"], 3.0)
    with pytest.raises(UnsupportedOperator, match="an index is repeated"):
        grad(y, {"x": x})
