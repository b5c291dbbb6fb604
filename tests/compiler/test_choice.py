"""What is trained, where it goes, and what is left alone."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.compiler.evaluation import Array, stock
from tests.compiler.nets import filled
from whimbrel_server.compiler import (
    Adapters,
    CompileError,
    StepSpec,
    TrainStep,
    UnsupportedOperator,
    compile_eval,
    compile_step,
    export_inference,
    frozen_weights,
    initial_parameters,
)

NET = """
net (float[N,6] x) => (float[N,4] y)
<float[6,5] w1, float[5] b1, float[5] g_s, float[5] g_b, float[5,5] w2, float[5] b2, float[5,4] w3, float[4] b3> {
  a = Gemm (x, w1, b1)  l = LayerNormalization (a, g_s, g_b)  t = Tanh (l)
  c = Gemm (t, w2, b2)  r = Add (c, t)  y = Gemm (r, w3, b3) }
"""
MODEL = filled(NET)
NAMES = ["w1", "b1", "g_s", "g_b", "w2", "b2", "w3", "b3"]
SPEC = StepSpec("cross_entropy", "momentum", batch=4)


def feeds(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    data: dict[str, Array] = {"x": rng.normal(size=(4, 6)).astype(np.float32), "@label": rng.integers(0, 4, 4)}
    return data | {"@weight": np.ones(4, np.float32)}


def stepped(model: onnx.ModelProto, step: TrainStep) -> dict[str, Array]:
    """Outputs of one step from the start, every scalar at its default or 0.1."""
    start = initial_parameters(model, step)
    filled_in = {
        b.name: np.full(b.shape, 0.1 if b.default is None else b.default, b.dtype)
        for b in step.inputs
        if b.role in ("state", "hyper")
    }
    anchors = {b.name: start[b.name.removesuffix("@anchor")] for b in step.inputs if b.role == "anchor"}
    found: dict[str, Array] = stock(step.model)({**feeds(), **start, **filled_in, **anchors})
    return found


WHOLE = stepped(MODEL, compile_step(MODEL, SPEC))


@given(chosen=st.sets(st.sampled_from(NAMES), min_size=1), local=st.sets(st.sampled_from(NAMES)))
@settings(max_examples=15, deadline=None)
def test_neither_freezing_nor_keeping_back_changes_what_others_do(chosen: set[str], local: set[str]) -> None:
    kept = tuple(sorted(local & chosen))
    if set(kept) == chosen:
        return
    step = compile_step(MODEL, replace(SPEC, train=tuple(sorted(chosen)), local=kept))
    assert {p.name for p in step.parameters} == chosen - local
    assert {p.name for p in step.local} == set(kept)
    found = stepped(MODEL, step)
    for name in chosen:
        np.testing.assert_allclose(found[f"{name}@new"], WHOLE[f"{name}@new"], rtol=1e-5, atol=1e-6, err_msg=name)


def test_local_weights_have_a_role_of_their_own() -> None:
    """Inputs and outputs pair by position inside a role; what stays on the device has state, and no anchor."""
    spec = replace(SPEC, local=("*3", "w1"), proximal=True)
    step = compile_step(MODEL, spec)
    inputs = {role: [b.name for b in step.inputs if b.role == role] for role in ("param", "local", "state", "anchor")}
    outputs = {role: [b.name for b in step.outputs if b.role == role] for role in ("param", "local", "state")}
    assert inputs["local"] == ["w1", "w3", "b3"]
    assert inputs["param"] == [p.name for p in step.parameters] == ["b1", "g_s", "g_b", "w2", "b2"]
    assert inputs["anchor"] == [f"{name}@anchor" for name in inputs["param"]]
    assert set(inputs["state"]) == {f"{name}@m" for name in NAMES}
    for role, names in outputs.items():
        assert names == [f"{name}@new" for name in inputs[role]]
    assert [p.name for p in compile_eval(MODEL, spec).local] == inputs["local"]
    assert list(initial_parameters(MODEL, step)) == [*inputs["param"], *inputs["local"]]


@pytest.mark.parametrize(("local", "why"), [(("w9",), "matches nothing"), (("*",), "leaves no trained weight")])
def test_local_patterns_that_make_no_sense_are_refused(local: tuple[str, ...], why: str) -> None:
    with pytest.raises(CompileError, match=why):
        compile_step(MODEL, replace(SPEC, local=local))


@pytest.mark.parametrize("asks", [{"freeze": "auto"}, {"train": ("auto",)}])
def test_the_part_behind_an_operator_without_gradient_is_given_up_if_asked(asks: dict[str, Any]) -> None:
    body = (
        "a = Gemm (x, early, bias)  square = Constant <value_ints=[-1,2,2]> ()  s = Reshape (a, square)  h = Det (s)"
        "  column = Constant <value_ints=[-1,1]> ()  i = Reshape (h, column)  j = Mul (i, side)  y = MatMul (j, late)"
    )
    weights = "float[6,4] early, float[4] bias, float[6] side, float[6,4] late"
    model = filled(f"net (float[N,6] x) => (float[N,4] y) <{weights}> {{ {body} }}")
    with pytest.raises(UnsupportedOperator) as caught:
        compile_step(model, SPEC)
    step = compile_step(model, replace(SPEC, **asks))
    assert tuple(p.name for p in step.parameters) == caught.value.trainable == ("side", "late")
    assert step.frozen_automatically == ("early", "bias")


def test_weights_that_a_file_only_gives_the_shape_of_are_trained_by_exact_name() -> None:
    body = "net (float[N,6] x) => (float[N,4] y) <int64[2] size = {6, 4}> { w = ConstantOfShape (size) y = MatMul (x, w) }"
    model = filled(body)
    with pytest.raises(CompileError, match="selects none"):
        compile_step(model, SPEC)
    step = compile_step(model, replace(SPEC, train=("w",)))
    assert [(p.name, p.shape) for p in step.parameters] == [("w", (6, 4))]
    assert not initial_parameters(model, step)["w"].any()
    trained = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    published = export_inference(model, {"w": trained}, step)
    np.testing.assert_allclose(stock(published)({"x": feeds()["x"]})["y"], feeds()["x"] @ trained, rtol=1e-5, atol=1e-6)


def test_half_precision_is_trained_in_single_and_published_in_half() -> None:
    model = filled("net (float[N,6] x) => (float[N,4] y) <float[6,4] w> { y = MatMul (x, w) }")
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]).astype(np.float16)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
    for info in [*model.graph.input, *model.graph.output]:
        info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    step = compile_step(model, SPEC)
    start = initial_parameters(model, step)
    assert start["w"].dtype == np.float32
    published = export_inference(model, {"w": start["w"] + 1}, step)
    assert published.graph.initializer[0].data_type == onnx.TensorProto.FLOAT16
    x = feeds()["x"].astype(np.float16)
    np.testing.assert_allclose(stock(published)({"x": x})["y"], x @ (weight + np.float16(1)), rtol=2e-2, atol=2e-2)
    head = compile_step(model, replace(SPEC, head=9))
    assert export_inference(model, initial_parameters(model, head), head).graph.initializer[0].dims == [6, 9]


def test_frozen_weights_are_left_to_the_client_where_asked() -> None:
    model = filled(
        "net (float[N,64] x) => (float[N,4] y) <float[64,64] w1, float[64,4] w2> { h = MatMul (x, w1) y = MatMul (h, w2) }"
    )
    spec = replace(SPEC, adapters=Adapters(4, 1.0, ("w1",), freeze_a=True), train=("w2",), external=True)
    step = compile_step(model, spec)
    given = frozen_weights(model, step)
    assert [one.name for one in step.external] == list(given) == ["w1", "w1@lora_a"]
    np.testing.assert_array_equal(given["w1"], onnx.numpy_helper.to_array(model.graph.initializer[0]))
    whole = compile_step(model, replace(spec, external=False))
    np.testing.assert_array_equal(
        given["w1@lora_a"], next(onnx.numpy_helper.to_array(t) for t in whole.model.graph.initializer if t.name == "w1@lora_a")
    )


def test_a_name_that_an_adapter_needs_is_refused() -> None:
    """Frozen weights may be called as they like, trained ones not; nor may a frozen one take a factor's name."""
    body = "net (float[N,6] x) => (float[N,4] y) <float[6,6] w, float[6,4] v> { h = MatMul (x, w) y = MatMul (h, v) }"
    model = filled(body)
    model.graph.initializer[1].name = model.graph.node[1].input[1] = "w@lora_a"
    assert [p.name for p in compile_step(model, replace(SPEC, train=("w",))).parameters] == ["w"]
    for spec in (replace(SPEC, train=("*lora_a",)), replace(SPEC, adapters=Adapters(1, 1.0, ("w",)))):
        with pytest.raises(CompileError) as caught:
            compile_step(model, spec)
        assert caught.value.code == "reserved-name"
