"""Benchmark of the forms that a gradient is lowered to: measures every candidate of each limit in the cost table.

Here belong candidates and the layers they are tried on; the table is `whimbrel_server/compiler/rules/costs.py`, and
nothing is written there: what this prints is for its author. A layer is timed forward and backward together, since
one limit decides both; times are processor seconds of one thread, so that a busy machine can be measured too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import exp, log
from statistics import fmean
from typing import Any

import numpy as np
import onnxruntime as ort

from whimbrel_server.compiler.grad import grad
from whimbrel_server.compiler.graph.ir import Graph, Value
from whimbrel_server.compiler.graph.layout import channels_first, samples_first
from whimbrel_server.compiler.rules import LOWERINGS, costs
from whimbrel_server.compiler.rules.batch_normalization import lower_batch_normalization
from whimbrel_server.compiler.rules.convolution import lower_convolution

BATCH, TURNS, TURN_S = 32, 7, 0.02
FLOAT = np.dtype(np.float32)


@dataclass(frozen=True)
class Layer:
    """A convolution on square maps: of data where `first`, with the batch normalisation behind it where `normalised`."""

    inputs: int
    outputs: int
    side: int
    kernel: int
    stride: int = 1
    depthwise: bool = False
    first: bool = False
    normalised: bool = False
    batch: int = BATCH

    def __str__(self) -> str:
        kind, few = "depthwise " if self.depthwise else "", f", batch {self.batch}" if self.batch != BATCH else ""
        return f"{kind}{self.kernel}x{self.kernel} {self.inputs}->{self.outputs} at {self.side}, stride {self.stride}{few}"


@dataclass(frozen=True)
class Recurrent:
    """A layer of so many units, and as many inputs, over 10 steps."""

    op: str
    hidden: int
    batch: int = BATCH

    def __str__(self) -> str:
        return f"{self.op} of {self.hidden}, batch {self.batch}"


def _depthwise(channels: int, side: int, stride: int = 1) -> Layer:
    return Layer(channels, channels, side, 3, stride, depthwise=True)


NARROW = tuple(Layer(inputs, m, side, 3, first=True) for inputs in (1, 2, 3, 4) for m in (16, 32, 64) for side in (16, 32))
DEPTHWISE = (
    *(_depthwise(*shape) for shape in ((384, 4), (192, 8), (144, 16), (32, 28), (16, 32))),
    *(_depthwise(*shape, 2) for shape in ((192, 8), (144, 16), (96, 32))),
)
EXPANDING = tuple(Layer(k, m, 16, 1, normalised=True) for k in (16, 24, 32, 64, 96) for m in (32, 64, 96, 192, 384))
WIDE = tuple(Layer(c, c, side, 3, stride=2) for c in (8, 16, 32, 64, 128) for side in (16, 32))
FILTERED = tuple(Layer(c, c, side, taps) for taps in (3, 5) for c in (8, 16, 32, 64) for side in (8, 14, 16, 28, 32))
FEW = tuple(Layer(c, c, side, 3, batch=n) for n in (2, 4, 8, 16) for c, side in ((16, 8), (16, 16), (32, 14), (64, 8)))
RECURRENT = tuple(
    Recurrent(op, hidden, n) for op in ("LSTM", "GRU") for hidden in (32, 64, 128, 192, 256, 512) for n in (16, 32)
)
GATES, STEPS = {"LSTM": 4, "GRU": 3}, 10

CANDIDATES: dict[str, tuple[Sequence[int], Sequence[Layer | Recurrent]]] = {
    "MOST_PATCHED_CHANNELS": ((0, 1, 2, 4, 8), NARROW),
    "LARGEST_BAND": ((0, 512, 1024, 2048, 4096, 7000), DEPTHWISE),
    "MOMENTS_PER_CHANNEL": ((0, 10, 20, 40, 80, 160), EXPANDING),
    "WIDE_CHANNELS": ((8, 16, 32, 64, 256), WIDE),
    "PATCHES_IN_CACHE": ((0, 2**17, 2**19, 2**21), WIDE),
    "LARGEST_FILTERED": ((0, 8, 16, 32), FILTERED),
    "FEWEST_FILTERED": ((1, 4, 8, 16, 32), FEW),
    "TURNED_HIDDEN": ((1, 64, 128, 192, 256, 1024), RECURRENT),
}


@contextmanager
def limited(name: str, value: int) -> Iterator[None]:
    """With another value of a limit in force."""
    before = getattr(costs, name)
    setattr(costs, name, value)
    try:
        yield
    finally:
        setattr(costs, name, before)


def step(layer: Layer | Recurrent) -> bytes:
    """A graph of the layer forward and backward, from input, weights and the result's gradient to the result and gradients."""
    return _convolution_step(layer) if isinstance(layer, Layer) else _recurrent_step(layer)


def _convolution_step(layer: Layer) -> bytes:
    """With channels first at both ends."""
    graph = Graph()
    graph.training = True
    x = graph.input("x", FLOAT, (layer.inputs, layer.batch, layer.side, layer.side), trained=not layer.first)
    group = layer.inputs if layer.depthwise else 1
    w = graph.input("w", FLOAT, (layer.outputs, layer.inputs // group, layer.kernel, layer.kernel))
    edges = [layer.kernel // 2] * 4
    y = lower_convolution(graph, samples_first(x), w, group=group, strides=[layer.stride] * 2, pads=edges)
    norms = [graph.input(name, FLOAT, (layer.outputs,)) for name in ("scale", "bias", "mean", "variance")]
    if layer.normalised:
        y = lower_batch_normalization(graph, y, *norms)[0]
    y = channels_first(y)
    g = graph.input("g", FLOAT, y.shape)
    wanted = {"w": w} if layer.first else {"x": x, "w": w}
    wanted |= {"scale": norms[0], "bias": norms[1]} if layer.normalised else {}
    gradients = grad((y * g).sum(range(y.rank), keepdims=False), wanted)
    inputs: list[Value] = [x, w, *(norms if layer.normalised else ()), g]
    results = {"y": y, **{f"{name}@grad": value for name, value in gradients.items()}}
    return bytes(graph.export(inputs, results, "layer").SerializeToString())


def _recurrent_step(layer: Recurrent) -> bytes:
    graph, n, units = Graph(), layer.batch, layer.hidden
    graph.training = True
    shapes = {"x": (STEPS, n, units), "w": (1, GATES[layer.op] * units, units), "r": (1, GATES[layer.op] * units, units)}
    ins = {name: graph.input(name, FLOAT, shape, trained=True) for name, shape in shapes.items()}
    made = LOWERINGS[layer.op](graph, *ins.values(), hidden_size=units)
    y = made if isinstance(made, Value) else made[0]
    g = graph.input("g", FLOAT, y.shape)
    gradients = grad((y * g).sum(range(y.rank), keepdims=False), ins)
    results = {"y": y, **{f"{name}@grad": value for name, value in gradients.items()}}
    return bytes(graph.export([*ins.values(), g], results, "layer").SerializeToString())


def _runner(model: bytes) -> Callable[[], object]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_mem_pattern = options.enable_mem_reuse = False
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    rng, binding = np.random.default_rng(1), session.io_binding()
    for one in session.get_inputs():
        array = np.abs(rng.normal(size=one.shape)).astype(np.float32)
        binding.bind_ortvalue_input(one.name, ort.OrtValue.ortvalue_from_numpy(array))
    for one in session.get_outputs():
        binding.bind_output(one.name)
    return lambda: session.run_with_iobinding(binding)


def seconds(models: Sequence[bytes]) -> list[float]:
    """The least processor seconds of each graph over turns; equal graphs are measured once."""
    runners = {model: _runner(model) for model in models}
    least = dict.fromkeys(runners, float("inf"))
    for _ in range(TURNS):
        for model, call in runners.items():
            begin, count = time.process_time(), 0
            while count == 0 or time.process_time() - begin < TURN_S:
                call()
                count += 1
            least[model] = min(least[model], (time.process_time() - begin) / count)
    return [least[model] for model in models]


def measured(name: str) -> dict[int, dict[str, float]]:
    """By candidate: each layer's milliseconds."""
    candidates, layers = CANDIDATES[name]
    times: dict[int, dict[str, float]] = {candidate: {} for candidate in candidates}
    for layer in layers:
        models = []
        for candidate in candidates:
            with limited(name, candidate):
                models.append(step(layer))
        for candidate, spent in zip(candidates, seconds(models), strict=True):
            times[candidate][str(layer)] = 1e3 * spent
    return times


def best(times: dict[int, dict[str, float]]) -> int:
    """The candidate with the least geometric mean over the layers."""
    return min(times, key=lambda candidate: exp(fmean(log(spent) for spent in times[candidate].values())))


def main(names: Sequence[str] = tuple(CANDIDATES)) -> None:
    """Print each limit's table: a row a layer, a column a candidate, milliseconds; then the best beside the one in force."""
    for name in names:
        times: dict[int, dict[str, Any]] = measured(name)
        print(f"\n{name:42} " + " ".join(f"{candidate:>9}" for candidate in times))
        for layer in next(iter(times.values())):
            print(f"{layer:42} " + " ".join(f"{column[layer]:9.3f}" for column in times.values()), flush=True)
        print(f"best: {best(times)}, in force: {getattr(costs, name)}")
