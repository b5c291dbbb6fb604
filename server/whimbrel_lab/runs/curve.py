"""The picture of the demo: accuracy over rounds against central training.

What belongs here: drawing. What does not: what is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # no display is needed, and none is looked for
from matplotlib import pyplot as plt


def draw(accuracies: Sequence[float], central: float, title: str, out: Path) -> None:
    """Write a PNG: `accuracies` of the versions from the untrained one on, `central` as a line to reach."""
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    axes.axhline(central, color="tab:orange", linestyle="--", label=f"central training, to its plateau: {central:.3f}")
    axes.plot(range(len(accuracies)), accuracies, marker="o", markersize=4, label=f"federated, masked: {accuracies[-1]:.3f}")
    axes.set(xlabel="round", ylabel="accuracy on the test digits", title=title, ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    plt.close(figure)
