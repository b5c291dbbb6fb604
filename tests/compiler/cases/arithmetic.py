"""Cases of `rules/arithmetic.py`."""

import numpy as np
from onnx import TensorProto

from tests.compiler.cases.case import Case, ints

EXPONENTS = np.array([[0.0], [1.5], [-2.0], [3.0]], np.float32)


def bound(value: float) -> np.ndarray:
    return np.array(value, np.float32)


CASES = {
    "abs": Case("Abs", ([3, 4],)),
    "acos": Case("Acos", ([3, 4],), most=0.9, least=-0.9),
    "acosh": Case("Acosh", ([3, 4],), least=1.5, most=3.0),
    "add-broadcast": Case("Add", ([2, 1, 4], [3, 1])),
    "add-scalar": Case("Add", ([], [2, 3])),
    "asin": Case("Asin", ([3, 4],), most=0.9, least=-0.9),
    "asinh": Case("Asinh", ([3, 4],), least=-2.0),
    "atan": Case("Atan", ([3, 4],), least=-2.0),
    "atanh": Case("Atanh", ([3, 4],), most=0.9, least=-0.9),
    "cast": Case("Cast", ([2, 3],), {"to": TensorProto.DOUBLE}),
    "cast-like": Case("CastLike", (ints(1, 2), np.zeros(2, np.float32))),
    "clip": Case("Clip", ([5, 6], bound(-0.5), bound(0.25))),
    "clip-above": Case("Clip", ([5, 6], None, bound(0.25))),
    "clip-attributes": Case("Clip", ([5, 6],), {"min": -0.5, "max": 0.25}),
    "clip-below": Case("Clip", ([5, 6], bound(0.0))),
    "clip-not": Case("Clip", ([2, 3],)),
    "cos": Case("Cos", ([3, 4],), least=-2.0),
    "cosh": Case("Cosh", ([3, 4],), least=-2.0),
    "div-broadcast": Case("Div", ([2, 3, 4], [3, 1]), least=0.5),
    "erf": Case("Erf", ([3, 4],), eps=1e-2, accept=3e-3),
    "exp": Case("Exp", ([2, 3],)),
    "identity": Case("Identity", ([2, 3],)),
    "log": Case("Log", ([2, 3],), least=0.5),
    "max": Case("Max", ([3, 4], [4], [3, 1])),
    "max-one": Case("Max", ([3, 4],)),
    "mean": Case("Mean", ([3, 4], [4], [3, 1])),
    "mean-one": Case("Mean", ([3, 4],)),
    "min": Case("Min", ([2, 3, 4], [3, 1])),
    "mod": Case("Mod", ([3, 4], [4]), {"fmod": 1}, least=0.3, most=2.0),
    "mul-broadcast": Case("Mul", ([2, 3, 4], [3, 1])),
    "neg": Case("Neg", ([2, 3],)),
    "pow": Case("Pow", ([4, 3], EXPONENTS), least=0.5),
    "pow-cubed": Case("Pow", ([3, 4], bound(3.0))),
    "pow-inverse": Case("Pow", ([3, 4], bound(-1.0)), least=0.5),
    "pow-of-constant": Case("Pow", (np.array([2, 3], np.int64), ints(2, 1))),
    "pow-root": Case("Pow", ([3, 4], bound(0.5)), least=0.5),
    "pow-squared": Case("Pow", ([3, 4], np.array([2.0], np.float32))),
    "pow-squared-by-integer": Case("Pow", ([3, 4], ints(2))),
    "pow-wider-exponent": Case("Pow", ([4], np.full((2, 1), 2.0, np.float32))),
    "reciprocal": Case("Reciprocal", ([3, 4],), least=0.5),
    "sin": Case("Sin", ([3, 4],), least=-2.0),
    "sinh": Case("Sinh", ([3, 4],), least=-2.0),
    "sqrt": Case("Sqrt", ([2, 3],), least=0.5),
    "sub-broadcast": Case("Sub", ([4], [2, 3, 1])),
    "sum": Case("Sum", ([2, 3], [3], [1])),
    "sum-one": Case("Sum", ([2, 3],)),
    "tan": Case("Tan", ([3, 4],)),
}
