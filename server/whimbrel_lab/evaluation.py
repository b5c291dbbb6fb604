"""Two ways to run a graph: onnx's reference evaluator (float64, mended) and stock onnxruntime.

What belongs here: operators that onnx's own evaluator gets wrong, each compared with onnxruntime before it came in, and what
makes a graph compute in float64. No test and no model belongs here.
"""

from __future__ import annotations

import math
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
    return np.asarray((np.array(attrs["kernel_shape"]) - 1) * attrs["dilations"] + 1)


class ConvTranspose(OpRun):
    """In place of onnx's own, which fails for groups of several output channels."""

    def _run(self, x: Array, w: Array, bias: Array | None = None, **attrs: Any) -> tuple[Array]:
        n, group, rank = x.shape[0], attrs["group"] or 1, x.ndim - 2
        inputs, weights = x.reshape(n, group, -1, *x.shape[2:]), w.reshape(group, -1, *w.shape[1:])
        sizes = np.array(attrs["strides"]) * (np.array(x.shape[2:]) - 1) + extents(attrs)
        y = np.zeros((n, group * w.shape[1], *sizes), x.dtype)
        for tap, spots in window_slices(attrs, x.shape[2:]):
            kernel: tuple[Any, ...] = (..., *tap)
            part = np.einsum("ngi...,gio->ngo...", inputs, weights[kernel])
            y[spots] += part.reshape(n, -1, *x.shape[2:])
        begins, ends = attrs["pads"][:rank], sizes - attrs["pads"][rank:]
        inner: tuple[Any, ...] = (..., *(slice(b, e) for b, e in zip(begins, ends, strict=True)))
        y = y[inner]
        return (y if bias is None else y + bias.reshape(-1, *[1] * rank),)


class Erf(OpRun):
    """In place of onnx's own, which rounds to float32."""

    def _run(self, x: Array) -> tuple[Array]:
        return (np.vectorize(math.erf, otypes=[x.dtype.char])(x),)


class GatherElements(OpRun):
    """In place of onnx's own, which takes no axis of more than 64 beside two others."""

    def _run(self, data: Array, indices: Array, axis: int = 0) -> tuple[Array]:
        along = axis % data.ndim
        whole = tuple(slice(None) if d == along else slice(size) for d, size in enumerate(indices.shape))
        return (np.take_along_axis(data[whole], indices, along),)


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


class Scan(OpRun):
    """In place of onnx's own, which cannot run from the last slice to the first."""

    body: Any  # the evaluator sets it from the attribute

    def need_context(self) -> bool:
        return True

    def _run(self, *args: Array, context: Mapping[str, Array], num_scan_inputs: int, **attrs: Any) -> tuple[Array, ...]:
        count = len(args) - num_scan_inputs
        order = -1 if any(attrs["scan_input_directions"] or ()) else 1
        carries, scanned, stacks = list(args[:count]), [array[::order] for array in args[count:]], []
        for slices in zip(*scanned, strict=True):
            feeds = dict(zip(self.body.input_names, [*carries, *slices], strict=True))
            results = self.body.run(None, {**context, **feeds})
            carries = results[:count]
            stacks.append(results[count:])
        return *carries, *(np.stack(stack)[::order] for stack in zip(*stacks, strict=True))


def reference(model: onnx.ModelProto) -> Any:
    """A callable from feeds to outputs by name."""
    evaluator = ReferenceEvaluator(model, new_ops=[ConvTranspose, Erf, GatherElements, MaxPool, Scan])
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
    """The model with every float32 tensor, input, output and cast turned into float64, in the bodies of its nodes as well."""
    double = onnx.ModelProto()
    double.CopyFrom(model)
    _widen(double.graph)
    return double


def _widen(graph: onnx.GraphProto) -> None:
    scales = {name for node in graph.node if node.op_type == "Resize" for name in node.input[1:3]}  # float32 by definition
    for tensor in graph.initializer:
        if tensor.name not in scales:
            _widen_tensor(tensor)
    for info in [*graph.input, *graph.output, *graph.value_info]:
        if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            info.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _widen(attribute.g)
            elif attribute.type == onnx.AttributeProto.TENSOR and scales.isdisjoint(node.output):
                _widen_tensor(attribute.t)
            elif attribute.name in ("to", "dtype") and attribute.i == onnx.TensorProto.FLOAT:
                attribute.i = onnx.TensorProto.DOUBLE


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == onnx.TensorProto.FLOAT:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


def directional_difference(function: Any, point: Array, direction: Array, eps: float) -> float:
    """Central finite difference of a scalar function along `direction`."""
    return float((function(point + eps * direction) - function(point - eps * direction)) / (2 * eps))
