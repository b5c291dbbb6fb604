"""Following a task to its end: what a person sees meanwhile, and how good each version was.

What belongs here: what the demo and the lessons have in common while devices are at work. What does not: starting them
(`federation.py`) and what is said at the end (`demo.py`, `learn.py`).
"""

from __future__ import annotations

import sys
import time

from whimbrel_lab.data.samples import Examples
from whimbrel_lab.fleet.federation import Federation
from whimbrel_lab.fleet.world import WorldError
from whimbrel_lab.runs import central

POLL_S = 0.2
STALL_S = 90.0
BAR = 24


class Progress:
    """What a person sees: one live line on a terminal, a line a round elsewhere."""

    def __init__(self, rounds: int) -> None:
        self._rounds, self._live, self._last = rounds, sys.stdout.isatty(), -1

    def show(self, done: int, accuracy: float, counted: int, lost: int) -> None:
        """Show the rounds done, the newest version's accuracy, the devices in it, and the device-rounds lost so far."""
        filled = BAR * done // self._rounds
        line = (
            f"round {done:2d}/{self._rounds} [{'#' * filled}{'.' * (BAR - filled)}] accuracy {accuracy:.3f}"
            f"  devices in {counted:2d}, lost {lost:3d}"
        )
        if self._live:
            print(f"\r{line}", end="", flush=True)
        elif done != self._last:
            print(line, flush=True)
        self._last = done

    def close(self) -> None:
        """End the live line."""
        if self._live:
            print()


def watch(federation: Federation, rounds: int, test: Examples) -> list[float]:
    """Follow the task to its end and return each version's accuracy on the test examples, the untrained one first."""
    progress, accuracies, moved = Progress(rounds), list[float](), time.monotonic()
    while len(accuracies) <= rounds:
        versions = federation.versions()
        for version in versions[len(accuracies) :]:
            accuracies.append(central.accuracy(federation.exported(version["version"]), test))
            moved = time.monotonic()
        if versions:
            progress.show(len(versions) - 1, accuracies[-1], versions[-1]["contributions"], federation.lost())
        if time.monotonic() - moved > STALL_S:
            raise WorldError(f"no new version for {STALL_S:.0f} s: {federation.world.server.last_words()}")
        time.sleep(POLL_S)
    progress.close()
    return accuracies
