"""Cases of `rules/moving.py`."""

import numpy as np

from tests.compiler.cases.case import Case, ints

CASES = {
    "expand": Case("Expand", ([3, 1], ints(2, 3, 4))),
    "flatten": Case("Flatten", ([2, 3, 4],), {"axis": 1}),
    "flatten-all": Case("Flatten", ([2, 3, 4],), {"axis": 3}),
    "flatten-last": Case("Flatten", ([2, 3, 4],), {"axis": -1}),
    "gather-elements": Case("GatherElements", ([3, 4], np.array([[1, 1], [3, 0], [2, 2]])), {"axis": 1}),
    "gather-elements-rows": Case("GatherElements", ([3, 2], np.array([[2, 0]])), {"axis": -2}),
    "reshape": Case("Reshape", ([2, 3, 4], ints(0, -1))),
    "squeeze": Case("Squeeze", ([2, 1, 3], ints(1))),
    "transpose": Case("Transpose", ([2, 3, 4],), {"perm": [2, 0, 1]}),
    "transpose-default": Case("Transpose", ([2, 3, 4],)),
    "unsqueeze": Case("Unsqueeze", ([2, 3], ints(0, 3))),
}
