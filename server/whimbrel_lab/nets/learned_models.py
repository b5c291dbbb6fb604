"""The models that fleets learn beside digits: a transformer, a recurrent net, a net for volumes. Untrained; no data here."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from whimbrel_lab.data import motions, sentences, volumes
from whimbrel_lab.nets.layers import Builder, Info

HIDDEN = 32  # cells of the recurrent net
FAR = -1e9  # the score of a word that is not there


@dataclass(frozen=True)
class Size:
    """Of a transformer: values a word, heads, values inside the dense half of a layer, layers."""

    width: int
    heads: int
    inner: int
    layers: int


SMALL, LARGE = Size(48, 4, 96, 2), Size(128, 4, 512, 2)


def transformer(seed: int, size: Size) -> onnx.ModelProto:
    """A pre-norm encoder with a mean over words: "words" int64 `[N, 16]` (0: padding) to "logits" `[N, 3]`.

    Vaswani et al., "Attention Is All You Need", 2017, section 3; layer norms first as in Xiong et al. 2020.
    """
    b, width, tokens = Builder(seed), size.width, sentences.TOKENS
    b.normal("embedding.weight", (sentences.VOCABULARY, width), 2 * width)
    x = b.op("Add", b.op("Gather", "embedding.weight", "words"), b.normal("position", (1, tokens, width), 2 * width))
    there = b.op("Cast", b.op("Cast", "words", to=TensorProto.BOOL), to=TensorProto.FLOAT)
    missing = b.op("Mul", b.op("Sub", b.filled("one", (), 1.0), there), b.filled("far", (), FAR))
    missing = b.op("Unsqueeze", missing, b.ints([1, 2]))
    for layer in range(size.layers):
        name = f"layer{layer}"
        x = b.op("Add", x, _attention(b, name, b.layer_norm(f"{name}.norm0", x, width), missing, size))
        wide = b.token_dense(f"{name}.wide", b.layer_norm(f"{name}.norm1", x, width), width, size.inner)
        x = b.op("Add", x, b.token_dense(f"{name}.narrow", b.op("Gelu", wide), size.inner, width))
    pooled = _mean_over_words(b, b.layer_norm("norm", x, width), there)
    logits = b.dense("head", pooled, width, sentences.KINDS)
    return b.graph({"words": (TensorProto.INT64, ["N", tokens])}, ("logits", ["N", sentences.KINDS]), logits, "transformer")


def _attention(b: Builder, name: str, x: str, missing: str, size: Size) -> str:
    split = b.ints([0, sentences.TOKENS, size.heads, size.width // size.heads])

    def head(part: str, perm: Sequence[int]) -> str:
        projected = b.token_dense(f"{name}.{part}", x, size.width, size.width)
        return b.op("Transpose", b.op("Reshape", projected, split), perm=list(perm))

    query, key, value = head("query", (0, 2, 1, 3)), head("key", (0, 2, 3, 1)), head("value", (0, 2, 1, 3))
    scale = b.filled("scale", (), (size.width // size.heads) ** -0.5)
    scores = b.op("Add", b.op("Mul", b.op("MatMul", query, key), scale), missing)
    mixed = b.op("Transpose", b.op("MatMul", b.op("Softmax", scores, axis=-1), value), perm=[0, 2, 1, 3])
    joined = b.op("Reshape", mixed, b.ints([0, sentences.TOKENS, size.width]))
    return b.token_dense(f"{name}.out", joined, size.width, size.width)


def _mean_over_words(b: Builder, x: str, there: str) -> str:
    """The mean of `[N, T, width]` over the words that are there; zero where there is none, as in a row of padding."""
    total = b.op("ReduceSum", b.op("Mul", x, b.op("Unsqueeze", there, b.ints([2]))), b.ints([1]), keepdims=0)
    count = b.op("Max", b.op("ReduceSum", there, b.ints([1]), keepdims=1), "one")
    return b.op("Div", total, count)


def recurrent(seed: int) -> onnx.ModelProto:
    """A GRU over recordings of different lengths: "signal" `[N, 40, 3]` and "length" int32 `[N]` to "logits" `[N, 6]`.

    Its last hidden state is what the recording is told by. Cho et al., 2014; weights in ONNX's layout (gates z, r, h).
    """
    b, channels, classes = Builder(seed), motions.CHANNELS, len(motions.ACTIVITIES)
    steps = b.op("Transpose", "signal", perm=[1, 0, 2])
    b.normal("gru.W", (1, 3 * HIDDEN, channels), 2 * channels)
    b.normal("gru.R", (1, 3 * HIDDEN, HIDDEN), 2 * HIDDEN)
    b.filled("gru.B", (1, 6 * HIDDEN))
    last = b.op("Squeeze", b.gru("gru", steps, "length", HIDDEN), b.ints([0]))
    inputs: dict[str, Info] = {
        "signal": (TensorProto.FLOAT, ["N", motions.STEPS, channels]),
        "length": (TensorProto.INT32, ["N"]),
    }
    return b.graph(inputs, ("logits", ["N", classes]), b.dense("head", last, HIDDEN, classes), "recurrent")


def volume_cnn(seed: int) -> onnx.ModelProto:
    """Two convolutions of 3x3x3, the first with stride 2, and a pool: "volume" `[N, 1, 12, 12, 12]` to "logits" `[N, 4]`."""
    b, sides, classes = Builder(seed), [volumes.SIDE] * 3, len(volumes.SHAPES)
    x = b.op("Relu", b.conv("conv0", "volume", (8, 1, 3, 3, 3), bias=True, pads=[1] * 6, strides=[2] * 3))
    x = b.op("Relu", b.conv("conv1", x, (16, 8, 3, 3, 3), bias=True, pads=[1] * 6))
    x = b.op("Flatten", b.op("MaxPool", x, kernel_shape=[2] * 3, strides=[2] * 3))
    logits = b.dense("head", x, 16 * (volumes.SIDE // 4) ** 3, classes)
    return b.graph({"volume": (TensorProto.FLOAT, ["N", 1, *sides])}, ("logits", ["N", classes]), logits, "volume_cnn")
