"""Who is lost and who is asleep: the two estimates by which the engine decides how many to ask and when to let them come back.

Here belong counting and arithmetic over time. Whom the engine asks belongs in `engine.py`. Source of the pacing: Bonawitz et
al. 2019, "Towards Federated Learning at Scale", section 2.3.
"""

from __future__ import annotations

import heapq
from math import ceil, sqrt

_MEMORY = 0.7  # what a round leaves of the counts before it: about three rounds are remembered
_PRIOR = 20.0  # how many observations the configured expectation weighs
_HIGHEST = 0.75  # four are asked for one, never more


class DropOut:
    """The share of those that were counted on and were lost, from discounted counts."""

    def __init__(self, expected: float) -> None:
        self._expected = expected
        self._lost = 0.0
        self._kept = 0.0

    def note(self, lost: int = 0, kept: int = 0) -> None:
        """Count what became of some."""
        self._lost += lost
        self._kept += kept

    def fade(self) -> None:
        """A round is over: what was counted weighs less from now on."""
        self._lost *= _MEMORY
        self._kept *= _MEMORY

    @property
    def rate(self) -> float:
        """The expected share of losses, 0 to 0.75."""
        seen = self._lost + self._kept
        return min(_HIGHEST, (self._expected * _PRIOR + self._lost) / (_PRIOR + seen))


def over_select(wanted: float, dropout: float) -> int:
    """How many to ask so that `wanted` are left: wanted / (1 - dropout), and one standard deviation of the losses on top.

    Without it every other round would just miss its goal, and that costs a whole deadline.
    """
    margin = sqrt(wanted * dropout * (1 - dropout))
    return ceil((wanted + margin) / (1 - dropout) - 1e-9)


class Sleepers:
    """The devices that were told when to come back; a device counts until that time.

    `spare` ones could still be given work before the next version; the others have done their part.
    """

    def __init__(self) -> None:
        self._spare: list[float] = []
        self._served: list[float] = []

    def add(self, due: float, *, spare: bool) -> None:
        """One more device sleeps until `due`."""
        heapq.heappush(self._spare if spare else self._served, due)

    def new_round(self) -> None:
        """Everybody may be given work again."""
        self._spare = list(heapq.merge(self._spare, self._served)) if self._served else self._spare
        heapq.heapify(self._spare)
        self._served = []

    def spare(self, now: float) -> int:
        """How many sleep that could be given work."""
        return _left(self._spare, now)

    def count(self, now: float) -> int:
        """How many sleep."""
        return self.spare(now) + _left(self._served, now)


def _left(heap: list[float], now: float) -> int:
    while heap and heap[0] <= now:
        heapq.heappop(heap)
    return len(heap)


def come_back(
    *, remaining_s: float, round_s: float, devices: int, wanted: int, least_s: float, most_s: float, draw: float
) -> float:
    """When a device without work should ask again, in seconds, `least_s` to `most_s`.

    Not before the round is expected to end (`remaining_s`), and from then on spread so that `devices` ask at the rate of
    `wanted` a round of `round_s` seconds. `draw` is uniform in [0, 1).
    """
    spread_s = round_s * max(0.0, devices / max(wanted, 1) - 1)
    soonest = max(least_s, min(remaining_s, most_s / 2))
    latest = min(soonest + max(least_s, spread_s), max(most_s, soonest))
    return soonest + draw * (latest - soonest)
