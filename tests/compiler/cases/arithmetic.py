"""Cases of `rules/arithmetic.py`."""

from onnx import TensorProto

from tests.compiler.cases.case import Case

CASES = {
    "abs": Case("Abs", ([3, 4],)),
    "add-broadcast": Case("Add", ([2, 1, 4], [3, 1])),
    "add-scalar": Case("Add", ([], [2, 3])),
    "cast": Case("Cast", ([2, 3],), {"to": TensorProto.DOUBLE}),
    "div-broadcast": Case("Div", ([2, 3, 4], [3, 1]), least=0.5),
    "dropout": Case("Dropout", ([2, 3],)),
    "exp": Case("Exp", ([2, 3],)),
    "log": Case("Log", ([2, 3],), least=0.5),
    "mul-broadcast": Case("Mul", ([2, 3, 4], [3, 1])),
    "neg": Case("Neg", ([2, 3],)),
    "relu": Case("Relu", ([3, 5],)),
    "sigmoid": Case("Sigmoid", ([2, 3],)),
    "sqrt": Case("Sqrt", ([2, 3],), least=0.5),
    "sub-broadcast": Case("Sub", ([4], [2, 3, 1])),
    "sum": Case("Sum", ([2, 3], [3], [1])),
    "tanh": Case("Tanh", ([2, 3],)),
}
