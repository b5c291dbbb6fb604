"""A node about to be made, and what a rewrite may ask about its operands. Rewrites themselves do not belong here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx.numpy_helper import to_array

if TYPE_CHECKING:
    from whimbrel_server.compiler.graph.ir import Graph, Node, Value


@dataclass(frozen=True)
class Draft:
    """A node about to be made, with the dtype and shape of its only output."""

    graph: "Graph"
    op: str
    ins: "tuple[Value | None, ...]"
    attrs: Mapping[str, Any]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __getitem__(self, index: int) -> "Value":
        value = self.ins[index]
        assert value is not None, f"{self.op} requires input {index}"
        return value

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


def made_by(value: "Value", *ops: str) -> "Node | None":
    return value.node if value.node is not None and value.node.op in ops else None


def filled(value: "Value", number: float) -> bool:
    """Whether `value` is a float constant that is `number` throughout."""
    return value.data is not None and value.is_float and bool(np.all(value.data == number))


def zeros(value: "Value") -> bool:
    """Whether `value` is zero throughout, as a constant or as a tensor that the graph fills."""
    node = made_by(value, "ConstantOfShape")
    if node is None:
        return filled(value, 0.0)
    return "value" not in node.attrs or not np.any(to_array(node.attrs["value"]))
