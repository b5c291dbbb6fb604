"""Volumes as a scanner would give them, made up: four shapes of any size, place and direction, blurred and noisy.

What belongs here: the generator. What does not: how volumes are spread over devices (`samples.py`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from whimbrel_lab.data.samples import Examples, shuffled

SIDE = 12
NOISE = 0.2
SHAPES = ("ball", "shell", "rod", "plate")

Grid = npt.NDArray[np.float64]


def load(seed: int, count: int = 1600) -> tuple[Examples, Examples]:
    """Return (training, test) examples: "volume" float32 [N, 1, 12, 12, 12], labels index `SHAPES`."""
    rng = np.random.default_rng([seed, 3])
    label = rng.integers(0, len(SHAPES), count)
    volume = np.stack([_volume(SHAPES[one], rng) for one in label])[:, None].astype(np.float32)
    return shuffled(Examples({"volume": volume}, label), seed)


def _volume(shape: str, rng: np.random.Generator) -> Grid:
    """`[SIDE, SIDE, SIDE]`: about 1 inside the shape and 0 outside, and noise."""
    axes = np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij")).astype(np.float64)
    offset = axes - rng.uniform(SIDE / 2 - 1.5, SIDE / 2 + 0.5, 3)[:, None, None, None]
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    along = np.tensordot(direction, offset, 1)
    far, aside = np.sqrt((offset**2).sum(0)), np.sqrt(np.maximum((offset**2).sum(0) - along**2, 0.0))
    inside = _depth(shape, (far, along, aside), rng.uniform(3.2, 4.6))
    return np.asarray(1 / (1 + np.exp(-3 * inside)) + rng.normal(0, NOISE, far.shape))


def _depth(shape: str, distances: tuple[Grid, Grid, Grid], size: float) -> Grid:
    """How deep each voxel lies in the shape (negative outside), by its distance to the centre, along and beside an axis."""
    far, along, aside = distances
    if shape == "ball":
        return size - far
    if shape == "shell":
        return 1.0 - np.abs(far - size)
    if shape == "rod":
        return np.minimum(1.5 - aside, size + 1.0 - np.abs(along))
    return np.minimum(1.2 - np.abs(along), size - aside)
