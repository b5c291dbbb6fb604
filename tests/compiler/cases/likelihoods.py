"""Cases of `rules/likelihoods.py`."""

import itertools

import numpy as np

from tests.compiler.cases.case import Case

LABEL = np.array([2, 0, 1, 2])
PIXELS = np.array([[2, -1], [0, 1]])
WEIGHT = np.array([0.5, 2.0, 1.0], np.float32)

CASES = {
    f"{op}-{name}-{reduction}": Case(op, (shape, *rest), {**attrs, "reduction": reduction})
    for op, (name, (shape, *rest, attrs)), reduction in itertools.product(
        ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"),
        {
            "plain": ([4, 3], LABEL, {}),
            "weighted": ([4, 3], LABEL, WEIGHT, {}),
            "ignored": ([4, 3], LABEL, {"ignore_index": 2}),
            "pixels": ([2, 3, 2], PIXELS, WEIGHT, {"ignore_index": -1}),
        }.items(),
        ("mean", "sum", "none"),
    )
} | {
    "SoftmaxCrossEntropyLoss-probabilities": Case("SoftmaxCrossEntropyLoss", ([4, 3], LABEL), outputs=("y", "log_p")),
}
