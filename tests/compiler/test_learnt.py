"""What is trained where nobody says: weights in all the places where exporters leave them, and no number of a formula."""

import numpy as np
import onnx
import pytest

from tests.compiler.evaluation import Array
from whimbrel_server.compiler import StepSpec, compile_step
from whimbrel_server.compiler.choice.learnt import lawful, repeats
from whimbrel_server.compiler.choice.selection import trainable_names
from whimbrel_server.compiler.errors import CompileError

RNG = np.random.default_rng(3)
FREQUENCIES = 10000.0 ** -(np.arange(8) / 8)
ANGLES = np.arange(12)[:, None] * FREQUENCIES
GRID = np.stack(np.meshgrid(np.arange(8) + 0.5, np.arange(8) + 0.5), -1).reshape(1, 64, 2)
BASIS = np.exp(-2j * np.pi * np.outer(np.arange(81), np.arange(160)) / 160) * np.hanning(160)


def normal(*shape: int) -> Array:
    return RNG.normal(size=shape)


def graph(body: str, inputs: str, constants: dict[str, Array]) -> onnx.GraphProto:
    text = f'<ir_version: 9, opset_import: ["" : 17]> net ({inputs}) => (float[M] y) {{ {body} }}'
    parsed: onnx.GraphProto = onnx.parser.parse_model(text).graph
    for name, array in constants.items():
        kind = np.float32 if array.dtype.kind == "f" else array.dtype
        parsed.initializer.append(onnx.numpy_helper.from_array(array.astype(kind), name))
    return parsed


X = "float[N,12,16] x"
W = {"w": normal(16, 16)}
# what: (nodes, inputs, learnt constants, constants that are not)
GRAPHS: dict[str, tuple[str, str, dict[str, Array], dict[str, Array]]] = {
    "a bias, a gain and an untrained bias": (
        "a = MatMul (x, w) b = Add (a, bias) c = Mul (b, gain) y = Add (zero, c)",
        X,
        {**W, "bias": normal(16), "gain": normal(16), "zero": np.zeros(16)},
        {},
    ),
    "places that were learnt": (
        "e = Gather (words, ids) s = Slice (places, from, to, axes) y = Add (e, s)",
        "int64[N,12] ids, int64[1] to",
        {"words": normal(30, 16), "places": normal(1, 40, 16)},
        {"from": np.array([0]), "axes": np.array([1])},
    ),
    "places of waves": (
        "e = Gather (words, ids) y = Add (e, places)",
        "int64[N,12] ids",
        {"words": normal(30, 16)},
        {"places": np.concatenate([np.sin(ANGLES), np.cos(ANGLES)], 1)[None]},
    ),
    "rotary tables that positions choose from": (
        "q = MatMul (x, w) c = Gather (cos, at) s = Gather (sin, at) a = Mul (q, c) b = Mul (q, s) y = Add (a, b)",
        f"{X}, int64[N,12] at",
        W,
        {"cos": np.cos(np.tile(ANGLES, 2)), "sin": np.sin(np.tile(ANGLES, 2))},
    ),
    "rotary frequencies": (
        "p = Cast <to=1> (at) a = MatMul (p, rate) c = Cos (a) q = MatMul (x, w) y = Mul (q, c)",
        f"{X}, int64[N,12,1] at",
        W,
        {"rate": FREQUENCIES[None]},
    ),
    "preprocessing before the first product": (
        "a = Sub (x, mean) b = Div (a, deviation) c = Mul (b, factor) d = Add (c, offset) y = Conv (d, w)",
        "float[N,3,8,8] x",
        {"w": normal(4, 3, 3, 3)},
        {name: normal(3, 1, 1) for name in ("mean", "deviation", "factor", "offset")},
    ),
    "a normalisation written out, on the data itself": (
        "m = ReduceMean (x) c = Sub (x, m) q = Mul (c, c) v = ReduceMean (q) e = Add (v, small) r = Sqrt (e) u = Div (c, r) "
        "s = Mul (u, scale) y = Add (s, offset)",
        X,
        {"scale": normal(16), "offset": normal(16)},
        {"small": np.array(0.1)},
    ),
    "a detector's decoding": (
        "a = MatMul (x, w) g = Add (a, grid) s = Mul (g, stride) y = Mul (s, anchors)",
        "float[N,64,16] x",
        {"w": normal(16, 2)},
        {"grid": GRID, "stride": np.repeat([8.0, 16.0], 32).reshape(1, 64, 1), "anchors": normal(1, 64, 2)},
    ),
    "a mask that is computed": (
        "a = MatMul (x, w) h = Sub (one, seen) low = Mul (h, much) y = Add (a, low)",
        X,
        W,
        {"one": np.array(1.0), "seen": np.tri(12, 16), "much": np.array(-9e3)},
    ),
    "a weight in two factors": (
        "q = Mul (v, v) s = ReduceSum (q, axis) r = Sqrt (s) u = Div (v, r) k = Mul (u, g) y = Conv (x, k)",
        "float[N,3,8,8] x",
        {"v": normal(4, 3, 3, 3), "g": normal(4, 1, 1, 1)},
        {"axis": np.array([1, 2, 3])},
    ),
    "a bias chosen by distance, and a token": (
        "a = MatMul (x, w) r = Gather (table, apart) b = Add (a, r) y = Concat <axis=1> (token, b)",
        X,
        {**W, "table": normal(23, 16), "token": normal(1, 1, 16)},
        {"apart": np.arange(12)},
    ),
    "Fourier's basis": (
        "s = Conv (x, basis) y = Conv (s, w)",
        "float[N,1,400] x",
        {"w": normal(4, 162, 1)},
        {"basis": np.concatenate([BASIS.real, BASIS.imag])[:, None]},
    ),
    "arithmetic alone": ("a = Mul (x, slope) y = Add (a, offset)", X, {"slope": normal(16), "offset": normal(16)}, {}),
}


@pytest.mark.parametrize("what", GRAPHS)
def test_only_what_was_learnt_is_trained(what: str) -> None:
    body, inputs, learnt, others = GRAPHS[what]
    net = graph(body, inputs, {**learnt, **others})
    for word in ("*", "all", "auto"):
        assert set(trainable_names(net, [word])) == set(learnt)
    named = [name for name, array in others.items() if array.dtype.kind == "f"]
    assert trainable_names(net, named) == named
    patterns = [name[:-1] + "?" for name in named if others[name].ndim and name != "anchors"]
    assert set(trainable_names(net, patterns)) >= {name for name in named if name[:-1] + "?" in patterns}


def test_laws_are_told_from_chance() -> None:
    laws = [np.arange(9.0), FREQUENCIES, ANGLES, np.cos(ANGLES), GRID.reshape(8, 8, 2), BASIS.real, -3 + 0.1 * np.arange(6)]
    assert all(lawful(array.astype(np.float32)) for array in laws)
    bumped = np.arange(9.0)
    bumped[6] += 0.01
    chance = [normal(6), normal(64, 64), np.zeros(9), np.ones((8, 8)), np.eye(8), bumped, np.arange(5.0), 1 + 1e-5 * normal(50)]
    assert not any(lawful(array.astype(np.float32)) for array in chance)


def test_few_numbers_in_many_places() -> None:
    assert repeats(GRID) and repeats(np.tri(12)) and repeats(np.array([0.1, 0.1, 0.2, 0.2]))
    assert not any(map(repeats, (normal(64), np.zeros(64), np.array([1.0, 2.0, 3.0]), normal(16).astype(np.float16))))


def test_a_model_of_written_numbers_alone_says_how_to_train_them() -> None:
    net = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17]> net (float[N,3] x) => (float[N,3] y) { y = Sub (x, a) }'
    )
    net.graph.initializer.append(onnx.numpy_helper.from_array(normal(3).astype(np.float32), "a"))
    with pytest.raises(CompileError, match="give their names"):
        compile_step(net, StepSpec("mse", "sgd", 2))
    assert [one.name for one in compile_step(net, StepSpec("mse", "sgd", 2, train=("a",))).parameters] == ["a"]
