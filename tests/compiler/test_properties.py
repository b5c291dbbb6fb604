"""Laws that every train step obeys, whatever the model; and what the compiler does with odd but valid models."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.compiler.evaluation import Array, stock
from whimbrel_lab.nets.models import digits_cnn, mlp
from whimbrel_server.compiler import StepSpec, TrainStep, compile_eval, compile_step, initial_parameters

CNN = digits_cnn(6)
SPEC = StepSpec("cross_entropy", "sgd", batch=4)
IMAGE = (1, 8, 8)


class Runner:
    """A compiled step of the CNN with its session, run from the initial weights."""

    def __init__(self, spec: StepSpec = SPEC, model: onnx.ModelProto = CNN) -> None:
        self.step: TrainStep = compile_step(model, spec)
        self.start = initial_parameters(model, self.step)
        self.data = self.step.inputs[0].name
        self._run = stock(self.step.model)

    def __call__(self, x: Array, label: Array, weight: Array, lr: float = 1.0, **more: Array) -> dict[str, Array]:
        hypers = {"@lr": np.full((), lr, np.float32)}
        feeds = {self.data: x, "@label": label, "@weight": weight, **hypers, **self.start, **more}
        result: dict[str, Array] = self._run(feeds)
        return result

    def gradients(self, x: Array, label: Array, weight: Array) -> dict[str, Array]:
        """By an SGD step of learning rate 1."""
        outputs = self(x, label, weight)
        return {name: self.start[name] - outputs[f"{name}@new"] for name in self.start}


RUN = Runner()


def examples(seed: int, count: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, *IMAGE)).astype(np.float32)
    return x, rng.integers(0, 10, count), np.ones(count, np.float32)


def assert_close(found: dict[str, Array], expected: dict[str, Array]) -> None:
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


@given(seed=st.integers(0, 2**32 - 1), mask=st.lists(st.booleans(), min_size=4, max_size=4))
@settings(max_examples=25, deadline=None)
def test_rows_of_weight_zero_change_nothing(seed: int, mask: list[bool]) -> None:
    x, label, _ = examples(seed, 4)
    other_x, other_label, _ = examples(seed + 1, 4)
    keep = np.array(mask)
    weight = keep.astype(np.float32)
    mixed = np.where(keep[:, None, None, None], x, other_x), np.where(keep, label, other_label)
    np.testing.assert_equal(RUN(*mixed, weight), RUN(x, label, weight))


def test_no_weight_at_all_is_a_step_of_zero() -> None:
    x, label, weight = examples(1, 4)
    outputs = RUN(x, label, 0 * weight)
    assert outputs["@loss"] == outputs["@loss_sum"] == outputs["@weight_sum"] == outputs["@correct_sum"] == 0.0
    np.testing.assert_equal({name: outputs[f"{name}@new"] for name in RUN.start}, RUN.start)


def test_only_ratios_of_weights_matter() -> None:
    """A mean, not a sum: tiny weights give the same loss and gradient."""
    x, label, _ = examples(9, 4)
    weight = np.array([1.0, 2.0, 0.5, 1.5], np.float32)
    assert RUN(x, label, weight * 1e-6)["@loss"] == pytest.approx(RUN(x, label, weight)["@loss"], rel=1e-5)
    assert_close(RUN.gradients(x, label, weight * 1e-6), RUN.gradients(x, label, weight))


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_batch_of_two_k_is_the_mean_of_two_of_k(seed: int) -> None:
    x, label, weight = examples(seed, 4)
    halves = [PAIR.gradients(x[k : k + 2], label[k : k + 2], weight[:2]) for k in (0, 2)]
    mean = {name: (halves[0][name] + halves[1][name]) / 2 for name in RUN.start}
    assert_close(RUN.gradients(x, label, weight), mean)


PAIR = Runner(replace(SPEC, batch=2))


def test_padded_last_batch_is_exact() -> None:
    """Two examples padded to four are the batch of two itself."""
    x, label, weight = examples(2, 2)
    padded = np.concatenate([x, 0 * x]), np.concatenate([label, 0 * label]), np.concatenate([weight, 0 * weight])
    assert_close(RUN.gradients(*padded), PAIR.gradients(x, label, weight))


@pytest.mark.parametrize("train", [("conv2*",), ("*.bias",), ("dense.weight", "conv1.weight")])
def test_freezing_never_changes_the_other_gradients(train: tuple[str, ...]) -> None:
    partly = Runner(replace(SPEC, train=train))
    batch = examples(3, 4)
    found, full = partly.gradients(*batch), RUN.gradients(*batch)
    assert set(found) | set(partly.step.frozen) == set(full)
    assert not set(found) & set(partly.step.frozen)
    assert_close(found, {name: full[name] for name in found})


def test_proximal_term_is_exact() -> None:
    pulled = Runner(replace(SPEC, proximal=True))
    batch, rng = examples(4, 4), np.random.default_rng(0)
    anchors = {n: a + rng.normal(size=a.shape).astype(np.float32) for n, a in RUN.start.items()}
    named = {f"{name}@anchor": array for name, array in anchors.items()}
    outputs = pulled(*batch, lr=0.5, **{"@mu": np.full((), 0.3, np.float32)}, **named)
    plain = RUN.gradients(*batch)
    for name, start in RUN.start.items():
        expected = start - 0.5 * (plain[name] + 0.3 * (start - anchors[name]))
        np.testing.assert_allclose(outputs[f"{name}@new"], expected, rtol=1e-4, atol=1e-6)


def test_momentum_follows_its_formula() -> None:
    moving = Runner(replace(SPEC, optimizer="momentum"))
    batch, rng = examples(5, 4), np.random.default_rng(0)
    velocity = {n: rng.normal(size=a.shape).astype(np.float32) for n, a in RUN.start.items()}
    named = {f"{name}@m": array for name, array in velocity.items()}
    outputs = moving(*batch, lr=0.5, **{"@momentum": np.full((), 0.7, np.float32)}, **named)
    plain = RUN.gradients(*batch)
    for name, start in RUN.start.items():
        moved = 0.7 * velocity[name] + plain[name]
        np.testing.assert_allclose(outputs[f"{name}@m@new"], moved, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(outputs[f"{name}@new"], start - 0.5 * moved, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("compiled", [compile_step, compile_eval])
def test_the_same_input_gives_the_same_bytes(compiled: Any) -> None:
    first, second = (compiled(digits_cnn(6), SPEC).model.SerializeToString() for _ in range(2))
    assert first == second
    other = compiled(digits_cnn(7), SPEC).model.SerializeToString()
    assert first == other, "trained weights must not be in the graph"


def test_step_and_evaluation_agree_on_parameters_and_metrics() -> None:
    x, label, weight = examples(8, 4)
    evaluation = compile_eval(CNN, SPEC)
    assert evaluation.parameters == RUN.step.parameters
    sums = stock(evaluation.model)({"image": x, "@label": label, "@weight": weight, **RUN.start})
    assert_close(RUN(x, label, weight), sums)


def test_plain_sgd_has_no_state_and_momentum_one_each() -> None:
    assert not [b for b in RUN.step.inputs if b.role == "state"]
    moving = compile_step(CNN, replace(SPEC, optimizer="momentum"))
    assert len([b for b in moving.inputs if b.role == "state"]) == len(moving.parameters) == 6


def text_model(body: str, opset: int = 17) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}, "custom" : 1]> {body}')


WEIGHTS = "float[3,2] w = {0.5, -1.0, 0.3, 0.8, -0.2, 0.1}, float[3] b = {0.1, 0.2, -0.3}"


@pytest.mark.parametrize("activation", ["Softmax <axis=1> (z)", "LogSoftmax (z)", "Sigmoid (z)"])
def test_final_activation_is_cut_for_cross_entropy(activation: str) -> None:
    body = f"net (float[N,2] x) => (float[N,3] z) <{WEIGHTS}> {{ z = Gemm <transB=1> (x, w, b) }}"
    bare = compile_step(text_model(body), SPEC)
    ended = body.replace("(float[N,3] z)", "(float[N,3] y)").replace("b) }", f"b)  y = {activation} }}")
    cut = compile_step(text_model(ended), SPEC)
    assert (bare.cut, cut.cut) == (None, "y")
    assert cut.model.graph.node == bare.model.graph.node


def test_squared_error_keeps_the_final_activation() -> None:
    body = f"net (float[N,2] x) => (float[N,3] y) <{WEIGHTS}> {{ z = Gemm <transB=1> (x, w, b) y = Sigmoid (z) }}"
    step = compile_step(text_model(body), StepSpec("mse", "sgd", 2))
    assert step.cut is None
    assert "Sigmoid" in step.operators
    assert "@correct_sum" not in [b.name for b in step.outputs]


def test_weights_the_loss_ignores_are_reported_and_dropped() -> None:
    body = (
        f"net (float[N,2] x) => (float[N,3] y, float[N,3] other) <{WEIGHTS}, float[3] stray = {{1.0, 2.0, 3.0}}, "
        "float[3] shift = {0.5, 0.5, 0.5}> {"
        "  z = Gemm <transB=1> (x, w, b)  whole = Cast <to=7> (shift)  part = Cast <to=1> (whole)"
        "  y = Add (z, part)  other = Mul (z, stray) }"
    )
    step = compile_step(text_model(body), replace(SPEC, output="y"))
    assert [p.name for p in step.parameters] == ["w", "b"]
    assert step.unused == ("stray", "shift")
    assert step.frozen == ("shift",)


def test_constant_nodes_are_weights_and_scalars_are_not() -> None:
    body = (
        "net (float[N,2] x) => (float[N,3] y) <float scale = {2.0}> {"
        "  w = Constant <value = float[2,3] {0.5, -1.0, 0.3, 0.8, -0.2, 0.1}> ()"
        "  z = MatMul (x, w)  y = Mul (z, scale) }"
    )
    model = text_model(body)
    step = compile_step(model, SPEC)
    assert [(p.name, p.shape) for p in step.parameters] == [("w", (2, 3))]
    np.testing.assert_array_equal(initial_parameters(model, step)["w"][0], np.float32([0.5, -1.0, 0.3]))
    named = compile_step(model, replace(SPEC, train=("scale",)))
    assert [(p.name, p.shape) for p in named.parameters] == [("scale", ())]


def renamed(model: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    """The model with an initialiser renamed."""
    for tensor in model.graph.initializer:
        tensor.name = new if tensor.name == old else tensor.name
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
    return model


def test_brackets_in_patterns_stand_for_themselves() -> None:
    body = f"net (float[N,2] x) => (float[N,3] y) <{WEIGHTS}> {{ y = Gemm <transB=1> (x, w, b) }}"
    model = renamed(renamed(text_model(body), "w", "layers[0].w"), "b", "layers0.b")
    step = compile_step(model, replace(SPEC, train=("layers[0]*",)))
    assert [p.name for p in step.parameters] == ["layers[0].w"]


def test_old_model_without_initialiser_inputs_converted() -> None:
    """Before IR 4 initialisers had to be graph inputs too; opset 9 is raised on reading."""
    model = text_model(f"net (float[N,2] x) => (float[N,3] y) <{WEIGHTS}> {{ y = Gemm <transB=1> (x, w, b) }}", 9)
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    step = compile_step(model, SPEC)
    assert [b.name for b in step.inputs if b.role == "data"] == ["x"]
    assert [p.name for p in step.parameters] == ["w", "b"]


def test_shape_arithmetic_is_resolved_at_compile_time() -> None:
    body = (
        "net (float[N,2,1] x) => (float[N,3] y) <float[2,3] w = {0.5, -1.0, 0.3, 0.8, -0.2, 0.1}, "
        "int64[1] zero = {0}, int64[1] rest = {-1}> {"
        "  s = Shape (x)  n = Gather (s, zero)  t = Concat <axis=0> (n, rest)  f = Reshape (x, t)  y = MatMul (f, w) }"
    )
    step = compile_step(text_model(body), SPEC)
    assert not {"Shape", "Gather", "Concat"} & set(step.operators)


def test_multilabel_axes_and_batch_dims() -> None:
    """Class axis 1 with an extra axis: a label and a weight for every position."""
    body = "net (float[N,2,5] x) => (float[N,3,5] y) <float[3,2,1] w = {0.5, -1.0, 0.3, 0.8, -0.2, 0.1}> { y = Conv (x, w) }"
    step = compile_step(text_model(body), SPEC)
    assert [b.shape for b in step.inputs if b.role in ("label", "weight")] == [(4, 5), (4, 5)]
    assert compile_step(mlp(1, [3, 2]), replace(SPEC, dims={"x": (4, 3)})).inputs[0].shape == (4, 3)


def test_equal_maxima_share_the_gradient() -> None:
    """The bias under a pool over constant data counts once a window, not once an element."""
    body = (
        "net (float[N,1,4,4] x) => (float[N,1,2,2] y) <float[1,1,1,1] k = {1.0}, float[1] b = {0.0}> {"
        "  c = Conv (x, k, b)  y = MaxPool <kernel_shape=[2,2], strides=[2,2]> (c) }"
    )
    model = text_model(body)
    run = Runner(StepSpec("mse", "sgd", 1), model)
    found = run.gradients(np.ones((1, 1, 4, 4), np.float32), np.zeros((1, 1, 2, 2), np.float32), np.ones(1, np.float32))
    np.testing.assert_allclose(found["b"], [2.0])  # d/db of the mean of (1 + b)^2
