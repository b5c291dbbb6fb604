"""Cases of `rules/reductions.py`: each over some axes, over all, and with its axes as an attribute (until opset 17)."""

import itertools

import numpy as np

from tests.compiler.cases.case import Case, ints

REDUCTIONS = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
)
WAYS = {
    "rows": (([3, 4, 2], ints(1)), {"keepdims": 0}),
    "ends": (([3, 4, 2], ints(0, -1)), {"keepdims": 1}),
    "all": (([3, 4],), {}),
    "empty": (([3, 4], ints()), {"keepdims": 0}),
    "attribute": (([3, 4, 2],), {"axes": [1, 2], "keepdims": 0}),
}
ZEROS = np.array([[0.0, 2.0, 3.0], [0.0, 0.0, 3.0], [1.0, 2.0, 3.0]], np.float32)

CASES = {
    "global-average-pool": Case("GlobalAveragePool", ([2, 3, 4, 5],)),
    "log-softmax": Case("LogSoftmax", ([2, 3, 4],), {"axis": 1}),
    "log-softmax-default": Case("LogSoftmax", ([2, 3, 4],)),
    "log-softmax-far": Case("LogSoftmax", ([2, 5],), least=-200.0, most=200.0),
    "reduce-log-sum-exp-far": Case("ReduceLogSumExp", ([3, 5], ints(1)), least=-200.0, most=200.0),
    "reduce-prod-zeros": Case("ReduceProd", (ZEROS, ints(1))),
    "reduce-sum-nothing": Case("ReduceSum", ([3, 4],), {"noop_with_empty_axes": 1}),
    "reduce-mean-nothing": Case("ReduceMean", ([3, 4], ints()), {"noop_with_empty_axes": 1}),
    "softmax": Case("Softmax", ([2, 3, 4],), {"axis": 1}),
    "softmax-default": Case("Softmax", ([2, 3, 4],)),
    "softmax-far": Case("Softmax", ([2, 5],), least=-200.0, most=200.0),
    "softmax-last": Case("Softmax", ([2, 3],), {"axis": -1}),
} | {
    f"{op}-{way}": Case(op, operands, attrs, least=0.5)
    for op, (way, (operands, attrs)) in itertools.product(REDUCTIONS, WAYS.items())
}
