"""Operators that rename, reorder or repeat axes: every number of the result is one of the operand, as it stands.

What keeps a part of an axis belongs in `slicing.py`, what selects by indices in `indexing.py`.
"""

import numpy as np
from onnx import helper

from whimbrel_server.compiler.graph.ir import Graph, Node, Value
from whimbrel_server.compiler.rules.table import Gradients, Lowering, Rule


def _transpose(n: Node, g: Value) -> Gradients:
    perm = n.attrs.get("perm", list(reversed(range(n[0].rank))))
    return (g.transpose([int(axis) for axis in np.argsort(perm)]),)


def _tile(n: Node, g: Value) -> Gradients:
    """Sums over the copies, each on an axis of its own."""
    shape: list[int] = []
    copies: list[int] = []
    for size, whole in zip(n[0].shape, g.shape, strict=True):
        if whole != size:
            copies.append(len(shape))
            shape.append(whole // size)
        shape.append(size)
    return g.reshape(shape).sum(copies, keepdims=False), None


def _where(n: Node, g: Value) -> Gradients:
    chosen = n[0].cast(g.dtype)
    other = g.graph.op("Not", n[0]).cast(g.dtype)
    return None, g * chosen, g * other


def _cumsum(n: Node, g: Value) -> Gradients:
    attrs = {**n.attrs, "reverse": 1 - n.attrs.get("reverse", 0)}
    return g.graph.op("CumSum", g, n[1], **attrs), None


RULES: dict[str, Rule] = {
    "CumSum": _cumsum,
    "Expand": lambda n, g: (g, None),
    "Reshape": lambda n, g: (g.reshape(n[0].shape), None),
    "ReverseSequence": lambda n, g: (g.graph.op("ReverseSequence", g, n[1], **n.attrs), None),
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": lambda n, g: (g.graph.op("Trilu", g, *n.ins[1:], **n.attrs), None),
    "Where": _where,
}


def _lower_flatten(graph: Graph, x: Value, *, axis: int = 1) -> Value:
    split = axis % x.rank if axis < x.rank else x.rank
    return x.reshape([int(np.prod(x.shape[:split])), int(np.prod(x.shape[split:]))])


def _as_reshape(op: str) -> Lowering:
    """For operators that only rename axes: any such result is a Reshape to the inferred shape."""
    return lambda graph, x, *ins, **attrs: x.reshape(graph.op(op, x, *ins, **attrs).shape)


def _lower_tile(graph: Graph, x: Value, repeats: Value) -> Value:
    """Repeating axes of size 1 only is an Expand, which the operator behind it may do by itself."""
    tiled = graph.op("Tile", x, repeats)
    grown = [before for before, after in zip(x.shape, tiled.shape, strict=True) if before != after]
    return x.expand(tiled.shape) if set(grown) <= {1} else tiled


def _lower_depth_to_space(graph: Graph, x: Value, *, blocksize: int, mode: str = "DCR") -> Value:
    """`[N, C, H, W]` to `[N, C/b^2, H b, W b]`; the block's two axes come first (DCR) or last (CRD) in depth."""
    n, c, h, w = x.shape
    b, depth = blocksize, c // blocksize**2
    shape, perm = (
        ([n, b, b, depth, h, w], [0, 3, 4, 1, 5, 2]) if mode == "DCR" else ([n, depth, b, b, h, w], [0, 1, 4, 2, 5, 3])
    )
    return x.reshape(shape).transpose(perm).reshape([n, depth, h * b, w * b])


def _lower_space_to_depth(graph: Graph, x: Value, *, blocksize: int) -> Value:
    n, c, h, w = x.shape
    b = blocksize
    blocks = x.reshape([n, c, h // b, b, w // b, b])
    return blocks.transpose([0, 3, 5, 1, 2, 4]).reshape([n, c * b * b, h // b, w // b])


def _lower_eye_like(graph: Graph, x: Value, *, dtype: int | None = None, k: int = 0) -> Value:
    """Depends on nothing but the shape of `x`, so no gradient flows; compared rows and columns are small constants."""
    rows, columns = (graph.op("Range", *(graph.constant(np.array(n)) for n in (0, size, 1))) for size in x.shape)
    kind = x.dtype if dtype is None else np.dtype(helper.tensor_dtype_to_np_dtype(dtype))
    return graph.op("Equal", (rows + k).reshape([x.shape[0], 1]), columns).cast(kind)


LOWERINGS: dict[str, Lowering] = {
    "CumSum": lambda graph, x, axis, **attrs: graph.op("CumSum", x, axis.reshape([]), **attrs),
    "DepthToSpace": _lower_depth_to_space,
    "EyeLike": _lower_eye_like,
    "Flatten": _lower_flatten,
    "Identity": lambda graph, x: x,
    "SpaceToDepth": _lower_space_to_depth,
    "Squeeze": _as_reshape("Squeeze"),
    "Tile": _lower_tile,
    "Unsqueeze": _as_reshape("Unsqueeze"),
}
