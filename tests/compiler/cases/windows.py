"""Cases of `rules/windows.py`."""

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
    "conv": Case("Conv", ([2, 3, 6, 5], [4, 3, 3, 2], [4])),
    "conv-stride-pads": Case("Conv", ([2, 2, 8, 7], [3, 2, 3, 3]), {"strides": [2, 3], "pads": [1, 0, 2, 1]}),
    "conv-unreached-end": Case("Conv", ([1, 2, 8, 9], [3, 2, 2, 2]), {"strides": [3, 4]}),
    "conv-dilated": Case("Conv", ([1, 2, 8, 8], [2, 2, 3, 2], [2]), {"dilations": [2, 3], "pads": [2, 1, 1, 2]}),
    "conv-pointwise": Case("Conv", ([2, 3, 4, 4], [5, 3, 1, 1], [5])),
    "conv-pointwise-narrowing": Case("Conv", ([2, 5, 4, 4], [3, 5, 1, 1])),
    "conv-pointwise-stride": Case("Conv", ([2, 3, 5, 5], [4, 3, 1, 1]), {"strides": [2, 2]}),
    "conv-grouped": Case("Conv", ([2, 4, 5, 5], [6, 2, 3, 3], [6]), {"group": 2, "strides": [2, 2]}),
    "conv-depthwise": Case("Conv", ([2, 3, 6, 6], [3, 1, 3, 3]), {"group": 3, "pads": [1, 1, 1, 1]}),
    "conv-same-upper": Case("Conv", ([1, 2, 6, 7], [2, 2, 3, 4]), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "conv-same-lower": Case("Conv", ([1, 2, 6, 7], [2, 2, 2, 4]), {"auto_pad": "SAME_LOWER"}),
    "conv-valid": Case("Conv", ([1, 2, 6, 7], [2, 2, 2, 4]), {"auto_pad": "VALID"}),
    "conv-line": Case("Conv", ([2, 3, 10], [4, 3, 3], [4]), {"strides": [2], "pads": [1, 1]}),
    "conv-volume": Case("Conv", ([1, 2, 4, 4, 3], [2, 2, 2, 2, 2]), {"pads": [0, 1, 0, 0, 0, 1]}),
    "conv-wide": Case("Conv", ([2, 16, 5, 5], [3, 16, 3, 2], [3]), {"pads": [1, 1, 1, 0]}, wide=True),
    "conv-wide-stride": Case("Conv", ([1, 16, 7, 6], [2, 16, 2, 3]), {"strides": [2, 2]}, wide=True),
    "max-pool-tiles": Case("MaxPool", ([2, 3, 4, 6],), {"kernel_shape": [2, 3], "strides": [2, 3]}),
    "max-pool-ragged": Case("MaxPool", ([1, 2, 5, 7],), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "max-pool-overlap": Case("MaxPool", ([2, 2, 6, 6],), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "max-pool-line": Case("MaxPool", ([2, 2, 6],), {"kernel_shape": [2], "strides": [2]}),
    "max-pool-same": Case("MaxPool", ([1, 2, 5, 5],), {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}),
}
