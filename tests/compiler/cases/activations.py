"""Cases of `rules/activations.py`. Inputs reach to both sides of every kink."""

from tests.compiler.cases.case import Case

WIDE = {"least": -5.0, "most": 5.0}

CASES = {
    "celu": Case("Celu", ([3, 5],), {"alpha": 0.7}, **WIDE),
    "celu-default": Case("Celu", ([3, 5],), **WIDE),
    "dropout": Case("Dropout", ([2, 3],)),
    "dropout-ratio": Case("Dropout", ([2, 3],), {"ratio": 0.3}),
    "elu": Case("Elu", ([3, 5],), **WIDE),
    "elu-alpha": Case("Elu", ([3, 5],), {"alpha": 0.3}, **WIDE),
    "gelu": Case("Gelu", ([3, 5],), eps=1e-2, accept=3e-3, **WIDE),
    "gelu-tanh": Case("Gelu", ([3, 5],), {"approximate": "tanh"}, **WIDE),
    "hard-sigmoid": Case("HardSigmoid", ([3, 5],), **WIDE),
    "hard-sigmoid-steep": Case("HardSigmoid", ([3, 5],), {"alpha": 0.9, "beta": 0.3}, **WIDE),
    "hard-swish": Case("HardSwish", ([3, 5],), **WIDE),
    "leaky-relu": Case("LeakyRelu", ([3, 5],)),
    "leaky-relu-falling": Case("LeakyRelu", ([3, 5],), {"alpha": -0.4}),
    "leaky-relu-steep": Case("LeakyRelu", ([3, 5],), {"alpha": 1.5}),
    "mish": Case("Mish", ([3, 5],), **WIDE),
    "mish-far": Case("Mish", ([3, 5],), least=-40.0, most=40.0),
    "prelu": Case("PRelu", ([2, 3, 4], [3, 1])),
    "prelu-each": Case("PRelu", ([3, 4], [3, 4])),
    "prelu-one": Case("PRelu", ([3, 4], [1])),
    "relu": Case("Relu", ([3, 5],)),
    "selu": Case("Selu", ([3, 5],), **WIDE),
    "selu-alpha-gamma": Case("Selu", ([3, 5],), {"alpha": 0.5, "gamma": 2.0}, **WIDE),
    "shrink": Case("Shrink", ([3, 5],), {"bias": 0.2, "lambd": 0.4}),
    "shrink-default": Case("Shrink", ([3, 5],)),
    "sigmoid": Case("Sigmoid", ([2, 3],), **WIDE),
    "softplus": Case("Softplus", ([3, 5],), **WIDE),
    "softplus-far": Case("Softplus", ([3, 5],), least=-40.0, most=40.0),
    "softsign": Case("Softsign", ([3, 5],), **WIDE),
    "tanh": Case("Tanh", ([2, 3],), **WIDE),
    "thresholded-relu": Case("ThresholdedRelu", ([3, 5],), {"alpha": 0.4}),
}
