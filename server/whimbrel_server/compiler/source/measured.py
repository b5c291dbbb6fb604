"""The types of tensors that nothing but a run tells, for a whole model at once.

A file that a runtime has optimised holds many nodes of other domains; running what leads to each of them would take
minutes. How a type is found without a run stands in `opaque.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from whimbrel_server.compiler.contract import Run
from whimbrel_server.compiler.graph.ir import Array, Value
from whimbrel_server.compiler.graph.nested import subgraphs
from whimbrel_server.compiler.source.inputs import Inputs
from whimbrel_server.compiler.source.prepare import STANDARD_DOMAINS

Type = tuple[np.dtype[Any], tuple[int, ...]]
NO_TENSOR: Type = (np.dtype(object), ())  # a sequence, map or optional: only other kept nodes can read it
FILLS = (1.0, 0.0)  # what shapes do not depend on does not depend on the data either


@dataclass(frozen=True)
class Measured:
    """What a run of `model` tells about the nodes that are kept as they are; asked for at most once."""

    model: onnx.ModelProto
    inputs: Inputs
    run: Run

    @cached_property
    def types(self) -> Mapping[str, Type | None]:
        """Type by name; None where the shape depends on the data. Empty where the model does not run on such data."""
        names = [name for node in self.model.graph.node if _kept(node) for name in node.output if name]
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        fixed = {name: value.data for name, value in self.inputs.fixed.items() if value.data is not None}
        try:
            runs = [self.run(model, {**fixed, **filled(self.inputs.data, fill)}) for fill in FILLS]
        except Exception:  # whatever a runtime raises; each node is then looked at by itself
            return {}
        first, second = ([type_of(result) for result in results] for results in runs)
        return {name: a if a == b else None for name, a, b in zip(names, first, second, strict=True)}


def filled(values: Sequence[Value], fill: float) -> dict[str, Array]:
    """Data by name: every number is `fill`, every text empty."""
    return {v.name: np.full(v.shape, "" if v.dtype.kind == "O" else fill, v.dtype) for v in values}


def type_of(result: object) -> Type:
    return (result.dtype, result.shape) if isinstance(result, np.ndarray) else NO_TENSOR


def _kept(node: onnx.NodeProto) -> bool:
    return node.domain not in STANDARD_DOMAINS or bool(subgraphs(node))
