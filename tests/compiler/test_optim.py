"""What optimisers promise beside their formulas: inputs and state by name, clipping that can be off, steps that are refused."""

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.compiler.evaluation import Array, stock
from tests.compiler.test_properties import text_model
from whimbrel_lab.nets.models import mlp
from whimbrel_server.compiler import StepSpec, TrainStep, compile_step, initial_parameters

MODEL = mlp(4, [5, 6, 3])
RNG = np.random.default_rng(3)
BATCH: dict[str, Array] = {
    "x": RNG.normal(size=(4, 5)).astype(np.float32),
    "@label": RNG.integers(0, 3, 4),
    "@weight": np.ones(4, np.float32),
}


def prepared(optimizer: str, **wants: Any) -> tuple[TrainStep, Any, dict[str, Array]]:
    """A step, its session, and a value for every input but the hyper-parameters without a default."""
    step = compile_step(MODEL, StepSpec("cross_entropy", optimizer, 4, **wants))
    feeds = {b.name: np.full(b.shape, b.default, b.dtype) for b in step.inputs if b.default is not None}
    return step, stock(step.model), {**feeds, **initial_parameters(MODEL, step), **BATCH}


def number(value: float) -> Array:
    return np.array(value, np.float32)


def test_inputs_and_state_of_adamw() -> None:
    step, _, _ = prepared("adamw", clip_norm=True)
    names = [parameter.name for parameter in step.parameters]
    states = ["@t", *(f"{name}@{suffix}" for name in names for suffix in ("m", "v"))]
    assert [b.name for b in step.inputs if b.role == "state"] == states
    assert [b.name for b in step.outputs if b.role == "state"] == [f"{name}@new" for name in states]
    assert {b.name: b.default for b in step.inputs if b.role == "hyper"} == {
        "@lr": None,
        "@beta1": 0.9,
        "@beta2": 0.999,
        "@eps": 1e-8,
        "@weight_decay": 0.01,
        "@clip_norm": 0.0,
    }
    assert all(b.default == 0.0 for b in step.inputs if b.role == "state")


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov", "adam"])
def test_weight_decay_is_an_input_only_on_request(optimizer: str) -> None:
    for wanted in (False, True):
        step, _, _ = prepared(optimizer, weight_decay=wanted)
        assert [b.default for b in step.inputs if b.name == "@weight_decay"] == [0.0] * wanted


def test_the_counter_counts_steps() -> None:
    _, run, feeds = prepared("adam")
    for expected in (1.0, 2.0, 3.0):
        feeds["@t"] = run({**feeds, "@lr": number(0.1)})["@t@new"]
        assert feeds["@t"] == expected


def test_first_step_of_adam_is_the_learning_rate_itself() -> None:
    """m/sqrt(v) is the gradient's sign at first: bias correction in float32 must not spoil the size of the step."""
    step, run, feeds = prepared("adam")
    outputs = run({**feeds, "@lr": number(0.1), "@eps": number(1e-12)})
    for parameter in step.parameters:
        moved = np.abs(outputs[f"{parameter.name}@new"] - feeds[parameter.name])
        np.testing.assert_allclose(moved[moved > 0], 0.1, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("limit", [0.0, 1e6, np.inf])
def test_clipping_can_be_off(optimizer: str, limit: float) -> None:
    (step, clipped, feeds), (_, plain, _) = prepared(optimizer, clip_norm=True), prepared(optimizer)
    found = clipped({**feeds, "@lr": number(0.5), "@clip_norm": number(limit)})
    expected = plain({name: feeds[name] for name in feeds if name != "@clip_norm"} | {"@lr": number(0.5)})
    for parameter in step.parameters:
        np.testing.assert_allclose(found[f"{parameter.name}@new"], expected[f"{parameter.name}@new"], rtol=1e-5, atol=1e-7)


CLIPPED = prepared("sgd", clip_norm=True)


@given(scale=st.floats(0.01, 100.0), limit=st.floats(1e-3, 1e3))
@settings(max_examples=20, deadline=None)
def test_the_norm_over_all_weights_is_bounded(scale: float, limit: float) -> None:
    """A step of rate 1 is the gradient: its length is the smaller of the limit and its own, its direction its own."""
    step, run, feeds = CLIPPED
    feeds = {**feeds, "x": feeds["x"] * np.float32(scale), "@lr": number(1.0)}

    def gradient(clip: float) -> Array:
        outputs = run({**feeds, "@clip_norm": number(clip)})
        parts = [np.float64(feeds[p.name]) - np.float64(outputs[f"{p.name}@new"]) for p in step.parameters]
        return np.concatenate([part.ravel() for part in parts])

    whole, cut = gradient(0.0), gradient(limit)
    norm = np.linalg.norm(whole)
    assert np.linalg.norm(cut) == pytest.approx(min(norm, limit), rel=1e-3, abs=1e-5)
    np.testing.assert_allclose(cut, whole * min(1.0, limit / norm), rtol=1e-2, atol=1e-5 * max(1.0, norm))


def pooled_first() -> onnx.ModelProto:
    """Whose first operator drops numbers: a runtime's pooling may drop a NaN as well."""
    return text_model(
        "net (float[4,1,6] x) => (float[4,2] y) <float[3,2] w = {0.5, -1.0, 0.3, 0.8, -0.2, 0.1}> {"
        "  p = MaxPool <kernel_shape=[2], strides=[2]> (x)  f = Flatten (p)  y = MatMul (f, w) }"
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", range(6))
def test_data_that_are_not_finite_show_in_the_loss(bad: float, place: int) -> None:
    model = pooled_first()
    step = compile_step(model, StepSpec("cross_entropy", "sgd", 4))
    x = RNG.normal(size=(4, 1, 6)).astype(np.float32)
    feeds = {"x": x, "@label": np.array([0, 1, 1, 0]), "@weight": np.ones(4, np.float32), "@lr": number(0.1)}
    feeds |= initial_parameters(model, step)
    run = stock(step.model)
    sound = run(feeds)
    assert sound["@loss"] == pytest.approx(sound["@loss_sum"] / 4, rel=1e-6)
    x[2, 0, place] = bad
    assert not np.isfinite(run(feeds)["@loss"])


def test_missing_numbers_that_the_model_fills_in_are_no_fault() -> None:
    model = text_model(
        "net (float[4,3] x) => (float[4,2] y) <float[3,2] w = {0.5, -1.0, 0.3, 0.8, -0.2, 0.1}, float zero = {0.0}> {"
        "  m = IsNaN (x)  f = Where (m, zero, x)  y = MatMul (f, w) }"
    )
    step = compile_step(model, StepSpec("cross_entropy", "sgd", 4))
    x = RNG.normal(size=(4, 3)).astype(np.float32)
    x[0, 0] = np.nan
    feeds = {"x": x, "@label": np.array([0, 1, 1, 0]), "@weight": np.ones(4, np.float32), "@lr": number(0.1)}
    outputs = stock(step.model)({**feeds, **initial_parameters(model, step)})
    assert np.isfinite(outputs["@loss"]) and np.isfinite(outputs["w@new"]).all()
