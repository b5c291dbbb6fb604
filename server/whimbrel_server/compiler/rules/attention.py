"""Scaled dot-product attention (Vaswani et al. 2017), the operator of opset 23, written out as products and a softmax.

Heads of a group share keys and values (Ainslie et al. 2023): their queries are stacked, so that nothing is
repeated. The gradient is the one of the parts.
"""

import math
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from whimbrel_server.compiler.errors import CompileError, Refusal
from whimbrel_server.compiler.graph.ir import Graph, Value
from whimbrel_server.compiler.rules.table import Lowering, Rule

RULES: dict[str, Rule] = {}


def _with_heads(x: Value, heads: int | None, which: str) -> Value:
    """`[N, H, T, D]` from itself or from `[N, T, H * D]`."""
    if x.rank == 4:
        return x
    if not heads:
        raise CompileError("attention", f"Attention (node {x.graph.origin!r}) with inputs of rank 3 needs {which}_num_heads")
    return x.reshape([x.shape[0], x.shape[1], heads, x.shape[2] // heads]).transpose([0, 2, 1, 3])


def _after(past: Value | None, value: Value) -> Value:
    return value if past is None else value.graph.op("Concat", past, value, axis=2)


def _scores(q: Value, k: Value, scale: float) -> Value:
    """`[N, H, T, S]`; the queries of a group are stacked above each other, one product a key head."""
    heads, per_group = q.shape[1], q.shape[1] // k.shape[1]
    stacked = (q * scale).reshape([q.shape[0], k.shape[1], per_group * q.shape[2], q.shape[3]])
    return (stacked @ k.transpose([0, 1, 3, 2])).reshape([q.shape[0], heads, q.shape[2], k.shape[2]])


def _weighted(weights: Value, v: Value) -> Value:
    """`[N, H, T, D]`, stacked as in the scores."""
    n, heads, queries, keys = weights.shape
    stacked = weights.reshape([n, v.shape[1], heads // v.shape[1] * queries, keys])
    return (stacked @ v).reshape([n, heads, queries, v.shape[3]])


def _bias(scores: Value, mask: Value | None, causal: bool, past: int) -> Value | None:
    """What is added to the scores: the mask's numbers, and -inf for every pair that must not meet."""
    graph, (queries, keys) = scores.graph, scores.shape[-2:]
    parts = []
    if mask is not None:
        added = mask if mask.is_float else _infinite(scores, graph.op("Not", mask))
        lacking = [0] * (2 * mask.rank - 1) + [keys - mask.shape[-1]]  # a mask may end before the keys do
        parts.append(graph.op("Pad", added, graph.ints(lacking), scores.like(-np.inf)) if any(lacking) else added)
    if causal:
        newest = graph.ints([query + past for query in range(queries)]).reshape([queries, 1])
        parts.append(_infinite(scores, graph.op("Greater", graph.ints(range(keys)), newest)))
    return reduce(add, parts) if parts else None


def _infinite(scores: Value, where: Value) -> Value:
    return scores.graph.op("Where", where, scores.like(-np.inf), scores.like(0.0))


def _softmax(scores: Value, bias: Value | None, masked: bool) -> Value:
    """With a mask a query may meet no key at all: its row is zeros, and no NaN arises on the way back."""
    graph = scores.graph
    if bias is None or not masked:
        return graph.op("Softmax", scores if bias is None else scores + bias, axis=-1)
    low = bias.like(float(np.finfo(bias.dtype).min) / 4)
    best = graph.op("ReduceMax", bias, graph.ints([bias.rank - 1]), keepdims=1)
    return graph.op("Softmax", scores + graph.op("Max", bias, low), axis=-1) * best.mask("Greater", low)


def lower_attention(
    graph: Graph,
    q: Value,
    k: Value,
    v: Value,
    mask: Value | None = None,
    past_key: Value | None = None,
    past_value: Value | None = None,
    *newer: Value | None,
    **attrs: Any,
) -> tuple[Value, ...]:
    """Y, present key and value, and the scores at the stage that `qk_matmul_output_mode` names.

    Raises Refusal for what later opsets added: lengths of padded keys, and windows.
    """
    if any(newer) or any(attrs.get(f"{side}_window_size", -1) >= 0 for side in ("left", "right")):
        raise Refusal("lengths of keys and windows came after opset 23")
    packed = q.rank == 3
    q = _with_heads(q, attrs.get("q_num_heads"), "q")
    k = _after(past_key, _with_heads(k, attrs.get("kv_num_heads"), "kv"))
    v = _after(past_value, _with_heads(v, attrs.get("kv_num_heads"), "kv"))
    scores = _scores(q, k, attrs.get("scale", 1.0 / math.sqrt(q.shape[3])))
    softcap = attrs.get("softcap", 0.0)
    capped = graph.op("Tanh", scores * (1.0 / softcap)) * softcap if softcap else scores
    past = past_key.shape[2] if past_key is not None else 0
    bias = _bias(scores, mask, bool(attrs.get("is_causal", 0)), past)
    weights = _softmax(capped, bias, mask is not None)
    y = _weighted(weights, v)
    if packed:
        y = y.transpose([0, 2, 1, 3]).reshape([y.shape[0], y.shape[2], -1])
    stages = (scores, capped, capped if bias is None else capped + bias, weights)
    return y, k, v, stages[attrs.get("qk_matmul_output_mode", 0)]


LOWERINGS: dict[str, Lowering] = {
    "Attention": lower_attention,
}
