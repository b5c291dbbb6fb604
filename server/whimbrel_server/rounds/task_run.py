"""One task's current round: who holds an assignment, who waits to be masked, which windows are open, and what follows.

Here belong the decisions of the sync protocol for one version: how many to ask, when a window opens and with whom, when the
version is published, when the round is tried again. Devices, tickets, timers and several tasks belong in `engine.py`. No I/O
and no clock: the time is an argument, in Unix seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import ceil

from whimbrel_protocol.signed import Policy
from whimbrel_server.rounds.pace import DropOut, over_select
from whimbrel_server.settings import SPARE, TaskSettings, may_open, room


class TaskState(Enum):
    """What a task is doing."""

    RUNNING = "running"
    PUBLISHING = "publishing"  # the next version is being made: nothing is assigned, the lane is closed
    FINISHED = "finished"


@dataclass(frozen=True)
class Assignment:
    """A device's permission to train one task from one version until `expires`."""

    id: bytes
    device: bytes
    task: str
    version: int
    expires: float


@dataclass(frozen=True)
class Ready:
    """A device whose update is trained, with the join entry that it waits under."""

    device: bytes
    seq: int
    expires: float
    entry: bytes
    ticket: bytes


@dataclass(frozen=True)
class ClosedWindow:
    """A window whose sum is known."""

    window_id: int
    contributors: tuple[bytes, ...]


class Verdict(Enum):
    """What a round has come to."""

    GOES_ON = "goes on"
    PUBLISH = "publish"
    RETRY = "retry"


@dataclass
class TaskRun:
    """The round of one task. Each device with a seat is in training, lost, ready or in a window, or in the last two at once."""

    name: str
    settings: TaskSettings
    policy: Policy
    version: int
    rounds_done: int = 0
    state: TaskState = TaskState.RUNNING
    seats: dict[bytes, Assignment] = field(default_factory=dict)
    training: set[bytes] = field(default_factory=set)
    lost: set[bytes] = field(default_factory=set)  # dropped out of a window, may still join again
    ready: dict[bytes, Ready] = field(default_factory=dict)
    in_window: dict[bytes, int] = field(default_factory=dict)
    windows: dict[int, tuple[bytes, ...]] = field(default_factory=dict)
    closed: list[ClosedWindow] = field(default_factory=list)
    contributions: int = 0  # updates in the closed windows
    mishaps: int = 0  # windows of this round that failed or were aborted
    excused: set[bytes] = field(default_factory=set)  # contributed, or cannot: no more work from this version
    present: set[bytes] = field(default_factory=set)  # asked for work since the version was published
    lately: set[bytes] = field(default_factory=set)  # asked for work since the last deadline
    present_before: int | None = None
    began: float | None = None
    deadline: float | None = None
    overtime: bool = False
    round_s: float = 0.0
    joins: int = 0
    meeting: bool = field(init=False)  # whether windows may open at this moment
    dropout: DropOut = field(init=False)
    window_dropout: DropOut = field(init=False)

    def __post_init__(self) -> None:
        self.meeting = not self.settings.rendezvous_s
        self.dropout = DropOut(self.settings.expected_dropout)
        self.window_dropout = DropOut(self.settings.expected_window_dropout)
        self.round_s = self.settings.round_deadline_s

    # --- how many ---------------------------------------------------------------------------------------------------

    @property
    def active(self) -> int:
        """How many devices are counted on."""
        return len(self.seats) - len(self.lost)

    @property
    def largest(self) -> int:
        """The most members that a window may have."""
        return min(self.settings.n_max, self.policy.n_max)

    @property
    def expected_loss(self) -> float:
        """The share of a window that is expected to drop out; never so high that a window of K could not open."""
        most = (room(self.settings.window, self.policy) - SPARE) / self.settings.window
        return max(0.0, min(self.window_dropout.rate, most))

    def wanted(self) -> int:
        """How many devices should be at work: the open contributions, over-selected by the observed drop-out."""
        need = self.settings.contributions - self.contributions
        if need <= 0:
            return 0
        return max(over_select(need, self.dropout.rate), self._windows_left(need) * self.window_size(need))

    def window_size(self, need: float) -> int:
        """How many members the next window should have so that equal windows bring `need` contributions; K at least."""
        size = over_select(need / self._windows_left(need), self.expected_loss)
        return min(max(size, self.settings.window), self.largest)

    def _windows_left(self, need: float) -> int:
        return max(1, int(need // self.settings.window))

    def _need(self) -> float:
        """Contributions that neither closed nor open windows are expected to bring."""
        expected = (1 - self.expected_loss) * len(self.in_window)
        return self.settings.contributions - self.contributions - expected

    # --- what follows -----------------------------------------------------------------------------------------------

    def next_window(self, spare: int) -> tuple[Ready, ...]:
        """The members of the next window to open, by device; none if none should open now.

        A window opens when enough are ready, the last of a round with what there is. `spare` devices could still be asked.
        """
        need = self._need()
        waiting = self._waiting()
        if self.state is not TaskState.RUNNING or need <= 0 or not waiting or not self.meeting:
            return ()
        size = self.window_size(need)
        if self.overtime or self._nobody_else_comes(spare):
            count = max(1, len(waiting) // size)
            size = min(ceil(len(waiting) / count), self.largest)
        if len(waiting) < size or not may_open(size, self.policy, self.expected_loss):
            return ()
        return tuple(sorted(waiting[:size], key=lambda member: member.device))

    def _waiting(self) -> list[Ready]:
        return [member for device, member in self.ready.items() if device not in self.in_window]

    def _nobody_else_comes(self, spare: int) -> bool:
        """Whether no join can come: nobody trains, nobody sleeps that could be asked, and the whole fleet was here."""
        fleet = self.wanted() if self.present_before is None else self.present_before
        return not self.training and spare == 0 and len(self.present) >= fleet

    def verdict(self, spare: int) -> Verdict:
        """Whether the round is over; asked after `next_window` said none."""
        if self.windows or self.state is not TaskState.RUNNING:
            return Verdict.GOES_ON
        if self.contributions >= self.settings.contributions:
            return Verdict.PUBLISH
        if not self.meeting and self._waiting():
            return Verdict.GOES_ON  # they wait for the next rendezvous
        over = self.overtime or self._nobody_else_comes(spare)
        if over and self.contributions >= self.settings.least_contributions:
            return Verdict.PUBLISH
        if not self.overtime:
            return Verdict.GOES_ON
        return Verdict.PUBLISH if self._base_is_used_up() else Verdict.RETRY

    def _base_is_used_up(self) -> bool:
        """Whether too few devices are left that could train this version, because windows went wrong with their updates.

        A device trains a version once and an update that is spent may never be free again; without a new version such a fleet
        would never get on.
        """
        left = len((self.lately | self.ready.keys()) - self.excused)
        enough = may_open(left, self.policy, self.expected_loss) or left > self.policy.n_max
        return self.mishaps > 0 and not (enough and left + self.contributions >= self.settings.least_contributions)

    def next_rendezvous(self, now: float) -> float:
        """When windows may open next, for a task with rendezvous times: the first multiple after `now`, Unix seconds."""
        period = self.settings.rendezvous_s
        return (now // period + 1) * period

    def expected_wait(self, now: float) -> float:
        """Seconds until the next window is likely to open: at the pace of the joins so far, or at the deadline."""
        if self.settings.rendezvous_s:
            return self.next_rendezvous(now) - now
        missing = self.window_size(max(self._need(), 1.0)) - len(self.ready)
        if missing <= 0 or self.began is None or self.deadline is None or self.joins == 0:
            return 0.0
        return max(0.0, min(missing * (now - self.began) / self.joins, self.deadline - now))

    # --- what happened ----------------------------------------------------------------------------------------------

    def saw(self, device: bytes) -> None:
        """A device asks for work."""
        self.present.add(device)
        self.lately.add(device)

    def assign(self, assignment: Assignment, now: float) -> None:
        """A device goes to work; the first one starts the round's clock."""
        self.seats[assignment.device] = assignment
        self.training.add(assignment.device)
        if self.deadline is None:
            self.began = now if self.began is None else self.began
            self.deadline = now + self.settings.round_deadline_s

    def join(self, member: Ready) -> None:
        """A device's update is trained; another entry of the same device counts no longer."""
        self.training.discard(member.device)
        self.lost.discard(member.device)
        self.ready.pop(member.device, None)
        self.ready[member.device] = member
        self.joins += 1

    def open(self, window_id: int, devices: Sequence[bytes]) -> None:
        """A window opened with these devices."""
        self.windows[window_id] = tuple(devices)
        for device in devices:
            self.ready.pop(device, None)
            self.in_window[device] = window_id

    def close(self, window_id: int, contributors: Sequence[bytes], lost: Sequence[bytes]) -> None:
        """A window ended: its contributors are done, its lost members may join again, the others too and are counted on."""
        devices = self.windows.pop(window_id)
        for device in devices:
            del self.in_window[device]
        if contributors:
            self.count(ClosedWindow(window_id, tuple(contributors)))
        else:
            self.mishaps += 1
        gone = set(lost)
        for device in devices:
            if device in self.seats and device not in self.ready:
                (self.lost if device in gone else self.training).add(device)
        self.dropout.note(lost=len(lost), kept=len(contributors))
        self.window_dropout.note(lost=len(lost), kept=len(devices) - len(lost))

    def count(self, window: ClosedWindow) -> None:
        """A window's sum is known: it belongs to this round, and its members have done their part."""
        self.closed.append(window)
        self.contributions += len(window.contributors)
        for device in window.contributors:
            self.excuse(device)

    def withdraw(self, device: bytes) -> None:
        """A device's waiting entry counts no longer; it may join again."""
        if self.ready.pop(device, None) is not None and device in self.seats and device not in self.in_window:
            self.training.add(device)

    def vacate(self, device: bytes) -> Assignment | None:
        """A device's seat is free."""
        self.training.discard(device)
        self.lost.discard(device)
        self.ready.pop(device, None)
        return self.seats.pop(device, None)

    def excuse(self, device: bytes) -> Assignment | None:
        """A device has no more work from this version."""
        self.excused.add(device)
        return self.vacate(device)

    def try_again(self, now: float) -> None:
        """The deadline brought too little: the round goes on from the same base and keeps its finished windows."""
        self.overtime = False
        self.lately.clear()
        self.deadline = now + self.settings.round_deadline_s if self.seats else None

    def next_round(self, version: int, now: float) -> None:
        """A version was published: everybody may be asked again."""
        if self.began is not None:
            self.round_s += (now - self.began - self.round_s) / 2
        self.dropout.fade()
        self.window_dropout.fade()
        self.present_before = len(self.present)
        people = (self.excused, self.present, self.lately)
        for held in (self.seats, self.training, self.lost, self.ready, self.closed, *people):
            held.clear()
        self.version, self.rounds_done = version, self.rounds_done + 1
        self.contributions = self.joins = self.mishaps = 0
        self.began, self.deadline, self.overtime = None, None, False
        last = 0 < self.settings.rounds <= self.rounds_done
        self.state = TaskState.FINISHED if last else TaskState.RUNNING
