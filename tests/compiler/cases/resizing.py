"""Cases of `rules/resizing.py`: where onnx's reference evaluator and onnxruntime agree on the forward pass."""

from typing import Any

import numpy as np

from tests.compiler.cases.case import Case, ints


def floats(*numbers: float) -> Any:
    return np.array(numbers, np.float32)


DOWN = floats(1, 1, 0.5, 1.5)
CUBIC = {"mode": "cubic", "cubic_coeff_a": -0.6}
CROP = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 2.0}

CASES = {
    "resize-nearest": Case("Resize", ([1, 2, 2, 3], None, floats(1, 1, 2, 3))),
    "resize-nearest-floor": Case(
        "Resize",
        ([2, 2, 3], None, None, ints(2, 4, 9)),
        {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ),
    "resize-nearest-uneven": Case("Resize", ([1, 1, 5, 4], None, None, ints(1, 1, 3, 7)), {"nearest_mode": "ceil"}),
    "resize-nearest-shifted": Case("Resize", ([1, 1, 2, 2], None, floats(1, 1, 2, 2)), {"nearest_mode": "floor"}),
    "resize-linear": Case("Resize", ([1, 2, 3, 2], None, floats(1, 1, 2, 2)), {"mode": "linear"}),
    "resize-linear-down": Case("Resize", ([1, 1, 4, 4], None, DOWN), {"mode": "linear"}),
    "resize-linear-corners": Case(
        "Resize",
        ([1, 2, 3, 4], None, None, ints(1, 2, 5, 2)),
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    "resize-linear-asymmetric": Case(
        "Resize",
        ([1, 1, 3, 4], None, None, ints(1, 1, 5, 4)),
        {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
    ),
    "resize-linear-pytorch": Case(
        "Resize",
        ([1, 1, 3, 4], None, None, ints(1, 1, 1, 7)),
        {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
    ),
    "resize-linear-one-axis": Case("Resize", ([1, 2, 3], None, floats(1, 1, 2)), {"mode": "linear"}),
    "resize-linear-volume": Case("Resize", ([1, 1, 2, 3, 2], None, floats(1, 1, 2, 2, 1)), {"mode": "linear"}),
    "resize-axes": Case("Resize", ([1, 2, 3, 2], None, None, ints(4, 5)), {"mode": "linear", "axes": [-1, 2]}),
    "resize-antialias": Case("Resize", ([1, 1, 6, 5], None, None, ints(1, 1, 3, 8)), {"mode": "linear", "antialias": 1}),
    "resize-cubic": Case("Resize", ([1, 1, 3, 4], None, floats(1, 1, 2, 1.5)), CUBIC),
    "resize-cubic-inside": Case("Resize", ([1, 1, 5, 4], None, None, ints(1, 1, 3, 6)), {**CUBIC, "exclude_outside": 1}),
    "resize-crop": Case("Resize", ([1, 1, 3, 4], floats(0, 0, 0.2, -0.1, 1, 1, 0.9, 0.8), None, ints(1, 1, 4, 5)), CROP),
    "resize-none": Case("Resize", ([1, 1, 3, 4], None, floats(1, 1, 1, 1)), {"mode": "linear"}),
    "resize-old": Case("Resize", ([1, 1, 2, 3], floats(1, 1, 2, 2)), {"mode": "linear"}, opset=10),
    "resize-old-nearest": Case("Resize", ([1, 1, 3, 4], floats(1, 1, 0.5, 1.5)), opset=10),
    "upsample": Case("Upsample", ([1, 1, 2, 3], floats(1, 1, 2, 3)), {"mode": "linear"}, opset=9),
}
