"""Cases of `rules/reductions.py`."""

from tests.compiler.cases.case import Case, ints

CASES = {
    "global-average-pool": Case("GlobalAveragePool", ([2, 3, 4, 5],)),
    "log-softmax": Case("LogSoftmax", ([2, 3, 4],), {"axis": 1}),
    "reduce-max": Case("ReduceMax", ([3, 4, 2], ints(1)), {"keepdims": 0}),
    "reduce-mean": Case("ReduceMean", ([3, 4, 2], ints(0, -1)), {"keepdims": 1}),
    "reduce-mean-axes-attribute": Case("ReduceMean", ([3, 4, 2],), {"axes": [1], "keepdims": 0}),
    "reduce-min-all": Case("ReduceMin", ([3, 4],)),
    "reduce-sum": Case("ReduceSum", ([3, 4, 2], ints(0, 2)), {"keepdims": 0}),
    "reduce-sum-nothing": Case("ReduceSum", ([3, 4],), {"noop_with_empty_axes": 1}),
    "softmax": Case("Softmax", ([2, 3, 4],), {"axis": 1}),
    "softmax-last": Case("Softmax", ([2, 3],)),
}
