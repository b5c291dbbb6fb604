"""What is written into a model's file, and what a client hands over instead."""

import time

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.compiler.evaluation import Array, stock
from whimbrel_lab.bench.models import BENCHES
from whimbrel_server.compiler import StepSpec, compile_step
from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.graph.export import EMBED_LIMIT, external_constants
from whimbrel_server.compiler.graph.ir import Graph, Value


def product(weight: Array, name: str) -> tuple[Graph, Value, Value]:
    """x `[2, n]` times the transpose of a frozen weight `[m, n]`: graph, input, result."""
    graph = Graph()
    x = graph.input("x", np.dtype(np.float32), (2, weight.shape[1]))
    return graph, x, x @ graph.constant(weight, name).transpose([1, 0])


def handed_over(model: onnx.ModelProto, frozen: dict[str, Array], x: Array) -> Array:
    """The result on stock onnxruntime, with the frozen weights from memory."""
    options = onnxruntime.SessionOptions()
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in frozen.values()]
    options.add_external_initializers(list(frozen), values)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    result: Array = session.run(None, {"x": x})[0]
    return result


def test_a_frozen_weight_can_be_left_to_the_client() -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(300, 400)).astype(np.float32), rng.normal(size=(2, 400)).astype(np.float32)
    graph, data, result = product(weight, "layer.weight")
    model = graph.export([data], {"y": result}, "step", external=True)
    assert model.ByteSize() < 1024
    assert {name: list(t.dims) for name, t in external_constants(model).items()} == {"layer.weight": [300, 400]}
    np.testing.assert_allclose(handed_over(model, {"layer.weight": weight}, x), x @ weight.T, rtol=1e-4, atol=1e-4)


def test_small_and_nameless_constants_stay_in_the_file() -> None:
    for name, shape in (("small", (4, 8)), ("", (100, 8))):
        graph, data, result = product(np.ones(shape, np.float32), name)
        model = graph.export([data], {"y": result}, "step", external=True)
        assert not external_constants(model)
        np.testing.assert_array_equal(stock(model)({"x": np.ones((2, 8), np.float32)})["y"], 8)


@pytest.mark.parametrize(("name", "advice"), [("layer.weight", "external=True"), ("", "no step may carry that")])
def test_a_constant_that_makes_the_step_large_is_refused(name: str, advice: str) -> None:
    graph, data, result = product(np.ones((1, EMBED_LIMIT // 4 + 1), np.float32), name)
    with pytest.raises(CompileError, match=f"large-constant: .*{advice}"):
        graph.export([data], {"y": result}, "step")


def test_compiling_takes_little_time() -> None:
    """A net of 67 nodes, half of them normalised; the best of three, as others use the machine."""
    model = BENCHES["mbv2"].build(0)
    spec, spent = StepSpec("cross_entropy", "sgd", 8), []
    for _ in range(3):
        start = time.process_time()
        compile_step(model, spec)
        spent.append(time.process_time() - start)
    assert min(spent) <= 2.0
