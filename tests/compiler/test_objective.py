"""What a step minimises and reports: activations that losses replace, metric sums, outputs that are losses themselves."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.compiler.evaluation import Array, stock
from tests.compiler.test_properties import text_model
from whimbrel_server.compiler import CompileError, StepSpec, TrainStep, compile_eval, compile_step, initial_parameters
from whimbrel_server.compiler.graph.ir import Graph
from whimbrel_server.compiler.training.losses import LOSSES
from whimbrel_server.compiler.training.objective import objective

W = "float[2,6] w = {0.5, -1.0, 0.3, 0.8, -0.2, 0.1, 1.5, -0.4, 0.9, -0.6, 0.7, 0.2}"
SPEC = StepSpec("cross_entropy", "sgd", 4)
RNG = np.random.default_rng(8)
X = RNG.normal(size=(4, 2)).astype(np.float32)
WEIGHT = np.array([1.0, 0.5, 0.0, 2.0], np.float32)


def ended_by(tail: str, shape: str) -> onnx.ModelProto:
    """x @ w as `z` `[4, 6]`, then `tail`, which makes `y` of `shape`."""
    shapes = "int64[3] square = {4, 3, 2}, int64[3] wide = {4, 2, 3}, int64[2] flat = {4, 6}"
    axes = "int64[1] one = {1}, int64[1] last = {2}"
    return text_model(f"net (float[4,2] x) => (float{shape} y) <{W}, {shapes}, {axes}> {{ z = MatMul (x, w) {tail} }}")


def loss_of(model: onnx.ModelProto, spec: StepSpec, label: Array, weight: Array) -> tuple[TrainStep, float]:
    step = compile_step(model, spec)
    lr = np.zeros((), np.float32)
    feeds = {"x": X, "@label": label, "@weight": weight, "@lr": lr, **initial_parameters(model, step)}
    return step, float(stock(step.model)(feeds)["@loss"])


# tail, shape, loss, node that is cut, axis of the classes in the shipped output
CUT: dict[str, tuple[str, str, str, str, int]] = {
    "softmax": ("y = Softmax (z)", "[4,6]", "cross_entropy", "y", 1),
    "identity behind": ("s = Softmax (z) y = Identity (s)", "[4,6]", "cross_entropy", "s", 1),
    "reshape behind": (
        "r = Reshape (z, wide) s = Softmax <axis=1> (r) y = Reshape (s, wide)",
        "[4,2,3]",
        "cross_entropy",
        "s",
        1,
    ),
    "classes moved to the front": (
        "r = Reshape (z, square) s = Softmax (r) y = Transpose <perm=[0,2,1]> (s)",
        "[4,2,3]",
        "cross_entropy",
        "s",
        1,
    ),
    "unit axis dropped": (
        "u = Unsqueeze (z, last) s = Softmax <axis=1> (u) y = Squeeze (s, last)",
        "[4,6]",
        "cross_entropy",
        "s",
        1,
    ),
    "tokens": ("r = Reshape (z, square) y = Softmax (r)", "[4,3,2]", "token_cross_entropy", "y", -1),
    "written out": (
        "m = ReduceMax <axes=[1]> (z) d = Sub (z, m) e = Exp (d) s = ReduceSum (e, one) y = Div (e, s)",
        "[4,6]",
        "cross_entropy",
        "y",
        1,
    ),
    "written out with a repeated sum": (
        "r = Reshape (z, square) e = Exp (r) t = ReduceSum <keepdims=0> (e, last) u = Unsqueeze (t, last)"
        " v = Expand (u, square) y = Div (e, v)",
        "[4,3,2]",
        "token_cross_entropy",
        "y",
        -1,
    ),
    "tokens moved": (
        "r = Reshape (z, wide) s = Softmax <axis=1> (r) y = Transpose <perm=[0,2,1]> (s)",
        "[4,3,2]",
        "token_cross_entropy",
        "s",
        -1,
    ),
}


@pytest.mark.parametrize("case", CUT)
def test_softmax_is_replaced_by_the_loss(case: str) -> None:
    """The loss is -log of the shipped model's probability, wherever the classes were when they were normalised."""
    tail, shape, loss, cut, axis = CUT[case]
    model = ended_by(tail, shape)
    probabilities = np.moveaxis(np.float64(stock(model)({"x": X})["y"]), axis, -1)
    label = RNG.integers(0, probabilities.shape[-1], probabilities.shape[:-1])
    weight = RNG.uniform(0.0, 2.0, label.shape).astype(np.float32)
    step, found = loss_of(model, replace(SPEC, loss=loss), label, weight)
    losses = -np.log(np.take_along_axis(probabilities, label[..., None], -1)[..., 0])
    assert step.cut == cut
    assert found == pytest.approx((weight * losses).sum() / weight.sum(), rel=1e-5)


@pytest.mark.parametrize(
    "tail",
    [
        "e = Exp (z) s = ReduceSum (z, one) y = Div (e, s)",
        "r = Reshape (z, even) e = Exp (r) t = ReduceSum <keepdims=0> (e, one) u = Unsqueeze (t, last) y = Div (e, u)",
    ],
)
def test_what_only_looks_like_a_softmax_stays(tail: str) -> None:
    """A sum of something else, and one over an axis that was put in the place of another."""
    more = "int64[3] even = {4, 2, 2}"
    model = text_model(
        f"net (float[4,2] x) => (float y) <float[2,4] w = {{0.5, -1.0, 0.3, 0.8, -0.2, 0.1, 1.5, -0.4}}, {more}, "
        f"int64[1] last = {{2}}, int64[1] one = {{1}}> {{ z = MatMul (x, w) {tail} }}"
    )
    assert compile_step(model, SPEC).cut is None


@pytest.mark.parametrize("tail", ["y = Sigmoid (z)", "s = Sigmoid (z) r = Reshape (s, wide) y = Reshape (r, flat)"])
def test_sigmoid_is_replaced_by_the_loss(tail: str) -> None:
    model = ended_by(tail, "[4,6]")
    p, label = np.float64(stock(model)({"x": X})["y"]), RNG.integers(0, 2, (4, 6)).astype(np.float32)
    step, found = loss_of(model, replace(SPEC, loss="bce_with_logits"), label, WEIGHT)
    losses = -(label * np.log(p) + (1 - label) * np.log(1 - p)).mean(axis=1)
    assert step.cut is not None
    assert found == pytest.approx((WEIGHT * losses).sum() / WEIGHT.sum(), rel=1e-5)


def test_cross_entropy_of_a_saturated_softmax_is_exact() -> None:
    """A probability that rounds to 0 still has its logarithm: the loss is computed from the logits."""
    model = ended_by("big = Constant <value_float = 100.0> () b = Mul (z, big) y = Softmax (b)", "[4,6]")
    logits = 100.0 * np.float64(X) @ np.reshape([0.5, -1, 0.3, 0.8, -0.2, 0.1, 1.5, -0.4, 0.9, -0.6, 0.7, 0.2], (2, 6))
    _, found = loss_of(model, SPEC, logits.argmin(axis=1), np.ones(4, np.float32))
    assert found == pytest.approx((logits.max(axis=1) - logits.min(axis=1)).mean(), rel=1e-4)


def test_other_losses_keep_the_activation() -> None:
    model = ended_by("y = Softmax (z)", "[4,6]")
    label = RNG.normal(size=(4, 6)).astype(np.float32)
    step, found = loss_of(model, replace(SPEC, loss="mse"), label, WEIGHT)
    errors = ((stock(model)({"x": X})["y"] - label) ** 2).mean(axis=1)
    assert step.cut is None
    assert found == pytest.approx((WEIGHT * errors).sum() / WEIGHT.sum(), rel=1e-5)


def test_a_vector_of_losses_is_weighted_and_needs_no_label() -> None:
    model = ended_by("a = Abs (z) y = ReduceMax <axes=[1], keepdims=0> (a)", "[4]")
    step = compile_step(model, replace(SPEC, loss="output"))
    assert [b.role for b in step.inputs] == ["data", "weight", "param", "hyper"]
    assert not step.drop_ragged
    feeds = {"x": X, "@weight": WEIGHT, "@lr": np.zeros((), np.float32), **initial_parameters(model, step)}
    losses = stock(model)({"x": X})["y"]
    assert stock(step.model)(feeds)["@loss"] == pytest.approx((WEIGHT * losses).sum() / WEIGHT.sum(), rel=1e-5)


def test_a_scalar_output_is_the_loss_of_the_batch() -> None:
    model = ended_by("q = Mul (z, z) y = ReduceMean <keepdims=0> (q)", "")
    step = compile_step(model, replace(SPEC, loss="output"))
    feeds = {"x": X, "@lr": np.ones((), np.float32), **initial_parameters(model, step)}
    loss = float(stock(model)({"x": X})["y"])
    found = stock(step.model)({**feeds, "@weight": WEIGHT})
    assert found["@loss"] == pytest.approx(loss, rel=1e-6)
    assert found["@loss_sum"] == pytest.approx(loss * WEIGHT.sum(), rel=1e-6)
    idle = stock(step.model)({**feeds, "@weight": 0 * WEIGHT})
    np.testing.assert_array_equal(idle["w@new"], feeds["w"])
    assert step.drop_ragged, "it sees padded rows"


def sums_of(loss: str, metrics: tuple[str, ...], output: Array, label: Array, weight: Array) -> dict[str, Array]:
    """The sums of one batch for an output that is itself the graph's input."""
    graph = Graph()
    value = graph.input("output", np.dtype(np.float32), output.shape)
    target = objective(value, StepSpec(loss, "sgd", len(output), metrics=metrics))
    model = graph.export([value, *target.labels, target.weight], target.sums, "sums")
    found: dict[str, Array] = stock(model)({"output": output, "@label": label, "@weight": weight})
    return found


@given(seed=st.integers(0, 2**32 - 1), soft=st.booleans())
@settings(max_examples=15, deadline=None)
def test_counts_of_classes(seed: int, soft: bool) -> None:
    rng = np.random.default_rng(seed)
    logits, ids = rng.normal(size=(9, 5)).astype(np.float32), rng.integers(0, 5, 9)
    weight = rng.uniform(0.0, 2.0, 9).astype(np.float32)
    label = (0.6 * np.eye(5)[ids] + 0.08).astype(np.float32) if soft else ids
    names = ("loss", "accuracy", "top2", "top3", "confusion")
    found = sums_of("soft_cross_entropy" if soft else "cross_entropy", names, logits, label, weight)
    order = np.argsort(-logits, axis=1)
    for count, name in ((1, "@correct_sum"), (2, "@top2_sum"), (3, "@top3_sum")):
        assert found[name] == pytest.approx((weight * (order[:, :count] == ids[:, None]).any(axis=1)).sum(), rel=1e-5)
    confusion = np.zeros((5, 5))
    np.add.at(confusion, (ids, order[:, 0]), weight)
    np.testing.assert_allclose(found["@confusion"], confusion, rtol=1e-5)
    assert found["@correct_sum"] == pytest.approx(np.trace(confusion), rel=1e-5)


def test_counts_of_tokens() -> None:
    logits, ids = RNG.normal(size=(2, 4, 5)).astype(np.float32), RNG.integers(0, 5, (2, 4))
    weight = RNG.uniform(0.0, 2.0, (2, 4)).astype(np.float32)
    found = sums_of("token_cross_entropy", ("top2", "confusion"), logits, ids, weight)
    order = np.argsort(-logits, axis=-1)
    assert found["@correct_sum"] == pytest.approx((weight * (order[..., 0] == ids)).sum(), rel=1e-5)
    assert found["@top2_sum"] == pytest.approx((weight * (order[..., :2] == ids[..., None]).any(-1)).sum(), rel=1e-5)
    assert np.trace(found["@confusion"]) == pytest.approx(found["@correct_sum"], rel=1e-5)


def test_counts_without_classes() -> None:
    output, label = (RNG.normal(size=(4, 3, 2)).astype(np.float32) for _ in range(2))
    errors = np.abs(output - label).mean(axis=(1, 2))
    for loss in ("mse", "l1", "huber"):
        assert sums_of(loss, ("mae",), output, label, WEIGHT)["@abs_error_sum"] == pytest.approx(
            (WEIGHT * errors).sum(), rel=1e-5
        )
    sides = (label > 0).astype(np.float32)
    hits = ((output > 0) == (sides > 0.5)).mean(axis=(1, 2))
    assert sums_of("bce_with_logits", (), output, sides, WEIGHT)["@correct_sum"] == pytest.approx(
        (WEIGHT * hits).sum(), rel=1e-5
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_and_batches_of_one(loss: str) -> None:
    """One example alone, and beside three rows of weight 0 with other data and labels: the same loss to the last digits."""
    shape = {"triplet": (4, 3, 5), "token_cross_entropy": (4, 3, 5), "output": (4,), "ctc": (4, 5, 3)}.get(loss, (4, 5))
    output = RNG.normal(size=shape).astype(np.float32)
    kind, graph = LOSSES[loss], Graph()
    value = graph.input("output", np.dtype(np.float32), shape)
    dtype, dims = kind.label(value) if kind.label else (np.dtype(np.float32), (4,))
    label = np.asarray(RNG.integers(0, 2, dims), dtype)
    weight = np.zeros(kind.positions(value), np.float32)
    weight[0] = 1.0
    padded, alone = (loss_alone(loss, output[:count], label[:count], weight[:count]) for count in (4, 1))
    assert padded == pytest.approx(alone, rel=1e-6)


def loss_alone(loss: str, output: Array, label: Array, weight: Array) -> float:
    graph = Graph()
    value = graph.input("output", np.dtype(np.float32), output.shape)
    target = objective(value, StepSpec(loss, "sgd", len(output)))
    model = graph.export([value, *target.labels, target.weight], {"loss": target.loss}, "loss")
    named = {"@label": label} if target.labels else {}
    return float(stock(model)({"output": output, "@weight": weight, **named})["loss"])


REFUSED: dict[str, tuple[str, Any, str]] = {
    "tokens under cross_entropy": (
        "class-axis",
        lambda: (ended_by("r = Reshape (z, square) y = Softmax (r)", "[4,3,2]"), SPEC),
        "token_cross_entropy",
    ),
    "classes merged afterwards": (
        "class-axis",
        lambda: (ended_by("r = Reshape (z, wide) s = Softmax <axis=1> (r) y = Reshape (s, flat)", "[4,6]"), SPEC),
        "merged",
    ),
    "softmax under a binary loss": (
        "class-axis",
        lambda: (ended_by("y = Softmax (z)", "[4,6]"), replace(SPEC, loss="bce_with_logits")),
        "use a cross-entropy",
    ),
    "no triplets": ("output", lambda: (ended_by("y = Identity (z)", "[4,6]"), replace(SPEC, loss="triplet")), r"\[N, 3, D\]"),
    "no embeddings": (
        "output",
        lambda: (ended_by("y = Reshape (z, wide)", "[4,2,3]"), replace(SPEC, loss="hard_triplet")),
        r"\[N, D\]",
    ),
    "a scalar under another loss": (
        "output",
        lambda: (ended_by("y = ReduceMean <keepdims=0> (z)", ""), replace(SPEC, loss="mse")),
        "batch 4 first",
    ),
    "smoothed regression": (
        "spec",
        lambda: (ended_by("y = Identity (z)", "[4,6]"), replace(SPEC, loss="mse", label_smoothing=0.1)),
        "cross-entropy",
    ),
    "smoothed away": ("spec", lambda: (ended_by("y = Identity (z)", "[4,6]"), replace(SPEC, label_smoothing=1.0)), "below 1"),
    "unknown metric": ("spec", lambda: (ended_by("y = Identity (z)", "[4,6]"), replace(SPEC, metrics=("f1",))), "'f1'"),
    "top of too few": ("spec", lambda: (ended_by("y = Identity (z)", "[4,6]"), replace(SPEC, metrics=("top6",))), "top6"),
    "classes without classes": (
        "spec",
        lambda: (ended_by("y = Identity (z)", "[4,6]"), replace(SPEC, loss="mse", metrics=("confusion",))),
        "confusion",
    ),
    "errors of classes": ("spec", lambda: (ended_by("y = Identity (z)", "[4,6]"), replace(SPEC, metrics=("mae",))), "mae"),
}


@pytest.mark.parametrize("compiled", [compile_step, compile_eval])
@pytest.mark.parametrize("case", REFUSED)
def test_refusal(case: str, compiled: Any) -> None:
    code, build, words = REFUSED[case]
    with pytest.raises(CompileError, match=words) as caught:
        compiled(*build())
    assert caught.value.code == code


def test_an_output_with_time_first_is_turned_round() -> None:
    label = RNG.integers(0, 3, (4, 2))
    weight = np.repeat(WEIGHT[:, None], 2, axis=1)
    spec = replace(SPEC, loss="token_cross_entropy")
    _, expected = loss_of(ended_by("y = Reshape (z, wide)", "[4,2,3]"), spec, label, weight)
    step, found = loss_of(ended_by("r = Reshape (z, wide) y = Transpose <perm=[1,0,2]> (r)", "[2,4,3]"), spec, label, weight)
    assert found == expected
    assert next(one.shape for one in step.inputs if one.role == "label") == (4, 2)


TIME_FIRST = {  # from x [N, T, 2] to z [T, N, 3], with N = T = 3
    "transpose": "t = Transpose <perm=[1,0,2]> (x) z = MatMul (t, w)",
    "merged and split": "t = Transpose <perm=[1,0,2]> (x) f = Reshape (t, merged) m = MatMul (f, w) z = Reshape (m, split)",
    "recurrent": "t = Transpose <perm=[1,0,2]> (x) h = RNN <hidden_size=3> (t, i, r) z = Squeeze (h, one)",
    "looked up": "p = ArgMax <axis=2, keepdims=0> (x) t = Transpose <perm=[1,0]> (p) z = Gather (w, t)",
    "still the batch's": "z = MatMul (x, w)",
}


@pytest.mark.parametrize("name", TIME_FIRST)
def test_time_first_is_known_also_where_there_are_as_many_steps_as_examples(name: str) -> None:
    """The label stays `[N, T]`: the same loss as with the axes turned by the model itself."""
    weights = f"float[2,3] w = {{0.5, -1.0, 0.3, 0.8, -0.2, 0.1}}, float[1,3,2] i = {{{'0.4, -0.7, ' * 2}1.0, 0.2}}"
    weights += f", float[1,3,3] r = {{{'0.3, -0.5, ' * 4}0.1}}, int64[1] one = {{1}}, int64[2] merged = {{9, 2}}"
    weights += ", int64[3] split = {3, 3, 3}"
    nodes, swap = TIME_FIRST[name], "y = Transpose <perm=[1,0,2]> (z)" if name != "still the batch's" else "y = Identity (z)"
    spec, rng = StepSpec("token_cross_entropy", "sgd", 3, train=("w", "r")), np.random.default_rng(2)
    batch = {"x": rng.normal(size=(3, 3, 2)), "@label": rng.integers(0, 3, (3, 3)), "@weight": rng.uniform(size=(3, 3))}
    losses = []
    for body in (nodes.replace("z =", "y ="), f"{nodes} {swap}"):
        model = text_model(f"net (float[3,3,2] x) => (float[3,3,3] y) <{weights}> {{ {body} }}")
        step = compile_step(model, spec)
        feeds = {**batch, **initial_parameters(model, step), "@lr": np.zeros(())}
        found = stock(step.model)({one.name: np.asarray(feeds[one.name], one.dtype) for one in step.inputs})
        losses.append(float(found["@loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
