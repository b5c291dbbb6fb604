"""What a case of a gradient rule is. The cases themselves are in the topics beside this file."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.compiler.evaluation import Array


@dataclass(frozen=True)
class Case:
    """One operator with all its float operands trained.

    `operands`: shapes of trained float operands (drawn from [`least`, 1)), arrays of constant ones, None for one left out.
    """

    op: str
    operands: tuple[Any, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    least: float = -1.0
    opset: int = 20
    wide: bool = False  # forces the convolution lowering for maps too large for the cache


def ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)
