"""The inputs of a step while it is built, by role, and the tables of the finished graph.

What a step computes does not belong here.
"""

from collections.abc import Sequence
from typing import get_args

import numpy as np
import onnx

from whimbrel_server.compiler.contract import Binding, Parameter, Role
from whimbrel_server.compiler.graph.ir import Graph, Value

Output = tuple[Role, str, Value]


class InputTable:
    """Declares a step's inputs; they come out in the order of the roles and, inside one, of declaration."""

    def __init__(self, graph: Graph, dtype: np.dtype[np.generic]) -> None:
        self._graph = graph
        self._dtype = dtype
        self._rows: dict[Role, list[tuple[Value, float | None]]] = {role: [] for role in get_args(Role)}

    def add(self, role: Role, values: Sequence[Value], default: float | None = None) -> None:
        self._rows[role] += [(value, default) for value in values]

    def scalar(self, role: Role, name: str, default: float | None) -> Value:
        """A new input of shape []."""
        value = self._graph.input(name, self._dtype, ())
        self.add(role, [value], default)
        return value

    def beside(self, parameter: Value, role: Role, suffix: str, default: float | None) -> Value:
        """A new input `<param>@<suffix>` of the parameter's type and shape."""
        value = self._graph.input(f"{parameter.name}@{suffix}", parameter.dtype, parameter.shape)
        self.add(role, [value], default)
        return value

    def values(self) -> list[Value]:
        return [value for rows in self._rows.values() for value, _ in rows]

    def names(self, role: Role) -> list[str]:
        return [value.name for value, _ in self._rows[role]]

    def bindings(self) -> tuple[Binding, ...]:
        return tuple(
            Binding(role, value.name, value.dtype, value.shape, default)
            for role, rows in self._rows.items()
            for value, default in rows
        )

    def parameters(self, role: Role) -> tuple[Parameter, ...]:
        return tuple(Parameter(value.name, value.shape, value.dtype) for value, _ in self._rows[role])


def export(graph: Graph, inputs: InputTable, outputs: Sequence[Output], name: str, external: bool) -> onnx.ModelProto:
    """The checked model of a step."""
    return graph.export(inputs.values(), {label: value for _, label, value in outputs}, name, external)
