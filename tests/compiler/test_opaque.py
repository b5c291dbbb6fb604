"""Nodes that are kept as they are: they still compute what they did, and no gradient passes them unseen."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest

from tests.compiler.evaluation import Array, stock
from tests.compiler.reading import as_read, on_onnxruntime, parsed, random_feeds, sources
from whimbrel_server.compiler import StepSpec, compile_step
from whimbrel_server.compiler.errors import CompileError, UnsupportedOperator
from whimbrel_server.compiler.grad import grad

W = "float[4,3] w = {0.5, -1.0, 0.3, 0.8, -0.2, 0.1, 0.4, 0.9, -0.7, 0.2, 0.6, -0.3}"
KEPT: dict[str, tuple[str, dict[str, int], str]] = {
    "foreign operator": ("com.microsoft.QuickGelu", {"com_microsoft": 1}, "z = com.microsoft.QuickGelu <alpha=1.5> (h)"),
    "foreign operator without its middle outputs": (
        "com.microsoft.SkipLayerNormalization",
        {"com_microsoft": 1},
        'g = Constant <value = float[4] {1.0, 2.0, 1.0, 2.0}> () n, "", "", t = com.microsoft.SkipLayerNormalization (h, h, g)'
        " z = Add (n, t)",
    ),
    "classical preprocessing": (
        "ai.onnx.ml.Scaler",
        {"ai_onnx_ml": 1},
        "z = ai.onnx.ml.Scaler <offset=[0.5], scale=[2.0]> (h)",
    ),
    "branch that depends on data": (
        "If",
        {},
        "m = ReduceSum <keepdims=0> (h) o = Constant <value = float {0.0}> () p = Greater (m, o)"
        " z = If (p) <then_branch = a () => (float[2,4] u) { u = Neg (h) }, "
        " else_branch = b () => (float[2,4] u) { u = Add (h, m) }>",
    ),
    "loop": (
        "Loop",
        {},
        "n = Constant <value = int64 {3}> () c = Constant <value = bool {1}> () z = Loop (n, c, h) <"
        " body = a (int64 i, bool k, float[2,4] s) => (bool k2, float[2,4] s2) { k2 = Identity (k) s2 = Add (s, h) }>",
    ),
    "collected": (
        "Loop",
        {},
        "n = Constant <value = int64 {1}> () c = Constant <value = bool {1}> () e = SequenceEmpty () q = Loop (n, c, e) <"
        " body = a (int64 i, bool k, seq(float[2,4]) s) => (bool k2, seq(float[2,4]) s2)"
        " { k2 = Identity (k) s2 = SequenceInsert (s, h) }> z = ConcatFromSequence <axis = 0> (q)",
    ),
    "sequence": (
        "SequenceAt",
        {},
        "q = SequenceConstruct (h, h) m = ReduceSum <keepdims=0> (h) o = Constant <value = float {0.0}> () p = Greater (m, o)"
        " i = Cast <to=7> (p) z = SequenceAt (q, i)",
    ),
}


def model_of(case: str) -> onnx.ModelProto:
    _, domains, nodes = KEPT[case]
    return parsed(f"(float[2,4] x) => (float[2,3] y) <{W}> {{ h = Identity (x) {nodes} y = MatMul (z, w) }}", **domains)


@pytest.mark.parametrize("case", KEPT)
def test_a_node_without_a_weight_behind_it_is_kept(case: str) -> None:
    model = model_of(case)
    source, feeds = sources(model, ["w"], batch=2), random_feeds(model)
    np.testing.assert_allclose(as_read(source, model, feeds), stock(model)(feeds)["y"], rtol=1e-5, atol=1e-6)
    loss = (source.output * source.output).sum([0, 1], keepdims=False)
    gradients = grad(loss, source.weights)
    graph = source.graph.export([*source.data, *source.weights.values()], {"g@": gradients["w"]}, "step")
    assert KEPT[case][0] in {f"{node.domain}.{node.op_type}".lstrip(".") for node in graph.graph.node}
    assert {entry.domain for entry in graph.opset_import} == {"", *(name.replace("_", ".") for name in KEPT[case][1])}


@pytest.mark.parametrize("case", KEPT)
def test_kept_nodes_give_the_same_bytes_each_time(case: str) -> None:
    model, spec = model_of(case), StepSpec("mse", "sgd", 2, train=("w",))
    first, second = (compile_step(model, spec, on_onnxruntime).model for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()


@pytest.mark.parametrize("case", KEPT)
def test_a_gradient_that_reaches_a_kept_node_is_refused(case: str) -> None:
    _, domains, nodes = KEPT[case]
    body = f"(float[2,4] x) => (float[2,3] y) <{W}, float[4] early = {{1.0, 1.0, 1.0, 1.0}}>"
    model = parsed(f"{body} {{ h = Mul (x, early) {nodes} y = MatMul (z, w) }}", **domains)
    source = sources(model, ["early", "w"], batch=2)
    with pytest.raises(UnsupportedOperator) as caught:
        grad((source.output * source.output).sum([0, 1], keepdims=False), source.weights)
    assert caught.value.trainable == ("w",)
    assert caught.value.path[-1] == "early"


def test_without_a_runtime_an_unknown_type_is_refused_by_name() -> None:
    model = model_of("foreign operator")
    del model.graph.value_info[:]
    with pytest.raises(CompileError, match=r"shape-inference: QuickGelu \(node 'z'\)"):
        sources(model, ["w"], batch=2, run=None)


def test_a_type_that_the_file_states_needs_no_runtime() -> None:
    body = f"(float[N,4] x) => (float[N,3] y) <{W}, float[N,4] z> {{ z = custom.Sharpen (x) y = MatMul (z, w) }}"
    source = sources(parsed(body, custom=1), ["w"], batch=5, run=None)
    assert source.output.shape == (5, 3)


def test_shapes_that_depend_on_data_are_refused_also_where_they_can_be_run() -> None:
    body = f"(float[2,4] x) => (y) <{W}> {{ n = NonZero (x) z = Cast <to=1> (n) y = Neg (z) }}"
    with pytest.raises(CompileError, match=r"dynamic-shape: NonZero \(node 'n'\)"):
        sources(parsed(body), batch=2)


class Watched:
    """onnxruntime, which remembers what it was given."""

    def __init__(self) -> None:
        self.feeds: list[Mapping[str, Array]] = []

    def __call__(self, model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Sequence[Array]:
        self.feeds.append(feeds)
        return on_onnxruntime(model, feeds)


def test_a_model_is_run_twice_however_many_nodes_are_kept() -> None:
    chain = " ".join(f"q{i + 1} = com.microsoft.QuickGelu (q{i})" for i in range(5))
    run = Watched()
    model = parsed(f"(float[2,4] x) => (float[2,3] y) <{W}> {{ q0 = Neg (x) {chain} y = MatMul (q5, w) }}", com_microsoft=1)
    assert sources(model, ["w"], batch=2, run=run).output.shape == (2, 3)
    assert len(run.feeds) == 2


def test_in_a_branch_a_node_is_run_by_itself_with_the_shipped_weights() -> None:
    nodes = "p = com.microsoft.QuickGelu (z) t = Neg (p)"
    model = parsed(
        f"(float[2,4] x) => (float[2,3] y) <{W}> {{ z = MatMul (x, w) c = Constant <value = bool {{1}}> ()"
        f" y = If (c) <then_branch = a () => (float[2,3] t) {{ {nodes} }},"
        f" else_branch = b () => (float[2,3] u) {{ u = Neg (z) }}> }}",
        com_microsoft=1,
    )
    run = Watched()
    assert sources(model, ["w"], batch=2, run=run).output.shape == (2, 3)
    np.testing.assert_array_equal(run.feeds[-1]["w"][0], np.float32([0.5, -1.0, 0.3]))


def test_the_length_of_a_sequence_that_data_decide_is_found_when_it_runs() -> None:
    body = """(float[2,4] x) => (y) <float zero = {0.0}> {
      m = ReduceSum <keepdims=0> (x)  p = Greater (m, zero)  i = Cast <to=7> (p)  q = SequenceConstruct (x, x)
      e = SequenceErase (q, i)  l = SequenceLength (e)  f = Cast <to=1> (l)  y = Mul (x, f) }"""
    model = parsed(body)
    source, feeds = sources(model, batch=2), random_feeds(model)
    np.testing.assert_array_equal(as_read(source, model, feeds), stock(model)(feeds)["y"])
