"""What a model means after it was read: the same as before, whatever its age, its exporter and where its weights lie."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.compiler.evaluation import stock
from tests.compiler.reading import as_read, parsed, random_feeds, sources
from whimbrel_server.compiler.choice.selection import weights_of
from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.source.prepare import flatten, prepare

OLD: dict[str, tuple[int, str]] = {
    "clip by attributes": (7, "{ y = Clip <min=-0.5, max=0.5> (x) }"),
    "dropout": (9, "{ y = Dropout <ratio=0.3> (x) }"),
    "linear resize": (10, '<float[4] s = {1.0, 1.0, 2.0, 3.0}> { y = Resize <mode="linear"> (x, s) }'),
    "linear upsample": (8, '{ y = Upsample <mode="linear", scales=[1.0, 1.0, 2.0, 3.0]> (x) }'),
    "nearest resize down": (10, '<float[4] s = {1.0, 1.0, 1.5, 0.5}> { y = Resize <mode="nearest"> (x, s) }'),
    "pad by attributes": (10, "{ y = Pad <pads=[0, 0, 1, 1, 0, 0, -1, 2], value=2.5> (x) }"),
    "reduction by attributes": (11, "{ y = ReduceL2 <axes=[-1], keepdims=0> (x) }"),
    "slice by attributes": (9, "{ y = Slice <axes=[2, 3], starts=[0, 1], ends=[2, -1]> (x) }"),
    "softmax over all that follows": (11, "{ y = Softmax <axis=2> (x) }"),
    "split by attributes": (11, "{ z, u = Split <axis=3, split=[1, 3]> (x) y = Neg (u) }"),
    "sum by attributes": (11, "{ y = ReduceSum <axes=[1, 2]> (x) }"),
    "top by attributes": (9, "{ y, i = TopK <k=2> (x) }"),
    "unsqueeze by attributes": (11, "{ z = Squeeze <axes=[0]> (x) y = Unsqueeze <axes=[0, -1]> (z) }"),
}


@pytest.mark.parametrize("case", OLD)
def test_old_models_keep_their_meaning(case: str) -> None:
    opset, body = OLD[case]
    model = parsed(f"(float[1,2,3,4] x) => (y) {body}", opset)
    feeds = random_feeds(model)
    np.testing.assert_allclose(as_read(sources(model), model, feeds), stock(model)(feeds)["y"], rtol=1e-5, atol=1e-6)


STATISTICS = "<float[2] s = {1.0, 2.0}> { y, m, v, p, q = BatchNormalization (x, s, s, s, s)  r = Neg (m) }"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("{ y = Hardmax <axis=1> (x) }", "Hardmax .*since opset 13"),
        (STATISTICS, "BatchNormalization .*for inference"),
    ],
)
def test_an_old_meaning_that_would_be_lost_is_refused(body: str, reason: str) -> None:
    with pytest.raises(CompileError, match=f"opset: {reason}"):
        prepare(parsed(f"(float[1,2,3,4] x) => (y) {body}", 11))


@pytest.mark.parametrize("opset", [11, 14, 20])
def test_what_was_exported_while_training_is_read_for_inference(opset: int) -> None:
    outputs, form = ("y, m, v, p, q", "") if opset < 14 else ("y, m, v", "<training_mode=1>")
    text = "(float[3,2] x) => (y) <float[2] s = {{1.0, 2.0}}> {{ {} = BatchNormalization {} (x, s, s, s, s) }}"
    model, plain = parsed(text.format(outputs, form), opset), parsed(text.format("y", ""), opset)
    feeds = random_feeds(model)
    np.testing.assert_allclose(as_read(sources(model, batch=3), model, feeds), stock(plain)(feeds)["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("node", "newer"),
    [
        ("Attention <left_window_size=1> (x, x, x)", "left_window_size"),
        ("Attention (x, x, x, , , , n)", "nonpad_kv_seqlen"),
    ],
)
def test_what_is_newer_than_what_is_known_is_no_silence(node: str, newer: str) -> None:
    model = parsed(f"(float[1,2,3,4] x) => (y) <int64[1] n = {{3}}> {{ y = {node} }}", 25)
    with pytest.raises(CompileError, match=f"opset: Attention .*{newer}"):
        sources(model)


def test_an_operator_in_a_file_older_than_it_is_what_it_became() -> None:
    """Runtimes that optimise a file write LayerNormalization into any opset."""
    model = parsed("(float[2,4] x) => (y) <float[4] s = {1.0, 2.0, 3.0, 4.0}> { y = LayerNormalization (x, s) }")
    model.opset_import[0].version = 13
    feeds = random_feeds(model)
    np.testing.assert_allclose(as_read(sources(model, batch=2), model, feeds), stock(model)(feeds)["y"], rtol=1e-5, atol=1e-6)


def test_what_a_newer_opset_added_is_left_out_only_where_it_changes_nothing() -> None:
    quantised = "(float[2,4] x) => (y) <float s = {0.1}, uint8 z = {3}> { q = QuantizeLinear <block_size=%d> (x, s, z) y = %s }"
    model = parsed(quantised % (0, "DequantizeLinear (q, s, z)"), 21)
    feeds = random_feeds(model)
    np.testing.assert_allclose(as_read(sources(model, batch=2), model, feeds), stock(model)(feeds)["y"], rtol=1e-6)
    with pytest.raises(CompileError, match=r"opset: QuantizeLinear .*'block_size' exists since opset 21"):
        sources(parsed(quantised % (2, "DequantizeLinear (q, s, z)"), 21), batch=2)


def test_half_precision_is_read_as_single() -> None:
    model = parsed("(float16[2,3] x) => (y) { z = MatMul (x, w) y = Cast <to=10> (z) }".replace("{", "<float16[3,2] w> {", 1))
    model.graph.initializer.append(numpy_helper.from_array(np.full((3, 2), 0.5, np.float16), "w"))
    del model.graph.value_info[:]
    source = sources(model, ["w"], batch=2)
    assert {value.dtype for value in (*source.data, *source.weights.values(), source.output)} == {np.dtype(np.float32)}


CHOICE = """(float[N,3] x, int64 rate) => (float[N,2] y) <int64 wide = {16000}> {
  is_wide = Equal (rate, wide)
  y = If (is_wide) <
    then_branch = t () => (float[N,2] p) <float[3,2] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}> { p = MatMul (x, w) },
    else_branch = e () => (float[N,2] q) <float[3,2] w = {6.0, 5.0, 4.0, 3.0, 2.0, 1.0}> {
      c = Constant <value = float[2] {0.5, 0.5}> ()  n = custom.Unreadable (x)  r = MatMul (x, w)  q = Add (r, c) }> }"""


@pytest.mark.parametrize(("rate", "used"), [(16000, ["w"]), (8000, ["w_2", "c"])])
def test_a_known_branch_is_taken_with_its_weights(rate: int, used: list[str]) -> None:
    """Both branches call their weight `w`; what cannot be read in the other branch, or leads nowhere, is no error."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17, "custom" : 1]> net {CHOICE}')
    assert list(weights_of(flatten(model).graph)) == ["w", "w_2", "c"]
    source = sources(model, ["w", "w_2", "c"], batch=4, values={"rate": rate}, run=None)
    assert list(source.weights) == used
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    weights = np.arange(1, 7, dtype=np.float32).reshape(3, 2)
    expected = x @ weights if rate == 16000 else x @ (7 - weights) + 0.5
    np.testing.assert_allclose(as_read(source, model, {"x": x}), expected, rtol=1e-5)


def test_half_precision_weights_of_a_branch_are_found_too() -> None:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17, "custom" : 1]> net {CHOICE}')
    for node in model.graph.node:
        for attr in (attr for attr in node.attribute if attr.type == onnx.AttributeProto.GRAPH):
            for tensor in attr.g.initializer:
                half = numpy_helper.to_array(tensor).astype(np.float16)
                tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    assert sources(model, ["w"], batch=4, values={"rate": 16000}, run=None).weights["w"].dtype == np.float32


def test_weights_are_found_wherever_exporters_put_them() -> None:
    """Through a cast, a transpose and a reshape; in a Constant; made by ConstantOfShape, which only its name selects."""
    body = """(float[2,3] x) => (y) <
      double[2,3] d = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}, int64[1] two = {2}, int64[2] flat = {1, 2}> {
      c = Cast <to=1> (d)  t = Transpose (c)  z = MatMul (x, t)
      k = Constant <value = float[2] {0.5, 0.25}> ()  r = Reshape (k, flat)  u = Add (z, r)
      s = ConstantOfShape <value = float[1] {2.0}> (two)  y = Mul (u, s) }"""
    source = sources(parsed(body), ["d", "k", "s"], batch=2)
    assert {name: value.shape for name, value in source.weights.items()} == {"d": (2, 3), "k": (2,), "s": (2,)}
    assert not {"s"} & set(sources(parsed(body), ["d", "k"], batch=2).weights)


def test_an_inputs_symbol_means_one_size_everywhere() -> None:
    body = """(float[batch,4] x, float[2,batch,steps] state) => (y) { s = ReduceSum <keepdims=0> (state) y = Add (x, s) }"""
    source = sources(parsed(body), batch=3, dims={"state": (2, 3, 5)})
    assert [value.shape for value in source.data] == [(3, 4), (2, 3, 5)]
    with pytest.raises(CompileError, match="dims: the shape of input 'state'"):
        sources(parsed(body), batch=3)


def test_a_batch_that_no_input_has_is_refused() -> None:
    with pytest.raises(CompileError, match=r"batch: input 'x' has a fixed batch of \(2,\), not 3"):
        sources(parsed("(float[2,4] x) => (y) { y = Neg (x) }"), batch=3)


def test_names_of_our_own_kind_in_a_source_do_no_harm() -> None:
    """Some exporters put '@' into the names of constants."""
    nodes = [
        helper.make_node("Constant", [], [f"Constant@{i}"], value=numpy_helper.from_array(np.full((1, 512), i, np.float32)))
        for i in range(4)
    ]
    nodes.append(helper.make_node("Sum", ["x", *(f"Constant@{i}" for i in range(4))], ["y"]))
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 512]) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph(nodes, "net", infos[:1], infos[1:]), ir_version=8)
    model.opset_import[0].version = 17
    x = np.ones((1, 512), np.float32)
    np.testing.assert_array_equal(as_read(sources(model), model, {"x": x}), 7 * x)


SEQUENCES = {
    "split evenly": "q = SplitToSequence <axis=1> (x, three) y = SequenceAt (q, one)",
    "split as told": "q = SplitToSequence <axis=-1> (x, sizes) y = SequenceAt (q, last)",
    "unbound": "q = SplitToSequence <axis=1, keepdims=0> (x) y = ConcatFromSequence <axis=0, new_axis=1> (q)",
    "built": "e = SequenceEmpty () a = SequenceInsert (e, x) n = Neg (x) b = SequenceInsert (a, n, zero)"
    " c = SequenceInsert (b, n) d = SequenceErase (c, one) y = ConcatFromSequence <axis=1> (d)",
    "counted": "q = SequenceConstruct (x, x, x) l = SequenceLength (q) f = Cast <to=1> (l) y = Mul (x, f)",
}


@pytest.mark.parametrize("case", SEQUENCES)
def test_sequences_of_known_length_are_resolved(case: str) -> None:
    constants = "<int64 zero = {0}, int64 one = {1}, int64 last = {-1}, int64 three = {3}, int64[3] sizes = {2, 4, 1}>"
    model = parsed(f"(float[2,7] x) => (float y) {constants} {{ {SEQUENCES[case]} }}")
    model.graph.output[0].type.CopyFrom(parsed("(float[2,7] x) => (y) { y = Neg (x) }").graph.output[0].type)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.output[0].type.tensor_type.shape.SetInParent()
    source, feeds = sources(model, batch=2, run=None), random_feeds(model)
    graph = source.graph.export(source.data, {"y@": source.output}, "read")
    assert not [node.op_type for node in graph.graph.node if "Sequence" in node.op_type]
    np.testing.assert_array_equal(as_read(source, model, feeds), stock(model)(feeds)["y"])
