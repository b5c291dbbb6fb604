"""Cases of `rules/products.py`."""

from tests.compiler.cases.case import Case

CASES = {
    "gemm": Case("Gemm", ([2, 3], [3, 4], [4])),
    "gemm-across": Case("Gemm", ([3, 2], [3, 4], [2, 1]), {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    "gemm-down": Case("Gemm", ([2, 3], [4, 3], []), {"transB": 1, "beta": -1.0}),
    "gemm-both": Case("Gemm", ([3, 2], [4, 3]), {"transA": 1, "transB": 1, "alpha": -0.3}),
    "matmul": Case("MatMul", ([2, 3], [3, 4])),
    "matmul-rows": Case("MatMul", ([2, 5, 3], [3, 4])),
    "matmul-batched": Case("MatMul", ([2, 1, 2, 3], [4, 3, 2])),
    "matmul-wide-right": Case("MatMul", ([2, 3], [4, 3, 2])),
    "matmul-vectors": Case("MatMul", ([3], [3])),
    "matmul-vector-left": Case("MatMul", ([3], [2, 3, 4])),
    "matmul-vector-right": Case("MatMul", ([2, 3], [3])),
}
