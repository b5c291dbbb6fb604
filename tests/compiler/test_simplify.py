"""Each rewrite keeps the value and leaves only the operators it promises."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from onnx.numpy_helper import from_array

from tests.compiler.evaluation import Array, reference
from whimbrel_server.compiler.graph import simplify
from whimbrel_server.compiler.graph.draft import Draft
from whimbrel_server.compiler.graph.ir import Graph, Value
from whimbrel_server.compiler.graph.simplify import REWRITES

DOUBLE = np.dtype(np.float64)
X, W, S, ROWS = (2, 3, 4), (3, 4), (), (2, 1, 4)


@dataclass(frozen=True)
class Operands:
    """x [2,3,4], w [3,4] and scalar s of float64; i [2,1,4] int64 below 3."""

    x: Value
    w: Value
    s: Value
    i: Value

    def padded(self, begin: int) -> Value:
        """w with zero rows around it, seven rows in all."""
        return self.w.pad([begin, 0], [4 - begin, 0])

    def looked_up(self) -> Value:
        """Zeros of x's shape with w and then x[0] added to the same planes, which i names."""
        graph = self.x.graph
        plane, first = self.i.slice(0, 0, 1).slice(2, 0, 1).reshape([1, 1]), self.x.slice(0, 0, 1)
        once = graph.op("ScatterND", graph.zeros(X, DOUBLE), plane, self.w.reshape([1, 3, 4]), reduction="add")
        return graph.op("ScatterND", once, plane, first, reduction="add")

    def scattered(self) -> Value:
        """Zeros of x's shape with part of x added at rows i; sparse while nobody needs it dense."""
        graph = self.x.graph
        zeros, updates = graph.zeros(X, DOUBLE), self.x.slice(1, 0, 1)
        return graph.op("ScatterElements", zeros, self.i, updates, axis=1, reduction="add")


def scattered(v: dict[str, Array]) -> Array:
    dense = np.zeros(X)
    np.put_along_axis(dense, v["i"], v["x"][:, :1], axis=1)
    return dense


def looked_up(v: dict[str, Array]) -> Array:
    dense = np.zeros(X)
    dense[v["i"][0, 0, 0]] += v["w"] + v["x"][0]
    return dense


def padded(v: dict[str, Array], begin: int) -> Array:
    return np.pad(v["w"], ((begin, 4 - begin), (0, 0)))


Formula = Callable[[dict[str, Array]], Array]
REWRITTEN: dict[str, tuple[Callable[[Operands], Value], Formula, list[str]]] = {
    "identity": (lambda o: o.x.graph.op("Identity", o.x), lambda v: v["x"], []),
    "cast": (lambda o: o.x.cast(DOUBLE), lambda v: v["x"], []),
    "cast back": (lambda o: o.i.cast(DOUBLE), lambda v: np.float64(v["i"]), ["Cast"]),
    "shape": (lambda o: o.x.graph.op("Shape", o.x, start=1), lambda v: np.array([3, 4]), []),
    "reshape": (lambda o: o.x.reshape(X), lambda v: v["x"], []),
    "reshape of constant": (
        lambda o: o.x.graph.constant(np.arange(6.0)).reshape([2, 3]),
        lambda v: np.arange(6.0).reshape(2, 3),
        [],
    ),
    "reshape to fit": (lambda o: o.x.reshape([0, -1]), lambda v: v["x"].reshape(2, 12), ["Reshape"]),
    "reshapes": (
        lambda o: o.x.reshape([6, 4]).reshape([-1, 3]),
        lambda v: v["x"].reshape(8, 3),
        ["Reshape"],
    ),
    "transpose": (lambda o: o.x.transpose([0, 1, 2]), lambda v: v["x"], []),
    "transposes": (
        lambda o: o.x.transpose([1, 2, 0]).transpose([0, 2, 1]),
        lambda v: v["x"].transpose(1, 0, 2),
        ["Transpose"],
    ),
    "transpose of unit axes": (
        lambda o: o.i.transpose([1, 0, 2]),
        lambda v: v["i"].transpose(1, 0, 2),
        ["Reshape"],
    ),
    "expand": (lambda o: o.x.expand(X), lambda v: v["x"], []),
    "expand into sum": (lambda o: o.w.expand(X) + o.x, lambda v: v["w"] + v["x"], ["Add"]),
    "expand of both": (
        lambda o: o.w.expand(X) - o.s.expand(X),
        lambda v: np.broadcast_to(v["w"] - v["s"], X),
        ["Expand", "Sub"],
    ),
    "scalar before expand": (
        lambda o: o.w.expand(X) * o.s,
        lambda v: np.broadcast_to(v["w"] * v["s"], X),
        ["Mul", "Expand"],
    ),
    "plus zero": (lambda o: 0.0 + o.x + 0.0, lambda v: v["x"], []),
    "zero that widens": (
        lambda o: o.w + o.x.graph.constant(np.zeros(X)),
        lambda v: np.broadcast_to(v["w"], X),
        ["Add"],
    ),
    "minus zero": (lambda o: o.x - 0.0, lambda v: v["x"], []),
    "zero minus": (lambda o: 0.0 - o.x, lambda v: -v["x"], ["Sub"]),
    "times one": (lambda o: 1.0 * o.x * 1.0, lambda v: v["x"], []),
    "times minus one": (lambda o: o.x * -1.0, lambda v: -v["x"], ["Neg"]),
    "by one": (lambda o: o.x / 1.0, lambda v: v["x"], []),
    "minus minus": (lambda o: -o.x.graph.op("Neg", o.x), lambda v: v["x"], []),
    "minus reshape minus": (
        lambda o: -((-o.x).reshape([24])),
        lambda v: v["x"].reshape(24),
        ["Reshape"],
    ),
    "minus product": (lambda o: -(o.s * (-o.x)), lambda v: v["s"] * v["x"], ["Neg", "Neg", "Mul"]),
    "sum of unit axes": (lambda o: o.i.sum([1], keepdims=False), lambda v: v["i"][:, 0], ["Reshape"]),
    "sum of apart axes": (
        lambda o: o.x.sum([0, 2], keepdims=False),
        lambda v: v["x"].sum(axis=(0, 2)),
        ["ReduceSum", "ReduceSum"],
    ),
    "sum of scatter": (
        lambda o: o.scattered().sum([1]),
        lambda v: scattered(v).sum(axis=1, keepdims=True),
        ["Slice"],
    ),
    "sum of scatter elsewhere": (
        lambda o: o.scattered().sum([2]),
        lambda v: scattered(v).sum(axis=2, keepdims=True),
        ["Slice", "ScatterElements", "ReduceSum"],
    ),
    "scaled scatter": (
        lambda o: o.x + o.s * o.scattered(),
        lambda v: v["x"] + v["s"] * scattered(v),
        ["Slice", "Mul", "ScatterElements"],
    ),
    "plus scatter": (
        lambda o: o.scattered() + o.x,
        lambda v: scattered(v) + v["x"],
        ["Slice", "ScatterElements"],
    ),
    "minus scatter": (
        lambda o: o.x - o.scattered(),
        lambda v: v["x"] - scattered(v),
        ["Slice", "Neg", "ScatterElements"],
    ),
    "scatter minus": (
        lambda o: o.scattered() - o.x,
        lambda v: scattered(v) - v["x"],
        ["Neg", "Slice", "ScatterElements"],
    ),
    "scaled sum of scatters": (
        lambda o: -(o.looked_up() * o.s) / o.s,
        lambda v: -looked_up(v),
        [*["Slice"] * 3, *["Reshape"] * 2, "Neg", *["Mul"] * 2, *["Div"] * 2, *["ScatterND"] * 2],
    ),
    "minus scatters": (
        lambda o: o.x - o.s * o.looked_up(),
        lambda v: v["x"] - v["s"] * looked_up(v),
        [*["Slice"] * 3, *["Reshape"] * 2, "Neg", *["Mul"] * 2, *["ScatterND"] * 2],
    ),
    "scatters and more": (
        lambda o: (o.looked_up() - o.x) + o.looked_up(),
        lambda v: 2 * looked_up(v) - v["x"],
        [*["Slice"] * 3, *["Reshape"] * 2, "Neg", *["ScatterND"] * 4],
    ),
    "scaled margins": (
        lambda o: o.padded(1) * o.s,
        lambda v: padded(v, 1) * v["s"],
        ["Mul", "Pad"],
    ),
    "neighbours": (
        lambda o: o.padded(4) + o.padded(1),
        lambda v: padded(v, 1) + padded(v, 4),
        ["Concat", "Pad"],
    ),
    "neighbours without margins": (
        lambda o: (o.w * 2.0).pad([2, 0], [3, 0]) + o.w.pad([5, 0], [0, 0]) + o.w.slice(0, 0, 2).pad([0, 0], [6, 0]),
        lambda v: np.concatenate([v["w"][:2], v["w"] * 2.0, v["w"]]),
        ["Mul", "Slice", "Concat"],
    ),
    "apart": (
        lambda o: o.padded(0) + o.padded(4),
        lambda v: padded(v, 0) + padded(v, 4),
        ["Pad", "Pad", "Add"],
    ),
    "neighbours on another axis": (
        lambda o: o.w.pad([0, 4], [3, 0]) + o.w.pad([3, 0], [0, 4]),
        lambda v: np.pad(v["w"], ((0, 3), (4, 0))) + np.pad(v["w"], ((3, 0), (0, 4))),
        ["Pad", "Pad", "Add"],
    ),
    "concat of one": (lambda o: o.x.graph.op("Concat", o.x, axis=1), lambda v: v["x"], []),
    "past a transpose": (
        lambda o: (o.x.transpose([1, 0, 2]) * o.s + o.w.slice(1, 0, 1).reshape([3, 1, 1])).transpose([1, 0, 2]),
        lambda v: v["x"] * v["s"] + v["w"][:, :1],
        ["Mul", "Slice", "Reshape", "Add"],
    ),
    "past two transposes": (
        lambda o: o.x.transpose([2, 0, 1]) * o.x.transpose([2, 0, 1]),
        lambda v: (v["x"] ** 2).transpose(2, 0, 1),
        ["Mul", "Transpose"],
    ),
    "past unlike transposes": (
        lambda o: o.x.slice(1, 0, 2).transpose([0, 2, 1]) - o.x.slice(1, 0, 2).transpose([2, 0, 1]).transpose([1, 0, 2]),
        lambda v: np.zeros((2, 4, 2)),
        ["Slice", "Transpose", "Sub"],
    ),
    "sum past a transpose": (
        lambda o: o.x.transpose([1, 2, 0]).sum([1]),
        lambda v: v["x"].sum(axis=2).T[:, None],
        ["ReduceSum", "Transpose"],
    ),
    "size": (lambda o: o.x.graph.op("Size", o.x), lambda v: np.array(24), []),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_rewrite(name: str) -> None:
    _, formula, operators = REWRITTEN[name]
    inputs, result = built(name)
    model = result.graph.export(list(inputs.values()), {"y": result}, "rewritten")
    made = [node.op_type for node in model.graph.node]
    assert sorted(made) == sorted(operators or ["Identity"])  # an output that is an input needs one Identity
    rng = np.random.default_rng(4)
    values = {key: rng.normal(size=value.shape) for key, value in inputs.items() if key != "i"}
    values["i"] = rng.integers(0, 3, ROWS)
    np.testing.assert_allclose(reference(model)(values)["y"], formula(values), rtol=1e-12)


def built(name: str) -> tuple[dict[str, Value], Value]:
    graph = Graph()
    inputs = {key: graph.input(key, DOUBLE, shape) for key, shape in (("x", X), ("w", W), ("s", S))}
    inputs["i"] = graph.input("i", np.dtype(np.int64), ROWS)
    return inputs, REWRITTEN[name][0](Operands(**inputs))


def test_every_rewrite_fires_in_some_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rewrite that no case above uses would go unchecked."""
    fired: set[str] = set()

    def watched(rule: Callable[[Draft], Value | None]) -> Callable[[Draft], Value | None]:
        def apply(draft: Draft) -> Value | None:
            simpler = rule(draft)
            if simpler is not None:
                fired.add(rule.__name__)
            return simpler

        return apply

    rules = {op: list(rules) for op, rules in REWRITES.items()}
    monkeypatch.setattr(simplify, "REWRITES", {op: [watched(rule) for rule in rules[op]] for op in rules})
    for name in REWRITTEN:
        built(name)
    assert fired == {rule.__name__ for some in rules.values() for rule in some}


@pytest.mark.parametrize("fill", [0.0, 0.5])
def test_only_a_scatter_into_zeros_is_sparse(fill: float) -> None:
    """On a base too large to be folded to a constant."""
    graph = Graph()
    x, i = graph.input("x", DOUBLE, (3,)), graph.ints([5, 1, 5])
    base = graph.op("ConstantOfShape", graph.ints([100]), value=from_array(np.full(1, fill)))
    total = graph.op("ScatterElements", base, i, x, axis=0, reduction="add").sum([0])
    model = graph.export([x], {"y": total}, "sparse")
    assert ("ScatterElements" in [node.op_type for node in model.graph.node]) == (fill != 0.0)
    found = reference(model)({"x": np.array([1.0, 2.0, 4.0])})["y"]
    np.testing.assert_allclose(found, [7.0 + 100 * fill])


def test_equal_nodes_are_one_and_large_constants_are_not_folded() -> None:
    graph = Graph()
    x = graph.input("x", DOUBLE, X)
    assert x + 2.0 is x + 2.0
    assert x + 2.0 is not x + 3.0
    small, large = (graph.constant(np.ones(1)).expand([size]) for size in (64, 65))
    assert small.data is not None
    assert large.data is None
