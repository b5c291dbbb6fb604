"""Cases of `rules/attention.py`. Shapes `[N, H, T, D]` (or `[N, T, H * D]`), keys and values longer than queries."""

import numpy as np

from tests.compiler.cases.case import Case

Q, K, V = [2, 4, 3, 5], [2, 4, 6, 5], [2, 4, 6, 7]
SOME = np.tile(np.array([True, False, True, True, False, True]), (3, 1))
NONE_FOR_ONE = SOME & np.array([[True], [False], [True]])
BARRED = np.where(SOME, 0.25, -np.inf).astype(np.float32)
HEADS = {"q_num_heads": 4, "kv_num_heads": 2}

CASES = {
    "attention": Case("Attention", (Q, K, V)),
    "attention-capped": Case("Attention", (Q, K, V, SOME), {"softcap": 0.5, "scale": 0.7}),
    "attention-causal": Case("Attention", (Q, [2, 4, 3, 5], [2, 4, 3, 7]), {"is_causal": 1}),
    "attention-causal-past": Case(
        "Attention",
        ([2, 4, 3, 5], [2, 4, 3, 5], [2, 4, 3, 7], None, [2, 4, 2, 5], [2, 4, 2, 7]),
        {"is_causal": 1},
        outputs=("y", "key", "value"),
    ),
    "attention-grouped": Case("Attention", (Q, [2, 2, 6, 5], [2, 2, 6, 7])),
    "attention-grouped-packed": Case("Attention", ([2, 3, 20], [2, 6, 10], [2, 6, 14], SOME), HEADS),
    "attention-mask": Case("Attention", (Q, K, V, SOME)),
    "attention-mask-leaves-none": Case("Attention", (Q, K, V, NONE_FOR_ONE)),
    "attention-mask-of-numbers": Case("Attention", (Q, K, V, [1, 4, 3, 6])),
    "attention-mask-of-heads": Case("Attention", (Q, K, V, np.broadcast_to(SOME, (2, 4, 3, 6)).copy())),
    "attention-mask-with-infinity": Case("Attention", (Q, K, V, BARRED)),
    "attention-packed": Case("Attention", ([2, 3, 20], [2, 6, 20], [2, 6, 28]), {"q_num_heads": 4, "kv_num_heads": 4}),
} | {
    f"attention-scores-{mode}": Case(
        "Attention", (Q, K, V, [3, 6]), {"qk_matmul_output_mode": mode, "softcap": 0.8}, outputs=("y", "", "", "scores")
    )
    for mode in range(4)
}
