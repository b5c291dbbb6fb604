"""Small inference models, built from scratch with ordinary ONNX operators; no training and no data here."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

OPSET = 17
IR_VERSION = 8


def digits_cnn(seed: int) -> onnx.ModelProto:
    """A CNN of 6,090 parameters for 8x8 grey digits: "image" float32 `[N, 1, 8, 8]` to "logits" `[N, 10]`.

    conv 3x3 (16) - ReLU - max pool 2 - conv 3x3 (32) - ReLU - max pool 2 - dense; weights are He-normal
    (He et al., "Delving Deep into Rectifiers", 2015, equation 10), biases zero.
    """
    rng = np.random.default_rng(seed)
    weights = {
        "conv1.weight": _he_normal(rng, (16, 1, 3, 3)),
        "conv1.bias": np.zeros(16, np.float32),
        "conv2.weight": _he_normal(rng, (32, 16, 3, 3)),
        "conv2.bias": np.zeros(32, np.float32),
        "dense.weight": _he_normal(rng, (10, 128)),
        "dense.bias": np.zeros(10, np.float32),
    }
    nodes = [
        *_conv_block("conv1", "image", "pool1"),
        *_conv_block("conv2", "pool1", "pool2"),
        helper.make_node("Flatten", ["pool2"], ["features"], "flatten"),
        _dense("dense", "features", "logits"),
    ]
    return _model("digits_cnn", nodes, ("image", ["N", 1, 8, 8]), ("logits", ["N", 10]), weights)


def mlp(seed: int, sizes: Sequence[int]) -> onnx.ModelProto:
    """A dense ReLU network: "x" float32 `[N, sizes[0]]` to "y" `[N, sizes[-1]]`, without final activation."""
    rng = np.random.default_rng(seed)
    last = len(sizes) - 1
    weights: dict[str, NDArray[np.float32]] = {}
    nodes, previous = [], "x"
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes), start=1):
        name = f"dense{layer}"
        weights[f"{name}.weight"] = _he_normal(rng, (fan_out, fan_in))
        weights[f"{name}.bias"] = np.zeros(fan_out, np.float32)
        nodes.append(_dense(name, previous, "y" if layer == last else f"{name}.sum"))
        if layer < last:
            nodes.append(helper.make_node("Relu", [f"{name}.sum"], [f"{name}.out"], f"{name}.relu"))
        previous = f"{name}.out"
    return _model("mlp", nodes, ("x", ["N", sizes[0]]), ("y", ["N", sizes[-1]]), weights)


def _he_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Normal with variance 2 / fan-in; the first axis counts outputs."""
    fan_in = int(np.prod(shape[1:]))
    return rng.normal(0.0, np.sqrt(2.0 / fan_in), shape).astype(np.float32)


def _conv_block(name: str, source: str, target: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Conv", [source, f"{name}.weight", f"{name}.bias"], [f"{name}.sum"], name, pads=[1, 1, 1, 1]),
        helper.make_node("Relu", [f"{name}.sum"], [f"{name}.out"], f"{name}.relu"),
        helper.make_node("MaxPool", [f"{name}.out"], [target], target, kernel_shape=[2, 2], strides=[2, 2]),
    ]


def _dense(name: str, source: str, target: str) -> onnx.NodeProto:
    return helper.make_node("Gemm", [source, f"{name}.weight", f"{name}.bias"], [target], name, transB=1)


def _model(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    source: tuple[str, Sequence[int | str]],
    target: tuple[str, Sequence[int | str]],
    weights: Mapping[str, NDArray[np.float32]],
) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in (source, target)]
    tensors = [numpy_helper.from_array(array, key) for key, array in weights.items()]
    graph = helper.make_graph(list(nodes), name, infos[:1], infos[1:], tensors)
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="whimbrel")
    onnx.checker.check_model(model, full_check=True)
    return model
