"""Cases of `rules/stops.py`."""

import numpy as np

from tests.compiler.cases.case import Case, ints

TRUTH = np.array([[True, False], [True, True]])
ODD = np.array([[0.5, np.nan], [np.inf, -np.inf]], np.float32)

CASES = {
    "and": Case("And", (TRUTH, TRUTH[0])),
    "arg-max": Case("ArgMax", ([3, 4],), {"axis": 1, "keepdims": 0}),
    "arg-max-ties": Case("ArgMax", (np.ones((3, 4), np.float32),), {"select_last_index": 1}),
    "arg-min": Case("ArgMin", ([3, 4],), {"axis": -1}),
    "ceil": Case("Ceil", ([3, 4],)),
    "equal": Case("Equal", (ints(1, 2, 3), ints(2))),
    "equal-float": Case("Equal", (np.float32([1, 2]), np.float32([[1], [2]]))),
    "floor": Case("Floor", ([3, 4],), least=-3.0),
    "greater": Case("Greater", ([3, 4], [4])),
    "greater-or-equal": Case("GreaterOrEqual", (ints(1, 2, 3), ints(2))),
    "hardmax": Case("Hardmax", ([2, 3, 4],), {"axis": 1}, opset=13),
    "is-inf": Case("IsInf", (ODD,)),
    "is-inf-negative": Case("IsInf", (ODD,), {"detect_positive": 0}),
    "is-nan": Case("IsNaN", (ODD,)),
    "less": Case("Less", ([3, 1], [4])),
    "less-or-equal": Case("LessOrEqual", ([3, 1], [4])),
    "not": Case("Not", (TRUTH,)),
    "or": Case("Or", (TRUTH, TRUTH[1])),
    "quantize-linear": Case("QuantizeLinear", ([3, 4], np.float32(0.1), np.uint8(128))),
    "round": Case("Round", ([3, 4],), least=-3.0, most=3.0),
    "shape": Case("Shape", ([2, 3],)),
    "shape-part": Case("Shape", ([2, 3, 4],), {"start": -2}),
    "sign": Case("Sign", ([3, 4],)),
    "size": Case("Size", ([2, 3],)),
    "xor": Case("Xor", (TRUTH, TRUTH[1])),
}
