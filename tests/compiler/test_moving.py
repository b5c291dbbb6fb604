"""What cases of one node cannot show of operators that move numbers: unused results, places that the data say,
refusals, threads that add to one row, and embeddings that stay sparse."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, shape_inference

from tests.compiler.evaluation import Array, stock
from whimbrel_server.compiler import StepSpec, compile_step
from whimbrel_server.compiler.errors import CompileError, UnsupportedOperator
from whimbrel_server.compiler.grad import grad
from whimbrel_server.compiler.graph.ir import Graph, Value
from whimbrel_server.compiler.rules import LOWERINGS, indexing

FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)


def gradient_of_squares(x: Value, *results: Value) -> onnx.ModelProto:
    """A model of the gradient of half the sum of all squares, with output `dx`."""
    loss = x.like(0.0)
    for y in results:
        loss = loss + (y * y * 0.5).sum(range(y.rank), keepdims=False)
    return x.graph.export([x], {"dx": grad(loss, {"x": x})["x"]}, "gradient")


def numbers(*shape: int) -> Array:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("used", [[0], [1], [0, 2]])
def test_parts_that_nothing_uses_get_zeros(used: list[int]) -> None:
    graph = Graph()
    x = graph.input("x", FLOAT, [2, 7])
    parts = graph.multi("Split", x, graph.ints([2, 4, 1]), outputs=3, axis=1)
    values, expected = numbers(2, 7), np.zeros((2, 7), np.float32)
    for spots in (np.split(np.arange(7), [2, 6])[i] for i in used):
        expected[:, spots] = values[:, spots]
    found = stock(gradient_of_squares(x, *(parts[i] for i in used)))({"x": values})["dx"]
    np.testing.assert_allclose(found, expected)


def test_slices_of_one_tensor_are_joined_not_padded() -> None:
    graph = Graph()
    x = graph.input("x", FLOAT, [3, 6])
    model = gradient_of_squares(x, *(x.slice(1, start, start + 2) for start in (0, 2, 4)))
    assert {"Concat"} <= {node.op_type for node in model.graph.node} <= {"Concat", "Slice", "Mul"}
    np.testing.assert_allclose(stock(model)({"x": numbers(3, 6)})["dx"], numbers(3, 6), rtol=1e-6)


def test_slices_of_every_third_position_are_interleaved() -> None:
    graph = Graph()
    x = graph.input("x", FLOAT, [3, 6])
    model = gradient_of_squares(x, *(x.slice(1, start, 6, 3) for start in (0, 1, 2)))
    assert {"Concat"} <= {node.op_type for node in model.graph.node} <= {"Concat", "Slice", "Mul", "Reshape"}
    np.testing.assert_allclose(stock(model)({"x": numbers(3, 6)})["dx"], numbers(3, 6), rtol=1e-6)


@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_window_at_a_place_that_the_data_say(at: int) -> None:
    """The bounds `[at]` and `[at + 2]`, as exporters write `x[:, at : at + 2]`."""
    graph = Graph()
    x, place = graph.input("x", FLOAT, [2, 7]), graph.input("place", INT, [])
    end = (place + 2).reshape([1])
    window = LOWERINGS["Slice"](graph, x, place.reshape([1]), end, graph.ints([1]))
    assert isinstance(window, Value)
    assert window.shape == (2, 2)
    dx = grad((window * window * 0.5).sum([0, 1], keepdims=False), {"x": x})["x"]
    model = graph.export([x, place], {"y": window, "dx": dx}, "window")
    found = stock(model)({"x": numbers(2, 7), "place": np.array(at)})
    inside = np.isin(np.arange(7), [at, at + 1])
    np.testing.assert_array_equal(found["y"], numbers(2, 7)[:, inside])
    np.testing.assert_array_equal(found["dx"], numbers(2, 7) * inside)


def test_a_window_of_a_length_that_the_data_say_is_refused() -> None:
    graph = Graph()
    x, start, end = graph.input("x", FLOAT, [7]), graph.input("start", INT, [1]), graph.input("end", INT, [1])
    with pytest.raises(CompileError, match="dynamic-shape: Slice"):
        LOWERINGS["Slice"](graph, x, start, end)


def test_a_constant_mask_is_resolved() -> None:
    """x[mask], as exporters write it: NonZero, Transpose, GatherND."""
    graph = Graph()
    x, mask = graph.input("x", FLOAT, [2, 3]), np.array([[True, False, True], [False, False, True]])
    places = LOWERINGS["NonZero"](graph, graph.constant(mask))
    assert isinstance(places, Value)
    chosen = LOWERINGS["GatherND"](graph, x, places.transpose([1, 0]))
    assert isinstance(chosen, Value)
    np.testing.assert_array_equal(stock(gradient_of_squares(x, chosen))({"x": numbers(2, 3)})["dx"], numbers(2, 3) * mask)


def resized(**settings: object) -> Callable[[Value], Value]:
    def resize(x: Value) -> Value:
        scales = x.graph.constant(np.array([1.1, 2.0], np.float32))
        return x.graph.op("Resize", x, None, scales, **settings)

    return resize


def padded(mode: str) -> Callable[[Value], Value]:
    return lambda x: x.graph.op("Pad", x, x.graph.ints([0, 4, 0, 0]), mode=mode)


def multiplied(x: Value) -> Value:
    ones = x.graph.constant(np.ones((1, 3), np.float32))
    return x.graph.op("ScatterND", x, x.graph.constant(np.array([[1]])), ones, reduction="mul")


REFUSED: dict[str, tuple[Callable[[Value], Value], str]] = {
    "reflected too far": (padded("reflect"), "Pad .*reflects 4 of 3 positions"),
    "wrapped too far": (padded("wrap"), "Pad .*repeats 4 of 3 positions"),
    "resampled in place": (resized(mode="linear"), "Resize .*axis 0 keeps its size of 4 but not its scale"),
    "multiplied": (multiplied, "ScatterND .*reduction 'mul'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_why(name: str) -> None:
    graph = Graph()
    x = graph.input("x", FLOAT, [4, 3])
    operator, message = REFUSED[name]
    with pytest.raises(UnsupportedOperator, match=message):
        gradient_of_squares(x, operator(x))


@pytest.mark.parametrize("reduction", ["max", "min"])
def test_what_ties_for_the_extreme_shares_its_gradient(reduction: str) -> None:
    """Three operands of one result: the data and two updates."""
    graph = Graph()
    x = graph.input("x", FLOAT, [3])
    y = graph.op("ScatterElements", x.slice(0, 0, 1), graph.ints([0, 0]), x.slice(0, 1, 3), axis=0, reduction=reduction)
    values = np.array([2.0, 2.0, 2.0], np.float32)
    np.testing.assert_allclose(stock(gradient_of_squares(x, y))({"x": values})["dx"], [2 / 3] * 3, rtol=1e-6)


SIZES = st.integers(1, 6)


@given(
    before=st.tuples(SIZES, SIZES),
    after=st.tuples(SIZES, SIZES),
    mode=st.sampled_from(["nearest", "linear", "cubic"]),
    convention=st.sampled_from(["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]),
    rounding=st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]),
    by_scale=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_resize_and_its_gradient_are_transposes(
    before: tuple[int, int], after: tuple[int, int], mode: str, convention: str, rounding: str, by_scale: bool
) -> None:
    """<Resize(x), g> = <x, gradient(g)>, both on onnxruntime, whatever rounding the runtime's positions suffer."""
    assume(before != after)
    graph = Graph()
    x = graph.input("x", FLOAT, [1, 2, *before])
    attrs = {"mode": mode, "coordinate_transformation_mode": convention, "nearest_mode": rounding}
    scales = graph.constant(np.array([1, 1, *(1.0001 * b / a for a, b in zip(before, after, strict=True))], np.float32))
    sizes = graph.ints([1, 2, *after])
    y = graph.op("Resize", x, None, scales, **attrs) if by_scale else graph.op("Resize", x, None, None, sizes, **attrs)
    assume(not by_scale or all(b != a for a, b in zip(x.shape[2:], y.shape[2:], strict=True)))
    g = numbers(*y.shape)
    weighted = (y * graph.constant(g)).sum(range(4), keepdims=False)
    found = stock(graph.export([x], {"y": y, "dx": grad(weighted, {"x": x})["x"]}, "resize"))({"x": numbers(*x.shape)})
    np.testing.assert_allclose((found["dx"] * numbers(*x.shape)).sum(), (found["y"] * g).sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("copyable", [0, indexing.COPYABLE_ELEMENTS])
def test_threads_lose_no_addition(copyable: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,048 rows of 256 ones onto four rows: threads that shared one kernel would meet, if not in every run."""
    monkeypatch.setattr(indexing, "COPYABLE_ELEMENTS", copyable)
    graph = Graph()
    base, rows, updates = (
        graph.input("x", FLOAT, [8, 256]),
        graph.input("i", INT, [2048]),
        graph.input("u", FLOAT, [2048, 256]),
    )
    model = graph.export([base, rows, updates], {"y": indexing.scatter_add(base, rows, updates)}, "scatter")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    places = np.random.default_rng(2).integers(0, 4, 2048)
    feeds = {"x": np.zeros((8, 256), np.float32), "i": places, "u": np.ones((2048, 256), np.float32)}
    expected = np.repeat(np.bincount(places, minlength=8)[:, None], 256, axis=1)
    for _ in range(60):
        np.testing.assert_array_equal(session.run(None, feeds)[0], expected)


@pytest.mark.parametrize(("count", "width"), [(2048, 100), (7, 90_000), (3, 300_000), (1, 5)])
def test_no_scatter_adds_enough_to_be_shared_among_threads(count: int, width: int) -> None:
    """Onnxruntime shares from 210,000 elements on; what is a single row, it cannot share."""
    graph = Graph()
    base, rows, updates = (
        graph.input("x", FLOAT, [8, width]),
        graph.input("i", INT, [count]),
        graph.input("u", FLOAT, [count, width]),
    )
    value: Value = indexing.scatter_add(base, rows, updates)
    total = 0
    while value is not base:
        assert value.node is not None
        added = value.node[2].shape
        assert added[0] == 1 or added[0] * added[1] < 210_000
        total, value = total + added[0], value.node[0]
    assert total == count


WORDS, WIDTH, CLASSES = 300, 256, 3


def embedding_model(lookups: int) -> onnx.ModelProto:
    """Mean over all looked up rows, then a product; every input of words `[N, 40]` reads the same table."""
    tensors = {"table": numbers(WORDS, WIDTH), "w": numbers(WIDTH, CLASSES)}
    nodes = [helper.make_node("Gather", ["table", f"words{i}"], [f"rows{i}"]) for i in range(lookups)]
    nodes += [helper.make_node("Sum", [f"rows{i}" for i in range(lookups)], ["rows"])]
    nodes += [
        helper.make_node("ReduceMean", ["rows", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info(f"words{i}", TensorProto.INT64, ["N", 40]) for i in range(lookups)]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])
    initialisers = [numpy_helper.from_array(array, name) for name, array in {**tensors, "axes": np.array([1])}.items()]
    graph = helper.make_graph(nodes, "embedding", inputs, [result], initialisers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def looked_up_step(optimizer: str, lookups: int, symbolic: bool = False) -> tuple[onnx.ModelProto, dict[str, Array], Array]:
    """A step of 32 examples, its feeds, and the gradient of the table by hand (squared error of 0)."""
    step = compile_step(embedding_model(lookups), StepSpec("mse", optimizer, 32, ("table",), symbolic=symbolic))
    rng = np.random.default_rng(3)
    words = [rng.integers(0, 9, (32, 40)) for _ in range(lookups)]
    table, w = numbers(WORDS, WIDTH), numbers(WIDTH, CLASSES)
    shapes = {b.name: [32 if size < 0 else size for size in b.shape] for b in step.inputs}
    feeds = {b.name: np.full(shapes[b.name], b.default or 0.0, b.dtype) for b in step.inputs}
    feeds |= {"table": table, "@lr": np.full((), 0.5, np.float32), **{f"words{i}": rows for i, rows in enumerate(words)}}
    y = sum(table[rows] for rows in words).mean(axis=1) @ w
    dense = np.zeros_like(table)
    for rows in words:
        np.add.at(dense, rows, np.broadcast_to((2 * y / y.size @ w.T / 40)[:, None], (32, 40, WIDTH)))
    return step.model, feeds, dense


def tensors_of_the_tables_size(model: onnx.ModelProto) -> list[str]:
    """The operators that make a tensor of the table's shape."""
    inferred = shape_inference.infer_shapes(model, strict_mode=True).graph
    shapes = {i.name: [dim.dim_value for dim in i.type.tensor_type.shape.dim] for i in (*inferred.value_info, *inferred.output)}
    return [node.op_type for node in inferred.node for name in node.output if shapes.get(name) == [WORDS, WIDTH]]


@pytest.mark.parametrize("lookups", [1, 2])
def test_an_embeddings_update_makes_no_gradient_of_the_whole_table(lookups: int) -> None:
    """Each of the parts that one thread adds reads the table so far; nothing else is of its size."""
    model, feeds, dense = looked_up_step("sgd", lookups)
    parts = -(-32 * 40 // (indexing.UNSHARED_ELEMENTS // WIDTH))
    assert tensors_of_the_tables_size(model) == ["ScatterND"] * parts * lookups
    np.testing.assert_allclose(stock(model)(feeds)["table@new"], feeds["table"] - 0.5 * dense, rtol=1e-4, atol=1e-6)


def test_an_embedding_of_any_batch_adds_what_no_threads_share() -> None:
    model, feeds, dense = looked_up_step("sgd", 1, symbolic=True)
    assert "ScatterND" not in {node.op_type for node in model.graph.node}
    np.testing.assert_allclose(stock(model)(feeds)["table@new"], feeds["table"] - 0.5 * dense, rtol=1e-4, atol=1e-6)


def test_an_embedding_under_momentum() -> None:
    model, feeds, dense = looked_up_step("momentum", 1)
    np.testing.assert_allclose(stock(model)(feeds)["table@new"], feeds["table"] - 0.5 * dense, rtol=1e-4, atol=1e-6)
