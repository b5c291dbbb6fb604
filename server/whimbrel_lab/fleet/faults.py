"""Which devices vanish, when and how: a fair draw for each device and version, and a log of what was done.

What belongs here: the draw and its record. What does not: the vanishing itself (`device.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from whimbrel.device import Stage

MOMENTS = (Stage.TRAIN, Stage.SHARE, Stage.MASK, Stage.VOTE, Stage.UNMASK)
KILLED_SHARE = 0.5  # the other half falls silent for a while, as in a tunnel


@dataclass(frozen=True)
class Fault:
    """A device vanishes in `stage` of its work on `version`: its process is killed, or it falls silent."""

    version: int
    stage: str
    killed: bool


def draw(seed: int, device: int, version: int, rate: float) -> Fault | None:
    """Return the fault that this device suffers in this version, the same at every call, or None."""
    rng = np.random.default_rng([seed, device, version])
    if rng.random() >= rate:
        return None
    return Fault(version, MOMENTS[int(rng.integers(len(MOMENTS)))].name.lower(), bool(rng.random() < KILLED_SHARE))


def suffered(log: Path) -> list[Fault]:
    """Return the faults that a device's log holds, oldest first."""
    if not log.exists():
        return []
    return [Fault(**json.loads(line)) for line in log.read_text().splitlines()]


def note(log: Path, fault: Fault) -> None:
    """Write a fault down; it is about to happen, and the process may not live on."""
    with log.open("a") as file:
        file.write(json.dumps(asdict(fault)) + "\n")


def count(logs: Iterable[Path]) -> int:
    """Return how many device-rounds were lost."""
    return sum(len(suffered(log)) for log in logs)
