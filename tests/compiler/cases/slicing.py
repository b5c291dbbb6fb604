"""Cases of `rules/slicing.py`."""

import numpy as np

from tests.compiler.cases.case import Case, ints

FAR = 2**63 - 1  # "to the end", as exporters write it

CASES = {
    "center-crop-pad": Case("CenterCropPad", ([5, 3, 4], ints(2, 6, 4))),
    "center-crop-pad-axes": Case("CenterCropPad", ([2, 5, 4], ints(8, 3)), {"axes": [-2, 2]}),
    "concat": Case("Concat", ([2, 1, 3], [2, 4, 3], [2, 2, 3]), {"axis": 1}),
    "concat-last": Case("Concat", ([2, 3], [2, 1]), {"axis": -1}),
    "concat-one": Case("Concat", ([2, 3],), {"axis": 0}),
    "pad": Case("Pad", ([2, 3], ints(0, 2, 1, 1))),
    "pad-attribute": Case("Pad", ([2, 3],), {"pads": [0, 2, 1, 1], "mode": "edge"}),
    "pad-axes": Case("Pad", ([2, 3, 4], ints(2, 1, 0, 1), np.array(0.5, np.float32), ints(-1, 0))),
    "pad-crop": Case("Pad", ([4, 5], ints(-1, 2, -1, -3), np.array(-2.0, np.float32))),
    "pad-edge": Case("Pad", ([1, 3, 4], ints(0, 2, 1, 0, 5, 0)), {"mode": "edge"}),
    "pad-reflect": Case("Pad", ([2, 3, 4], ints(0, 2, 1, 0, 1, 3)), {"mode": "reflect"}),
    "pad-wrap": Case("Pad", ([2, 3, 4], ints(0, 3, 1, 0, 1, 2)), {"mode": "wrap"}),
    "slice": Case("Slice", ([4, 5], ints(1, -3), ints(3, FAR))),
    "slice-attributes": Case("Slice", ([4, 5],), {"starts": [1], "ends": [FAR], "axes": [1]}),
    "slice-back": Case("Slice", ([2, 7], ints(5), ints(1), ints(-1), ints(-2))),
    "slice-back-whole": Case("Slice", ([3, 4], ints(-1, -1), ints(-FAR, -FAR), ints(0, 1), ints(-1, -3))),
    "slice-step": Case("Slice", ([2, 8, 3], ints(1), ints(FAR), ints(1), ints(3))),
    "slice-step-to-end": Case("Slice", ([6, 8], ints(1, 0), ints(FAR, 8), ints(0, 1), ints(2, 5))),
    "split": Case("Split", ([2, 6], ints(1, 3, 2)), {"axis": 1}, outputs=("y", "z", "w")),
    "split-attribute": Case("Split", ([2, 6],), {"axis": 1, "split": [2, 4]}, outputs=("y", "z")),
    "split-equal": Case("Split", ([4, 3],), outputs=("y", "z")),
    "split-last-smaller": Case("Split", ([5, 3],), {"num_outputs": 2}, outputs=("y", "z")),
}
