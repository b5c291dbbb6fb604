"""Cases of `rules/noise.py`: noise that is always (nearly) the same number, so that there is something to compare."""

from tests.compiler.cases.case import Case

CASES = {
    "random-normal": Case("RandomNormal", (), {"shape": [2, 3], "dtype": 1, "mean": 0.5, "scale": 1e-12}),
    "random-normal-like": Case("RandomNormalLike", ([2, 3],), {"mean": 0.5, "scale": 1e-12}),
    "random-uniform": Case("RandomUniform", (), {"shape": [2, 3], "dtype": 1, "low": 0.5, "high": 0.5}),
    "random-uniform-like": Case("RandomUniformLike", ([2, 3],), {"low": 0.5, "high": 0.5}),
}
