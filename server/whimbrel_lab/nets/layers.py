"""Layers of inference models, as an exporter would write them: nodes, and weights under the names of a module tree.

What belongs here: the pieces. What does not: whole models (`models.py`, `learned_models.py`, `bench/models.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
IR_VERSION = 9
Shape = Sequence[int | str]
Info = tuple[int, Shape]


@dataclass
class Builder:
    """Collects nodes and He-normal weights (He et al., 2015, equation 10) under the names that a module tree would give."""

    seed: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def normal(self, name: str, shape: Sequence[int], fan_in: int) -> str:
        self.weights[name] = self._rng.normal(0.0, np.sqrt(2.0 / fan_in), shape).astype(np.float32)
        return name

    def filled(self, name: str, shape: Sequence[int], value: float = 0.0) -> str:
        self.weights[name] = np.full(shape, value, np.float32)
        return name

    def ints(self, numbers: Sequence[int]) -> str:
        name = "ints_" + "_".join(map(str, numbers))
        self.weights[name] = np.array(numbers, np.int64)
        return name

    def op(self, op: str, *ins: str, **attrs: Any) -> str:
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(ins), [name], name, **attrs))
        return name

    def dense(self, name: str, x: str, wide: int, out: int) -> str:
        """For `[N, wide]`: a Gemm with the weight as `[out, wide]`."""
        return self.op(
            "Gemm", x, self.normal(f"{name}.weight", (out, wide), wide), self.filled(f"{name}.bias", (out,)), transB=1
        )

    def token_dense(self, name: str, x: str, wide: int, out: int) -> str:
        """For `[N, T, wide]`: a MatMul and an Add, as exporters write it, with the weight as `[wide, out]`."""
        product = self.op("MatMul", x, self.normal(f"{name}.matrix", (wide, out), wide))
        return self.op("Add", product, self.filled(f"{name}.bias", (out,)))

    def conv(self, name: str, x: str, shape: Sequence[int], bias: bool = False, **attrs: Any) -> str:
        """A convolution with weights `shape` = `[out, in / group, *kernel]`."""
        weight = self.normal(f"{name}.weight", shape, int(np.prod(shape[1:])))
        ins = [x, weight, self.filled(f"{name}.bias", shape[:1])] if bias else [x, weight]
        return self.op("Conv", *ins, kernel_shape=list(shape[2:]), **attrs)

    def batch_norm(self, name: str, x: str, channels: int) -> str:
        starts = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
        return self.op(
            "BatchNormalization", x, *(self.filled(f"{name}.{key}", (channels,), value) for key, value in starts.items())
        )

    def layer_norm(self, name: str, x: str, wide: int) -> str:
        scale, bias = self.filled(f"{name}.weight", (wide,), 1.0), self.filled(f"{name}.bias", (wide,))
        return self.op("LayerNormalization", x, scale, bias, axis=-1)

    def gru(self, name: str, steps: str, lengths: str, hidden: int) -> str:
        """For `[T, N, wide]` and lengths `[N]`: the last hidden states `[1, N, hidden]`; the weights exist already."""
        ins = [steps, *(f"{name}.{part}" for part in "WRB"), lengths]
        self.nodes.append(helper.make_node("GRU", ins, ["", f"{name}.last"], name, hidden_size=hidden, linear_before_reset=1))
        return f"{name}.last"

    def graph(self, inputs: Mapping[str, Info], output: tuple[str, Shape], result: str, name: str) -> onnx.ModelProto:
        """The model: `inputs` give element type and shape by name, `output` the name and shape of `result` (float32)."""
        self.nodes.append(helper.make_node("Identity", [result], [output[0]], output[0]))
        infos = [helper.make_tensor_value_info(key, kind, shape) for key, (kind, shape) in inputs.items()]
        target = helper.make_tensor_value_info(output[0], TensorProto.FLOAT, output[1])
        tensors = [numpy_helper.from_array(array, key) for key, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, name, infos, [target], tensors)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(made, full_check=True)
        return made
