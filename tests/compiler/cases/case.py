"""What a case of a gradient rule is, and at which opsets it is legal.

The cases themselves are in the topics beside this file.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper

from tests.compiler.evaluation import Array

OLDEST, NEWEST = 9, 23
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)


@dataclass(frozen=True, eq=False)
class Case:
    """One operator with all its float operands trained.

    `operands`: a shape (floats drawn from [`least`, `most`)), an array (these very numbers; floats are trained as
    well, unless the operator takes them as a setting), or None for an operand left out. `outputs`: names, "" for
    one left out; all are compared, and the float ones projected together for the gradient. `opset`: the only one
    to try; None: one for each version of the operator that accepts the node. `eps`, `accept`: step and tolerance
    of the finite difference, looser only where the reference evaluator computes in float32.
    """

    op: str
    operands: tuple[Any, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    least: float = -1.0
    most: float = 1.0
    outputs: tuple[str, ...] = ("y",)
    opset: int | None = None
    eps: float = 1e-6
    accept: float = 1e-5
    wide: bool = False  # forces the convolution lowering for maps too large for the cache

    def values(self) -> dict[str, Array]:
        """The operands by name, `x0` onwards."""
        rng, values = np.random.default_rng(3), {}
        for i, operand in enumerate(self.operands):
            if isinstance(operand, np.ndarray | np.generic):
                values[f"x{i}"] = np.asarray(operand)
            elif operand is not None:
                values[f"x{i}"] = rng.uniform(self.least, self.most, operand).astype(np.float32)
        return values

    def model(self, opset: int) -> onnx.ModelProto:
        """The node alone, its operands as initialisers."""
        values = self.values()
        names = [f"x{i}" if f"x{i}" in values else "" for i in range(len(self.operands))]
        node = helper.make_node(self.op, names, self.outputs, "tested", **self.attrs)
        tensors = [numpy_helper.from_array(array, name) for name, array in values.items()]
        results = [onnx.ValueInfoProto(name=name) for name in self.outputs if name]
        graph = helper.make_graph([node], "case", [], results, tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 21 else 10)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        if not inferred.graph.output[0].type.WhichOneof("value"):  # an operator without inference: all such are elementwise
            first = values["x0"]
            elem_type = helper.np_dtype_to_tensor_dtype(first.dtype)
            inferred.graph.output[0].CopyFrom(helper.make_tensor_value_info(self.outputs[0], elem_type, first.shape))
        return inferred


@cache
def opsets(case: Case) -> tuple[int, ...]:
    """One opset for each version of the operator that accepts the node, and the newest; ascending."""
    if case.opset is not None:
        return (case.opset,)
    candidates = {max(OLDEST, version) for version in _versions()[case.op]} | {NEWEST}
    return tuple(opset for opset in sorted(candidates) if opset <= NEWEST and _accepted(case, opset))


@cache
def _versions() -> dict[str, list[int]]:
    versions: dict[str, list[int]] = {}
    for schema in defs.get_all_schemas_with_history():
        if schema.domain == "":
            versions.setdefault(schema.name, []).append(schema.since_version)
    return versions


def _accepted(case: Case, opset: int) -> bool:
    try:
        onnx.checker.check_model(case.model(opset), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


@cache
def is_differentiable(case: Case) -> bool:
    """Whether some output is float."""
    results = case.model(opsets(case)[-1]).graph.output
    return any(result.type.tensor_type.elem_type in FLOATS for result in results)


def ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)
