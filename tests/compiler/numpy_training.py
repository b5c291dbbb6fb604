"""Two networks trained with gradients derived by hand, in float64 NumPy: the oracle for whole train steps.

Written from the textbook formulas, without the compiler. No test belongs here.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tests.compiler.evaluation import Array

Weights = dict[str, Array]
LossAndGradients = Callable[[Weights, Array, Array, Array], tuple[float, Weights]]


def softmax_cross_entropy(logits: Array, label: Array, weight: Array) -> tuple[float, Array]:
    """Weighted mean loss and its gradient by the logits `[N, C]`."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    share = weight / max(weight.sum(), 1e-12)
    one_hot = np.eye(logits.shape[1])[label]
    return float(-(share * log_p[np.arange(len(label)), label]).sum()), share[:, None] * (np.exp(log_p) - one_hot)


def mean_squared_error(y: Array, label: Array, weight: Array) -> tuple[float, Array]:
    share = weight / max(weight.sum(), 1e-12)
    error = y - label
    return float((share * (error**2).mean(axis=1)).sum()), share[:, None] * 2.0 * error / error.shape[1]


def mlp(loss: Any) -> LossAndGradients:
    """x - dense1 - ReLU - dense2."""

    def run(w: Weights, x: Array, label: Array, weight: Array) -> tuple[float, Weights]:
        hidden = np.maximum(x @ w["dense1.weight"].T + w["dense1.bias"], 0.0)
        value, d_out = loss(hidden @ w["dense2.weight"].T + w["dense2.bias"], label, weight)
        d_hidden = (d_out @ w["dense2.weight"]) * (hidden > 0)
        return value, {
            "dense1.weight": d_hidden.T @ x,
            "dense1.bias": d_hidden.sum(axis=0),
            "dense2.weight": d_out.T @ hidden,
            "dense2.bias": d_out.sum(axis=0),
        }

    return run


def digits_cnn(w: Weights, image: Array, label: Array, weight: Array) -> tuple[float, Weights]:
    """conv1 - ReLU - pool - conv2 - ReLU - pool - dense, softmax cross-entropy."""
    a1 = np.maximum(_conv(image, w["conv1.weight"]) + w["conv1.bias"][:, None, None], 0.0)
    p1 = _pool(a1)
    a2 = np.maximum(_conv(p1, w["conv2.weight"]) + w["conv2.bias"][:, None, None], 0.0)
    features = _pool(a2).reshape(len(image), -1)
    value, d_out = softmax_cross_entropy(features @ w["dense.weight"].T + w["dense.bias"], label, weight)
    d_a2 = _unpool(a2, (d_out @ w["dense.weight"]).reshape(_pool(a2).shape)) * (a2 > 0)
    d_p1 = _conv(d_a2, w["conv2.weight"][:, :, ::-1, ::-1].transpose(1, 0, 2, 3))
    d_a1 = _unpool(a1, d_p1) * (a1 > 0)
    return value, {
        "conv1.weight": _conv_weight(image, d_a1),
        "conv1.bias": d_a1.sum(axis=(0, 2, 3)),
        "conv2.weight": _conv_weight(p1, d_a2),
        "conv2.bias": d_a2.sum(axis=(0, 2, 3)),
        "dense.weight": d_out.T @ features,
        "dense.bias": d_out.sum(axis=0),
    }


def _patches(x: Array) -> Array:
    """3x3 neighbourhoods with zeros outside: `[N, C, H, W, 3, 3]`."""
    return sliding_window_view(np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)]), (3, 3), axis=(2, 3))


def _conv(x: Array, kernel: Array) -> Array:
    return np.einsum("nchwij,mcij->nmhw", _patches(x), kernel)


def _conv_weight(x: Array, d_y: Array) -> Array:
    return np.einsum("nchwij,nmhw->mcij", _patches(x), d_y)


def _pool(x: Array) -> Array:
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))


def _unpool(x: Array, d_y: Array) -> Array:
    chosen = x == _pool(x).repeat(2, axis=2).repeat(2, axis=3)
    return chosen * d_y.repeat(2, axis=2).repeat(2, axis=3)
