"""Small whole models of each kind, with batches to train them on: what the exactness tests of entire steps run.

Shapes and layers only; what is expected of a training is in the tests.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.compiler.evaluation import Array
from whimbrel_lab.nets.models import digits_cnn, mlp

BATCH, TOKENS, WIDTH, HEADS, VOCABULARY = 5, 6, 8, 2, 11
STEPS, SENSORS, HIDDEN, CLASSES = 7, 3, 4, 4


@dataclass(frozen=True)
class Whole:
    """A model; its data input with the shape of an example (int64 ids below `ids`, else normal); the label's axes."""

    model: onnx.ModelProto
    data: str
    shape: tuple[int, ...]
    classes: int
    loss: str = "cross_entropy"
    ids: int = 0

    def batches(self, dtype: np.dtype[Any]) -> Iterator[dict[str, Array]]:
        """Endless; uneven weights, one of them 0."""
        rng = np.random.default_rng(5)
        while True:
            x = rng.integers(0, self.ids, (BATCH, *self.shape)) if self.ids else rng.normal(size=(BATCH, *self.shape))
            places = (BATCH, *self.shape) if self.loss == "token_cross_entropy" else (BATCH,)
            weight = rng.uniform(0.2, 2.0, places)
            weight[rng.integers(BATCH)] = 0.0
            label = rng.integers(0, self.classes, places)
            yield {self.data: x if self.ids else x.astype(dtype), "@label": label, "@weight": weight.astype(dtype)}


@dataclass
class _Layers:
    """Collects nodes and normal weights."""

    seed: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def weight(self, name: str, *shape: int, mean: float = 0.0, deviation: float = 0.4) -> str:
        array = mean + self._rng.normal(size=shape) * deviation
        self.tensors.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def number(self, name: str, value: float) -> str:
        self.tensors.append(numpy_helper.from_array(np.array(value, np.float32), name))
        return name

    def ints(self, *numbers: int) -> str:
        name = f"ints{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.array(numbers), name))
        return name

    def op(self, op: str, *ins: str, outputs: Sequence[str] = (), **attrs: Any) -> str:
        names = list(outputs) or [f"{op.lower()}{len(self.nodes)}"]
        self.nodes.append(helper.make_node(op, list(ins), names, names[-1], **attrs))
        return names[-1]

    def model(self, data: tuple[str, int, Sequence[Any]], output: str, shape: Sequence[Any]) -> onnx.ModelProto:
        infos = helper.make_tensor_value_info(*data), helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, "whole", [infos[0]], [infos[1]], self.tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def mobile_net() -> onnx.ModelProto:
    """Strided convolution, batch normalisation as in inference, depthwise and pointwise convolutions, a gate."""
    net = _Layers(1)
    norm = [net.weight(f"norm.{name}", 6, mean=mean) for name, mean in (("scale", 1.0), ("bias", 0.0), ("mean", 0.0))]
    variance = net.weight("norm.variance", 6, mean=1.0, deviation=0.1)
    x = net.op("Conv", "image", net.weight("conv", 6, 3, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2])
    x = net.op("Clip", net.op("BatchNormalization", x, *norm, variance), net.number("low", 0.0), net.number("high", 2.0))
    x = net.op("Conv", x, net.weight("depthwise", 6, 1, 3, 3), net.weight("depthwise.bias", 6), pads=[1, 1, 1, 1], group=6)
    gate = net.op("Sigmoid", net.op("Conv", net.op("GlobalAveragePool", x), net.weight("gate", 6, 6, 1, 1)))
    x = net.op("Mul", net.op("Relu", x), gate)
    x = net.op("Conv", x, net.weight("pointwise", 8, 6, 1, 1))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    y = net.op("Gemm", x, net.weight("dense", CLASSES, 8), net.weight("dense.bias", CLASSES), transB=1)
    return net.model(("image", TensorProto.FLOAT, ["N", 3, 8, 8]), y, ["N", CLASSES])


def transformer() -> onnx.ModelProto:
    """One block: embedding, attention over two heads, Gelu, layer normalisation before each part; logits at each token."""
    net, size = _Layers(2), WIDTH // HEADS
    x = net.op("Gather", net.weight("embedding", VOCABULARY, WIDTH), "ids")
    x = net.op("Add", x, net.weight("position", 1, TOKENS, WIDTH))

    def normalised(name: str, x: str) -> str:
        scale, bias = net.weight(f"{name}.scale", WIDTH, mean=1.0), net.weight(f"{name}.bias", WIDTH)
        return net.op("LayerNormalization", x, scale, bias)

    def heads(name: str, x: str, *perm: int) -> str:
        x = net.op("Add", net.op("MatMul", x, net.weight(name, WIDTH, WIDTH)), net.weight(f"{name}.bias", WIDTH))
        return net.op("Transpose", net.op("Reshape", x, net.ints(0, 0, HEADS, size)), perm=list(perm))

    inner = normalised("norm1", x)
    scores = net.op("MatMul", heads("query", inner, 0, 2, 1, 3), heads("key", inner, 0, 2, 3, 1))
    mixed = net.op("MatMul", net.op("Softmax", scores), heads("value", inner, 0, 2, 1, 3))
    mixed = net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), net.ints(0, 0, WIDTH))
    x = net.op("Add", x, net.op("MatMul", mixed, net.weight("out", WIDTH, WIDTH)))
    wide = net.op("Gelu", net.op("MatMul", normalised("norm2", x), net.weight("up", WIDTH, 2 * WIDTH)))
    x = net.op("Add", x, net.op("MatMul", wide, net.weight("down", 2 * WIDTH, WIDTH)))
    y = net.op("MatMul", normalised("norm3", x), net.weight("head", WIDTH, VOCABULARY))
    return net.model(("ids", TensorProto.INT64, ["N", TOKENS]), y, ["N", TOKENS, VOCABULARY])


def recurrent(op: str, **attrs: Any) -> onnx.ModelProto:
    """A layer over time in both directions, its last states into a dense layer."""
    net, rows = _Layers(3), {"LSTM": 4, "GRU": 3}[op] * HIDDEN
    x = net.op("Transpose", "signal", perm=[1, 0, 2])
    weights = net.weight("input", 2, rows, SENSORS), net.weight("state", 2, rows, HIDDEN), net.weight("bias", 2, 2 * rows)
    attrs = {"hidden_size": HIDDEN, "direction": "bidirectional", **attrs}
    x = net.op(op, x, *weights, outputs=["sequence", "last"], **attrs)
    x = net.op("Flatten", net.op("Transpose", x, perm=[1, 0, 2]))
    y = net.op("Gemm", x, net.weight("dense", CLASSES, 2 * HIDDEN), net.weight("dense.bias", CLASSES), transB=1)
    return net.model(("signal", TensorProto.FLOAT, ["N", STEPS, SENSORS]), y, ["N", CLASSES])


WHOLE: dict[str, Whole] = {
    "mlp": Whole(mlp(2, [7, 12, 10]), "x", (7,), 10),
    "cnn": Whole(digits_cnn(1), "image", (1, 8, 8), 10),
    "mobile net": Whole(mobile_net(), "image", (3, 8, 8), CLASSES),
    "transformer": Whole(transformer(), "ids", (TOKENS,), VOCABULARY, "token_cross_entropy", VOCABULARY),
    "lstm": Whole(recurrent("LSTM"), "signal", (STEPS, SENSORS), CLASSES),
    "gru": Whole(recurrent("GRU", linear_before_reset=1), "signal", (STEPS, SENSORS), CLASSES),
}
