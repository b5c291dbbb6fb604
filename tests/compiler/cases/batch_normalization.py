"""Cases of `rules/batch_normalization.py`, by the running statistics; by the batch's: `test_batch_norm.py`."""

import numpy as np

from tests.compiler.cases.case import Case

MEAN = np.array([0.3, -0.2, 0.0], np.float32)
VARIANCE = np.array([0.5, 1.5, 0.01], np.float32)

CASES = {
    "batch-norm": Case("BatchNormalization", ([2, 3, 4, 2], [3], [3], MEAN, VARIANCE)),
    "batch-norm-rows": Case("BatchNormalization", ([4, 3], [3], [3], MEAN, VARIANCE), {"epsilon": 0.1}),
    "batch-norm-volume": Case("BatchNormalization", ([1, 3, 2, 1, 3], [3], [3], MEAN, VARIANCE), {"momentum": 0.5}),
}
