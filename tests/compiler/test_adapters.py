"""Low-rank adapters: the graph with them, their gradients, and their merging into the published model."""

from dataclasses import replace

import numpy as np
import pytest

from tests.compiler.evaluation import Array, stock
from tests.compiler.nets import filled
from whimbrel_lab.nets.models import digits_cnn
from whimbrel_server.compiler import (
    Adapters,
    CompileError,
    StepSpec,
    TrainStep,
    compile_eval,
    compile_step,
    export_inference,
    initial_parameters,
)

NET = """
net (float[N,4,3,3] x) => (float[N,5] y)
<float[6,4,1,1] pointwise, float[6] shift, float[6,3,3,3] grouped, float[6,7] plain, float[8,7] torch_w, float[8] torch_b,
 float[9,8] turned, float[9,9] tied, float[9,9] across, float[9,5] last, float[2,2] tiny> {
  c = Conv <pads=[1,0,1,0], strides=[1,2]> (x, pointwise, shift)  r = Relu (c)
  g = Conv <group=2, pads=[1,1,1,1]> (r, grouped)  p = GlobalAveragePool (g)  f = Flatten (p)
  a = MatMul (f, plain)  b = Gemm <transB=1, alpha=0.5, beta=2.0> (a, torch_w, torch_b)  t = Tanh (b)
  w = Transpose <perm=[1,0]> (turned)  d = MatMul (t, w)  e = MatMul (d, tied)
  other = Transpose (tied)  h = MatMul (e, other)  i = MatMul (across, across)  j = MatMul (h, i)  y = MatMul (j, last) }
"""
ADAPTED = ["pointwise", "plain", "torch_w", "turned", "last"]
SPEC = StepSpec("cross_entropy", "sgd", batch=3, adapters=Adapters(rank=1, alpha=2.0))
FROZEN_A = replace(SPEC, adapters=Adapters(1, 2.0, freeze_a=True))
MODEL = filled(NET)


def batch(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, 4, 3, 3)).astype(np.float32)
    return {"x": x, "@label": rng.integers(0, 5, 3), "@weight": np.ones(3, np.float32)}


def moved(step: TrainStep, seed: int = 1) -> dict[str, Array]:
    """Parameters as after some training: none of them zero."""
    rng = np.random.default_rng(seed)
    start = initial_parameters(MODEL, step)
    return {name: array + rng.normal(0, 0.5, array.shape).astype(np.float32) for name, array in start.items()}


def test_every_product_by_a_frozen_weight_takes_an_adapter() -> None:
    """None for groups, for a weight used both ways round or no product's right side, or where it would not be smaller."""
    step = compile_step(MODEL, SPEC)
    assert [adapter.weight for adapter in step.adapters] == ADAPTED
    assert [p.name for p in step.parameters] == [f"{name}@{factor}" for name in ADAPTED for factor in ("lora_a", "lora_b")]
    shapes = {p.name: p.shape for p in step.parameters}
    assert shapes["torch_w@lora_a"] == (7, 1) and shapes["torch_w@lora_b"] == (1, 8)
    assert shapes["pointwise@lora_a"] == (4, 1) and shapes["turned@lora_a"] == (8, 1)
    assert set(ADAPTED) <= set(step.frozen)


@pytest.mark.parametrize("spec", [SPEC, FROZEN_A])
def test_merged_model_equals_the_adapted_graph(spec: StepSpec) -> None:
    evaluation, start = compile_eval(MODEL, spec), compile_step(MODEL, spec)
    feeds, params = batch(), moved(start)
    published = export_inference(MODEL, params, start)
    assert [node.op_type for node in published.graph.node] == [node.op_type for node in MODEL.graph.node]
    logits = np.float64(stock(published)({"x": feeds["x"]})["y"])
    assert np.abs(logits - stock(MODEL)({"x": feeds["x"]})["y"]).max() > 0.1, "the adapters must matter"
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    found = stock(evaluation.model)({**feeds, **params})
    assert found["@loss_sum"] == pytest.approx(-log_p[np.arange(3), feeds["@label"]].sum(), rel=1e-6)


def test_training_starts_at_the_shipped_model() -> None:
    step = compile_step(MODEL, SPEC)
    start = initial_parameters(MODEL, step)
    assert all((array == 0).all() == name.endswith("_b") for name, array in start.items())
    again = initial_parameters(MODEL, compile_step(MODEL, SPEC))
    np.testing.assert_equal(start, again)
    np.testing.assert_equal(stock(export_inference(MODEL, start, step))({"x": batch()["x"]}), stock(MODEL)({"x": batch()["x"]}))


def test_gradients_of_the_factors_follow_from_the_weights_own() -> None:
    """dA = scale dW B', dB = scale A' dW, with dW the gradient of the merged weight `[in, out]`."""
    step = compile_step(MODEL, SPEC)
    params = moved(step)
    whole = compile_step(export_inference(MODEL, params, step), replace(SPEC, adapters=None, train=tuple(ADAPTED)))
    feeds = {**batch(), "@lr": np.array(1.0, np.float32)}
    weights = initial_parameters(export_inference(MODEL, params, step), whole)
    after, merged_after = stock(step.model)({**feeds, **params}), stock(whole.model)({**feeds, **weights})
    for one in step.adapters:
        stored = weights[one.weight] - merged_after[f"{one.weight}@new"]
        dw = stored.reshape(stored.shape[:2]).T if one.transposed else stored
        expected = {one.a: one.scale * dw @ params[one.b].T, one.b: one.scale * params[one.a].T @ dw}
        for name, gradient in expected.items():
            np.testing.assert_allclose(params[name] - after[f"{name}@new"], gradient, rtol=1e-3, atol=1e-5, err_msg=name)


def test_a_frozen_factor_is_no_parameter() -> None:
    step = compile_step(MODEL, FROZEN_A)
    assert [p.name for p in step.parameters] == [f"{name}@lora_b" for name in ADAPTED]
    assert {f"{name}@lora_a" for name in ADAPTED} <= set(step.frozen)


def test_a_weight_that_is_trained_itself_takes_none() -> None:
    step = compile_step(MODEL, replace(SPEC, train=("last:1", "biases")))
    assert [p.name for p in step.parameters][:3] == ["shift", "torch_b", "last"]
    assert [adapter.weight for adapter in step.adapters] == ADAPTED[:-1]
    some = compile_step(MODEL, replace(SPEC, adapters=Adapters(1, 1.0, ("t*", "tied"))))
    assert [adapter.weight for adapter in some.adapters] == ["torch_w", "turned"]


def test_adapters_of_the_digits_cnn_learn() -> None:
    model = digits_cnn(2)
    step = compile_step(model, StepSpec("cross_entropy", "sgd", 8, adapters=Adapters(2, 2.0)))
    rng, params = np.random.default_rng(0), initial_parameters(model, step)
    feeds = {
        "image": rng.normal(size=(8, 1, 8, 8)).astype(np.float32),
        "@label": rng.integers(0, 10, 8),
        "@weight": np.ones(8, np.float32),
        "@lr": np.array(0.02, np.float32),
    }
    run, losses = stock(step.model), []
    for _ in range(20):
        outputs = run({**feeds, **params})
        losses.append(float(outputs["@loss"]))
        params = {name: outputs[f"{name}@new"] for name in params}
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    "adapters", [Adapters(0, 1.0), Adapters(1, 0.0), Adapters(1, float("nan")), Adapters(50, 1.0), Adapters(1, 1.0, ("shift",))]
)
def test_adapters_that_cannot_be_are_refused(adapters: Adapters) -> None:
    with pytest.raises(CompileError) as caught:
        compile_step(MODEL, replace(SPEC, adapters=adapters))
    assert caught.value.code == "adapters"


def test_factors_of_another_rank_are_refused() -> None:
    step = compile_step(MODEL, SPEC)
    with pytest.raises(CompileError, match="factors' shapes"):
        export_inference(MODEL, {"plain@lora_a": np.zeros((6, 2), np.float32)}, step)
    with pytest.raises(CompileError, match="no weight 'plain@lora_a'"):
        export_inference(MODEL, {"plain@lora_a": np.zeros((6, 1), np.float32)})
