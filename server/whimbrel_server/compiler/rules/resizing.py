"""Resize: a linear map along each axis, so that one rule serves every mode, rounding and coordinate convention.

Along an axis of size n that becomes m, y[j] = sum over i of x[i] M[i, j]. M is what the operator itself makes of
the unit matrix: the runtime works it out once, when it loads the graph, and so the gradient fits the forward pass
to the last rounding of a position.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from whimbrel_server.compiler.errors import CompileError, Refusal
from whimbrel_server.compiler.graph.ir import Array, Graph, Node, Value
from whimbrel_server.compiler.rules.table import Gradients, Lowering, Rule

# Where nearest, by a whole factor f, takes x[j // f] for y[j]: coordinate convention and rounding.
_REPEATING = {("asymmetric", "floor")} | {
    (convention, rounding)
    for convention in ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel")
    for rounding in ("round_prefer_floor", "round_prefer_ceil")
}


def _resize(n: Node, g: Value) -> Gradients:
    if n.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Refusal(f"keep_aspect_ratio_policy {n.attrs['keep_aspect_ratio_policy']!r}")
    g = _pooled(n, g)
    for axis in reversed(range(g.rank)):
        if g.shape[axis] != n[0].shape[axis]:
            g = _undone(n, g, axis)
        elif n.y.shape[axis] == g.shape[axis] and _moves(n, axis):
            raise Refusal(f"axis {axis} keeps its size of {g.shape[axis]} but not its scale")
    return g, None, None, None


def _pooled(n: Node, g: Value) -> Value:
    """Sums over the copies of repeated positions: pooling is up to nine times faster than ReduceSum."""
    factors = [g.shape[i] // n[0].shape[i] if _repeats(n, i) else 1 for i in range(2, g.rank)]
    if set(factors) <= {1}:
        return g
    return g.graph.op("AveragePool", g, kernel_shape=factors, strides=factors) * float(np.prod(factors))


def _undone(n: Node, g: Value, axis: int) -> Value:
    """The gradient before one axis was resized."""
    before, after = n[0].shape[axis], g.shape[axis]
    lead, behind = g.shape[:axis], g.shape[axis + 1 :]
    weights = _matrix(n, g, axis)
    if not behind:
        return g @ weights.transpose([1, 0])
    columns = g.reshape([int(np.prod(lead)), after, int(np.prod(behind))])
    return (weights @ columns).reshape([*lead, before, *behind])


def _repeats(n: Node, axis: int) -> bool:
    """Whether the axis grows by a whole factor f, and y[j] is x[j // f]."""
    before, after, scales = n[0].shape[axis], n.y.shape[axis], _setting(n, 2)
    whole = after % before == 0 and (scales is None or scales[axis] == after // before)
    convention = n.attrs.get("coordinate_transformation_mode", "half_pixel")
    way = (convention, n.attrs.get("nearest_mode", "round_prefer_floor"))
    return n.attrs.get("mode", "nearest") == "nearest" and whole and way in _REPEATING


def _matrix(n: Node, g: Value, axis: int) -> Value:
    """M of the module's docstring, `[before, after]`: the node's Resize of the last axis of a unit matrix."""
    graph, before, after = g.graph, n[0].shape[axis], g.shape[axis]
    unit = graph.op("EyeLike", graph.zeros([before, before], g.dtype)).reshape([1, 1, before, before])
    attrs = dict(n.attrs)
    if "extrapolation_value" in attrs:
        attrs["extrapolation_value"] = 0.0  # a constant, which no gradient reaches
    region, scales = _region(n, axis), _setting(n, 2)
    roi = None if region is None else graph.constant(np.array([0, 0, 0, region[0], 1, 1, 1, region[1]], region.dtype))
    if scales is None:
        return graph.op("Resize", unit, roi, None, graph.ints([1, 1, before, after]), **attrs).reshape([before, after])
    factors = graph.constant(np.array([1, 1, 1, scales[axis]], scales.dtype))
    return graph.op("Resize", unit, roi, factors, **attrs).reshape([before, after])


def _moves(n: Node, axis: int) -> bool:
    """Whether an axis that keeps its size is resampled all the same."""
    scales, region = _setting(n, 2), _region(n, axis)
    return (scales is not None and scales[axis] != 1) or (region is not None and region.tolist() != [0, 1])


def _region(n: Node, axis: int) -> Array | None:
    """Begin and end of the part of an axis that is resized, where the convention says that there is such a part."""
    roi = _setting(n, 1)
    if n.attrs.get("coordinate_transformation_mode") != "tf_crop_and_resize" or roi is None:
        return None
    return roi.reshape(2, -1)[:, axis]


def _setting(n: Node, index: int) -> Array | None:
    """A constant operand, or None where it is left out or empty; a region that depends on the data is refused."""
    if not n.has(index) or n[index].size == 0:
        return None
    if n[index].data is None:
        raise Refusal("the resized region depends on the data")
    return n[index].data


RULES: dict[str, Rule] = {"Resize": _resize}


def _lower_resize(graph: Graph, x: Value, *settings: Value | None, **attrs: Any) -> Value:
    """With settings for all axes. What keeps its shape is handed on whatever the settings, as onnxruntime does."""
    if "axes" in attrs and attrs.get("keep_aspect_ratio_policy", "stretch") == "stretch":
        axes = attrs.pop("axes")
        defaults: tuple[Sequence[Any], ...] = ([[0.0] * x.rank, [1.0] * x.rank], [1.0] * x.rank, x.shape)
        settings = tuple(_for_all_axes(s, default, axes) for s, default in zip(settings, defaults, strict=False))
    y = graph.op("Resize", x, *settings, **attrs)
    return x if y.shape == x.shape else y


def _for_all_axes(setting: Value | None, default: Sequence[Any], axes: Sequence[int]) -> Value | None:
    """A roi, scales or sizes for `axes` as one for all axes; what depends on the data cannot be resolved."""
    if setting is None or setting.size == 0:
        return None
    if setting.data is None:
        raise CompileError("dynamic-shape", f"Resize (node {setting.graph.origin!r}): its settings depend on the data")
    whole = np.array(default, setting.dtype)
    whole[..., list(axes)] = setting.data.reshape(*whole.shape[:-1], len(axes))
    return setting.graph.constant(whole.ravel())


LOWERINGS: dict[str, Lowering] = {"Resize": _lower_resize}
