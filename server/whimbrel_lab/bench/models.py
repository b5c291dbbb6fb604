"""The six models that a train step is measured on, as inference models of ordinary ONNX operators.

`BENCHES` is the one table. Here belong shapes and layers; the same models for PyTorch are in `eager.py`, which
takes its weights by the names used here. No timing, no loss and no data set belongs here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from whimbrel_lab.nets.layers import Builder, Shape

VOCABULARY = 2000
KEYWORDS = 12
WIDTH, HEADS, TOKENS = 128, 4, 64  # of the transformer
HIDDEN, STEPS = 256, 20  # of the recurrent net


@dataclass(frozen=True)
class Bench:
    """A model with what it is trained on: the data input's name and shape (without batch) and the number of classes.

    `ids`: the data are numbers below `VOCABULARY`. `tokens`: the loss is taken at each token, classes on the last axis.
    """

    build: Callable[[int], onnx.ModelProto]
    shape: tuple[int, ...]
    classes: int
    ids: bool = False
    tokens: bool = False


class _Builder(Builder):
    def model(self, bench: Bench, logits: str) -> onnx.ModelProto:
        kind, rank = (TensorProto.INT64 if bench.ids else TensorProto.FLOAT), (1 if bench.tokens else 0)
        shape: Shape = ["N", *bench.shape[:rank], bench.classes]
        return self.graph({"x": (kind, ["N", *bench.shape])}, ("y", shape), logits, "bench")


def _mlp(seed: int) -> onnx.ModelProto:
    """784-200-200-10: the "2NN" of McMahan et al., "Communication-Efficient Learning", AISTATS 2017."""
    b, x = _Builder(seed), "x"
    for layer, (wide, out) in enumerate(((784, 200), (200, 200))):
        x = b.op("Relu", b.dense(f"dense{layer}", x, wide, out))
    return b.model(BENCHES["mlp"], b.dense("dense2", x, 200, 10))


def _fedcnn(seed: int) -> onnx.ModelProto:
    """Two 5x5 convolutions and two dense layers, 1,663,370 weights: the CNN of the same paper."""
    b, x = _Builder(seed), "x"
    for layer, (channels, out) in enumerate(((1, 32), (32, 64))):
        x = b.op("Relu", b.conv(f"conv{layer}", x, (out, channels, 5, 5), bias=True, pads=[2, 2, 2, 2]))
        x = b.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = b.op("Relu", b.dense("dense0", b.op("Flatten", x), 3136, 512))
    return b.model(BENCHES["fedcnn"], b.dense("dense1", x, 512, 10))


def _dscnn(seed: int) -> onnx.ModelProto:
    """Keyword spotting on 49 frames of 10 coefficients, four depthwise separable blocks of 64 channels.

    Zhang et al., "Hello Edge: Keyword Spotting on Microcontrollers", 2017, the small DS-CNN.
    """
    b = _Builder(seed)
    x = b.conv("stem", "x", (64, 1, 10, 4), strides=[2, 2], pads=[4, 1, 5, 2])
    x = b.op("Relu", b.batch_norm("stem_norm", x, 64))
    for block in range(4):
        x = b.conv(f"deep{block}", x, (64, 1, 3, 3), group=64, pads=[1, 1, 1, 1])
        x = b.op("Relu", b.batch_norm(f"deep_norm{block}", x, 64))
        x = b.op("Relu", b.batch_norm(f"point_norm{block}", b.conv(f"point{block}", x, (64, 64, 1, 1)), 64))
    return b.model(BENCHES["dscnn"], b.dense("dense", b.op("Flatten", b.op("GlobalAveragePool", x)), 64, KEYWORDS))


# (expansion, channels, blocks, stride of the first), on 32x32 images
INVERTED = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2), (6, 64, 2, 2))


def _mbv2(seed: int) -> onnx.ModelProto:
    """A small MobileNetV2 for 32x32 images: Sandler et al., 2018, table 2, without its last stages and first strides."""
    b, channels = _Builder(seed), 16
    x = b.conv("stem", "x", (channels, 3, 3, 3), pads=[1, 1, 1, 1])
    x = _relu6(b, b.batch_norm("stem_norm", x, channels))
    number = 0
    for expansion, out, blocks, stride in INVERTED:
        for block in range(blocks):
            x = _inverted(b, f"block{number}", x, (channels, expansion * channels, out), stride if block == 0 else 1)
            channels, number = out, number + 1
    x = _relu6(b, b.batch_norm("head_norm", b.conv("head", x, (256, channels, 1, 1)), 256))
    return b.model(BENCHES["mbv2"], b.dense("dense", b.op("Flatten", b.op("GlobalAveragePool", x)), 256, 10))


def _inverted(b: _Builder, name: str, x: str, widths: tuple[int, int, int], stride: int) -> str:
    channels, wide, out = widths
    y = x
    if wide != channels:
        y = _relu6(b, b.batch_norm(f"{name}.norm0", b.conv(f"{name}.expand", y, (wide, channels, 1, 1)), wide))
    deep = b.conv(f"{name}.deep", y, (wide, 1, 3, 3), group=wide, strides=[stride, stride], pads=[1, 1, 1, 1])
    deep = _relu6(b, b.batch_norm(f"{name}.norm1", deep, wide))
    y = b.batch_norm(f"{name}.norm2", b.conv(f"{name}.project", deep, (out, wide, 1, 1)), out)
    return b.op("Add", x, y) if stride == 1 and channels == out else y


def _relu6(b: _Builder, x: str) -> str:
    return b.op("Clip", x, b.filled("zero", (), 0.0), b.filled("six", (), 6.0))


def _transformer(seed: int) -> onnx.ModelProto:
    """A causal language model of two pre-norm layers, 918,992 weights, 64 tokens."""
    b = _Builder(seed)
    b.normal("embedding.weight", (VOCABULARY, WIDTH), 2 * WIDTH)
    x = b.op("Add", b.op("Gather", "embedding.weight", "x"), b.normal("position", (1, TOKENS, WIDTH), 2 * WIDTH))
    b.weights["causal"] = np.triu(np.full((TOKENS, TOKENS), -1e9, np.float32), 1)
    for layer in range(2):
        name = f"layer{layer}"
        x = b.op("Add", x, _attention(b, name, b.layer_norm(f"{name}.norm0", x, WIDTH)))
        wide = b.token_dense(f"{name}.wide", b.layer_norm(f"{name}.norm1", x, WIDTH), WIDTH, 4 * WIDTH)
        x = b.op("Add", x, b.token_dense(f"{name}.narrow", b.op("Gelu", wide), 4 * WIDTH, WIDTH))
    return b.model(BENCHES["transformer"], b.token_dense("dense", b.layer_norm("norm", x, WIDTH), WIDTH, VOCABULARY))


def _attention(b: _Builder, name: str, x: str) -> str:
    heads = b.ints([0, TOKENS, HEADS, WIDTH // HEADS])

    def head(part: str, perm: Sequence[int]) -> str:
        projected = b.token_dense(f"{name}.{part}", x, WIDTH, WIDTH)
        return b.op("Transpose", b.op("Reshape", projected, heads), perm=list(perm))

    query, key, value = head("query", (0, 2, 1, 3)), head("key", (0, 2, 3, 1)), head("value", (0, 2, 1, 3))
    b.weights["scale"] = np.array((WIDTH // HEADS) ** -0.5, np.float32)
    scores = b.op("Add", b.op("Mul", b.op("MatMul", query, key), "scale"), "causal")
    mixed = b.op("Transpose", b.op("MatMul", b.op("Softmax", scores, axis=-1), value), perm=[0, 2, 1, 3])
    return b.token_dense(f"{name}.out", b.op("Reshape", mixed, b.ints([0, TOKENS, WIDTH])), WIDTH, WIDTH)


def _lstm(seed: int) -> onnx.ModelProto:
    """A language model of one LSTM layer of 256 cells over 20 tokens; `W`, `R` and `B` in ONNX's layout (gates i, o, f, c)."""
    b = _Builder(seed)
    b.normal("embedding.weight", (VOCABULARY, WIDTH), 2 * WIDTH)
    steps = b.op("Transpose", b.op("Gather", "embedding.weight", "x"), perm=[1, 0, 2])
    b.normal("W", (1, 4 * HIDDEN, WIDTH), 2 * WIDTH)
    b.normal("R", (1, 4 * HIDDEN, HIDDEN), 2 * HIDDEN)
    y = b.op("LSTM", steps, "W", "R", b.filled("B", (1, 8 * HIDDEN)), hidden_size=HIDDEN)
    y = b.op("Transpose", b.op("Squeeze", y, b.ints([1])), perm=[1, 0, 2])
    return b.model(BENCHES["lstm"], b.token_dense("dense", y, HIDDEN, VOCABULARY))


BENCHES: dict[str, Bench] = {
    "mlp": Bench(_mlp, (784,), 10),
    "fedcnn": Bench(_fedcnn, (1, 28, 28), 10),
    "dscnn": Bench(_dscnn, (1, 49, 10), KEYWORDS),
    "mbv2": Bench(_mbv2, (3, 32, 32), 10),
    "transformer": Bench(_transformer, (TOKENS,), VOCABULARY, ids=True, tokens=True),
    "lstm": Bench(_lstm, (STEPS,), VOCABULARY, ids=True, tokens=True),
}
