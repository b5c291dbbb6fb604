"""Cases of `rules/pooling.py`."""

from tests.compiler.cases.case import Case

CASES = {
    "average-pool-tiles": Case("AveragePool", ([2, 3, 4, 6],), {"kernel_shape": [2, 3], "strides": [2, 3]}),
    "average-pool-overlap": Case("AveragePool", ([1, 2, 7, 6],), {"kernel_shape": [3, 2], "strides": [2, 1]}),
    "average-pool-pads": Case(
        "AveragePool", ([2, 2, 6, 5],), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 1, 2]}
    ),
    "average-pool-counts-pads": Case(
        "AveragePool", ([1, 2, 5, 5],), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    ),
    "average-pool-line": Case("AveragePool", ([2, 2, 9],), {"kernel_shape": [3], "pads": [1, 1], "dilations": [2]}),
    "max-pool-tiles": Case("MaxPool", ([2, 3, 4, 6],), {"kernel_shape": [2, 3], "strides": [2, 3]}),
    "max-pool-ragged": Case("MaxPool", ([1, 2, 5, 7],), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "max-pool-overlap": Case("MaxPool", ([2, 2, 6, 6],), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "max-pool-line": Case("MaxPool", ([2, 2, 6],), {"kernel_shape": [2], "strides": [2]}),
    "max-pool-same": Case("MaxPool", ([1, 2, 5, 5],), {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}),
    "average-pool-ceiling": Case(
        "AveragePool", ([1, 2, 6, 7],), {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 0, 0], "ceil_mode": 1}
    ),
    "average-pool-ceiling-counts-pads": Case(
        "AveragePool",
        ([1, 2, 6, 7],),
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1, "count_include_pad": 1},
        opset=20,
    ),
    "average-pool-volume": Case("AveragePool", ([1, 2, 4, 4, 2],), {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]}),
    "max-pool-ceiling": Case("MaxPool", ([1, 2, 6, 7],), {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}),
    "max-pool-dilated": Case("MaxPool", ([1, 2, 6, 7],), {"kernel_shape": [2, 3], "dilations": [3, 2], "pads": [0, 1, 1, 0]}),
    "max-pool-indices": Case("MaxPool", ([1, 2, 6, 5],), {"kernel_shape": [2, 3]}, outputs=("y", "i")),
    "max-pool-volume": Case("MaxPool", ([1, 2, 4, 4, 3],), {"kernel_shape": [2, 2, 2]}),
    "max-pool-volume-tiles": Case("MaxPool", ([1, 2, 4, 4, 2],), {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]}),
    "global-max-pool": Case("GlobalMaxPool", ([2, 3, 4, 5],)),
    "global-max-pool-line": Case("GlobalMaxPool", ([2, 3, 4],)),
    "global-lp-pool": Case("GlobalLpPool", ([2, 3, 4, 5],), opset=20),
    "global-lp-pool-cubes": Case("GlobalLpPool", ([2, 3, 4],), {"p": 3}, opset=20),
    "lp-pool": Case("LpPool", ([1, 2, 5, 6],), {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [1, 0, 0, 1]}),
    "lp-pool-ones": Case("LpPool", ([1, 2, 5],), {"kernel_shape": [3], "p": 1}),
    "lrn": Case("LRN", ([2, 5, 3, 2],), {"size": 3, "alpha": 0.5, "beta": 0.6, "bias": 1.5}),
    "lrn-defaults": Case("LRN", ([1, 6, 2, 2],), {"size": 5}),
}
