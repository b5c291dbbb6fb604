"""Einsum as transposes, sums and matrix products, so that its gradient is theirs.

Each axis has a label, an ellipsis' axes labels of their own. Operands are joined from left to right: what only
one of two still needs is summed first, what both share and nobody needs later is the inner axis of a MatMul, what
both share and somebody needs is a batch axis.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from whimbrel_server.compiler.errors import CompileError, Refusal
from whimbrel_server.compiler.graph.ir import Graph, Node, Value
from whimbrel_server.compiler.rules.table import Gradients, Lowering, Rule

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Term:
    """A tensor and the labels of its axes, all different."""

    value: Value
    labels: Labels

    def sizes(self, labels: Iterable[str]) -> list[int]:
        return [self.value.shape[self.labels.index(label)] for label in labels]

    def ordered(self, labels: Sequence[str]) -> "Term":
        if tuple(labels) == self.labels:
            return self
        return Term(self.value.transpose([self.labels.index(label) for label in labels]), tuple(labels))

    def summed(self, keep: set[str]) -> "Term":
        """Without the axes that are not in `keep`."""
        gone = [axis for axis, label in enumerate(self.labels) if label not in keep]
        if not gone:
            return self
        return Term(self.value.sum(gone, keepdims=False), tuple(label for label in self.labels if label in keep))

    def grouped(self, *groups: Sequence[str]) -> Value:
        """Each group of labels flattened into one axis; an empty group is an axis of size 1."""
        value = self.ordered([label for group in groups for label in group]).value
        return value.reshape([int(np.prod(self.sizes(group), dtype=np.int64)) for group in groups])


def _parse(equation: str, ranks: Sequence[int]) -> tuple[list[Labels], Labels]:
    """The labels of every operand and of the result, ellipses written out as `.0`, `.1`, ... from the right."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise CompileError("einsum", f"{equation!r} has {len(terms)} terms for {len(ranks)} operands")
    operands = [_labels(term, rank - len(term.replace("...", ""))) for term, rank in zip(terms, ranks, strict=True)]
    dots = max((label for labels in operands for label in labels if label[0] == "."), key=lambda d: int(d[1:]), default=".-1")
    if arrow:
        return operands, _labels(right, int(dots[1:]) + 1)
    every = [label for labels in operands for label in labels]
    once = sorted(label for label in set(every) if every.count(label) == 1 and label[0] != ".")
    return operands, (*_labels("...", int(dots[1:]) + 1), *once)


def _labels(term: str, dots: int) -> Labels:
    before, ellipsis, after = term.partition("...")
    return (*before, *(f".{i}" for i in reversed(range(dots if ellipsis else 0))), *after)


def _without_broadcast_axes(term: Term, sizes: dict[str, int]) -> Term:
    """Axes of size 1 where others are longer are left out, as if the operand did not have the label."""
    kept = tuple(label for label, size in zip(term.labels, term.value.shape, strict=True) if size == sizes[label])
    return term if kept == term.labels else Term(term.value.reshape(term.sizes(kept)), kept)


def _join(a: Term, b: Term, needed: set[str]) -> Term:
    """The product of two terms, with the labels in `needed` only."""
    a, b = a.summed(needed | set(b.labels)), b.summed(needed | set(a.labels))
    shared = [label for label in a.labels if label in b.labels]
    inner = [label for label in shared if label not in needed]
    batch = [label for label in shared if label in needed]
    rows = [label for label in a.labels if label not in shared]
    columns = [label for label in b.labels if label not in shared]
    labels = (*batch, *rows, *columns)
    shape = [*a.sizes(batch), *a.sizes(rows), *b.sizes(columns)]
    lead = [batch] if batch else []
    if inner:
        product = a.grouped(*lead, rows, inner) @ b.grouped(*lead, inner, columns)
    else:
        product = a.grouped(*lead, rows, []) * b.grouped(*lead, [], columns)
    return Term(product.reshape(shape), labels)


def _lower_einsum(graph: Graph, *values: Value, equation: str) -> Value:
    operands, result = _parse(equation, [value.rank for value in values])
    if any(len(set(labels)) < len(labels) for labels in operands):
        return graph.op("Einsum", *values, equation=equation)
    sizes: dict[str, int] = {}
    for labels, value in zip(operands, values, strict=True):
        for label, size in zip(labels, value.shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    terms = [_without_broadcast_axes(Term(v, labels), sizes) for v, labels in zip(values, operands, strict=True)]
    total = terms[0]
    for i, term in enumerate(terms[1:], 2):
        total = _join(total, term, set(result).union(*(other.labels for other in terms[i:])))
    present = [label for label in result if label in total.labels]
    shape = [sizes[label] if label in present else 1 for label in result]
    return total.summed(set(result)).ordered(present).value.reshape(shape)


def _einsum(n: Node, g: Value) -> Gradients:
    raise Refusal("an index is repeated within an operand")


RULES: dict[str, Rule] = {
    "Einsum": _einsum,
}

LOWERINGS: dict[str, Lowering] = {
    "Einsum": _lower_einsum,
}
