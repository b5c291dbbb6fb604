"""Cases of `rules/normalisations.py`."""

from tests.compiler.cases.case import Case

ALL = ("y", "mean", "inverse")

CASES = {
    "group-normalization-of-channels": Case("GroupNormalization", ([2, 6, 3, 2], [6], [6]), {"num_groups": 3}, opset=21),
    "group-normalization-of-groups": Case(
        "GroupNormalization", ([2, 6, 3, 2], [3], [3]), {"num_groups": 3, "epsilon": 1e-3}, opset=18
    ),
    "group-normalization-of-one-channel": Case("GroupNormalization", ([2, 4, 5], [4], [4]), {"num_groups": 4}),
    "instance-normalization": Case("InstanceNormalization", ([2, 3, 4, 5], [3], [3]), {"epsilon": 1e-3}),
    "instance-normalization-line": Case("InstanceNormalization", ([2, 3, 80], [3], [3])),
    "layer-normalization": Case("LayerNormalization", ([2, 3, 8], [8], [8])),
    "layer-normalization-axes": Case("LayerNormalization", ([2, 3, 4], [3, 4], [3, 4]), {"axis": 1, "epsilon": 1e-2}),
    "layer-normalization-statistics": Case("LayerNormalization", ([3, 5], [5], [5]), {"axis": -1}, outputs=ALL),
    "layer-normalization-mean-alone": Case("LayerNormalization", ([3, 5], [5]), outputs=("y", "mean")),
    "layer-normalization-without-bias": Case("LayerNormalization", ([4, 6], [6])),
    "lp-normalization": Case("LpNormalization", ([2, 3, 4],), {"axis": 1}),
    "lp-normalization-default": Case("LpNormalization", ([2, 3],)),
    "lp-normalization-absolute": Case("LpNormalization", ([2, 3, 4],), {"axis": -1, "p": 1}),
    "mean-variance-normalization": Case("MeanVarianceNormalization", ([2, 3, 4, 5],)),
    "mean-variance-normalization-axes": Case("MeanVarianceNormalization", ([2, 3, 4],), {"axes": [0, -1]}),
    "rms-normalization": Case("RMSNormalization", ([2, 3, 8], [8]), {"epsilon": 1e-3}),
    "rms-normalization-axes": Case("RMSNormalization", ([2, 3, 4], [3, 4]), {"axis": 1}),
}
