"""Matrix products and what is made of them."""

from collections.abc import Mapping

from whimbrel_server.compiler.graph.ir import Graph, Node, Value
from whimbrel_server.compiler.rules.table import Gradients, Lowering, Rule


def _swap_last(value: Value) -> Value:
    axes = list(range(value.rank))
    return value.transpose([*axes[:-2], axes[-1], axes[-2]])


def _matmul(n: Node, g: Value) -> Gradients:
    a, b = n[0], n[1]
    if b.rank > 2:
        return g @ _swap_last(b), _across(a, g)
    rows, flat = a.reshape([-1, a.shape[-1]]), g.reshape([-1, g.shape[-1]])
    return (
        g.graph.op("Gemm", flat, b, transB=1).reshape(a.shape),
        g.graph.op("Gemm", rows, flat, transA=1),
    )


def _across(a: Value, g: Value) -> Value:
    """a^T g of stacked matrices; the smaller operand is the one that is copied."""
    return _swap_last(_swap_last(g) @ a) if g.shape[-1] < a.shape[-1] else _swap_last(a) @ g


def _gemm(n: Node, g: Value) -> Gradients:
    """Y = alpha A' B' + beta C; the transposes are flags of the products, so nothing is copied."""
    a, b = n[0], n[1]
    across, down = n.attrs.get("transA", 0), n.attrs.get("transB", 0)
    scale = {"alpha": n.attrs["alpha"]} if n.attrs.get("alpha", 1.0) != 1.0 else {}
    da = _product(b, g, down, 1, scale) if across else _product(g, b, 0, 1 - down, scale)
    db = _product(g, a, 1, across, scale) if down else _product(a, g, 1 - across, 0, scale)
    return da, db, g * n.attrs.get("beta", 1.0) if n.has(2) else None


def _product(a: Value, b: Value, across: int, down: int, scale: Mapping[str, float]) -> Value:
    flags = {name: 1 for name, flag in (("transA", across), ("transB", down)) if flag}
    return a.graph.op("Gemm", a, b, **flags, **scale)


RULES: dict[str, Rule] = {
    "Gemm": _gemm,
    "MatMul": _matmul,
}


def _lower_matmul(graph: Graph, a: Value, b: Value) -> Value:
    """Vectors become matrices of one row or column, so that the rule sees matrices only."""
    product = graph.op("MatMul", a, b)
    if a.rank > 1 and b.rank > 1:
        return product
    rows = a if a.rank > 1 else a.reshape([1, a.size])
    columns = b if b.rank > 1 else b.reshape([b.size, 1])
    return (rows @ columns).reshape(product.shape)


LOWERINGS: dict[str, Lowering] = {
    "MatMul": _lower_matmul,
}
