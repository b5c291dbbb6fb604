"""scikit-learn's handwritten digits, cut for a fleet: a test set, and training examples spread unevenly over devices.

What belongs here: the data of the demo and its tests. What does not: models (`models.py`) and training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

TEST_SHARE = 0.2
LEAST_EXAMPLES = 8


@dataclass(frozen=True)
class Examples:
    """`image` float32 [N, 1, 8, 8] in 0..1, `label` int64 [N] in 0..9."""

    image: npt.NDArray[np.float32]
    label: npt.NDArray[np.int64]

    def take(self, rows: npt.NDArray[np.int64]) -> Examples:
        """Return the examples at `rows` (int64 [M])."""
        return Examples(self.image[rows], self.label[rows])

    def __len__(self) -> int:
        return len(self.label)


def load(seed: int) -> tuple[Examples, Examples]:
    """Return (training, test) examples, shuffled by `seed`; a fifth is for the test."""
    raw = load_digits()
    image = (raw.images[:, None] / 16.0).astype(np.float32)
    everything = Examples(image, raw.target.astype(np.int64))
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


def _draw(label: npt.NDArray[np.int64], devices: int, alpha: float, rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
    """Give each example of a class to a device by that class's shares; full devices take no more (a balanced variant)."""
    parts: list[list[int]] = [[] for _ in range(devices)]
    target = len(label) / devices
    for digit in range(10):
        rows = rng.permutation(np.flatnonzero(label == digit))
        shares = rng.dirichlet(np.full(devices, alpha))
        shares *= [len(part) < target for part in parts]
        ends = (np.cumsum(shares / shares.sum()) * len(rows)).round().astype(int)
        for part, chunk in zip(parts, np.split(rows, ends[:-1]), strict=True):
            part.extend(chunk.tolist())
    return [np.array(part, dtype=np.int64) for part in parts]
