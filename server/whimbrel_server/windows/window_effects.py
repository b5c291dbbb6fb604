"""What a running window asks of its shell, as plain values.

Here belong the effects of `window_run.py`, each with what must be durable before anybody is told.
"""

from __future__ import annotations

from dataclasses import dataclass

from whimbrel_protocol.blame import Fault
from whimbrel_server.storage.records import EventRecord


@dataclass(frozen=True)
class Log:
    """Keep a message (`shares`, `vote`, `unmask`) before its sender is told that it was accepted; also for a repeat."""

    kind: str
    member: int
    body: bytes


@dataclass(frozen=True)
class FixU2:
    """Keep the bitmap of who dealt shares, then `settle`."""

    u2: bytes


@dataclass(frozen=True)
class FixSurvivors:
    """Copy the accumulator behind all its adds, keep the copy, the bitmap of survivors and their events, then `settle`.

    `heads` are their announcements (`masked`) and the canary words of their vectors (`canaries`), as far as known.
    """

    u3: bytes
    heads: tuple[EventRecord, ...]


@dataclass(frozen=True)
class FixQuorum:
    """Keep the encoded commit certificate, then `settle`."""

    quorum: bytes


@dataclass(frozen=True)
class RunUnmasking:
    """On a worker: `collector.finish` on the masked sum; keep the outcome, then `settle`, or hand its error to `fail`."""


@dataclass(frozen=True)
class FixAbort:
    """Keep the encoded abort certificate, then `settle`."""

    certificate: bytes


@dataclass(frozen=True)
class GiveUp:
    """Keep that the window ends without a sum: `aborted`, or `failed` with an error number that its survivors are told."""

    state: str
    failure: int = 0


@dataclass(frozen=True)
class Blamed:
    """Keep who was found at fault, for a quarantine."""

    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Closed:
    """Tell the engine: `done`, `aborted` or `failed`. After `aborted` a `done` may still come, of votes that were late."""

    outcome: str


@dataclass(frozen=True)
class Wake:
    """Wake who waits for the window's next answer."""


WindowEffect = Log | FixU2 | FixSurvivors | FixQuorum | RunUnmasking | FixAbort | GiveUp | Blamed | Closed | Wake
