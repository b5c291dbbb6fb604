"""Join entries and their tickets: an entry is good for one window at most, whatever is repeated, replayed or forgotten.

Here belongs what became of each entry. Whose turn it is, and what a task does with those who wait, belongs in the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from whimbrel_protocol.errors import Code, RuleError
from whimbrel_server.rounds.events import Joining
from whimbrel_server.rounds.task_run import Ready

# An entry must stand this long after its window opened (masking protocol, section 1.9).
ENTRY_MARGIN_S = 60.0

Later = Callable[[float, Callable[[], None]], None]
"""Calls a function at a time."""


@dataclass
class Ticket:
    """What a device got for an entry: the lane that it is for, and the window once one took it."""

    device: bytes
    task: str
    version: int
    window_id: int | None = None


class Tickets:
    """All entries that could still be said again. `later` forgets them in time: an expired entry passes no check."""

    def __init__(self, later: Later) -> None:
        self._later = later
        self._tickets: dict[bytes, Ticket] = {}
        self._opened: dict[bytes, Ready] = {}  # by device: the last entry that stood in an OPEN

    def issue(self, ready: Ready, task: str, version: int) -> None:
        """An entry waits for a window of this lane."""
        self._tickets[ready.ticket] = Ticket(ready.device, task, version)
        self._later(ready.expires + ENTRY_MARGIN_S, lambda: self._forget(ready.ticket))

    def found(self, ticket: bytes, device: bytes) -> Ticket:
        """What a ticket is for. Raises UNKNOWN_TICKET, NOT_YOURS."""
        found = self._tickets.get(ticket)
        if found is None:
            raise RuleError(Code.UNKNOWN_TICKET)
        if found.device != device:
            raise RuleError(Code.NOT_YOURS)
        return found

    def waits(self, ticket: bytes) -> bool:
        """Whether no window has taken the entry yet."""
        return self._tickets[ticket].window_id is None

    def opened(self, ready: Ready, window_id: int) -> None:
        """A window took an entry that waited."""
        self.used(ready)
        self._tickets[ready.ticket].window_id = window_id

    def used(self, ready: Ready) -> None:
        """An entry stood in an OPEN, perhaps before the server started: it may never stand in another."""
        known = self._opened.get(ready.device)
        if known is None or known.seq < ready.seq:
            self._opened[ready.device] = ready
            self._later(ready.expires + ENTRY_MARGIN_S, lambda: self._forget_opened(ready))

    def same(self, joining: Joining, waiting: Ready | None) -> bytes | None:
        """The ticket of the very same entry; `waiting` is the device's entry that waits, if any.

        Raises SECOND_BODY for another entry with the same counter, OUT_OF_TURN for a counter that is not the device's highest.
        """
        for known in (waiting, self._opened.get(joining.device)):
            if known is None or joining.seq > known.seq:
                continue
            if joining.entry == known.entry and known.ticket:
                return known.ticket
            if joining.seq == known.seq and joining.entry != known.entry:
                raise RuleError(Code.SECOND_BODY, f"another entry with the counter {known.seq} came before")
            raise RuleError(Code.OUT_OF_TURN, f"an entry with the counter {known.seq} came before {joining.seq}")
        return None

    def _forget(self, ticket: bytes) -> None:
        self._tickets.pop(ticket, None)

    def _forget_opened(self, ready: Ready) -> None:
        if self._opened.get(ready.device) is ready:
            del self._opened[ready.device]
