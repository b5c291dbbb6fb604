"""Which weights the words and patterns of a specification select."""

import numpy as np
import onnx
import pytest

from whimbrel_server.compiler.choice.selection import trainable_names
from whimbrel_server.compiler.errors import CompileError

BODY = """<ir_version: 9, opset_import: ["" : 17]>
net (float[N,2,4,4] x) => (float[N,3] y, float[N,2,4,4] map)
<float[2,2,1,1] conv_w, float[2] conv_b, float[2] bn_scale, float[2] bn_bias, float[2] bn_mean, float[2] bn_var,
 float[4,2] table, float least = {0.0}, float[4,2] dense_w, float[4] dense_b, float eps = {0.1}, float[4] ln_scale,
 float[4] ln_bias, float[4,3] out_w, float[3] out_b, float temperature = {2.0}> {
  c = Conv (x, conv_w, conv_b)  n = BatchNormalization (c, bn_scale, bn_bias, bn_mean, bn_var)
  map = Clip (n, least)  p = GlobalAveragePool (map)  f = Flatten (p)
  turned = Transpose <perm=[1,0]> (dense_w)  z = MatMul (f, turned)  d = Add (z, dense_b)
  mean = ReduceMean <axes=[1]> (d)  c0 = Sub (d, mean)  sq = Mul (c0, c0)  var = ReduceMean <axes=[1]> (sq)
  safe = Add (var, eps)  root = Sqrt (safe)  u = Div (c0, root)  s = Mul (u, ln_scale)  l = Add (s, ln_bias)
  r = MatMul (l, out_w)  t = Identity (r)  v = Add (t, out_b)  y = Div (v, temperature)
}"""
ALL = ["conv_w", "conv_b", "bn_scale", "bn_bias", "table", "dense_w", "dense_b", "ln_scale", "ln_bias", "out_w", "out_b"]


def model() -> onnx.GraphProto:
    """The net with zeros for the weights that the text declares without values."""
    net = onnx.parser.parse_model(BODY).graph
    for info in net.value_info:
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        net.initializer.append(onnx.numpy_helper.from_array(np.zeros(shape, np.float32), info.name))
    return net


SELECTED = {
    "all": ALL,
    "auto": ALL,
    "*": ALL,
    "biases": ["conv_b", "bn_bias", "dense_b", "ln_bias", "out_b"],
    "norms": ["bn_scale", "bn_bias", "ln_scale", "ln_bias"],
    "last:1": ["out_w", "out_b"],
    "last:2": ["ln_scale", "ln_bias", "out_w", "out_b"],
    "last:3": ["dense_w", "dense_b", "ln_scale", "ln_bias", "out_w", "out_b"],
    "last:99": [name for name in ALL if name != "table"],
    "ln_?????": ["ln_scale"],
    "temperature": ["temperature"],
    "temp*": [],
    "bn_mean": [],
    "least": [],
}


@pytest.mark.parametrize("entry", SELECTED)
def test_words_and_patterns(entry: str) -> None:
    assert trainable_names(model(), [entry]) == SELECTED[entry]


def test_entries_add_up_in_the_order_of_the_file() -> None:
    assert trainable_names(model(), ["out_b", "conv*", "temperature"]) == ["temperature", "conv_w", "conv_b", "out_b"]


def test_last_layers_are_counted_towards_the_chosen_output() -> None:
    assert trainable_names(model(), ["last:1"], "map") == ["bn_scale", "bn_bias"]
    assert trainable_names(model(), ["last:2"], "map") == ["conv_w", "conv_b", "bn_scale", "bn_bias"]


@pytest.mark.parametrize("entry", ["last:0", "last:two", "last:-1"])
def test_a_word_without_its_number_is_refused(entry: str) -> None:
    with pytest.raises(CompileError, match="at least 1"):
        trainable_names(model(), [entry])


def test_what_a_setting_is_computed_from_is_no_weight() -> None:
    """Exporters join the scales of a resizing from constants; what a setting takes from the data is no constant."""
    body = """<ir_version: 9, opset_import: ["" : 17]>
    net (float[1,2,4,4] x) => (float[1,2,8,8] y) <float[2] ones = {1.0, 1.0}, float[2] twos = {2.0, 2.0}, float[1,2,1,1] w> {
      scales = Concat <axis=0> (ones, twos)  z = Mul (x, w)  top = ReduceMax <keepdims=0> (z)
      c = Clip (z, "", top)  y = Resize (c, "", scales) }"""
    net = onnx.parser.parse_model(body).graph
    net.initializer.append(onnx.numpy_helper.from_array(np.ones((1, 2, 1, 1), np.float32), "w"))
    assert trainable_names(net, ["*"]) == ["w"]


def test_the_numbers_of_a_formula_are_trained_by_name_only() -> None:
    """Factors, bounds, masks, what is filled in and states to begin with; a weight in the same place is a weight."""
    text = """<ir_version: 9, opset_import: ["" : 17]>
net (float[3,4] x, bool[3,4] where, float[2,3,4] sequence) => (float[3,4] y, float[2,1,3,5] h)
<float[1] factor = {0.5}, float[1] bound = {1e-8}, float[4] mask = {0, -1e9, 0, -1e9}, float[3,4] zeros,
 float[4] token = {1, 2, 3, 4}, float[1,20,4] w, float[1,20,5] r, float[1,40] b, float[1,3,5] h0, float[1,3,5] c0> {
  a = Mul (x, factor)  m = Max (a, bound)  k = Add (m, mask)  f = Where (where, zeros, k)  y = Where (where, token, f)
  h = LSTM <hidden_size=5> (sequence, w, r, b, , h0, c0)
}"""
    net = onnx.parser.parse_model(text).graph
    for info in net.value_info:
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        array = np.arange(15.0).reshape(shape) if info.name == "c0" else np.zeros(shape)
        net.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), info.name))
    assert set(trainable_names(net, ["*"])) == {"token", "w", "r", "b", "c0"}
    assert trainable_names(net, ["h0"]) == ["h0"]
