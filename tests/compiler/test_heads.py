"""Another number of classes at the end of a model."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from tests.compiler.evaluation import stock
from tests.compiler.nets import filled
from whimbrel_lab.nets.models import digits_cnn, mlp
from whimbrel_server.compiler import (
    Adapters,
    CompileError,
    StepSpec,
    compile_eval,
    compile_step,
    export_inference,
    initial_parameters,
)

SPEC = StepSpec("cross_entropy", "sgd", batch=4, head=7)
# Bodies that end in a head of 5 classes, with the names of the head's weights; x is [N,3,4,4], f [N,3].
HEADS = {
    "gemm": ("float[3,5] w, float[5] b", "y = Gemm (f, w, b)", ["w", "b"]),
    "gemm-turned": ("float[5,3] w, float[1,5] b", "y = Gemm <transB=1> (f, w, b)", ["w", "b"]),
    "gemm-one-bias": ("float[3,5] w, float[1] b", "y = Gemm (f, w, b)", ["w"]),
    "matmul": ("float[3,5] w", "y = MatMul (f, w)", ["w"]),
    "matmul-add": ("float[3,5] w, float[5] b", "z = MatMul (f, w) y = Add (b, z)", ["w", "b"]),
    "transposed": ("float[5,3] w, float[5] b", "t = Transpose (w) z = MatMul (f, t) y = Add (z, b)", ["w", "b"]),
    "softmax": ("float[3,5] w, float[5] b", "z = Gemm (f, w, b) i = Identity (z) y = Softmax (i)", ["w", "b"]),
    "conv": (
        "float[5,3,1,1] w, float[5] b",
        "c = Conv (x, w, b) r = Relu (c) g = GlobalAveragePool (r) y = Flatten (g)",
        ["w", "b"],
    ),
    "conv-add": (
        "float[5,3,1,1] w, float[5,1,1] b",
        "c = Conv (x, w) d = Add (c, b) g = GlobalAveragePool (d) y = Flatten (g)",
        ["w", "b"],
    ),
    "conv-transposed": (
        "float[3,5,2,2] w, float[5] b",
        "c = ConvTranspose <strides=[2,2]> (x, w, b) g = GlobalAveragePool (c) y = Flatten (g)",
        ["w", "b"],
    ),
    "softmax-written-out": (
        "float[3,5] w, float[5] b, float cool = {2.0}",
        "one = Constant <value_ints=[1]> () z = Gemm (f, w, b) v = Mul (cool, z) m = ReduceMax <axes=[1]> (v)"
        " d = Sub (v, m) e = Exp (d) s = ReduceSum (e, one) y = Div (e, s)",
        ["w", "b"],
    ),
    "gemm-with-a-result": ("float[3,5] w, float[3,1] v", "c = MatMul (f, v) y = Gemm (f, w, c)", ["w"]),
    "tied": (
        "float[5,3] w",
        "t = Transpose (w) z = MatMul (f, t) e = MatMul (z, w) s = Add (f, e) v = Transpose (w) y = MatMul (s, v)",
        ["w.head"],
    ),
}


def net(weights: str, body: str, opset: int = 17) -> onnx.ModelProto:
    start = "p = GlobalAveragePool (x)  f = Flatten (p)"
    return filled(f"net (float[N,3,4,4] x) => (float[N,5] y) <{weights}> {{ {start} {body} }}", opset)


@pytest.mark.parametrize("name", HEADS)
def test_a_new_head_trains_and_is_published(name: str) -> None:
    weights, body, expected = HEADS[name]
    model = net(weights, body)
    step, evaluation = compile_step(model, SPEC), compile_eval(model, SPEC)
    start = initial_parameters(model, step)
    assert set(expected) <= set(start)
    rng = np.random.default_rng(0)
    x, label = rng.normal(size=(4, 3, 4, 4)).astype(np.float32), np.array([6, 0, 5, 6])
    feeds = {"x": x, "@label": label, "@weight": np.ones(4, np.float32)}
    outputs = stock(step.model)({**feeds, **start, "@lr": np.array(0.1, np.float32)})
    trained = {one: outputs[f"{one}@new"] for one in start}
    assert all(np.any(trained[one] != start[one]) for one in expected)
    published = export_inference(model, trained, step)
    onnx.checker.check_model(published, full_check=True)
    assert [dim.dim_value for dim in published.graph.output[0].type.tensor_type.shape.dim][1:] == [7]
    shown = np.float64(stock(published)({"x": x})["y"])
    logits = np.log(shown) if name.startswith("softmax") else shown
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    sums = stock(evaluation.model)({**feeds, **trained})
    assert sums["@loss_sum"] == pytest.approx(-log_p[np.arange(4), label].sum(), rel=1e-5)


def test_a_published_head_is_a_plain_model_again() -> None:
    model = digits_cnn(1)
    step = compile_step(model, SPEC)
    published = export_inference(model, initial_parameters(model, step), step)
    again = compile_step(published, replace(SPEC, head=None))
    assert [(p.name, p.shape) for p in again.parameters] == [(p.name, p.shape) for p in step.parameters]
    assert published.opset_import == model.opset_import


def test_a_new_head_is_trained_whatever_else_is() -> None:
    model = mlp(1, [20, 30, 5])
    head = ["dense2.weight", "dense2.bias"]
    assert [p.name for p in compile_step(model, replace(SPEC, train=("dense1.bias",))).parameters] == ["dense1.bias", *head]
    adapted = compile_step(model, replace(SPEC, adapters=Adapters(1, 1.0)))
    assert [p.name for p in adapted.parameters] == [*head, "dense1.weight@lora_a", "dense1.weight@lora_b"]
    personal = compile_step(model, replace(SPEC, local=("dense2*",)))
    assert [p.name for p in personal.local] == head


def test_new_weights_are_he_normal_and_always_the_same() -> None:
    model = mlp(1, [400, 5])
    spec = replace(SPEC, head=50)
    start = initial_parameters(model, compile_step(model, spec))
    assert start["dense1.weight"].shape == (50, 400)
    assert start["dense1.weight"].std() == pytest.approx(np.sqrt(2 / 400), rel=0.05)
    assert not start["dense1.bias"].any()
    np.testing.assert_equal(start, initial_parameters(model, compile_step(model, spec)))


def test_a_model_of_before_ir_4_takes_a_head() -> None:
    model = net("float[3,5] w, float[5] b", "y = Gemm (f, w, b)", opset=9)
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    step = compile_step(model, SPEC)
    onnx.checker.check_model(export_inference(model, initial_parameters(model, step), step), full_check=True)


REFUSED = {
    "no product": ("float[3] b", "y = Add (f, b)"),
    "two of them": ("float[3,5] w, float[5] b, float[5] c", "z = MatMul (f, w) v = Add (z, b) u = Mul (v, c) y = Identity (u)"),
    "groups": ("float[6,1,1,1] w", "c = Conv <group=3> (x, w) g = GlobalAveragePool (c) y = Flatten (g)"),
    "a fixed size": ("float[3,5] w", "z = MatMul (f, w) s = Constant <value_ints=[-1,5]> () y = Reshape (z, s)"),
    "no weight": ("float[3,5] w", "h = MatMul (f, w) t = Transpose (h) y = MatMul (h, t)"),
    "weights alone": ("float[4,5] v", "y = Identity (v)"),
    "a reshaped weight": ("float[15] w", "s = Constant <value_ints=[3,5]> () v = Reshape (w, s) y = MatMul (f, v)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_head_is_refused(case: str) -> None:
    with pytest.raises(CompileError) as caught:
        compile_step(net(*REFUSED[case]), SPEC)
    assert caught.value.code == "head"


def test_a_head_without_classes_is_refused() -> None:
    with pytest.raises(CompileError, match="at least 1"):
        compile_step(mlp(1, [3, 2]), replace(SPEC, head=0))
