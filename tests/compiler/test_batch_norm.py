"""Batch normalisation in training: by the batch's statistics, with the running ones moved beside."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from tests.compiler.evaluation import Array, directional_difference, in_double, reference, stock
from tests.compiler.nets import filled
from whimbrel_server.compiler import (
    CompileError,
    StepSpec,
    compile_eval,
    compile_step,
    export_inference,
    initial_parameters,
)

NET = """
net (float[N,2,4,3] x) => (float[N,3] y)
<float[4,2,3,3] k, float[4] n1_s, float[4] n1_b, float[4] n1_m, float[4] n1_v, float[4,3] w, float[3] n2_s, float[3] n2_b,
 float[3] n2_m, float[3] n2_v> {
  c = Conv <pads=[1,1,1,1]> (x, k)  n = BatchNormalization <epsilon=0.01, momentum=0.8> (c, n1_s, n1_b, n1_m, n1_v)
  r = Relu (n)  p = GlobalAveragePool (r)  f = Flatten (p)  z = MatMul (f, w)
  y = BatchNormalization (z, n2_s, n2_b, n2_m, n2_v) }
"""
MODEL = filled(NET)
SPEC = StepSpec("mse", "sgd", batch=5, batch_norm="train")
STATISTICS = ["n1_m", "n1_v", "n2_m", "n2_v"]


def batch(count: int = 5, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    x, label = rng.normal(1.0, 2.0, (count, 2, 4, 3)).astype(np.float32), rng.normal(size=(count, 3)).astype(np.float32)
    return {"x": x, "@label": label, "@weight": np.ones(count, np.float32)}


def normalised(x: Any, scale: Any, bias: Any, epsilon: float) -> tuple[Array, Array, Array]:
    """With the batch's mean, and the variance: biased to normalise with, unbiased to remember."""
    axes = (0, *range(2, x.ndim))
    column = (-1, *[1] * (x.ndim - 2))
    mean, variance = x.mean(axes), x.var(axes)
    unit = (x - mean.reshape(column)) / np.sqrt(variance + epsilon).reshape(column)
    return unit * scale.reshape(column) + bias.reshape(column), mean, x.var(axes, ddof=1)


def by_hand(params: Mapping[str, Array], feeds: Mapping[str, Array]) -> tuple[float, dict[str, Array]]:
    """Loss and new statistics."""
    values = {name: np.float64(array) for name, array in {**params, **feeds}.items()}
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(values["x"], [(0, 0), (0, 0), (1, 1), (1, 1)]), (3, 3), (2, 3))
    c = np.einsum("nchwij,mcij->nmhw", windows, values["k"])
    n, mean1, var1 = normalised(c, values["n1_s"], values["n1_b"], 0.01)
    z = np.maximum(n, 0).mean((2, 3)) @ values["w"]
    y, mean2, var2 = normalised(z, values["n2_s"], values["n2_b"], 1e-5)
    batch_statistics = {"n1_m": (mean1, 0.8), "n1_v": (var1, 0.8), "n2_m": (mean2, 0.9), "n2_v": (var2, 0.9)}
    new = {name: m * values[name] + (1 - m) * value for name, (value, m) in batch_statistics.items()}
    return float(((y - values["@label"]) ** 2).mean()), new


def test_statistics_move_and_the_loss_is_by_the_batch() -> None:
    step = compile_step(MODEL, SPEC)
    assert [one.name for one in step.running] == STATISTICS
    assert [p.name for p in step.parameters] == ["k", "n1_s", "n1_b", "w", "n2_s", "n2_b"]
    assert step.drop_ragged
    assert [b.name for b in step.outputs if b.role == "running"] == [f"{name}@new" for name in STATISTICS]
    feeds, start = batch(), initial_parameters(MODEL, step)
    outputs = stock(step.model)({**feeds, **start, "@lr": np.array(0.1, np.float32)})
    loss, statistics = by_hand(start, feeds)
    assert outputs["@loss"] == pytest.approx(loss, rel=1e-5)
    for name, value in statistics.items():
        np.testing.assert_allclose(outputs[f"{name}@new"], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_gradients_equal_finite_differences_of_the_computation_by_hand() -> None:
    """In float64 on the reference evaluator; and the same step in float32 on onnxruntime."""
    double = in_double(MODEL)
    step, single = compile_step(double, SPEC), compile_step(MODEL, SPEC)
    feeds, start = batch(), initial_parameters(double, step)
    wide = {name: np.float64(array) if array.dtype == np.float32 else array for name, array in feeds.items()}
    outputs = reference(step.model)({**wide, **start, "@lr": np.array(1.0)})
    narrow = {name: np.float32(array) for name, array in start.items()}
    found = stock(single.model)({**feeds, **narrow, "@lr": np.array(1.0, np.float32)})
    rng = np.random.default_rng(1)
    for one in step.parameters:
        gradient = start[one.name] - outputs[f"{one.name}@new"]
        direction = rng.normal(size=one.shape)
        moved: Any = lambda there, name=one.name: by_hand({**start, name: there}, feeds)[0]  # noqa: E731
        expected = directional_difference(moved, start[one.name], direction, 1e-6)
        assert (gradient * direction).sum() == pytest.approx(expected, rel=1e-5, abs=1e-7), one.name
        np.testing.assert_allclose(narrow[one.name] - found[f"{one.name}@new"], gradient, rtol=1e-3, atol=1e-5)


def test_a_layer_used_twice_moves_its_statistics_twice() -> None:
    """The runtime writes batch statistics into the buffers of its operands: neither use may see the other's."""
    body = "a = BatchNormalization (x, s_s, b, m, v_v)  t = Tanh (a)  y = BatchNormalization (t, s_s, b, m, v_v)"
    model = filled(f"net (float[N,3] x) => (float[N,3] y) <float[3] s_s, float[3] b, float[3] m, float[3] v_v> {{ {body} }}")
    step = compile_step(model, SPEC)
    start, x = initial_parameters(model, step), np.random.default_rng(3).normal(size=(5, 3)).astype(np.float32)
    feeds = {"x": x, "@label": np.zeros((5, 3), np.float32), "@weight": np.ones(5, np.float32)}
    outputs = stock(step.model)({**feeds, **start, "@lr": np.array(0.0, np.float32)})
    first, mean1, var1 = normalised(np.float64(x), start["s_s"], start["b"], 1e-5)
    second, mean2, var2 = normalised(np.tanh(first), start["s_s"], start["b"], 1e-5)
    assert outputs["@loss"] == pytest.approx((second**2).mean(), rel=1e-4)
    np.testing.assert_allclose(outputs["m@new"], 0.81 * start["m"] + 0.09 * mean1 + 0.1 * mean2, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(outputs["v_v@new"], 0.81 * start["v_v"] + 0.09 * var1 + 0.1 * var2, rtol=1e-4)


def two_layers(first: str, second: str) -> onnx.ModelProto:
    weights = ", ".join(f"float[3] {name}" for name in ("s_s", "b", "m", "v_v", "t_s", "c", "n", "u_v"))
    body = f"a = BatchNormalization (x, {first})  t = Tanh (a)  y = BatchNormalization (t, {second})"
    return filled(f"net (float[N,3] x) => (float[N,3] y) <{weights}> {{ {body} }}")


@pytest.mark.parametrize("second", ["t_s, c, m, u_v", "t_s, c, n, v_v", "t_s, m, n, u_v", "t_s, c, n, n"])
def test_statistics_that_a_file_stores_together_are_refused(second: str) -> None:
    """What starts equal must move apart; frozen it may stay together."""
    model = two_layers("s_s, b, m, v_v", second)
    with pytest.raises(CompileError) as caught:
        compile_step(model, SPEC)
    assert caught.value.code == "batch-norm"
    assert compile_step(model, replace(SPEC, batch_norm="frozen")).parameters
    assert compile_step(two_layers("s_s, b, m, v_v", "t_s, c, n, u_v"), SPEC).running


@pytest.mark.parametrize("mode", ["frozen", "train"])
def test_statistics_that_are_no_weights_stay(mode: Any) -> None:
    """Filled by a node, and large enough not to be folded: still constants, and equal ones at that."""
    body = "m = ConstantOfShape (size)  z = MatMul (x, w)  y = BatchNormalization (z, g_s, b, m, m)"
    weights = "int64[1] size = {100}, float[3,100] w, float[100] g_s, float[100] b"
    model = filled(f"net (float[N,3] x) => (float[N,100] y) <{weights}> {{ {body} }}")
    step = compile_step(model, replace(SPEC, batch_norm=mode))
    assert not step.running
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    start, y = initial_parameters(model, step), stock(model)({"x": x})["y"]
    feeds = {"x": x, "@label": np.zeros_like(y), "@weight": np.ones(5, np.float32), "@lr": np.array(0.0, np.float32)}
    assert stock(step.model)({**feeds, **start})["@loss"] == pytest.approx((y**2).mean(), rel=1e-5)


def test_evaluation_uses_the_running_statistics_as_the_published_model_does() -> None:
    step, evaluation = compile_step(MODEL, SPEC), compile_eval(MODEL, SPEC)
    feeds = batch()
    rng = np.random.default_rng(2)
    params = {n: a + rng.uniform(0, 0.2, a.shape).astype(np.float32) for n, a in initial_parameters(MODEL, step).items()}
    published = export_inference(MODEL, params)
    y = stock(published)({"x": feeds["x"]})["y"]
    sums = stock(evaluation.model)({**feeds, **params})
    assert sums["@loss_sum"] == pytest.approx(5 * ((y - feeds["@label"]) ** 2).mean(), rel=1e-5)
    assert [b.name for b in evaluation.inputs if b.role == "running"] == STATISTICS


def test_frozen_statistics_are_no_inputs_and_scale_and_bias_are_trained() -> None:
    step = compile_step(MODEL, replace(SPEC, batch_norm="frozen"))
    assert not step.running
    assert not step.drop_ragged
    assert {"n1_s", "n1_b"} <= {p.name for p in step.parameters}
    assert set(STATISTICS) <= set(step.frozen)


def test_below_the_first_trained_weight_statistics_stay() -> None:
    step = compile_step(MODEL, replace(SPEC, train=("w",)))
    assert [one.name for one in step.running] == ["n2_m", "n2_v"]
    head = compile_step(MODEL, replace(SPEC, train=("n2_b",)))
    assert [one.name for one in head.running] == ["n2_m", "n2_v"]


def test_statistics_may_stay_on_the_device() -> None:
    """As in FedBN (Li et al., ICLR 2021): every device keeps its own normalisation."""
    step = compile_step(MODEL, replace(SPEC, local=("n?_*",)))
    assert [p.name for p in step.parameters] == ["k", "w"]
    assert [p.name for p in step.local] == ["n1_s", "n1_b", "n2_s", "n2_b", *STATISTICS]
    assert not step.running
    assert step.drop_ragged
    outputs = stock(step.model)({**batch(), **initial_parameters(MODEL, step), "@lr": np.array(0.1, np.float32)})
    _, statistics = by_hand(initial_parameters(MODEL, step), batch())
    np.testing.assert_allclose(outputs["n1_m@new"], statistics["n1_m"], rtol=1e-5, atol=1e-6)


def test_one_number_per_channel_has_no_variance() -> None:
    with pytest.raises(CompileError) as caught:
        compile_step(MODEL, replace(SPEC, batch=1))
    assert caught.value.code == "batch-norm"


def test_a_model_exported_in_training_form_is_read_as_it_is_used() -> None:
    """`training_mode` in the file says how it was exported, not how a task trains it."""
    model = onnx.ModelProto()
    model.CopyFrom(MODEL)
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            node.attribute.append(onnx.helper.make_attribute("training_mode", 1))
            node.output.extend([f"{node.output[0]}_mean", f"{node.output[0]}_variance"])
    assert compile_step(model, SPEC).model.SerializeToString() == compile_step(MODEL, SPEC).model.SerializeToString()
    frozen = replace(SPEC, batch_norm="frozen")
    assert compile_step(model, frozen).model.SerializeToString() == compile_step(MODEL, frozen).model.SerializeToString()
