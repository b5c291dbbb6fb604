"""`whimbrel-lab check`: what it finds out about good models, what it says about others, and that it cannot be talked round."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from whimbrel_lab.check import command, inputs, objectives, training, weights
from whimbrel_lab.check.runtime import Model
from whimbrel_lab.cli import main

DATA = Path(__file__).parents[1] / "data"


def model(graph: str, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    """A model in ONNX' own text, with normal numbers as weights of the given shapes."""
    rng = np.random.default_rng(2)
    parsed = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> net {graph}')
    for name, shape in shapes.items():
        parsed.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    return parsed


def blocked() -> onnx.ModelProto:
    """A determinant, which has no gradient here, between two products."""
    body = "h = MatMul (x, w) m = Reshape (h, square) d = Det (m) c = Reshape (d, column) y = MatMul (c, v)"
    return model(
        f"(float[N,4] x) => (float[N,3] y) <int64[3] square = {{-1, 3, 3}}, int64[2] column = {{-1, 1}}> {{ {body} }}",
        w=(4, 9),
        v=(1, 3),
    )


Told = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(name="told")
def _told(capsys: pytest.CaptureFixture[str]) -> Told:
    def run(*words: object) -> tuple[int, dict[str, Any]]:
        status = main(["check", *map(str, words), "--json"])
        return status, json.loads(capsys.readouterr().out)

    return run


def saved(folder: Path, proto: onnx.ModelProto) -> Path:
    onnx.save(proto, folder / "model.onnx")
    return folder / "model.onnx"


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_model_that_trains_is_told_with_all_figures(told: Told) -> None:
    status, facts = told(DATA / "digits-cnn.onnx", "--batch", 6, "--exact")
    assert (status, facts["ok"], facts["refusal"]) == (0, True, "")
    source, step, learning = facts["source"], facts["step"], facts["learning"]
    assert [one["tried"] for one in source["inputs"]] == [[6, 1, 8, 8]] and "batch = 6" in source["notes"][0]
    assert (source["output"], source["loss"]) == ("scores", "cross_entropy")
    values = sum(math.prod(t.dims) for t in onnx.load(DATA / "digits-cnn.onnx").graph.initializer if t.data_type == 1)
    assert sum(step["trained"].values()) == values and not step["frozen"] and not step["given_up"]
    assert 2 * values <= step["up_bytes"] < 2 * values + 64 and step["down_bytes"] == 4 * values
    assert 0 < step["packed_bytes"] < step["graph_bytes"]
    assert len(learning["losses"]) == 21 and learning["losses"][-1] < learning["losses"][0]
    assert learning["step_ms"] > 0 and learning["peak_mb"] > 10
    assert facts["gradient"]["right"] and facts["exact"]["error"] < 1e-5


def test_the_report_says_what_an_author_must_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(DATA / "digits-mlp.onnx"), "--optimizer", "adam", "--trainable", "*1"]) == 0
    report = capsys.readouterr().out
    told = "probabilities;X: float32 [?, 64];trained;frozen;coefficient1;adam;a round;MB peak;OK"
    assert not [words for words in told.split(";") if words not in report]


def test_what_has_no_gradient_is_refused_by_name_or_left_out(told: Told, tmp_path: Path) -> None:
    path = saved(tmp_path, blocked())
    status, facts = told(path, "--trainable", "all")
    assert (status, facts["ok"], facts["learning"]) == (1, False, None)
    for words in ("Det", "'d'", "'w'", "'v'", "Here: --trainable auto or last:1"):
        assert words in facts["refusal"], words
    status, facts = told(path, "--trainable", "w")
    assert status == 1 and "none of the chosen" in facts["refusal"] and facts["refusal"].endswith("Here: --trainable last:1")
    status, facts = told(path)
    assert (status, list(facts["step"]["trained"]), facts["step"]["given_up"]) == (0, ["v"], ["w"])


def test_the_authors_choices_are_followed(told: Told) -> None:
    choices = ("--loss", "mse", "--trainable", "head.*", "--input", "ids=3,16", "--optimizer", "momentum")
    status, facts = told(DATA / "sentences.onnx", *choices)
    assert (status, facts["source"]["loss"], facts["source"]["loss_because"]) == (0, "mse", "as asked")
    assert list(facts["step"]["trained"]) == ["head.weight", "head.bias"] and facts["step"]["batch"] == 3


def test_a_batch_that_the_inputs_do_not_take_is_said(told: Told) -> None:
    _, facts = told(DATA / "digits-cnn.onnx", "--batch", 2, "--input", "image=5,1,8,8", "--trainable", "last:1")
    assert facts["step"]["batch"] == 5 and "5 examples and not 2" in facts["source"]["notes"][-1]


def test_a_new_head_is_tried_with_its_own_classes(told: Told) -> None:
    for classes in (2, 12):
        status, facts = told(DATA / "digits-cnn.onnx", "--head", classes, "--trainable", "last:1")
        assert status == 0 and facts["step"]["trained"]["head.bias"] == classes


def test_weights_that_devices_do_not_train_are_refused(told: Told, tmp_path: Path) -> None:
    proto = model("(double[N,6] x) => (double[N,3] y) { y = MatMul (x, w) }")
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((6, 3)), "w"))
    status, facts = told(saved(tmp_path, proto))
    assert status == 1 and "float32" in facts["refusal"]


def test_adapters_send_little(told: Told) -> None:
    _, whole = told(DATA / "sentences.onnx")
    status, thin = told(DATA / "sentences.onnx", "--lora", 1)
    assert status == 0 and 20 * thin["step"]["up_bytes"] < whole["step"]["up_bytes"]


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (("none.onnx",), "no such file"),
        (("make.py",), "no ONNX file"),
        (("digits-cnn.onnx", "--input", "x=4,1,8,8"), "no input 'x'; it has image"),
        (("digits-cnn.onnx", "--input", "image=4,3,8,8"), "does not fit"),
        (("digits-cnn.onnx", "--output", "y"), "no float output 'y'; it has scores"),
        (("digits-cnn.onnx", "--loss", "nonsense"), "cross_entropy"),
        (("digits-cnn.onnx", "--trainable", "nothing"), "head.weight"),
        (("digits-cnn.onnx", "--timeout", "0.01"), "time limit"),
    ],
)
def test_a_refusal_says_what_would_do(told: Told, words: tuple[str, ...], refusal: str) -> None:
    status, facts = told(DATA / words[0], *words[1:])
    assert status == 1 and not facts["ok"] and refusal in facts["refusal"]


@pytest.mark.parametrize(
    "words", [("--input", "x"), ("--input", "x=0"), ("--batch", "0"), ("--optimizer", "none"), ("--init", "x")]
)
def test_words_that_mean_nothing_are_refused(words: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", str(DATA / "digits-cnn.onnx"), *words])
    assert ended.value.code == 2


def test_weights_that_a_file_leaves_out_are_made(told: Told, tmp_path: Path) -> None:
    body = "w = ConstantOfShape (ws) b = ConstantOfShape (bs) y = Gemm (x, w, b)"
    proto = model(f"(float[2,6] x) => (float[2,3] y) <int64[2] ws = {{6, 3}}, int64[1] bs = {{3}}> {{ {body} }}")
    status, facts = told(saved(tmp_path, proto), "--init", "he")
    assert status == 0 and facts["step"]["trained"] == {"w": 18, "b": 3}
    assert "2 placeholders" in facts["source"]["notes"][0]


def test_a_crash_is_no_silence() -> None:
    dead = subprocess.CompletedProcess([], -11, "", "")
    assert "SIGSEGV" in command._death("training", dead)
    stumbled = subprocess.CompletedProcess([], 1, "", "Traceback ...\nKeyError: 'z'")
    assert "KeyError: 'z'" in command._death("compilation", stumbled)


# --- its guesses ------------------------------------------------------------------------------------------------------


def fit(proto: onnx.ModelProto, **asked: Any) -> inputs.Fitted:
    return inputs.fit(proto, Model(proto), inputs.Asked(asked.get("shapes", {}), asked.get("values", {}), asked.get("batch")))


def test_unknown_sizes_are_found_by_trying() -> None:
    """Sizes that only the weights tell; a symbol has one size everywhere; states and scalars are no batches."""
    proto = model("(float[N,F] x, float[N,F] z) => (float[N,3] y) { s = Add (x, z) y = MatMul (s, w) }", w=(37, 3))
    assert {array.shape for array in fit(proto, batch=2).feeds.values()} == {(2, 37)}
    proto = model("(float[N,T] x) => (float[N,M] y) { s = Reshape (x, by) y = ReduceSum <keepdims=0> (s, last) }")
    proto.graph.initializer.extend(
        [numpy_helper.from_array(np.array([0, -1, 48]), "by"), numpy_helper.from_array(np.array([2]), "last")]
    )
    assert fit(proto, shapes={"x": (3, 96)}).feeds["x"].shape == (3, 96)
    with pytest.raises(inputs.Unfit, match="give --input"):
        fit(proto, shapes={"x": (3, 95)})


def test_integers_stay_below_the_table_they_choose_from_and_masks_are_ones() -> None:
    body = "e = Gather (w, ids) m = Cast <to=1> (mask) u = Unsqueeze (m, two) y = Mul (e, u)"
    proto = model(f"(int64[N,T] ids, bool[N,T] mask) => (float[N,T,5] y) <int64[1] two = {{2}}> {{ {body} }}", w=(7, 5))
    feeds = fit(proto).feeds
    assert set(range(7)) >= set(feeds["ids"].ravel().tolist()) >= {0, 6} and feeds["mask"].all()


def test_values_that_the_model_does_not_take_are_drawn_anew() -> None:
    """Indices of what is fed have no table, and may leave none of it out; in some masks 1 means hidden, and where all is
    hidden nothing is left."""
    proto = model(
        "(float[N,5] nodes, int64[2,E] edges) => (float[2,E,3] y) { h = MatMul (nodes, w) y = Gather (h, edges) }", w=(5, 3)
    )
    assert set(fit(proto).feeds["edges"].ravel().tolist()) == {0, 1}
    add = '<axis=0, reduction="add">'
    body = f"d = Transpose (at) h = MatMul (nodes, w) z = ScatterElements {add} (none, d, h) y = Div (z, z)"
    proto = model(f"(float[4,2] nodes, int64[2,4] at) => (float[4,2] y) {{ {body} }}", w=(2, 2))
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((4, 2), np.float32), "none"))
    assert np.isfinite(fit(proto).outputs["y"]).all()
    body = "a = MatMul (x, w) h = Where (hidden, low, a) s = Softmax (h) y = MatMul (s, w)"
    proto = model(f"(float[N,3] x, bool[N,3] hidden) => (float[N,3] y) <float low = {{-inf}}> {{ {body} }}", w=(3, 3))
    fitted = fit(proto)
    assert not fitted.feeds["hidden"].any() and np.isfinite(fitted.outputs["y"]).all()


def test_an_output_as_long_as_an_input_has_no_classes() -> None:
    proto = model("(float[N,T] x) => (float[N,T] y) { y = Mul (x, w) }", w=(1,))
    assert objectives.choose(proto, fit(proto).outputs, None, "auto").loss == "mse"


def test_a_sequence_of_maps_is_named() -> None:
    node = onnx.helper.make_node("ZipMap", ["x"], ["maps"], domain="ai.onnx.ml")
    with pytest.raises(objectives.NoOutput, match=r"'maps' .*zipmap=False"):
        objectives.choose(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [])), {}, None, "auto")


def test_a_scalar_is_what_the_model_compares_it_with_unless_given() -> None:
    body = "e = Equal (rate, r) f = Cast <to=1> (e) y = Mul (x, f)"
    proto = model(f"(float[2,6] x, int64 rate) => (float[2,6] y) <int64 r = {{8000}}> {{ {body} }}")
    assert fit(proto).values == {"rate": 8000.0} and "rate = 8000" in fit(proto).notes[0]
    assert fit(proto, values={"rate": 5.0}).feeds["rate"] == 5


def test_a_value_fills_an_input_of_any_size(told: Told, tmp_path: Path) -> None:
    """Lengths, say: the step then has no such input, and no guess is made of it."""
    proto = model("(float[N,6] x, float[N,K] size) => (float[N,3] y) { z = Div (x, size) y = MatMul (z, w) }", w=(6, 3))
    status, facts = told(saved(tmp_path, proto), "--value", "size=2", "--input", "size=4,1", "--exact")
    assert (status, facts["refusal"]) == (0, "") and facts["exact"]["right"]


@pytest.mark.parametrize(
    ("tail", "shape", "loss"),
    [
        ("y = Identity (h)", "[4,6]", "cross_entropy"),
        ("y = Softmax (h)", "[4,6]", "cross_entropy"),
        ("y = Sigmoid (h)", "[4,6]", "bce_with_logits"),
        ("s = Sigmoid (h) y = Reshape (s, cube)", "[4,2,3]", "bce_with_logits"),
        ("y = Reshape (h, cube)", "[4,2,3]", "token_cross_entropy"),
        ("c = Reshape (h, cube) y = Softmax <axis=1> (c)", "[4,2,3]", "cross_entropy"),
        ("c = Reshape (h, cube) y = Softmax (c)", "[4,2,3]", "token_cross_entropy"),
        ("y = Reshape (h, map)", "[4,6,1,1]", "cross_entropy"),
        ("y = ReduceSum <keepdims=1> (h, one)", "[4,1]", "mse"),
        ("y = ReduceMean <keepdims=0> (h)", "", "output"),
        ("e = Exp (h) s = ReduceSum (e, one) y = Div (e, s)", "[4,6]", "cross_entropy"),
        ("e = Exp (h) s = ReduceSum (e, one) d = Div (e, s) y = Relu (d)", "[4,6]", "mse"),
    ],
)
def test_the_loss_fits_the_output(tail: str, shape: str, loss: str) -> None:
    settings = "<int64[3] cube = {4, 2, 3}, int64[4] map = {4, 6, 1, 1}, int64[1] one = {1}>"
    proto = model(f"(float[4,5] x) => (float{shape} y) {settings} {{ h = MatMul (x, w) {tail} }}", w=(5, 6))
    assert objectives.choose(proto, fit(proto).outputs, None, "auto").loss == loss


def test_placeholders_get_values_by_their_use() -> None:
    made = "".join(f"{name} = ConstantOfShape (c) " for name in "sbmv")
    body = f"w = ConstantOfShape (ws) {made} h = Conv (x, w) y = BatchNormalization (h, s, b, m, v)"
    sizes = "int64[4] ws = {200, 3, 3, 3}, int64[1] c = {200}"
    proto = model(f"(float[2,3,5,5] x) => (float[2,200,3,3] y) <{sizes}> {{ {body} }}")
    filled, count = weights.initialise(proto, 1)
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in filled.graph.initializer}
    assert count == 5 and float(found["w"].std()) == pytest.approx(math.sqrt(2 / 27), rel=0.05)
    assert [float(found[name][0]) for name in "sbmv"] == [1.0, 0.0, 0.0, 1.0]
    assert np.isfinite(Model(filled)({"x": np.ones((2, 3, 5, 5), np.float32)})[0]).all()


# --- its judgement ----------------------------------------------------------------------------------------------------

LIMITS = (training.ACCEPT, training.SPREAD)


def slope_of(curve: Callable[[float], float], slope: float, grain: float = 0.0) -> training.Slope:
    return training.judge(slope, list(training.differences(curve, training.EPSILONS)), training.EPSILONS, LIMITS, grain)


def test_a_slope_is_right_or_wrong() -> None:
    smooth = lambda eps: float(np.float32(3.0 + np.sin(0.7 * eps) + eps**2))  # noqa: E731
    assert slope_of(smooth, 0.7).right
    for wrong in (0.0, -0.7, 0.75, 1.4):
        assert not slope_of(smooth, wrong).right


def test_noise_decides_nothing() -> None:
    rng = np.random.default_rng(1)
    found = slope_of(lambda eps: float(rng.normal()), 0.7)
    assert not found.decided and not found.right


def test_a_flat_loss_contradicts_only_what_it_would_have_shown() -> None:
    """16 + 1e-7 eps is 16 in float32 for all eps that are tried; a slope of 1 would have shown, and 0 is what is seen."""
    flat, grain = lambda eps: float(np.float32(16 + 1e-7 * eps)), float(np.spacing(np.float32(16)))
    unseen, wrong, none = (slope_of(flat, slope, grain) for slope in (1e-7, 1.0, 0.0))
    assert not unseen.decided and not unseen.right
    assert wrong.decided and not wrong.right
    assert none.decided and none.right


def test_a_loss_that_float32_shows_flat_is_judged_in_float64(told: Told, tmp_path: Path) -> None:
    """Weights of 1e-6 beside 64: float32 sees no slope at all, float64 sees that the gradient is right."""
    proto = model("(float[4,6] x) => (float[4,3] y) <float far = {64}> { h = MatMul (x, w) y = Add (h, far) }", w=(6, 3))
    small = 1e-6 * numpy_helper.to_array(proto.graph.initializer[-1])
    proto.graph.initializer[-1].CopyFrom(numpy_helper.from_array(small, "w"))
    _, facts = told(saved(tmp_path, proto), "--loss", "l1")
    assert not facts["gradient"]["decided"] and facts["exact"]["right"] and facts["exact"]["by_gradient"]
