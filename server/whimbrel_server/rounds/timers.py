"""A queue of calls for later, for code that takes its time as an argument.

Here belongs the order of firing and nothing that fires. Times are Unix seconds; calls that are due at the same time fire in
the order in which they were set.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Timers(Generic[T]):
    """Calls of functions that take the time and what was handed to `at`, and return T."""

    def __init__(self) -> None:
        self._queue: list[tuple[float, int, Callable[..., T], tuple[Any, ...]]] = []
        self._number = count()

    def at(self, when: float, call: Callable[..., T], *arguments: object) -> None:
        """Call `call(time, *arguments)` when it is `when`."""
        heapq.heappush(self._queue, (when, next(self._number), call, arguments))

    def next(self) -> float | None:
        """When the next call is due."""
        return self._queue[0][0] if self._queue else None

    def fire(self, now: float) -> Iterator[T]:
        """Make the calls that are due, those included that the calls themselves set."""
        while self._queue and self._queue[0][0] <= now:
            _, _, call, arguments = heapq.heappop(self._queue)
            yield call(now, *arguments)
