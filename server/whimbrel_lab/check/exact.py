"""The third child process of `check`, with `--exact`: the compiled gradient in float64, where rounding hides nothing.

Run as `python -m whimbrel_lab.check.exact FOLDER` after `compilation.py`. The step runs through onnx's reference evaluator,
mended; what no trained parameter reaches is computed once on onnxruntime, whatever its operators.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from whimbrel_lab.check import facts
from whimbrel_lab.check.facts import GRADIENT, Slope
from whimbrel_lab.check.runtime import Array, Stopped, run
from whimbrel_lab.check.training import differences, judge, load, random_direction
from whimbrel_lab.evaluation import in_double, reference

EPSILONS = tuple(2.0**-k for k in range(8, 31, 2))
LIMITS = (1e-5, 1e-3)


def main(folder: Path) -> int:
    """Compare and leave what was found; returns 0, or 1 with a refusal left."""
    try:
        facts.write(folder, exact=check_gradient(folder))
    except Stopped as error:
        facts.write(folder, refusal=f"onnxruntime does not run what no parameter reaches: {error}")
        return 1
    return 0


def check_gradient(folder: Path) -> Slope:
    """The gradient along one random direction over all trained parameters, against central differences of the loss."""
    start = {name: array.astype(np.float64) for name, array in load(folder, "start").items()}
    batch = load(folder, "batch")
    model = _filled(onnx.load(folder / f"{GRADIENT}.onnx", load_external_data=False), load(folder, "frozen"))
    model, fixed = _without_prefix(model, batch)
    evaluate = reference(in_double(model))
    fixed = {**fixed, **{one.name: np.ones(()) for one in model.graph.input if one.name == "@lr"}}
    direction = dict(zip(start, random_direction(list(start.values()), 5), strict=True))
    found = evaluate({**fixed, **start})
    slope = sum(float(((start[name] - found[f"{name}@new"]) * direction[name]).sum()) for name in start)

    def loss(eps: float) -> float:
        moved = {name: array + eps * direction[name] for name, array in start.items()}
        return float(evaluate({**fixed, **moved})["@loss"])

    return judge(slope, list(differences(loss, EPSILONS)), EPSILONS, LIMITS, float(np.spacing(float(found["@loss"]))))


def _filled(model: onnx.ModelProto, frozen: Mapping[str, Array]) -> onnx.ModelProto:
    """The model with the weights that lie outside of it."""
    for tensor in model.graph.initializer:
        if tensor.name in frozen:
            tensor.CopyFrom(numpy_helper.from_array(frozen[tensor.name], tensor.name))
    return model


def _without_prefix(model: onnx.ModelProto, batch: Mapping[str, Array]) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The nodes that trained parameters reach, and values in float64 for all else that these read."""
    early, late = _split(model.graph, batch)
    made = {name for node in early for name in node.output}
    results = {info.name for info in model.graph.output}
    border = sorted(made & results.union(*(_read_by(node) for node in late)))
    prefix = _part(model, early, [], border)
    fed = {info.name: batch[info.name] for info in prefix.graph.input}
    values = dict(zip(border, run(prefix, fed), strict=True)) if border else {}
    rest = _part(model, late, [_info(name, array) for name, array in values.items()], sorted(results - made))
    read = {info.name for info in rest.graph.input}
    known = {name: array for name, array in {**batch, **values}.items() if name in read}
    return rest, {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in known.items()}


def _split(graph: onnx.GraphProto, batch: Mapping[str, Array]) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """Nodes that depend on the batch alone, and the others; both in order."""
    reached = {info.name for info in graph.input if info.name not in batch}
    early: list[onnx.NodeProto] = []
    late: list[onnx.NodeProto] = []
    for node in graph.node:
        if reached.isdisjoint(_read_by(node)):
            early.append(node)
        else:
            late.append(node)
            reached.update(node.output)
    return early, late


def _read_by(node: onnx.NodeProto) -> set[str]:
    """Names that a node reads, in its bodies as well."""
    bodies = [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
    return set(node.input).union(*(_read_by(inner) for body in bodies for inner in body.node))


def _part(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[str],
) -> onnx.ModelProto:
    """A model of some of the nodes, with more inputs; its outputs' types are left for the runtime to infer."""
    part, read = onnx.ModelProto(), {name for node in nodes for name in _read_by(node)}
    part.CopyFrom(model)
    del part.graph.node[:], part.graph.output[:], part.graph.value_info[:]
    part.graph.node.extend(nodes)
    kept = [info for info in model.graph.input if info.name in read]
    del part.graph.input[:]
    part.graph.input.extend([*kept, *inputs])
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return part


def _info(name: str, array: Array) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
