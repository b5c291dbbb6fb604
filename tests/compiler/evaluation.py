"""Two ways to run a graph: onnx's reference evaluator (float64, mended) and stock onnxruntime.

No test and no model belongs here.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

Array = NDArray[Any]


def window_slices(attrs: Mapping[str, Any], positions: Sequence[int]) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """For each kernel tap: what it covers of `[N, C, *spatial]` over all window positions."""
    for tap in product(*(range(size) for size in attrs["kernel_shape"])):
        rows = zip(tap, attrs["dilations"], attrs["strides"], positions, strict=True)
        spots = [slice(t * d, t * d + s * (n - 1) + 1, s) for t, d, s, n in rows]
        yield tap, (slice(None), slice(None), *spots)


def extents(attrs: Mapping[str, Any]) -> Array:
    return (np.array(attrs["kernel_shape"]) - 1) * attrs["dilations"] + 1


class ConvTranspose(OpRun):
    """In place of onnx's own, which fails for groups of several output channels."""

    def _run(self, x: Array, w: Array, bias: Array | None = None, **attrs: Any) -> tuple[Array]:
        n, group, rank = x.shape[0], attrs["group"] or 1, x.ndim - 2
        inputs, weights = x.reshape(n, group, -1, *x.shape[2:]), w.reshape(group, -1, *w.shape[1:])
        sizes = np.array(attrs["strides"]) * (np.array(x.shape[2:]) - 1) + extents(attrs)
        y = np.zeros((n, group * w.shape[1], *sizes), x.dtype)
        for tap, spots in window_slices(attrs, x.shape[2:]):
            part = np.einsum("ngi...,gio->ngo...", inputs, weights[(..., *tap)])
            y[spots] += part.reshape(n, -1, *x.shape[2:])
        begins, ends = attrs["pads"][:rank], sizes - attrs["pads"][rank:]
        y = y[(..., *(slice(b, e) for b, e in zip(begins, ends, strict=True)))]
        return (y if bias is None else y + bias.reshape(-1, *[1] * rank),)


class MaxPool(OpRun):
    """In place of onnx's own, which gives a wrong shape for uneven pads."""

    def _run(self, x: Array, **attrs: Any) -> tuple[Array, ...]:
        pads = np.reshape(attrs["pads"], (2, -1)).T
        margins = [(0, 0), (0, 0), *pads]
        inputs = np.pad(x, margins, constant_values=-np.inf)
        places = np.pad(np.arange(x.size).reshape(x.shape), margins)
        positions = (np.array(inputs.shape[2:]) - extents(attrs)) // attrs["strides"] + 1
        spots = [spots for _, spots in window_slices(attrs, positions)]
        seen, where = np.stack([inputs[s] for s in spots]), np.stack([places[s] for s in spots])
        best = seen.argmax(axis=0)[None]
        results = [np.take_along_axis(stack, best, 0)[0] for stack in (seen, where)]
        return tuple(results[: len(self.onnx_node.output)])


def reference(model: onnx.ModelProto) -> Any:
    """A callable from feeds to outputs by name."""
    evaluator = ReferenceEvaluator(model, new_ops=[ConvTranspose, MaxPool])
    names = [output.name for output in model.graph.output]
    return lambda feeds: dict(zip(names, evaluator.run(None, dict(feeds)), strict=True))


def stock(model: onnx.ModelProto) -> Any:
    """The same on onnxruntime, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in model.graph.output]
    return lambda feeds: dict(zip(names, session.run(None, dict(feeds)), strict=True))


def in_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every float32 weight, input, output and cast turned into float64."""
    double = onnx.ModelProto()
    double.CopyFrom(model)
    constants = [attr.t for node in double.graph.node if node.op_type == "Constant" for attr in node.attribute]
    for tensor in [*double.graph.initializer, *constants]:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for info in [*double.graph.input, *double.graph.output]:
        if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            info.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    for attribute in (attr for node in double.graph.node if node.op_type == "Cast" for attr in node.attribute):
        if attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT:
            attribute.i = onnx.TensorProto.DOUBLE
    return double


def directional_difference(function: Any, point: Array, direction: Array, eps: float) -> float:
    """Central finite difference of a scalar function along `direction`."""
    return float((function(point + eps * direction) - function(point - eps * direction)) / (2 * eps))
