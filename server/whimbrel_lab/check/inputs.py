"""Inputs that fit a model of which only the file is known: shapes, and values that mean something to it.

What belongs here: the unknown sizes of a model's inputs, found by trying the likely ones on the model itself, and random values
for each. What does not: labels (`labels.py`) and anything that is trained.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from whimbrel_lab.check.runtime import Array, Stopped

Size = int | str  # a known size, or the name of an unknown one
Shape = tuple[int, ...]
Run = Callable[[Mapping[str, Array]], list[Array]]

ATTEMPTS = 60  # runs of the model in search of sizes that it takes
SPATIAL: Mapping[int, Sequence[int]] = {4: (224, 64, 32, 48, 128, 256, 299, 320, 28), 5: (32, 16, 64, 96), 3: ()}
LENGTHS = (16, 64, 32, 128, 256, 512, 576, 1024, 80, 40, 160, 400, 784, 3000, 16000)
FEATURES_SEEN = 6  # sizes of weights near an input that are tried for it
PRODUCTS = frozenset({"Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "RNN"})  # behind them sizes are others
INDICES = frozenset(
    {
        "Cast",
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)


class Unfit(ValueError):
    """No inputs could be found that the model runs on; the message says what to give."""


@dataclass(frozen=True)
class Input:
    """A model's input: numpy type, and sizes by axis, of which the unknown have names."""

    name: str
    dtype: np.dtype[np.generic]
    sizes: tuple[Size, ...]

    @property
    def is_mask(self) -> bool:
        return self.dtype.kind == "b" or "mask" in self.name.lower()


@dataclass(frozen=True)
class Draw:
    """How values are drawn: integers below `limit`, and below the bound of their input, or `counted` along the last axis, so
    that each row of something is named; masks of this number."""

    limit: int
    mask: int
    counted: bool = False
    bounds: Mapping[str, int | None] = field(default_factory=dict)


# In some masks 1 means hidden; some indices count what is fed, and of that none may be left out.
DRAWS = (Draw(2**31, 1), Draw(2**31, 1, counted=True), Draw(2, 1), Draw(2, 0), Draw(1, 0))
Tried = tuple[dict[str, int], dict[str, Array], list[Array]]  # open sizes, inputs, outputs


@dataclass(frozen=True)
class Asked:
    """What the author fixed: shapes and scalars by input name, and the batch (None: free)."""

    shapes: Mapping[str, Shape]
    values: Mapping[str, float]
    batch: int | None
    seed: int = 1


@dataclass(frozen=True)
class Fitted:
    """Arrays that the model runs on and what it gave for them. `values` holds the scalars, which the step fixes."""

    feeds: Mapping[str, Array]
    values: Mapping[str, float]
    outputs: Mapping[str, Array]
    notes: tuple[str, ...]


def inputs_of(model: onnx.ModelProto) -> list[Input]:
    """The inputs that are no weights, in order. Raises Unfit for one that is no numeric tensor of known rank."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [_input(info) for info in model.graph.input if info.name not in weights]


def _input(info: onnx.ValueInfoProto) -> Input:
    tensor = info.type.tensor_type
    if not info.type.HasField("tensor_type") or tensor.elem_type == onnx.TensorProto.STRING:
        raise Unfit(f"input {info.name!r} is no tensor of numbers; move that part of the model into the app")
    if not tensor.HasField("shape"):
        raise Unfit(f"input {info.name!r} has no declared rank: give --input {info.name}=SIZES")
    sizes = tuple(_size(info.name, axis, dim) for axis, dim in enumerate(tensor.shape.dim))
    return Input(info.name, np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), sizes)


def _size(name: str, axis: int, dim: onnx.TensorShapeProto.Dimension) -> Size:
    if dim.dim_value > 0:
        return int(dim.dim_value)
    return str(dim.dim_param) or f"{name}[{axis}]"


def fit(model: onnx.ModelProto, run: Run, asked: Asked) -> Fitted:
    """Find inputs that `run` takes. Raises Unfit with the runtime's words where none of the likely ones do."""
    inputs = inputs_of(model)
    _check_names(inputs, asked)
    values, notes = _scalars(model, inputs, asked)
    bounds = {one.name: _bound(model, one.name) for one in inputs if one.dtype.kind in "iu"}
    given = _given_sizes(inputs, asked)

    def feeds(sizes: Mapping[str, int], draw: Draw) -> dict[str, Array]:
        return _feeds(inputs, {**given, **sizes}, asked, values, replace(draw, bounds=bounds))

    sizes, fed, outputs = _search(inputs, run, feeds, lambda: _assignments(model, inputs, asked, given))
    guessed = [f"{name} = {size}" for name, size in sizes.items()]
    notes += [f"sizes that the file leaves open: {', '.join(guessed)}"] if guessed else []
    return Fitted(fed, values, dict(zip(_names(model), outputs, strict=True)), tuple(notes))


def _search(
    inputs: Sequence[Input],
    run: Run,
    feeds: Callable[[Mapping[str, int], Draw], dict[str, Array]],
    assignments: Callable[[], Iterator[dict[str, int]]],
) -> Tried:
    """The first sizes that the model runs on, with the first values that give no NaN, or else any."""
    refused, found = "", list[Tried]()
    masks = any(one.dtype.kind in "biu" or one.is_mask for one in inputs)
    for draw in DRAWS if masks else DRAWS[:1]:
        for sizes in [found[0][0]] if found else itertools.islice(assignments(), ATTEMPTS):
            fed = feeds(sizes, draw)
            try:
                outputs = run(fed)
            except Stopped as error:
                refused = refused or str(error)
                continue
            if not any(array.dtype.kind == "f" and np.isnan(array).any() for array in outputs):
                return sizes, fed, outputs
            found.append((sizes, fed, outputs))
            break
    if found:
        return found[0]
    wanted = ", ".join(f"{one.name}{list(one.sizes)}" for one in inputs)
    raise Unfit(f"the model runs on none of the inputs tried; give --input NAME=SIZES ({wanted}). onnxruntime: {refused}")


def _names(model: onnx.ModelProto) -> list[str]:
    return [info.name for info in model.graph.output]


def _check_names(inputs: Sequence[Input], asked: Asked) -> None:
    known = {one.name: one for one in inputs}
    for name in [*asked.shapes, *asked.values]:
        if name not in known:
            raise Unfit(f"the model has no input {name!r}; it has {', '.join(known) or 'none'}")
    for name, shape in asked.shapes.items():
        sizes = known[name].sizes
        fixed = [isinstance(size, str) or size == given for size, given in zip(sizes, shape, strict=False)]
        if len(sizes) != len(shape) or not all(fixed):
            raise Unfit(f"input {name!r} has sizes {list(sizes)}, which {list(shape)} does not fit")


# --- sizes ------------------------------------------------------------------------------------------------------------


def _assignments(
    model: onnx.ModelProto, inputs: Sequence[Input], asked: Asked, given: Mapping[str, int]
) -> Iterator[dict[str, int]]:
    """Sizes for the unknown names that the author did not bind, likeliest first."""
    batch = asked.batch or _batch(inputs, asked, given)
    choices: dict[str, tuple[int, ...]] = {}
    for one in inputs:
        for axis, size in enumerate(one.sizes):
            if isinstance(size, str) and size not in given:
                choices.setdefault(size, _likely(model, one, axis, batch, inputs))
    # Sizes with the same candidates move together: a square is likelier than most rectangles.
    groups = list(dict.fromkeys(choices.values()))
    for picked in itertools.product(*groups):
        found = dict(zip(groups, picked, strict=True))
        yield {name: found[candidates] for name, candidates in choices.items()}


def _given_sizes(inputs: Sequence[Input], asked: Asked) -> dict[str, int]:
    return {
        size: given
        for one in inputs
        for size, given in zip(one.sizes, asked.shapes.get(one.name, ()), strict=False)
        if isinstance(size, str)
    }


def _batch(inputs: Sequence[Input], asked: Asked, bound: Mapping[str, int]) -> int:
    """The batch where the author says none: the first size that is known of the first input that is no scalar."""
    for one in inputs:
        if one.name in asked.shapes and one.sizes:
            return asked.shapes[one.name][0]
        if one.sizes and bound.get(str(one.sizes[0])):
            return bound[str(one.sizes[0])]
    return 4


def _likely(model: onnx.ModelProto, one: Input, axis: int, batch: int, inputs: Sequence[Input]) -> tuple[int, ...]:
    size, rank = str(one.sizes[axis]), len(one.sizes)
    batches = {str(other.sizes[0]) for other in inputs if other.sizes}
    states = rank == 3 and axis == 1 and isinstance(one.sizes[0], int) and len(inputs) > 1
    if axis == 0 or size in batches or "batch" in size.lower() or states:
        return (batch,)
    near = [] if one.dtype.kind in "iu" else _weights_near(model, one.name, axis)
    spatial = SPATIAL.get(rank, ()) if axis >= 2 else ()
    channels = (3, 1) if rank >= 4 and axis == 1 else ()
    return tuple(dict.fromkeys([*near, *channels, *(spatial or LENGTHS)]))


def _weights_near(model: onnx.ModelProto, name: str, axis: int) -> list[int]:
    """Sizes of the weights that meet an input first, the reduced axis of a product before the rest."""
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    names, found = {name}, []
    for node in model.graph.node:
        if not names.intersection(node.input):
            continue
        if node.op_type not in PRODUCTS:
            names.update(node.output)
        dims = [weights[other] for other in node.input if other in weights]
        found += [size for shape in dims for size in _reduced(node.op_type, shape, axis)]
    return list(dict.fromkeys(size for size in found if size > 1))[:FEATURES_SEEN]


def _reduced(op: str, shape: Sequence[int], axis: int) -> Sequence[int]:
    if op == "Conv":
        return shape[1:2] if axis == 1 else ()
    if op in ("LSTM", "GRU", "RNN"):
        return shape[2:3] if axis == 2 else ()
    return shape[-2:] if axis else ()


# --- values -----------------------------------------------------------------------------------------------------------


def _scalars(model: onnx.ModelProto, inputs: Sequence[Input], asked: Asked) -> tuple[dict[str, float], list[str]]:
    """A value for each input of rank 0: the author's, or a number that the model compares it with."""
    values, notes = dict(asked.values), []
    for one in inputs:
        if one.sizes or one.name in values:
            continue
        values[one.name] = _compared(model, one.name)
        notes.append(f"scalar input {one.name} = {values[one.name]:g} (guessed; --value {one.name}=... fixes it)")
    return values, notes


def _compared(model: onnx.ModelProto, name: str) -> float:
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    for node in model.graph.node:
        if node.op_type in ("Equal", "Greater", "Less") and name in node.input:
            others = [numpy_helper.to_array(constants[other]) for other in node.input if other in constants]
            if others and others[0].size == 1:
                return float(others[0].reshape(()))
    return 1.0


def _bound(model: onnx.ModelProto, name: str) -> int | None:
    """How many rows the smallest table has that an input of integers chooses from; None where it chooses from none."""
    shapes = _known_shapes(model)
    names, found = {name}, []
    for node in model.graph.node:
        if node.op_type == "Gather" and len(node.input) > 1 and node.input[1] in names:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
            table = shapes.get(node.input[0], ())
            found += [table[axis]] if -len(table) <= axis < len(table) and table[axis] > 0 else []
        elif node.op_type in INDICES and names.intersection(node.input[:1]):
            names.update(node.output)
    return min(found, default=None)


def _known_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes by name, 0 where a size is unknown."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("DequantizeLinear", "Identity", "Cast") and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
        elif node.op_type == "Constant" and node.attribute[0].name == "value":
            shapes[node.output[0]] = tuple(node.attribute[0].t.dims)
    return shapes


def _feeds(
    inputs: Sequence[Input],
    sizes: Mapping[str, int],
    asked: Asked,
    values: Mapping[str, float],
    draw: Draw,
) -> dict[str, Array]:
    rng, feeds = np.random.default_rng(asked.seed), {}
    for one in inputs:
        shape = asked.shapes.get(one.name) or tuple(sizes[s] if isinstance(s, str) else s for s in one.sizes)
        if one.name in values:
            feeds[one.name] = np.full(shape, values[one.name]).astype(one.dtype)
        else:
            feeds[one.name] = _drawn(rng, one, shape, draw)
    return feeds


def _drawn(rng: np.random.Generator, one: Input, shape: Shape, draw: Draw) -> Array:
    """Normal numbers; integers below their bound; masks of one number; zero states would hide half of a recurrent layer."""
    if one.is_mask:
        return np.full(shape, draw.mask, one.dtype)
    if one.dtype.kind in "iu":
        bound = draw.bounds.get(one.name)
        if bound is None and len(shape) == 1 and "len" in one.name.lower():
            return np.ones(shape, one.dtype)
        if draw.counted and shape:
            return np.broadcast_to(np.arange(shape[-1]) % (bound or shape[-1]), shape).astype(one.dtype)
        return rng.integers(0, min(bound or 10, draw.limit), shape).astype(one.dtype)
    return rng.standard_normal(shape).astype(one.dtype) if math.prod(shape) else np.zeros(shape, one.dtype)
