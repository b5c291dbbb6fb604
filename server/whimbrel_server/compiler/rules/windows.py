"""The geometry of sliding windows, and the views of a tensor through them.

Everything works for one, two or three spatial axes; tensors are `[N, C, *spatial]`. What is computed in a
window belongs to `convolution.py` and `pooling.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from whimbrel_server.compiler.graph.ir import Node, Value


@dataclass(frozen=True)
class Window:
    """The geometry of one sliding-window node, one entry per spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    dilations: tuple[int, ...]

    @property
    def padded(self) -> bool:
        return any(self.begins) or any(self.ends)

    @property
    def taps(self) -> int:
        return int(np.prod(self.kernel))

    @property
    def tiles(self) -> bool:
        """Whether the windows lie side by side without gap, overlap or padding."""
        return self.kernel == self.strides and not self.padded and set(self.dilations) == {1}

    @property
    def pointwise(self) -> bool:
        return self.taps == 1 and set(self.strides) == {1} and not self.padded

    def extent(self, axis: int) -> int:
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1

    def outputs(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Window positions per axis over an input of `sizes` (floor mode)."""
        spans = (n + b + e for n, b, e in zip(sizes, self.begins, self.ends, strict=True))
        return tuple((span - self.extent(i)) // self.strides[i] + 1 for i, span in enumerate(spans))

    def attributes(self) -> dict[str, list[int]]:
        return {
            "kernel_shape": list(self.kernel),
            "strides": list(self.strides),
            "pads": [*self.begins, *self.ends],
            "dilations": list(self.dilations),
        }


def window_of(node: Node) -> Window:
    """The geometry of a lowered node, whose attributes are all explicit."""
    attrs = node.attrs
    pads, rank = attrs["pads"], len(attrs["kernel_shape"])
    parts = (attrs["kernel_shape"], attrs["strides"], pads[:rank], pads[rank:], attrs["dilations"])
    return Window(*(tuple(part) for part in parts))


def explicit(x: Value, kernel: Sequence[int], attrs: dict[str, Any]) -> Window:
    """Removes the geometry from a source node's attributes and writes out its defaults, `auto_pad` and `ceil_mode`."""
    rank = len(kernel)
    attrs.pop("kernel_shape", None)
    strides = tuple(attrs.pop("strides", [1] * rank))
    dilations = tuple(attrs.pop("dilations", [1] * rank))
    pads = tuple(attrs.pop("pads", [0] * 2 * rank))
    mode = attrs.pop("auto_pad", "NOTSET")
    if mode == "VALID":
        pads = (0,) * 2 * rank
    window = Window(tuple(kernel), strides, pads[:rank], pads[rank:], dilations)
    if mode.startswith("SAME"):
        window = _same_padding(window, x.shape[2:], mode)
    return _rounded_up(window, x.shape[2:]) if attrs.pop("ceil_mode", 0) else window


def _same_padding(window: Window, sizes: Sequence[int], mode: str) -> Window:
    """ONNX's SAME_UPPER / SAME_LOWER: ceil(size / stride) outputs, the odd zero at the end / the start."""
    totals = []
    for i, size in enumerate(sizes):
        stride = window.strides[i]
        span = (-(-size // stride) - 1) * stride + window.extent(i)
        totals.append(max(span - size, 0))
    less, more = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
    begins, ends = (less, more) if mode == "SAME_UPPER" else (more, less)
    return Window(window.kernel, window.strides, begins, ends, window.dilations)


def _rounded_up(window: Window, sizes: Sequence[int]) -> Window:
    """`ceil_mode` as more padding at the end; a window that would start behind input and padding is dropped."""
    ends = []
    for i, (size, stride) in enumerate(zip(sizes, window.strides, strict=True)):
        span = size + window.begins[i]
        outputs = -(-(span + window.ends[i] - window.extent(i)) // stride) + 1
        if (outputs - 1) * stride >= span:
            outputs -= 1
        ends.append(max(window.ends[i], (outputs - 1) * stride + window.extent(i) - span))
    return replace(window, ends=tuple(ends))


def shifted(x: Value, axis: int, offset: int, outputs: Sequence[int], window: Window) -> Value:
    """What kernel position `offset` of spatial `axis` meets at each output position, of a padded `x`."""
    start, stride = offset * window.dilations[axis], window.strides[axis]
    stop = start + stride * (outputs[axis] - 1) + 1
    if (start, stop, stride) == (0, x.shape[2 + axis], 1):
        return x
    return x.slice(2 + axis, start, stop, stride)


def patches(x: Value, outputs: Sequence[int], window: Window, channel_axis: int) -> Value:
    """The inputs of each window of a padded `x`, taps before channels on `channel_axis`, gathered axis by axis.

    Two short runs of slices for a k*k kernel instead of k*k of them.
    """
    for axis in reversed(range(len(window.kernel))):
        taps = [shifted(x, axis, offset, outputs, window) for offset in range(window.kernel[axis])]
        x = x.graph.op("Concat", *taps, axis=channel_axis) if len(taps) > 1 else taps[0]
    return x
