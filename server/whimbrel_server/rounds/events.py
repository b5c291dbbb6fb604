"""What goes into the engine and what comes out of it, as plain values.

Here belong the events that carry more than a name and a time, the answers, and the effects. What leads from one to the other
belongs in `engine.py` and `task_run.py`. Times are Unix seconds, waits are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from whimbrel_protocol.signed import Policy
from whimbrel_server.rounds.task_run import Assignment, ClosedWindow
from whimbrel_server.settings import TaskSettings

# --- effects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Assign:
    """Keep the assignment, then answer the check-in."""

    assignment: Assignment


@dataclass(frozen=True)
class OpenWindow:
    """Form a window of these entries (ascending device ids), keep its roster, run it."""

    task: str
    version: int
    window_id: int
    entries: tuple[bytes, ...]


@dataclass(frozen=True)
class Publish:
    """Make the next version from the sums of these windows, in this order; then call `Engine.published`.

    With no window the parameters stay and only the version is new: so that devices whose updates were lost can train again.
    """

    task: str
    base_version: int
    windows: tuple[int, ...]


@dataclass(frozen=True)
class Retry:
    """For the log: the deadline brought too little, the round goes on from the same base."""

    task: str
    version: int
    contributions: int


@dataclass(frozen=True)
class Finish:
    """Keep that the task has published its last version."""

    task: str


Effect = Assign | OpenWindow | Publish | Retry | Finish


# --- events and answers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunningWindow:
    """A window that was open when the server stopped."""

    window_id: int
    devices: tuple[bytes, ...]


@dataclass(frozen=True)
class TaskStart:
    """A task as it starts, new or after a restart.

    `windows` are done and in no version yet, in order of their end; `spent` are the survivors of failed windows of `version`.
    """

    name: str
    settings: TaskSettings
    policy: Policy
    version: int = 1
    rounds_done: int = 0
    windows: tuple[ClosedWindow, ...] = ()
    open_windows: tuple[RunningWindow, ...] = ()
    assignments: tuple[Assignment, ...] = ()
    spent: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class CheckInAnswer:
    """An assignment, or only a time to come back."""

    assignment: Assignment | None
    come_back_s: float


@dataclass(frozen=True)
class Joining:
    """What counts of a join entry that passed its checks."""

    device: bytes
    seq: int
    expires: float
    entry: bytes


@dataclass(frozen=True)
class JoinAnswer:
    """A ticket, and seconds until it is worth asking (0: a long poll at once)."""

    ticket: bytes
    come_back_s: float


@dataclass(frozen=True)
class Waiting:
    """The window has not opened."""

    come_back_s: float


@dataclass(frozen=True)
class Opened:
    """The window opened."""

    window_id: int


@dataclass(frozen=True)
class TaskView:
    """Where a task stands, for people."""

    name: str
    state: str
    version: int
    rounds_done: int
    contributions: int
    ready: int
    active: int
    open_windows: int
    deadline: float | None
    dropout: float
    window_dropout: float
