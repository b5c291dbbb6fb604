"""Labelled examples by input name, and their uneven spread over the devices of a fleet.

What belongs here: what all data sets of the laboratory have in common. What does not: where examples come from (`digits.py`,
`sentences.py`, `motions.py`, `volumes.py`) and what learns from them (`models.py` and those beside it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]

TEST_SHARE = 0.2
LEAST_EXAMPLES = 8


@dataclass(frozen=True)
class Examples:
    """`inputs` by the model's input names, N rows each, and `label` int64 [N], class numbers."""

    inputs: Mapping[str, Array]
    label: Rows

    def take(self, rows: Rows) -> Examples:
        """Return the examples at `rows` (int64 [M])."""
        return Examples({name: array[rows] for name, array in self.inputs.items()}, self.label[rows])

    @property
    def columns(self) -> dict[str, Array]:
        """The inputs and `label`, as an app hands them over."""
        return {**self.inputs, "label": self.label}

    def __len__(self) -> int:
        return len(self.label)


def shuffled(everything: Examples, seed: int) -> tuple[Examples, Examples]:
    """Return (training, test) examples, shuffled by `seed`; a fifth is for the test."""
    order = np.random.default_rng(seed).permutation(len(everything)).astype(np.int64)
    cut = int(len(order) * TEST_SHARE)
    return everything.take(order[cut:]), everything.take(order[:cut])


def dirichlet_split(examples: Examples, devices: int, alpha: float, seed: int) -> list[Examples]:
    """Return one part a device, label shares drawn from Dirichlet(`alpha`) (Hsu et al. 2019, section 3).

    Draws again until each device has at least 8 examples, so that everybody can train.
    """
    rng = np.random.default_rng(seed)
    while True:
        parts = _draw(examples.label, devices, alpha, rng)
        if min(len(part) for part in parts) >= min(LEAST_EXAMPLES, len(examples) // (2 * devices)):
            return [examples.take(rng.permutation(part)) for part in parts]


def _draw(label: Rows, devices: int, alpha: float, rng: np.random.Generator) -> list[Rows]:
    """Give each example of a class to a device by that class's shares; full devices take no more (a balanced variant)."""
    parts: list[list[int]] = [[] for _ in range(devices)]
    target = len(label) / devices
    for one in range(int(label.max()) + 1):
        rows = rng.permutation(np.flatnonzero(label == one))
        shares = rng.dirichlet(np.full(devices, alpha))
        shares *= [len(part) < target for part in parts]
        ends = (np.cumsum(shares / shares.sum()) * len(rows)).round().astype(int)
        for part, chunk in zip(parts, np.split(rows, ends[:-1]), strict=True):
            part.extend(chunk.tolist())
    return [np.array(part, dtype=np.int64) for part in parts]
