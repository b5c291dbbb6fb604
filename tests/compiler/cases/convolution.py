"""Cases of `rules/convolution.py`."""

from tests.compiler.cases.case import Case

CASES = {
    "conv": Case("Conv", ([2, 3, 6, 5], [4, 3, 3, 2], [4])),
    "conv-stride-pads": Case("Conv", ([2, 2, 8, 7], [3, 2, 3, 3]), {"strides": [2, 3], "pads": [1, 0, 2, 1]}),
    "conv-unreached-end": Case("Conv", ([1, 2, 8, 9], [3, 2, 2, 2]), {"strides": [3, 4]}),
    "conv-dilated": Case("Conv", ([1, 2, 8, 8], [2, 2, 3, 2], [2]), {"dilations": [2, 3], "pads": [2, 1, 1, 2]}),
    "conv-pointwise": Case("Conv", ([2, 3, 4, 4], [5, 3, 1, 1], [5])),
    "conv-pointwise-narrowing": Case("Conv", ([2, 5, 4, 4], [3, 5, 1, 1])),
    "conv-pointwise-stride": Case("Conv", ([2, 3, 5, 5], [4, 3, 1, 1]), {"strides": [2, 2]}),
    "conv-grouped": Case("Conv", ([2, 4, 5, 5], [6, 2, 3, 3], [6]), {"group": 2, "strides": [2, 2]}),
    "conv-depthwise": Case("Conv", ([2, 3, 6, 6], [3, 1, 3, 3]), {"group": 3, "pads": [1, 1, 1, 1]}),
    "conv-depthwise-small": Case("Conv", ([2, 3, 4, 5], [3, 1, 3, 3], [3]), {"group": 3, "pads": [1, 1, 1, 1]}),
    "conv-depthwise-blocks": Case("Conv", ([2, 2, 8, 7], [2, 1, 5, 3], [2]), {"group": 2, "pads": [2, 1, 2, 0]}),
    "conv-depthwise-stride-blocks": Case(
        "Conv", ([2, 2, 12, 12], [2, 1, 3, 3]), {"group": 2, "pads": [1, 1, 1, 1], "strides": [2, 2]}
    ),
    "conv-depthwise-dilated-blocks": Case(
        "Conv", ([1, 2, 9, 6], [2, 1, 3, 2]), {"group": 2, "pads": [3, 1, 3, 0], "dilations": [3, 1]}
    ),
    "conv-depthwise-large": Case("Conv", ([1, 2, 7, 40], [2, 1, 3, 3], [2]), {"group": 2}),
    "conv-depthwise-large-steps": Case(
        "Conv", ([2, 2, 7, 44], [2, 1, 3, 2]), {"group": 2, "pads": [1, 2, 2, 0], "strides": [2, 1], "dilations": [1, 2]}
    ),
    "conv-depthwise-line": Case("Conv", ([2, 3, 40], [3, 1, 3]), {"group": 3, "pads": [1, 1]}),
    "conv-depthwise-volume": Case("Conv", ([2, 2, 4, 3, 4], [2, 1, 3, 3, 3]), {"group": 2, "pads": [1] * 6}),
    "conv-narrow": Case("Conv", ([2, 2, 6, 5], [20, 2, 3, 3], [20]), {"pads": [1, 1, 0, 1], "strides": [1, 2]}),
    "conv-same-upper": Case("Conv", ([1, 2, 6, 7], [2, 2, 3, 4]), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "conv-same-lower": Case("Conv", ([1, 2, 6, 7], [2, 2, 2, 4]), {"auto_pad": "SAME_LOWER"}),
    "conv-valid": Case("Conv", ([1, 2, 6, 7], [2, 2, 2, 4]), {"auto_pad": "VALID"}),
    "conv-line": Case("Conv", ([2, 3, 10], [4, 3, 3], [4]), {"strides": [2], "pads": [1, 1]}),
    "conv-volume": Case("Conv", ([1, 2, 4, 4, 3], [2, 2, 2, 2, 2]), {"pads": [0, 1, 0, 0, 0, 1]}),
    "conv-wide": Case("Conv", ([2, 16, 5, 5], [3, 16, 3, 2], [3]), {"pads": [1, 1, 1, 0]}, wide=True),
    "conv-wide-stride": Case("Conv", ([1, 16, 7, 6], [2, 16, 2, 3]), {"strides": [2, 2]}, wide=True),
    "conv-line-grouped-dilated": Case("Conv", ([2, 4, 9], [4, 2, 3]), {"group": 2, "dilations": [2], "pads": [2, 2]}),
    "conv-volume-stride": Case(
        "Conv", ([1, 2, 5, 4, 4], [3, 2, 3, 2, 2], [3]), {"strides": [2, 1, 2], "pads": [1, 0, 0, 1, 1, 0]}
    ),
    "transposed": Case("ConvTranspose", ([2, 3, 4, 3], [3, 2, 3, 2], [2])),
    "transposed-stride-pads": Case("ConvTranspose", ([2, 3, 3, 4], [3, 2, 3, 3]), {"strides": [2, 3], "pads": [1, 0, 2, 1]}),
    "transposed-output-padding": Case(
        "ConvTranspose", ([1, 2, 3, 3], [2, 3, 3, 3], [3]), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}
    ),
    "transposed-past-every-window": Case(
        "ConvTranspose", ([1, 2, 3, 3], [2, 3, 2, 2], [3]), {"strides": [3, 2], "output_padding": [2, 1]}
    ),
    "transposed-dilated-groups": Case(
        "ConvTranspose", ([2, 4, 4, 3], [4, 3, 2, 3], [6]), {"group": 2, "dilations": [2, 1], "pads": [1, 1, 0, 1]}
    ),
    "transposed-depthwise": Case(
        "ConvTranspose", ([1, 3, 4, 4], [3, 1, 4, 4]), {"group": 3, "strides": [2, 2], "pads": [1] * 4}
    ),
    "transposed-output-shape": Case("ConvTranspose", ([1, 2, 3, 3], [2, 2, 3, 3]), {"strides": [2, 2], "output_shape": [6, 5]}),
    "transposed-output-shape-upper": Case(
        "ConvTranspose",
        ([1, 2, 3, 3], [2, 2, 3, 3]),
        {"strides": [2, 2], "output_shape": [6, 4], "auto_pad": "SAME_UPPER"},
    ),
    "transposed-same-upper": Case("ConvTranspose", ([1, 2, 3, 4], [2, 2, 4, 3]), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "transposed-same-lower": Case("ConvTranspose", ([1, 2, 3, 4], [2, 2, 4, 3]), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    "transposed-valid": Case("ConvTranspose", ([1, 2, 3, 3], [2, 2, 2, 2]), {"auto_pad": "VALID"}),
    "transposed-line": Case("ConvTranspose", ([2, 3, 5], [3, 2, 4], [2]), {"strides": [2], "pads": [1, 1]}),
    "transposed-volume": Case("ConvTranspose", ([1, 2, 2, 3, 2], [2, 2, 2, 2, 3], [2]), {"strides": [2, 1, 1]}),
    "transposed-wide": Case("ConvTranspose", ([1, 3, 4, 3], [3, 16, 3, 2], [16]), {"pads": [1, 1, 1, 0]}, wide=True),
}
