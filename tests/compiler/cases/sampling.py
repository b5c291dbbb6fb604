"""Cases of `rules/sampling.py`. Places lie off the pixels, where the derivative has no jump."""

import numpy as np

from tests.compiler.cases.case import Case

PLACES = np.random.default_rng(8).uniform(-1.6, 1.6, (2, 3, 2, 2)).astype(np.float32)

CASES = {
    "grid-sample": Case("GridSample", ([2, 3, 4, 5], PLACES)),
    "grid-sample-corners": Case("GridSample", ([2, 1, 3, 4], PLACES), {"align_corners": 1}),
    "grid-sample-border": Case("GridSample", ([2, 2, 4, 3], PLACES), {"padding_mode": "border"}),
    "grid-sample-reflection": Case("GridSample", ([2, 2, 4, 3], PLACES), {"padding_mode": "reflection"}),
    "grid-sample-reflection-corners": Case(
        "GridSample", ([2, 2, 4, 3], PLACES), {"padding_mode": "reflection", "align_corners": 1}
    ),
    "grid-sample-one-pixel": Case("GridSample", ([2, 2, 1, 1], PLACES), {"padding_mode": "reflection", "align_corners": 1}),
}
