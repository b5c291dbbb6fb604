"""Gradients on stock onnxruntime in float32 against JAX' own in float64: an oracle that knows nothing of this compiler.

For every case of an operator that JAX has as a function. The table below says which function that is.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.compiler.cases import CASES
from tests.compiler.cases.case import Case, is_differentiable, opsets
from tests.compiler.measuring import projections, relative_error, single_gradients

pytestmark = pytest.mark.deep

jax = pytest.importorskip("jax", reason="jax is missing: pip install 'whimbrel[oracle]'", exc_type=ImportError)
jnp, nn = jax.numpy, jax.nn
jax.config.update("jax_enable_x64", True)

Function = Callable[..., Any]


def layer_norm(x: Any, scale: Any, bias: Any = 0.0, *, axis: int = -1, epsilon: float = 1e-5) -> Any:
    axes = tuple(range(axis % x.ndim, x.ndim))
    mean, inverse = x.mean(axes, keepdims=True), 1 / jnp.sqrt(x.var(axes, keepdims=True) + epsilon)
    return (x - mean) * inverse * scale + bias, mean, inverse


def instance_norm(x: Any, scale: Any, bias: Any, *, epsilon: float = 1e-5) -> Any:
    ones = [1] * (x.ndim - 2)
    normalised = nn.standardize(x, tuple(range(2, x.ndim)), epsilon=epsilon)
    return normalised * scale.reshape(-1, *ones) + bias.reshape(-1, *ones)


def group_norm(x: Any, scale: Any, bias: Any, *, num_groups: int, epsilon: float = 1e-5) -> Any:
    normalised = nn.standardize(x.reshape(x.shape[0], num_groups, -1), -1, epsilon=epsilon).reshape(x.shape)
    each, ones = x.shape[1] // scale.size, [1] * (x.ndim - 2)
    return normalised * jnp.repeat(scale, each).reshape(-1, *ones) + jnp.repeat(bias, each).reshape(-1, *ones)


def rms_norm(x: Any, scale: Any, *, axis: int = -1, epsilon: float = 1e-5) -> Any:
    axes = tuple(range(axis % x.ndim, x.ndim))
    return x / jnp.sqrt((x**2).mean(axes, keepdims=True) + epsilon) * scale


def attention(q: Any, k: Any, v: Any, mask: Any = None, *, scale: float | None = None, **attrs: Any) -> Any:
    """By its formula, with keys and values repeated for each head."""
    packed, counts = q.ndim == 3, [attrs.get("q_num_heads"), *[attrs.get("kv_num_heads")] * 2]
    if packed:
        q, k, v = (x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2) for x, heads in zip((q, k, v), counts, strict=True))
    k, v = (jnp.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    scores = jnp.einsum("nhtd,nhsd->nhts", q, k) * (scale or q.shape[-1] ** -0.5)
    if attrs.get("softcap"):
        scores = attrs["softcap"] * jnp.tanh(scores / attrs["softcap"])
    if attrs.get("is_causal"):
        scores = jnp.where(jnp.tri(*scores.shape[-2:], dtype=bool), scores, -jnp.inf)
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf) if mask.dtype == bool else scores + mask
    y = jnp.einsum("nhts,nhsd->nhtd", nn.softmax(scores), v)
    return y.swapaxes(1, 2).reshape(q.shape[0], q.shape[2], -1) if packed else y


def reduction(function: Function) -> Function:
    def reduce(x: Any, axes: Any = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Any:
        if axes is None or not axes.size:
            return x if noop_with_empty_axes else function(x, axis=tuple(range(x.ndim)), keepdims=bool(keepdims))
        return function(x, axis=tuple(axes.tolist()), keepdims=bool(keepdims))

    return reduce


FUNCTIONS: dict[str, Function] = {
    "Acos": jnp.arccos,
    "Acosh": jnp.arccosh,
    "Asin": jnp.arcsin,
    "Asinh": jnp.arcsinh,
    "Atan": jnp.arctan,
    "Atanh": jnp.arctanh,
    "Attention": attention,
    "Celu": lambda x, alpha=1.0: nn.celu(x, alpha),
    "Cos": jnp.cos,
    "Cosh": jnp.cosh,
    "Div": jnp.divide,
    "Einsum": lambda *values, equation: jnp.einsum(equation.replace(" ", ""), *values),
    "Elu": lambda x, alpha=1.0: nn.elu(x, alpha),
    "Erf": jax.scipy.special.erf,
    "Exp": jnp.exp,
    "Gelu": lambda x, approximate="none": nn.gelu(x, approximate == "tanh"),
    "GroupNormalization": group_norm,
    "HardSwish": nn.hard_swish,
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
    "LeakyRelu": lambda x, alpha=0.01: nn.leaky_relu(x, alpha),
    "LogSoftmax": lambda x, axis=-1: nn.log_softmax(x, axis),
    "Log": jnp.log,
    "MatMul": jnp.matmul,
    "Max": lambda *values: jnp.stack(jnp.broadcast_arrays(*values)).max(0),
    "Min": lambda *values: jnp.stack(jnp.broadcast_arrays(*values)).min(0),
    "Mish": nn.mish,
    "Mul": jnp.multiply,
    "Pow": jnp.power,
    "RMSNormalization": rms_norm,
    "Reciprocal": jnp.reciprocal,
    "ReduceL1": reduction(lambda x, **how: jnp.abs(x).sum(**how)),
    "ReduceL2": reduction(lambda x, **how: jnp.sqrt((x**2).sum(**how))),
    "ReduceLogSum": reduction(lambda x, **how: jnp.log(x.sum(**how))),
    "ReduceLogSumExp": reduction(nn.logsumexp),
    "ReduceMax": reduction(jnp.max),
    "ReduceMean": reduction(jnp.mean),
    "ReduceMin": reduction(jnp.min),
    "ReduceProd": reduction(jnp.prod),
    "ReduceSum": reduction(jnp.sum),
    "ReduceSumSquare": reduction(lambda x, **how: (x**2).sum(**how)),
    "Selu": lambda x, alpha=1.6732632423543772, gamma=1.0507009873554805: gamma * nn.elu(x, alpha),
    "Sigmoid": nn.sigmoid,
    "Sin": jnp.sin,
    "Sinh": jnp.sinh,
    "Softmax": lambda x, axis=-1: nn.softmax(x, axis),
    "Softplus": nn.softplus,
    "Softsign": nn.soft_sign,
    "Sqrt": jnp.sqrt,
    "Tan": jnp.tan,
    "Tanh": jnp.tanh,
}
ATTENTION_BEYOND = ("attention-causal-past", "attention-mask-leaves-none", *(f"attention-scores-{mode}" for mode in range(4)))


def comparable(name: str, case: Case) -> bool:
    """Without axes as an attribute, and without what the function above does not do."""
    return case.op in FUNCTIONS and opsets(case)[-1] >= 20 and is_differentiable(case) and name not in ATTENTION_BEYOND


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if comparable(name, case)])
def test_gradient_equals_jax(name: str) -> None:
    case, opset = CASES[name], opsets(CASES[name])[-1]
    found, columns = single_gradients(case, opset), projections(case, opset)
    values = {key: np.float64(a) if a.dtype.kind == "f" else a for key, a in case.values().items()}

    def loss(trained: dict[str, Any]) -> Any:
        named = {**values, **trained}
        operands = [named.get(f"x{i}") for i in range(len(case.operands))]
        results = FUNCTIONS[case.op](*operands, **case.attrs)
        results = results if isinstance(results, tuple) else (results,)
        kept = dict(zip(case.outputs, results, strict=False))
        return sum((kept[key].reshape(-1) @ column[:, 0]) for key, column in columns.items())

    trained = {key: values[key] for key in values if f"{key}@grad" in found}
    expected, slopes = jax.value_and_grad(loss)(trained)
    assert relative_error(found["loss"], np.asarray(expected)) <= 2e-6
    for key, slope in slopes.items():
        assert relative_error(found[f"{key}@grad"], np.asarray(slope)) <= 1e-5, key
