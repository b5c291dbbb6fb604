"""OPS: the operators that the compiler promises, in the order in which shipped models need them.

Only the list belongs here. What holds each is in `docs/operators.md`, which `operators_page.py` makes.
"""

_LINES = (
    "Add Sub Mul Div Relu Sigmoid Conv Gemm MatMul Reshape Unsqueeze Squeeze Flatten Concat Transpose Slice Softmax MaxPool "
    "BatchNormalization AveragePool GlobalAveragePool ReduceMean Pow Sqrt Identity Cast Clip HardSigmoid HardSwish Tanh "
    "Gather GatherElements GatherND Resize Pad Split Expand Where Sum Mean Max Min ReduceSum ReduceMax ReduceMin ReduceL2 "
    "ReduceLogSumExp Erf Gelu Log Exp Neg Abs Reciprocal ConvTranspose LeakyRelu PRelu Elu Selu Celu Softplus Softsign Mish "
    "LayerNormalization InstanceNormalization GroupNormalization RMSNormalization LpNormalization LogSoftmax GlobalMaxPool "
    "Dropout Tile DepthToSpace SpaceToDepth Trilu Einsum CumSum ScatterND ScatterElements Sin Cos TopK Attention LRN LSTM GRU "
    "RNN Shape Size Range ConstantOfShape Equal Greater GreaterOrEqual Less LessOrEqual And Or Not Xor"
)
OPS = tuple(_LINES.split())
