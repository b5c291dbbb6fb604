"""The windows in memory: by name, by the engine's number, and for how long.

What belongs here: which windows are held, and when one is let go. What does not: what a window does (`live.py`), what its end
means for the round (`coordinator.py`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator

from whimbrel_server.ingest.workers import Workers
from whimbrel_server.storage.records import WindowRecord
from whimbrel_server.windows.live import LiveWindow, Services
from whimbrel_server.windows.window_run import WindowRun

# An ended window still answers repeats from memory for a while; afterwards its record does.
_LINGER_S = 60.0


class LiveWindows:
    """All windows of a data directory that are in memory, by tau0; `closed` is called with each that ends, and how."""

    def __init__(self, services: Services, workers: Workers, closed: Callable[[LiveWindow, str], None]) -> None:
        self._services, self._workers, self._closed = services, workers, closed
        self._held: dict[bytes, LiveWindow] = {}
        self._awaited: dict[int, LiveWindow] = {}
        self._names: dict[int, bytes] = {}

    def __contains__(self, tau0: bytes) -> bool:
        return tau0 in self._held

    def __iter__(self) -> Iterator[LiveWindow]:
        return iter(list(self._held.values()))

    def get(self, tau0: bytes) -> LiveWindow | None:
        """Return a window that is in memory."""
        return self._held.get(tau0)

    def awaited(self, window_id: int) -> LiveWindow | None:
        """Return a window that the engine waits for."""
        return self._awaited.get(window_id)

    # --- coming -----------------------------------------------------------------------------------------------------

    def adopt(self, run: WindowRun, masked_sum: bytes | None = None) -> LiveWindow:
        """Let a durable window run that the engine waits for."""
        window = self._hold(run, masked_sum)
        window_id = run.collector.params.window_id
        self._awaited[window_id], self._names[window_id] = window, window.tau0
        return window

    def take_in(self, run: WindowRun, masked_sum: bytes | None) -> LiveWindow:
        """Let a window run of which the engine knows no more: it waits for the votes that settle its updates."""
        window = self._hold(run, masked_sum)
        self.linger(window)
        return window

    def _hold(self, run: WindowRun, masked_sum: bytes | None) -> LiveWindow:
        tau0 = run.collector.tau0
        window = LiveWindow(run, self._services, self._workers.pinned(tau0), self._closed, masked_sum)
        self._held[tau0] = window
        return window

    # --- names of sums ----------------------------------------------------------------------------------------------

    def remember(self, record: WindowRecord) -> None:
        """Know a finished window's name, so that the engine's number leads to its sum."""
        self._names[record.window_id] = record.tau0

    def name(self, window_id: int) -> bytes:
        """Return the tau0 of a window whose sum the engine counts."""
        return self._names[window_id]

    def forget_name(self, window_id: int) -> None:
        """Nobody asks for this window's sum any more."""
        del self._names[window_id]

    # --- going ------------------------------------------------------------------------------------------------------

    def settle(self, window: LiveWindow) -> bool:
        """Note that a window ended; returns whether the engine waited for it."""
        return self._awaited.pop(window.run.collector.params.window_id, None) is not None

    def linger(self, window: LiveWindow) -> None:
        """Drop a window from memory once it does nothing by itself any more; a late vote brings it back."""
        asyncio.get_running_loop().call_later(_LINGER_S, self._let_go, window)

    def _let_go(self, window: LiveWindow) -> None:
        if not window.ended:
            self.linger(window)
            return
        window.stop()
        if self._held.get(window.tau0) is window:
            del self._held[window.tau0]

    # --- all of them ------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Let deadlines pass."""
        for window in self:
            window.tick(now)

    def next_deadline(self) -> float | None:
        """When the next of them passes, if one does."""
        return min((window.run.deadline for window in self if window.run.deadline is not None), default=None)

    def states(self) -> dict[str, float]:
        """Return how many windows are in each phase."""
        return {phase: float(count) for phase, count in Counter(window.run.phase.name.lower() for window in self).items()}

    def stop(self) -> None:
        """Let go of all; what was durable stays."""
        for window in self:
            window.stop()
