"""Cases of `rules/moving.py`."""

import numpy as np
from onnx import TensorProto, helper

from tests.compiler.cases.case import Case, ints

MASK = np.array([[True], [False], [True]])

HALF = helper.make_tensor("value", TensorProto.DOUBLE, [1], [0.5])

CASES = {
    "constant-of-shape": Case("ConstantOfShape", (ints(2, 3),), {"value": HALF}),
    "constant-of-shape-zero": Case(
        "ConstantOfShape", (ints(9, 9),), {"value": helper.make_tensor("value", TensorProto.INT64, [1], [0])}
    ),
    "cumsum": Case("CumSum", ([2, 4], ints(1))),
    "cumsum-exclusive": Case("CumSum", ([2, 3, 2], np.array(-2)), {"exclusive": 1}),
    "cumsum-reverse": Case("CumSum", ([5], np.array(0)), {"exclusive": 1, "reverse": 1}),
    "depth-to-space": Case("DepthToSpace", ([2, 12, 2, 3],), {"blocksize": 2}),
    "depth-to-space-crd": Case("DepthToSpace", ([1, 18, 2, 1],), {"blocksize": 3, "mode": "CRD"}),
    "expand": Case("Expand", ([3, 1], ints(2, 3, 4))),
    "expand-less": Case("Expand", ([2, 3, 4], ints(3, 1))),
    "eye-like": Case("EyeLike", (np.zeros((3, 5), np.int32),), {"dtype": TensorProto.DOUBLE, "k": 1}),
    "eye-like-type": Case("EyeLike", (np.zeros((3, 2), np.int64),), {"k": -1}),
    "flatten": Case("Flatten", ([2, 3, 4],), {"axis": 1}),
    "flatten-all": Case("Flatten", ([2, 3, 4],), {"axis": 3}),
    "flatten-last": Case("Flatten", ([2, 3, 4],), {"axis": -1}),
    "identity": Case("Identity", ([2, 3],)),
    "one-hot": Case("OneHot", (ints(1, -1, 7), np.array(3), ints(-1, 4)), {"axis": 0}),
    "range": Case("Range", (np.array(7), np.array(1), np.array(-2))),
    "range-float": Case("Range", (np.float64(0.5), np.float64(2), np.float64(0.25))),
    "reshape": Case("Reshape", ([2, 3, 4], ints(0, -1))),
    "reshape-literal": Case("Reshape", ([2, 3, 4], ints(4, -1, 2)), {"allowzero": 1}),
    "reverse-sequence": Case("ReverseSequence", ([4, 3, 2], ints(1, 4, 2)), {"time_axis": 0, "batch_axis": 1}),
    "reverse-sequence-batch": Case("ReverseSequence", ([2, 4], ints(3, 2)), {"time_axis": 1, "batch_axis": 0}),
    "space-to-depth": Case("SpaceToDepth", ([2, 3, 4, 6],), {"blocksize": 2}),
    "squeeze": Case("Squeeze", ([2, 1, 3], ints(1))),
    "squeeze-all": Case("Squeeze", ([1, 2, 1, 3],)),
    "squeeze-attribute": Case("Squeeze", ([2, 1, 3, 1],), {"axes": [1]}),
    "tile": Case("Tile", ([2, 1, 3], ints(3, 2, 1))),
    "tile-unit-axes": Case("Tile", ([2, 1, 3], ints(1, 4, 1))),
    "transpose": Case("Transpose", ([2, 3, 4],), {"perm": [2, 0, 1]}),
    "transpose-default": Case("Transpose", ([2, 3, 4],)),
    "trilu": Case("Trilu", ([2, 3, 4],)),
    "trilu-lower": Case("Trilu", ([4, 3], np.array(-1)), {"upper": 0}),
    "unsqueeze": Case("Unsqueeze", ([2, 3], ints(0, 3))),
    "unsqueeze-attribute": Case("Unsqueeze", ([2, 3],), {"axes": [1]}),
    "where": Case("Where", (MASK, [2, 3, 4], [3, 4])),
    "where-scalar": Case("Where", (MASK, np.float32(-2), [3, 4])),
}
