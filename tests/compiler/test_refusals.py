"""What the compiler refuses, each with its code and a message that helps."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from tests.compiler.test_properties import SPEC, WEIGHTS, renamed, text_model
from whimbrel_lab.nets.models import mlp
from whimbrel_server.compiler import (
    CompileError,
    StepSpec,
    UnsupportedOperator,
    compile_step,
    export_inference,
    initial_parameters,
)

PLAIN = f"net (float[N,2] x) => (float[N,3] y) <{WEIGHTS}> {{ y = Gemm <transB=1> (x, w, b) }}"
THREE_LAYERS = (
    "net (float[N,2,4,4] x) => (float[N,3] y) <float[N,2,4,4] n, float[2,2,1,1] early = {1.0, 2.0, 3.0, 4.0}, "
    "float[2] side = {1.0, 1.0}, float[2,3] late = {0.5, -1.0, 0.3, 0.8, -0.2, 0.1}> {"
    "  c = Conv (x, early) n = custom.Sharpen (c)  p = GlobalAveragePool (n)  f = Flatten (p)"
    "  g = Mul (f, side)  y = MatMul (g, late) }"
)


def named(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model with its only foreign node called `name`."""
    for node in model.graph.node:
        if node.domain == "custom":
            node.name = name
    return model


def test_unknown_operator_names_itself_the_node_the_weight_and_the_suffix() -> None:
    with pytest.raises(UnsupportedOperator) as caught:
        compile_step(named(text_model(THREE_LAYERS), "norm1"), SPEC)
    assert (caught.value.code, caught.value.op, caught.value.node) == ("unsupported-operator", "custom.Sharpen", "norm1")
    assert caught.value.trainable == ("side", "late")
    assert caught.value.path == ("norm1", "c", "early")
    for part in (
        "Sharpen",
        "'norm1' <- 'c' <- 'early'",
        "train=['side', 'late']",
        "2 weights of 8 numbers in 2 nodes",
        "train=['last:2']",
    ):
        assert part in str(caught.value)


def test_the_suggested_suffix_compiles() -> None:
    for train in (("side", "late"), ("last:2",)):
        step = compile_step(text_model(THREE_LAYERS), replace(SPEC, train=train))
        assert [p.name for p in step.parameters] == ["side", "late"]
        assert step.frozen == ("early",)


def test_an_attribute_without_a_gradient_is_refused_with_its_reason() -> None:
    body = (
        "net (float[N,1,6] x) => (float[N,2] y) <float[1,1,1] k = {2.0}, float[2,2] w = {0.5, -1.0, 0.3, 0.8}> {"
        "  c = Conv (x, k) p = MaxPool <kernel_shape=[3], strides=[3], storage_order=1> (c)"
        "  f = Flatten (p)  y = MatMul (f, w) }"
    )
    with pytest.raises(UnsupportedOperator, match=r"MaxPool .*storage_order.*train=\['w'\]"):
        compile_step(text_model(body), SPEC)


def changed(body: str, old: str, new: str, opset: int = 17) -> onnx.ModelProto:
    assert old in body
    return text_model(body.replace(old, new), opset)


def ended_by(last: str, opset: int = 17, before: str = "") -> onnx.ModelProto:
    return changed(PLAIN, "y = Gemm <transB=1> (x, w, b)", f"z = Gemm <transB=1> (x, w, b) {before} y = {last}", opset)


def with_external_weight() -> onnx.ModelProto:
    model = mlp(1, [2, 3])
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "w.bin")
    return model


def with_if() -> onnx.ModelProto:
    return text_model(
        f"net (float[N,2] x, bool c) => (float[N,3] y) <{WEIGHTS}> {{ z = Gemm <transB=1> (x, w, b)"
        "  y = If (c) <then_branch = t () => (float[N,3] a) { a = Identity (z) },"
        "  else_branch = e () => (float[N,3] d) { d = Neg (z) }> }"
    )


REFUSED: dict[str, tuple[str, Any, StepSpec]] = {
    "unknown loss": ("spec", lambda: text_model(PLAIN), replace(SPEC, loss="hinge")),
    "unknown optimizer": ("spec", lambda: text_model(PLAIN), replace(SPEC, optimizer="lion")),
    "empty batch": ("spec", lambda: text_model(PLAIN), replace(SPEC, batch=0)),
    "fixed batch": ("batch", lambda: changed(PLAIN, "float[N,2] x", "float[1,2] x"), SPEC),
    "open size": ("dims", lambda: changed(PLAIN, "float[N,2] x", "float[N,M] x"), SPEC),
    "dims of no input": ("dims", lambda: text_model(PLAIN), replace(SPEC, dims={"z": (4, 2)})),
    "wrong dims": ("shape-inference", lambda: text_model(PLAIN), replace(SPEC, dims={"x": (4, 9)})),
    "reserved name": ("reserved-name", lambda: renamed(text_model(PLAIN), "w", "w@new"), SPEC),
    "no such weight": ("nothing-to-train", lambda: text_model(PLAIN), replace(SPEC, train=("v*",))),
    "no such output": ("output", lambda: text_model(PLAIN), replace(SPEC, output="z")),
    "one class": ("class-axis", lambda: mlp(1, [2, 1]), SPEC),
    "softmax over the batch": (
        "class-axis",
        lambda: changed(PLAIN, "y = Gemm <transB=1> (x, w, b)", "z = Gemm <transB=1> (x, w, b) y = Softmax <axis=0> (z)"),
        SPEC,
    ),
    "old opset": ("opset", lambda: text_model(PLAIN, opset=6), SPEC),
    "operator newer than the target": ("opset", lambda: changed(PLAIN, "Gemm <transB=1> (x, w, b)", "Swish (x)", 24), SPEC),
    "type without shape inference": ("shape-inference", lambda: ended_by("Cast <to=23> (z)", 23), SPEC),
    "text constant": ("constant", lambda: ended_by('Constant <value_string = "a"> ()'), SPEC),
    "output without a gradient": (
        "unsupported-operator",
        lambda: ended_by("Add (r, c)", before="r, m = Dropout (z) c = Cast <to=1> (m)"),
        SPEC,
    ),
    "external data": ("external-data", with_external_weight, SPEC),
    "foreign operator of unknown type": (
        "shape-inference",
        lambda: ended_by("Relu (s)", before="s = custom.Sharpen (z)"),
        SPEC,
    ),
    "branch that depends on data": ("unsupported-operator", with_if, SPEC),
    "no model": ("model-invalid", onnx.ModelProto, SPEC),
    "dangling input": ("model-invalid", lambda: changed(PLAIN, "(x, w, b)", "(x, w, nowhere)"), SPEC),
    "data-dependent shape": (
        "dynamic-shape",
        lambda: changed(PLAIN, "y = Gemm <transB=1> (x, w, b)", "n = NonZero (x) m = Cast <to=1> (n) y = Gemm (m, w)"),
        SPEC,
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusal(case: str) -> None:
    code, model, spec = REFUSED[case]
    with pytest.raises(CompileError) as caught:
        compile_step(model(), spec)
    assert caught.value.code == code
    assert str(caught.value).startswith(f"{code}: ")


def test_several_outputs_ask_for_a_choice() -> None:
    body = f"net (float[N,2] x) => (float[N,3] y, float[N,3] z) <{WEIGHTS}> {{ z = Gemm <transB=1> (x, w, b) y = Neg (z) }}"
    with pytest.raises(CompileError, match=r"\['y', 'z'\]"):
        compile_step(text_model(body), SPEC)
    assert compile_step(text_model(body), replace(SPEC, output="z")).parameters


def test_parameters_of_another_model_are_refused() -> None:
    step = compile_step(mlp(1, [2, 4, 3]), SPEC)
    with pytest.raises(CompileError, match=r"dense2\.weight"):
        initial_parameters(mlp(1, [2, 3]), step)
    with pytest.raises(CompileError, match=r"\(3, 4\), not \(3, 2\)"):
        export_inference(mlp(1, [2, 4, 3]), {"dense2.weight": np.zeros((3, 2), np.float32)})
    with pytest.raises(CompileError, match="no weight 'dense9'"):
        export_inference(mlp(1, [2, 3]), {"dense9": np.zeros(2, np.float32)})
