"""One graph for any batch is, at each batch, the graph compiled for it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from tests.compiler.evaluation import Array, stock
from tests.compiler.test_properties import text_model
from whimbrel_lab.nets.models import digits_cnn, mlp
from whimbrel_server.compiler import CompileError, StepSpec, TrainStep, compile_step, initial_parameters
from whimbrel_server.compiler.graph.ir import Graph, Value
from whimbrel_server.compiler.graph.symbolic import generalise

FLOAT = np.dtype(np.float32)
WORDS = (
    "net (int64[N,6] x) => (float[N,6,3] y) <float[11,4] table, float[4,3] w, float[4] scale, float[4] bias> {"
    "  e = Gather (table, x)  n = LayerNormalization (e, scale, bias)  y = MatMul (n, w) }"
)
NORMALISED = (
    "net (float[N,2,5,5] x) => (float[N,3] y) <"
    "  float[4,2,3,3] k, float[4] s, float[4] b, float[4] m, float[4] v, float[4,3] w> {"
    "  c = Conv (x, k)  n = BatchNormalization (c, s, b, m, v)  r = Relu (n)  p = GlobalAveragePool (r)"
    "  f = Flatten (p)  y = MatMul (f, w) }"
)


def filled(body: str) -> onnx.ModelProto:
    """The model with positive random numbers for the weights that its text declares."""
    model, rng = text_model(body), np.random.default_rng(0)
    for info in model.graph.value_info:
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        array = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
    del model.graph.value_info[:]
    return model


STEPS: dict[str, tuple[Callable[[], onnx.ModelProto], StepSpec]] = {
    "dense": (lambda: mlp(1, [7, 5, 3]), StepSpec("cross_entropy", "adam", 6, clip_norm=True)),
    "as wide as the batches tried": (lambda: mlp(1, [37, 41, 43]), StepSpec("mse", "sgd", 32)),
    "convolutions": (lambda: digits_cnn(1), StepSpec("cross_entropy", "momentum", 8, proximal=True)),
    "words": (lambda: filled(WORDS), StepSpec("token_cross_entropy", "sgd", 4)),
    "batch statistics": (lambda: filled(NORMALISED), StepSpec("cross_entropy", "sgd", 8, batch_norm="train")),
}


def feeds(step: TrainStep, model: onnx.ModelProto) -> dict[str, Array]:
    rng, start = np.random.default_rng(1), initial_parameters(model, step)
    drawn: dict[str, Callable[..., Any]] = {
        "i": lambda shape: rng.integers(0, 3, shape),
        "f": lambda shape: rng.normal(size=shape),
    }
    found = {b.name: np.asarray(drawn[b.dtype.kind](b.shape), b.dtype) for b in step.inputs}
    defaults = {b.name: np.full(b.shape, b.default, b.dtype) for b in step.inputs if b.default is not None}
    return {**found, **defaults, **start}


@pytest.mark.parametrize("name", STEPS)
def test_each_batch_gives_what_its_own_graph_gives(name: str) -> None:
    build, spec = STEPS[name]
    model = build()
    run = stock(compile_step(model, replace(spec, symbolic=True)).model)
    for batch in (1, 5, 32):
        if batch == 1 and spec.batch_norm == "train":
            continue  # no variance of one example
        static = compile_step(model, replace(spec, batch=batch))
        values = feeds(static, model)
        found, expected = run(values), stock(static.model)(values)
        for key in expected:
            np.testing.assert_allclose(found[key], expected[key], rtol=1e-5, atol=1e-6, err_msg=f"{key} at {batch}")


def compiled(build: Callable[[Graph, Value, int], Value]) -> Callable[[int], onnx.ModelProto]:
    """A graph from x `[batch, 4]`, for any batch."""

    def at(batch: int) -> onnx.ModelProto:
        graph = Graph()
        x = graph.input("x", FLOAT, (batch, 4))
        return graph.export([x], {"y": build(graph, x, batch)}, "step")

    return at


def constant(array: Any) -> Callable[[Graph, Value, int], Value]:
    """x plus a constant that depends on the batch."""
    return lambda graph, x, n: x + graph.constant(np.asarray(array(n), FLOAT))


FORMULAS: dict[str, Callable[[Graph, Value, int], Value]] = {
    "a size that grows": lambda g, x, n: x.reshape([2 * n, 2]),
    "two sizes that grow": lambda g, x, n: x.reshape([1, n, 1, 4]).expand([n, n, 2, 4]),
    "a bound that grows": lambda g, x, n: x.slice(0, n // n, n),
    "sizes beside one that is free": lambda g, x, n: g.op("Reshape", x, g.ints([n, -1, 2])),
    "a share of the batch": constant(lambda n: 3.0 / n),
    "a multiple of the batch": constant(lambda n: 0.25 * n),
    "an unbiased variance": constant(lambda n: 6 * n / (6 * n - 1)),
    "a repeated constant": constant(lambda n: np.tile([1.0, 2.0, 3.0, 4.0], (n, 1))),
    "rows counted": lambda g, x, n: x + g.constant(10 + 3 * np.arange(n).reshape(n, 1)).cast(FLOAT),
    "nothing that grows": lambda g, x, n: x * 2.0,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas(name: str) -> None:
    at = compiled(FORMULAS[name])
    run = stock(generalise(at, 8))
    for batch in (1, 2, 9):
        x = np.random.default_rng(0).normal(size=(batch, 4)).astype(np.float32)
        expected = stock(at(batch))({"x": x})["y"]
        found = run({"x": x})["y"]
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-6)


REFUSED: dict[str, tuple[str, Callable[[Graph, Value, int], Value]]] = {
    "attribute": ("'axis' of Concat", lambda g, x, n: g.op("Concat", x, x, axis=n % 3 % 2)),
    "form": ("nodes for different batches", lambda g, x, n: g.op("Abs", x if n % 3 == 1 else g.op("Exp", x))),
    "operator": ("stands where", lambda g, x, n: g.op("Relu" if n % 3 == 1 else "Abs", x)),
    "square": ("no linear function", lambda g, x, n: x.reshape([1, -1]).expand([n * n, 4 * n])),
    "noise": ("not known", constant(lambda n: np.random.default_rng(n).normal(size=(n, 1)))),
    "odd number": ("not known", constant(lambda n: np.sqrt(n))),
    "piece": ("batch of 1", lambda g, x, n: x.slice(0, n - 4, n)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    reason, build = REFUSED[name]
    with pytest.raises(CompileError, match=f"symbolic-batch: .*{reason}"):
        generalise(compiled(build), 8)


def test_a_batch_that_no_input_tells_is_refused() -> None:
    with pytest.raises(CompileError, match="symbolic-batch: no input has the batch"):
        generalise(of_fixed_input, 8)


def of_fixed_input(batch: int) -> onnx.ModelProto:
    graph = Graph()
    x = graph.input("x", FLOAT, (2, 3))
    return graph.export([x], {"y": x.reshape([1, 6]).expand([batch, 6])}, "step")


def test_a_model_with_a_batch_of_its_own_is_refused() -> None:
    body = WORDS.replace("int64[N,6]", "int64[4,6]").replace("float[N,6,3]", "float[4,6,3]")
    with pytest.raises(CompileError, match=r"symbolic-batch: the model takes no batch of \d+: batch:"):
        compile_step(filled(body), replace(STEPS["words"][1], symbolic=True))


def test_given_shapes_grow_where_the_batch_stands() -> None:
    """A symbol that is the batch, a size without name; but no size that only happens to be as large."""
    body = """net (float[batch,8] x, float[3,batch,8] state, float[2,rest,8] memory, float[3,4,8] fixed) => (float[batch,2] y)
      <float[8,2] w> { s = ReduceMax <axes=[0], keepdims=0> (state)  m = ReduceMax <axes=[0], keepdims=0> (memory)
        f = ReduceMax <axes=[0, 1], keepdims=0> (fixed)  a = Sum (x, s, m, f)  y = MatMul (a, w) }"""
    model = filled(body)
    model.graph.input[2].type.tensor_type.shape.dim[1].ClearField("dim_param")
    dims = {"state": (3, 4, 8), "memory": (2, 4, 8), "fixed": (3, 4, 8)}
    step = compile_step(model, StepSpec("mse", "sgd", 4, dims=dims, symbolic=True))
    assert [b.shape for b in step.inputs if b.role == "data"] == [(-1, 8), (3, -1, 8), (2, -1, 8), (3, 4, 8)]
