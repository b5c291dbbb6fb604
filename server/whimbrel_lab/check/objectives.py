"""What a model is trained on where its author has not said: an output, a loss that fits it, and labels at random.

What belongs here: guesses from an output's shape, its values and the operator that ends it. What does not: the losses, which
are the compiler's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from whimbrel_lab.check.runtime import Array

SAME_VALUES = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Flatten"})
FALLBACK = "mse"
ACTIVATIONS = frozenset({"LogSoftmax", "Sigmoid", "Softmax"})


class NoOutput(ValueError):
    """No output of the model can be trained on."""


@dataclass(frozen=True)
class Objective:
    """An output, its loss, and why, in words; `certain`: the author chose the loss.

    `if_cut`: the guess holds only where the compiler finds the activation that the output seems to end in.
    """

    output: str
    loss: str
    why: str
    certain: bool
    if_cut: bool = False


def choose(model: onnx.ModelProto, outputs: Mapping[str, Array], output: str | None, loss: str) -> Objective:
    """The author's choice, completed. Raises NoOutput for a name that is none, or where no output is of real numbers."""
    name = output or next((name for name, array in outputs.items() if array.dtype.kind == "f" and array.size), "")
    if name not in outputs:
        raise NoOutput(_no_output(model, output, outputs))
    if loss != "auto":
        return Objective(name, loss, "as asked", certain=True)
    ending = _ending(model, name)
    guess, why = _loss_for(outputs[name], ending)
    if ending is None or ending.op_type not in ACTIVATIONS:
        guess, why = _unless_positions(model, name, guess, why)
    return Objective(name, guess, why, certain=False, if_cut=ending.op_type == "Div" if ending else False)


def _no_output(model: onnx.ModelProto, output: str | None, outputs: Mapping[str, Array]) -> str:
    maps = [node.output[0] for node in model.graph.node if node.op_type == "ZipMap"]
    if maps and (output is None or output in maps):
        return f"output {maps[0]!r} is a sequence of maps (ZipMap) and no tensor; export without it (skl2onnx: zipmap=False)"
    return f"the model has no float output{'' if output is None else f' {output!r}'}; it has {', '.join(outputs)}"


def _unless_positions(model: onnx.ModelProto, name: str, guess: str, why: str) -> tuple[str, str]:
    """No classes where the last axis is as long as an input, by its symbol: then there is a number for each position."""
    dims = {info.name: info.type.tensor_type.shape.dim for info in model.graph.output}[name]
    symbols = {dim.dim_param for info in model.graph.input for dim in info.type.tensor_type.shape.dim} - {""}
    if guess == "output" or not dims or dims[-1].dim_param not in symbols:
        return guess, why
    return FALLBACK, f"an output whose last size is {dims[-1].dim_param!r}, an input's own, is taken for real numbers"


def _ending(model: onnx.ModelProto, output: str) -> onnx.NodeProto | None:
    """The node whose values the output shows, perhaps in another shape."""
    makers = {name: node for node in model.graph.node for name in node.output}
    node = makers.get(output)
    while node is not None and node.op_type in SAME_VALUES and node.input:
        node = makers.get(node.input[0])
    return node


def _loss_for(output: Array, ending: onnx.NodeProto | None) -> tuple[str, str]:
    shape, op = output.shape, ending.op_type if ending else ""
    if output.ndim == 0:
        return "output", "the output is one number: it is taken for the loss"
    if op == "Sigmoid":
        return "bce_with_logits", "the output ends in Sigmoid"
    if op in ACTIVATIONS:
        return _by_class_axis(ending, output), f"the output ends in {op}"
    if output.ndim > 2 and shape[1] > 1 and set(shape[2:]) == {1} and not _probabilities(output[..., 0]):
        return "cross_entropy", f"an output {list(shape)} is taken for the scores of {shape[1]} classes"
    if output.ndim == 1 or shape[-1] == 1 or output.ndim > 3:
        return FALLBACK, f"an output {list(shape)} is taken for real numbers"
    if _probabilities(output) and op != "Div":  # else it may be a softmax that an exporter wrote out
        return FALLBACK, f"an output {list(shape)} of probabilities without a Softmax node"
    if output.ndim == 2:
        return "cross_entropy", f"an output {list(shape)} is taken for the scores of {shape[1]} classes"
    return "token_cross_entropy", f"an output {list(shape)} is taken for the scores of {shape[2]} classes at each position"


def _by_class_axis(node: onnx.NodeProto | None, output: Array) -> str:
    axes = [attribute.i for attribute in node.attribute if attribute.name == "axis"] if node else []
    axis = (axes[0] if axes else -1) % output.ndim
    if axis == output.ndim - 1 and output.ndim > 2 and output.shape[-1] > 1:
        return "token_cross_entropy"
    return "cross_entropy"


def _probabilities(output: Array) -> bool:
    return bool((output >= 0).all() and np.allclose(output.sum(axis=-1), 1.0, atol=1e-3))


# --- labels -----------------------------------------------------------------------------------------------------------


def labels(
    objective: Objective, output: Array, shape: Sequence[int], dtype: np.dtype[np.generic], seed: int, head: int = 0
) -> Array:
    """Labels of the step's shape and type, at random: classes that exist (those of a new head), targets of the output's own
    size."""
    rng = np.random.default_rng(seed)
    if dtype.kind in "iu":
        return rng.integers(_first_class(objective.loss), _classes(objective.loss, output, head), shape).astype(dtype)
    if objective.loss == "bce_with_logits":
        return rng.integers(0, 2, shape).astype(dtype)
    if objective.loss == "soft_cross_entropy":
        raw = rng.random(shape) + 0.05
        return np.asarray(raw / raw.sum(axis=1, keepdims=True), dtype)
    values = rng.standard_normal(shape) * max(float(output.std()), 0.1) + float(output.mean())
    return np.clip(values, 0.0, 1.0).astype(dtype) if _probabilities(output) else values.astype(dtype)


def _first_class(loss: str) -> int:
    return int(loss == "ctc")  # class 0 is the blank


def _classes(loss: str, output: Array, head: int) -> int:
    if loss == "hard_triplet":
        return max(2, len(output) // 2)  # pairs of one class
    axis = 1 if loss == "cross_entropy" else output.ndim - 1
    return max(2, head or int(output.shape[axis]))
