"""The forms that operators are lowered to for speed: equal to the plain ones, and taken where they pay."""

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest

from tests.compiler.evaluation import Array, reference, stock
from whimbrel_server.compiler.grad import grad
from whimbrel_server.compiler.graph.ir import Graph
from whimbrel_server.compiler.graph.layout import channels_first, samples_first
from whimbrel_server.compiler.rules import costs
from whimbrel_server.compiler.rules.batch_normalization import lower_batch_normalization
from whimbrel_server.compiler.rules.convolution import lower_convolution
from whimbrel_server.compiler.rules.pooling import lower_max_pool

SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


def expanded(k: int, m: int) -> onnx.ModelProto:
    """Gradients and moved statistics of a pointwise convolution from k to m channels with batch normalisation and ReLU6."""
    graph = Graph()
    graph.training = True
    shapes = {"x": (3, k, 4, 2), "w": (m, k, 1, 1), "b": (m,), "scale": (m,), "bias": (m,), "mean": (m,), "variance": (m,)}
    ins = {name: graph.input(name, DOUBLE, shape, trained=True) for name, shape in shapes.items()}
    u = lower_convolution(graph, ins["x"], ins["w"], ins["b"])
    y, *moved = lower_batch_normalization(graph, u, *(ins[name] for name in ("scale", "bias", "mean", "variance")))
    y = graph.op("Clip", y, y.like(0.0), y.like(6.0))
    weights = graph.constant(np.random.default_rng(2).normal(size=y.shape))
    gradients = grad((y * weights).sum(range(4), keepdims=False), {name: ins[name] for name in ("x", "w", "scale", "bias")})
    results = {"y": y, "mean@new": moved[0], "variance@new": moved[1], **{f"{n}@grad": v for n, v in gradients.items()}}
    return graph.export(list(ins.values()), results, "expanded")


@pytest.mark.parametrize("biased", [0.0, 100.0])
def test_normalising_by_moments_is_normalising(monkeypatch: pytest.MonkeyPatch, biased: float) -> None:
    rng = np.random.default_rng(1)
    monkeypatch.setattr(costs, "MOMENTS_PER_CHANNEL", 0)
    plain = expanded(3, 5)
    monkeypatch.setattr(costs, "MOMENTS_PER_CHANNEL", 9)
    by_moments = expanded(3, 5)
    assert "BatchNormalization" in operators(plain)
    assert "BatchNormalization" not in operators(by_moments)
    feeds = {i.name: rng.normal(size=[d.dim_value for d in i.type.tensor_type.shape.dim]) for i in plain.graph.input}
    feeds["x"], feeds["variance"] = feeds["x"] + biased, feeds["variance"] ** 2
    expected, found = reference(plain)(feeds), reference(by_moments)(feeds)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-7, atol=1e-8, err_msg=name)


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def test_layers_with_channels_first_meet_without_a_transpose() -> None:
    """Pointwise, depthwise, pointwise with activations, a shortcut and pooling: forward and back."""
    graph = Graph()
    source = graph.input("x", SINGLE, (8, 2, 4, 4), trained=True)
    shapes = {"p": (8, 8, 1, 1), "d": (8, 1, 3, 3), "q": (8, 8, 1, 1)}
    w = {name: graph.input(name, SINGLE, shape, trained=True) for name, shape in shapes.items()}
    x = samples_first(source)
    y = graph.op("Relu", lower_convolution(graph, x, w["p"]))
    y = graph.op("Clip", lower_convolution(graph, y, w["d"], group=8, pads=[1, 1, 1, 1]), y.like(0.0), y.like(6.0))
    y = channels_first(lower_convolution(graph, y, w["q"]) + x)
    g = graph.input("g", SINGLE, y.shape)
    gradients = grad((y * g).sum(range(4), keepdims=False), {"x": source, **w})
    model = graph.export([source, *w.values(), g], {"y": y, **{f"{n}@grad": v for n, v in gradients.items()}}, "block")
    maps = {info.name for info in onnx.shape_inference.infer_shapes(model).graph.value_info if rank(info) == 4}
    assert not [node for node in model.graph.node if node.op_type == "Transpose" and node.input[0] in maps]
    assert not {"Conv", "ConvTranspose"} & set(operators(model))


def rank(info: onnx.ValueInfoProto) -> int:
    return len(info.type.tensor_type.shape.dim)


@pytest.mark.parametrize("trained", [False, True])
def test_a_convolution_that_nothing_trains_stays_the_kernel_that_packs_its_weight(trained: bool) -> None:
    graph = Graph()
    x, w = graph.input("x", SINGLE, (2, 4, 4, 4), trained=trained), graph.constant(np.ones((4, 1, 3, 3), np.float32), "w")
    y = channels_first(lower_convolution(graph, x, w, group=4))
    model = graph.export([x], {"y": y}, "frozen")
    assert ("Conv" in operators(model)) != trained


@pytest.mark.parametrize(("kernel", "side"), [(3, 4), (5, 14), (7, 14), (11, 32), (31, 32), (7, 200)])
@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
def test_a_depthwise_kernel_of_any_size_makes_no_large_constant(kernel: int, side: int, dtype: np.dtype[Any]) -> None:
    graph = Graph()
    x, w = (
        graph.input(name, dtype, shape, trained=True)
        for name, shape in (("x", (1, 2, side, side)), ("w", (2, 1, kernel, kernel)))
    )
    y = lower_convolution(graph, x, w, group=2, pads=[kernel // 2] * 4)
    dw = grad(y.sum(range(4), keepdims=False), {"w": w})["w"]
    model = graph.export([x, w], {"y": y, "dw": dw}, "depthwise")  # refuses constants that are too large
    assert ("Conv" in operators(model)) == (kernel > 5 or (kernel == 5 and dtype == DOUBLE))


def test_pooling_comes_before_relu() -> None:
    graph = Graph()
    x = graph.input("x", SINGLE, (1, 2, 4, 4))
    y = lower_max_pool(graph, graph.op("Relu", x), kernel_shape=[2, 2], strides=[2, 2])[0]
    model = graph.export([x], {"y": y}, "pooled")
    assert [node.op_type for node in model.graph.node] == ["MaxPool", "Relu"]


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([-np.inf, -1.0, -1e-38, -0.0, 0.0], 0.0),
        ([1e-20, 1e-6, 1.0, 3e38, np.inf], 1.0),
    ],
)
def test_the_mask_of_positive_numbers(numbers: list[float], expected: float) -> None:
    graph = Graph()
    x = graph.input("x", SINGLE, (len(numbers),))
    model = graph.export([x], {"y": x.mask("Greater", 0.0)}, "mask")
    found: Array = stock(model)({"x": np.array(numbers, np.float32)})["y"]
    assert found.tolist() == [expected] * len(numbers)
    assert operators(model) == {"HardSigmoid": 1}


def test_clip_tells_from_its_result_what_it_moved() -> None:
    """ReLU6's operand need not be kept: the numbers next to the bounds, and the bounds themselves."""
    graph = Graph()
    x = graph.input("x", SINGLE, (6,), trained=True)
    y = graph.op("Clip", x, x.like(0.0), x.like(6.0))
    gradient = grad(y.sum([0], keepdims=False), {"x": x})["x"]
    inside = [np.float32(1e-6), np.nextafter(np.float32(6), np.float32(0))]
    values = np.array([-1.0, *inside, 3.0, np.nextafter(np.float32(6), np.float32(7)), np.inf], np.float32)
    model = graph.export([x], {"dx": gradient}, "clip")
    assert stock(model)({"x": values})["dx"].tolist() == [0.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    assert "Equal" not in operators(model)


MAPS = [
    ((3, 3), (4, 4), (1, 1, 1, 1)),
    ((5, 5), (6, 7), (2, 2, 2, 2)),
    ((3, 5), (9, 5), (0, 3, 2, 1)),
    ((5, 3), (5, 8), (0, 0, 0, 0)),
]


def convolved(taps: tuple[int, int], sizes: tuple[int, int], pads: tuple[int, ...], dtype: np.dtype[Any]) -> onnx.ModelProto:
    """A convolution of 8 samples from 16 channels to 17, and its gradients, weighted by `g`."""
    graph = Graph()
    shapes = {"x": (8, 16, *sizes), "w": (17, 16, *taps), "b": (17,)}
    ins = {name: graph.input(name, dtype, shape, trained=True) for name, shape in shapes.items()}
    y = lower_convolution(graph, ins["x"], ins["w"], ins["b"], pads=list(pads))
    g = graph.input("g", dtype, y.shape)
    gradients = grad((y * g).sum(range(4), keepdims=False), ins)
    results = {"y": y, **{f"{name}@grad": value for name, value in gradients.items()}}
    return graph.export([*ins.values(), g], results, "convolved")


@pytest.mark.parametrize(("taps", "sizes", "pads"), MAPS)
def test_minimal_filtering_is_convolution(
    monkeypatch: pytest.MonkeyPatch, taps: tuple[int, int], sizes: tuple[int, int], pads: tuple[int, ...]
) -> None:
    filtered, single = convolved(taps, sizes, pads, DOUBLE), convolved(taps, sizes, pads, SINGLE)
    monkeypatch.setattr(costs, "LARGEST_FILTERED", 0)
    plain = convolved(taps, sizes, pads, DOUBLE)
    assert "Conv" in operators(plain)
    assert not {"Conv", "ConvTranspose"} & set(operators(filtered))
    rng = np.random.default_rng(3)
    feeds = {i.name: rng.normal(size=[d.dim_value for d in i.type.tensor_type.shape.dim]) for i in plain.graph.input}
    expected, found = reference(plain)(feeds), reference(filtered)(feeds)
    rounded = stock(single)({name: array.astype(np.float32) for name, array in feeds.items()})
    for name, array in expected.items():
        size = np.sqrt(np.mean(array**2))
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-12 * size, err_msg=name)
        assert np.sqrt(np.mean((rounded[name] - array) ** 2)) < 1e-5 * size, name


@pytest.mark.parametrize(
    ("shape", "kernel", "attrs"),
    [
        ((8, 16, 6, 6), (16, 16, 3, 3), {"strides": [2, 2]}),
        ((8, 16, 6, 6), (16, 16, 3, 3), {"dilations": [1, 2]}),
        ((8, 16, 6, 6), (16, 8, 3, 3), {"group": 2}),
        ((8, 16, 6, 6), (16, 16, 4, 3), {}),
        ((8, 16, 6), (16, 16, 3), {}),
        ((7, 16, 6, 6), (16, 16, 3, 3), {}),
        ((8, 16, 6, 6), (3, 16, 3, 3), {}),
        ((8, 64, 35, 6), (64, 64, 3, 3), {}),
    ],
)
def test_other_convolutions_stay_the_kernel(shape: tuple[int, ...], kernel: tuple[int, ...], attrs: dict[str, Any]) -> None:
    graph = Graph()
    x, w = (graph.input(name, SINGLE, sizes, trained=True) for name, sizes in (("x", shape), ("w", kernel)))
    model = graph.export([x, w], {"y": lower_convolution(graph, x, w, **attrs)}, "convolved")
    assert "Conv" in operators(model)
