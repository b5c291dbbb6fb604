"""Whole models trained by JAX in float64: a forward pass for each ONNX operator, JAX's own gradients, textbook optimisers.

Written from the ONNX specification and the papers, without the compiler, as a second opinion on it. Covers the operators
of `whole_models.py`, static shapes, and the attributes used there: anything else raises. No test belongs here.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import onnx
from jax import lax
from jax import numpy as jnp
from onnx import helper, numpy_helper

jax.config.update("jax_enable_x64", True)

Arrays = Mapping[str, Any]
EPSILON = float(np.float32(1e-5))  # attributes, and so their defaults, are float32 numbers


def forward(model: onnx.ModelProto) -> Callable[[Arrays], dict[str, Any]]:
    """From values by name (inputs, and the weights that replace initialisers) to every tensor of the model by name."""
    fixed = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    fixed = {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in fixed.items()}

    def run(given: Arrays) -> dict[str, Any]:
        values = {**fixed, **given}
        for node in model.graph.node:
            attrs = {one.name: helper.get_attribute_value(one) for one in node.attribute}
            results = OPERATORS[node.op_type](*(values[name] if name else None for name in node.input), **attrs)
            results = results if isinstance(results, tuple) else (results,)
            values.update(zip(node.output, results, strict=False))
        return values

    return run


def _gemm(a: Any, b: Any, c: Any, transB: int = 0) -> Any:
    return a @ (b.T if transB else b) + c


def _conv(x: Any, w: Any, b: Any = None, pads: Any = None, strides: Any = None, group: int = 1, **_: Any) -> Any:
    rank = x.ndim - 2
    margins = np.reshape(pads or [0] * 2 * rank, (2, rank)).T.tolist()
    y = lax.conv_general_dilated(x, w, strides or [1] * rank, margins, feature_group_count=group)
    return y if b is None else y + b.reshape(-1, *[1] * rank)


def _max_pool(x: Any, kernel_shape: Any, strides: Any) -> Any:
    """Windows that do not overlap, as a reshape."""
    assert list(kernel_shape) == list(strides) == [2, 2]
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))


def _batch_normalization(x: Any, scale: Any, bias: Any, mean: Any, variance: Any, epsilon: float = EPSILON) -> Any:
    columns = [array.reshape(-1, *[1] * (x.ndim - 2)) for array in (scale, bias, mean, variance)]
    return (x - columns[2]) / jnp.sqrt(columns[3] + epsilon) * columns[0] + columns[1]


def _layer_normalization(x: Any, scale: Any, bias: Any, epsilon: float = EPSILON) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * scale + bias


def _softmax(x: Any, axis: int = -1) -> Any:
    return jax.nn.softmax(x, axis=axis)


def _recurrent(cell: Any, states: int) -> Any:
    """An operator from its cell: `cell(x W^T + b_w, states, R, b_r)` gives the new states, the first of which is output."""

    def run(x: Any, w: Any, r: Any, b: Any, hidden_size: int, direction: bytes = b"forward", **attrs: Any) -> Any:
        ways = {b"forward": [1], b"reverse": [-1], b"bidirectional": [1, -1]}[direction]
        outputs = []
        for index, way in enumerate(ways):
            b_w, b_r = jnp.split(b[index], 2)
            start = tuple(jnp.zeros((x.shape[1], hidden_size)) for _ in range(states))

            def step(state: Any, inputs: Any, r: Any = r[index], b_r: Any = b_r) -> Any:
                state = cell(inputs, state, r, b_r, **attrs)
                return state, state[0]

            last, y = lax.scan(step, start, (x @ w[index].T + b_w)[::way])
            outputs.append((y[::way], *last))
        return tuple(jnp.stack(parts, axis) for parts, axis in zip(zip(*outputs, strict=True), (1, 0, 0), strict=False))

    return run


def _lstm_cell(inputs: Any, state: Any, r: Any, b_r: Any) -> Any:
    hidden, cell = state
    i, o, f, c = jnp.split(inputs + hidden @ r.T + b_r, 4, axis=-1)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(c)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def _gru_cell(inputs: Any, state: Any, r: Any, b_r: Any, linear_before_reset: int = 0) -> Any:
    (hidden,) = state
    assert linear_before_reset
    (xz, xr, xh), (hz, hr, hh) = jnp.split(inputs, 3, -1), jnp.split(hidden @ r.T + b_r, 3, -1)
    update = jax.nn.sigmoid(xz + hz)
    candidate = jnp.tanh(xh + jax.nn.sigmoid(xr + hr) * hh)
    return ((1 - update) * candidate + update * hidden,)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": lambda a, b: a + b,
    "BatchNormalization": _batch_normalization,
    "Clip": jnp.clip,
    "Conv": _conv,
    "Flatten": lambda x: x.reshape(x.shape[0], -1),
    "GRU": _recurrent(_gru_cell, 1),
    "Gather": lambda x, index, axis=0: jnp.take(x, index, axis=axis),
    "Gelu": lambda x: 0.5 * x * (1 + lax.erf(x / np.sqrt(2.0))),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda x: x.mean(axis=tuple(range(2, x.ndim)), keepdims=True),
    "LSTM": _recurrent(_lstm_cell, 2),
    "LayerNormalization": _layer_normalization,
    "MatMul": lambda a, b: a @ b,
    "MaxPool": _max_pool,
    "Mul": lambda a, b: a * b,
    "Relu": lambda x: jnp.maximum(x, 0),
    "Reshape": lambda x, shape: x.reshape([size or x.shape[i] for i, size in enumerate(shape.tolist())]),
    "Sigmoid": jax.nn.sigmoid,
    "Softmax": _softmax,
    "Tanh": jnp.tanh,
    "Transpose": lambda x, perm: jnp.transpose(x, perm),
}


def cross_entropy(logits: Any, label: Any, weight: Any) -> Any:
    """The weighted mean; classes on the last axis."""
    losses = jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, label[..., None], -1)[..., 0]
    return (weight * losses).sum() / weight.sum()


def train(
    model: onnx.ModelProto, start: Arrays, batches: Iterator[Arrays], optimiser: str, hypers: Mapping[str, float], steps: int
) -> list[tuple[float, Arrays]]:
    """The loss before each step and the weights after it; gradients are clipped to `clip_norm` together."""
    run, output = forward(model), model.graph.output[0].name

    def loss(weights: Arrays, batch: Arrays) -> Any:
        data = {name: array for name, array in batch.items() if not name.startswith("@")}
        return cross_entropy(run({**data, **weights})[output], batch["@label"], batch["@weight"])

    slope = jax.jit(jax.value_and_grad(loss))
    weights = {name: np.asarray(array, np.float64) for name, array in start.items()}
    states: dict[str, Any] = dict.fromkeys(weights, (0.0, 0.0))
    results = []
    for step in range(1, steps + 1):
        value, gradients = slope(weights, next(batches))
        norm = np.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))
        scale = min(1.0, hypers["clip_norm"] / (norm + 1e-6))
        for name, gradient in gradients.items():
            moved = UPDATES[optimiser](weights[name], np.asarray(gradient) * scale, states[name], step, hypers)
            weights[name], states[name] = moved
        results.append((float(value), dict(weights)))
    return results


def _momentum(p: Any, g: Any, state: Any, step: int, h: Mapping[str, float]) -> Any:
    velocity = h["momentum"] * state[0] + g + h["weight_decay"] * p
    return p - h["lr"] * velocity, (velocity, 0.0)


def _nesterov(p: Any, g: Any, state: Any, step: int, h: Mapping[str, float]) -> Any:
    g = g + h["weight_decay"] * p
    velocity = h["momentum"] * state[0] + g
    return p - h["lr"] * (g + h["momentum"] * velocity), (velocity, 0.0)


def _adam(p: Any, g: Any, state: Any, step: int, h: Mapping[str, float]) -> Any:
    """Algorithm 1 of Kingma & Ba (2015), line by line, on the penalised gradient."""
    g = g + h["weight_decay"] * p
    first = h["beta1"] * state[0] + (1 - h["beta1"]) * g
    second = h["beta2"] * state[1] + (1 - h["beta2"]) * g**2
    first_hat, second_hat = first / (1 - h["beta1"] ** step), second / (1 - h["beta2"] ** step)
    return p - h["lr"] * first_hat / (np.sqrt(second_hat) + h["eps"]), (first, second)


def _adamw(p: Any, g: Any, state: Any, step: int, h: Mapping[str, float]) -> Any:
    moved, states = _adam(p, g, state, step, {**h, "weight_decay": 0.0})
    return moved - h["lr"] * h["weight_decay"] * p, states


UPDATES: dict[str, Any] = {
    "sgd": lambda p, g, state, step, h: _momentum(p, g, state, step, {**h, "momentum": 0.0}),
    "momentum": _momentum,
    "nesterov": _nesterov,
    "adam": _adam,
    "adamw": _adamw,
}
