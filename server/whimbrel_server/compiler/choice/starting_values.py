"""Random start values of new weights. They depend on the weight's name alone: every compilation gives the same."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from whimbrel_server.compiler.graph.ir import Array


def normal(name: str, shape: Sequence[int], deviation: float, dtype: np.dtype[Any]) -> Array:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest(), "big")
    return np.random.default_rng(seed).normal(0.0, deviation, tuple(shape)).astype(dtype)


def he_normal(name: str, shape: Sequence[int], fan_in: int, dtype: np.dtype[Any]) -> Array:
    """Variance 2 / fan-in: He et al., "Delving Deep into Rectifiers", 2015, equation 10."""
    return normal(name, shape, math.sqrt(2.0 / fan_in), dtype)
