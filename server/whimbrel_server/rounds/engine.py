"""The engine: which device works on what, when a window opens, when a version is published. The protocol is a setting of it.

Here belong devices, assignments and timers across all tasks. What became of join entries belongs in `tickets.py`, what one
round decides in `task_run.py`, what goes in and comes out in `events.py`, the phases of a window in `window_run.py`. The engine
takes the time and its random source as arguments and does no I/O, so it runs the same under HTTP and under a virtual clock.
Whoever performs an effect makes durable what it names before anybody is told. Times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Protocol

from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.signed import Policy
from whimbrel_server.rounds.events import (
    Assign,
    CheckInAnswer,
    Effect,
    Finish,
    JoinAnswer,
    Joining,
    Opened,
    OpenWindow,
    Publish,
    Retry,
    TaskStart,
    TaskView,
    Waiting,
)
from whimbrel_server.rounds.pace import Sleepers, come_back
from whimbrel_server.rounds.task_run import Assignment, ClosedWindow, Ready, TaskRun, TaskState, Verdict
from whimbrel_server.rounds.tickets import ENTRY_MARGIN_S, Tickets
from whimbrel_server.rounds.timers import Timers

# A long poll lasts at most 25 s; who is likely to wait longer is sent away for a while.
POLL_S = 20.0
ID_BYTES = 16


class Random(Protocol):
    """A source of randomness: `random.Random(seed)` for a simulation, `random.SystemRandom()` for a server."""

    def random(self) -> float:
        """Uniform in [0, 1)."""

    def randbytes(self, n: int, /) -> bytes:
        """`n` bytes."""


class Engine:
    """See the module. One object, one thread; every method first lets the timers fire that are due."""

    def __init__(self, random: Random, idle_come_back_s: float = 60.0) -> None:
        self._random = random
        self._idle_s = idle_come_back_s  # while there is no task
        self._tasks: dict[str, TaskRun] = {}
        self._held: dict[bytes, Assignment] = {}  # by device: at most one at a time
        self._assignments: dict[bytes, Assignment] = {}  # by id, also of closed lanes until they expire
        self._late: dict[bytes, Assignment] = {}  # by device: those that were in training when their lane closed
        self._quarantine: dict[bytes, float] = {}  # by device: when it ends
        self._sleepers = Sleepers()
        self._timers: Timers[list[Effect]] = Timers()
        self._tickets = Tickets(lambda when, call: self._timers.at(when, self._silently, call))

    # --- tasks ------------------------------------------------------------------------------------------------------

    def add_task(self, start: TaskStart, now: float) -> list[Effect]:
        """Let a task run: a new one, or an old one as it stood when the server stopped. Raises TASK_EXISTS."""
        if start.name in self._tasks:
            raise RuleError(Code.TASK_EXISTS, start.name)
        task = TaskRun(start.name, start.settings, start.policy, start.version, start.rounds_done)
        self._tasks[start.name] = task
        if 0 < start.settings.rounds <= start.rounds_done:
            task.state = TaskState.FINISHED
            return []
        for window in start.windows:
            task.count(window)
        task.mishaps = 1 if start.spent else 0
        self._spend(task, start.spent)
        # Who has done its part, or went into quarantine, does not come for its seat: that is another's.
        away = task.excused | (self._quarantine.keys() - {one for running in start.open_windows for one in running.devices})
        for assignment in start.assignments:
            if assignment.device not in away:
                self._seat(task, assignment, now)
        for running in start.open_windows:
            task.open(running.window_id, running.devices)
        if task.settings.rendezvous_s:
            self._timers.at(task.next_rendezvous(now), self._rendezvous, task)
        return self.tick(now) + self._consider(task, now)

    def set_policy(self, policy: Policy, now: float) -> list[Effect]:
        """A newer policy's numbers hold for all windows that open from now on.

        The policy is part of the lane: whoever waits under the older one has to join again.
        """
        effects = self.tick(now)
        for task in self._tasks.values():
            task.policy = policy
            for device in list(task.ready):
                task.withdraw(device)
                self._expire_if_due(task, device, now)
            effects += self._consider(task, now)
        return effects

    def entry_used(self, device: bytes, seq: int, expires: float, entry: bytes) -> None:
        """After a restart: this entry stood in an OPEN and may never stand in another."""
        self._tickets.used(Ready(device, seq, expires, entry, b""))

    def task(self, name: str) -> TaskView:
        """Where a task stands. Raises UNKNOWN_TASK."""
        if name not in self._tasks:
            raise RuleError(Code.UNKNOWN_TASK, name)
        t = self._tasks[name]
        counts = (t.contributions, len(t.ready), t.active, len(t.windows))
        return TaskView(
            name, t.state.value, t.version, t.rounds_done, *counts, t.deadline, t.dropout.rate, t.window_dropout.rate
        )

    # --- check-in ---------------------------------------------------------------------------------------------------

    def check_in(self, device: bytes, now: float) -> tuple[CheckInAnswer, list[Effect]]:
        """A device asks for work: the assignment that it holds, a new one, or a time to come back."""
        effects = self.tick(now)
        tasks = [task for task in self._tasks.values() if task.state is TaskState.RUNNING]
        for task in tasks:
            task.saw(device)
        self._lost_its_work(device)
        if device in self._quarantine:
            return CheckInAnswer(None, self._quarantine[device] - now), effects
        held = self._held.get(device)
        if held is not None and self._tasks[held.task] in tasks:
            return CheckInAnswer(held, 0.0), effects
        short = [task for task in tasks if device not in task.excused and task.active < task.wanted()]
        if held is None and short:
            task = max(short, key=lambda t: (1 - t.active / t.wanted(), t.name))
            assignment = self._assign(task, device, now)
            return CheckInAnswer(assignment, 0.0), [*effects, Assign(assignment)]
        answer = CheckInAnswer(None, self._come_back(device, now))
        # The last of the fleet may have shown itself: then a round need not wait for more.
        return answer, effects + [effect for task in tasks for effect in self._consider(task, now)]

    def _assign(self, task: TaskRun, device: bytes, now: float) -> Assignment:
        expires = now + task.settings.assignment_deadline_s
        assignment = Assignment(self._random.randbytes(ID_BYTES), device, task.name, task.version, expires)
        self._seat(task, assignment, now)
        return assignment

    def _seat(self, task: TaskRun, assignment: Assignment, now: float) -> None:
        had_deadline = task.deadline
        task.assign(assignment, now)
        self._held[assignment.device] = assignment
        self._assignments[assignment.id] = assignment
        self._timers.at(assignment.expires, self._assignment_expires, assignment)
        if had_deadline is None:
            self._watch_deadline(task)

    def _come_back(self, device: bytes, now: float) -> float:
        tasks = [task for task in self._tasks.values() if task.state is not TaskState.FINISHED]
        if not tasks:
            return self._idle_s * (0.5 + self._random.random())
        spare = any(device not in task.excused for task in tasks)
        task = min(tasks, key=lambda t: (self._remaining(t, now), t.name))
        delay = come_back(
            remaining_s=self._remaining(task, now),
            round_s=task.round_s,
            devices=self._sleepers.count(now) + 1,
            wanted=max(task.wanted(), task.settings.contributions),
            least_s=task.settings.come_back_min_s,
            most_s=task.settings.come_back_max_s,
            draw=self._random.random(),
        )
        self._sleepers.add(now + delay, spare=spare)
        return delay

    def _remaining(self, task: TaskRun, now: float) -> float:
        """Seconds until the task's next round is expected to begin."""
        if task.state is not TaskState.RUNNING or task.began is None or task.deadline is None:
            return 0.0
        return max(0.0, min(task.began + task.round_s, task.deadline) - now)

    # --- quarantine -----------------------------------------------------------------------------------------------------

    def quarantine(self, device: bytes, until: float, now: float) -> list[Effect]:
        """A device was found at fault: it gets no work and joins no window until then, the longest of several counting.

        A window that it stands in goes on with it.
        """
        effects = self.tick(now)
        if until <= max(now, self._quarantine.get(device, 0.0)):
            return effects
        self._quarantine[device] = until
        self._timers.at(until, self._quarantine_ends, device)
        held = self._held.get(device)
        if held is None or device in self._tasks[held.task].in_window:
            return effects
        task = self._tasks[held.task]
        task.vacate(device)
        self._release(device, task)
        self._assignments.pop(held.id, None)
        return effects + self._consider(task, now)

    def _quarantine_ends(self, now: float, device: bytes) -> list[Effect]:
        if self._quarantine.get(device, inf) <= now:
            del self._quarantine[device]
        return []

    # --- joining ----------------------------------------------------------------------------------------------------

    def assignment(self, assignment_id: bytes, device: bytes) -> Assignment:
        """A device's assignment, so that its entry can be checked against that lane.

        Raises STALE_VERSION where it is unknown, expired or its lane closed, NOT_YOURS for another device's, QUARANTINED.
        """
        if device in self._quarantine:
            raise RuleError(Code.QUARANTINED)
        found = self._assignments.get(assignment_id)
        if found is None:
            raise RuleError(Code.STALE_VERSION, "the assignment is unknown or has expired")
        if found.device != device:
            raise RuleError(Code.NOT_YOURS)
        if self._held.get(device) != found or self._tasks[found.task].state is not TaskState.RUNNING:
            self._late_but_alive(found)
            raise RuleError(Code.STALE_VERSION, f"version {found.version} of {found.task} is trained no longer")
        return found

    def join(self, assignment_id: bytes, joining: Joining, now: float) -> tuple[JoinAnswer, list[Effect]]:
        """A device is ready to be masked; its entry has passed all checks of a roster.

        The same entry again gets the same ticket. Of a device only the entry with the highest counter counts. Raises as
        `assignment`, SECOND_BODY for another entry with the same counter, OUT_OF_TURN for a counter that is not above one that
        counts or that stood in an OPEN.
        """
        effects = self.tick(now)
        held = self._held.get(joining.device)
        before = self._tickets.same(joining, self._tasks[held.task].ready.get(joining.device) if held else None)
        if before is not None:
            return JoinAnswer(before, 0.0), effects
        assignment = self.assignment(assignment_id, joining.device)
        task = self._tasks[assignment.task]
        ready = Ready(joining.device, joining.seq, joining.expires, joining.entry, self._random.randbytes(ID_BYTES))
        task.join(ready)
        self._tickets.issue(ready, task.name, task.version)
        self._timers.at(ready.expires - ENTRY_MARGIN_S, self._entry_expires, task, ready)
        effects += self._consider(task, now)
        return JoinAnswer(ready.ticket, self._wait_for_window(task, ready.ticket, now)), effects

    def rendezvous(self, task_name: str, now: float) -> float | None:
        """When the task's windows may open next, Unix seconds; None where they open at any time."""
        task = self._tasks[task_name]
        return task.next_rendezvous(now) if task.settings.rendezvous_s else None

    def ticket(self, ticket: bytes, device: bytes, now: float) -> Waiting | Opened:
        """What became of an entry. Raises UNKNOWN_TICKET (join again with fresh keys), STALE_VERSION, NOT_YOURS."""
        found = self._tickets.found(ticket, device)
        if found.window_id is not None:
            return Opened(found.window_id)
        task = self._tasks[found.task]
        if task.version != found.version or task.state is not TaskState.RUNNING or device in task.excused:
            raise RuleError(Code.STALE_VERSION, f"version {found.version} of {found.task} is trained no longer")
        waiting = task.ready.get(device)
        if waiting is None or waiting.ticket != ticket:
            raise RuleError(Code.UNKNOWN_TICKET, "the entry has expired or a newer one took its place")
        return Waiting(self._wait_for_window(task, ticket, now))

    def _wait_for_window(self, task: TaskRun, ticket: bytes, now: float) -> float:
        wait = task.expected_wait(now) if self._tickets.waits(ticket) else 0.0
        if wait <= POLL_S:
            return 0.0
        return wait if task.settings.rendezvous_s else wait / 2

    def _late_but_alive(self, assignment: Assignment) -> None:
        """A device comes with its work done after its lane closed: it was slow, not lost."""
        if self._late.get(assignment.device) == assignment:
            del self._late[assignment.device]
            self._tasks[assignment.task].dropout.note(kept=1)

    def _lost_its_work(self, device: bytes) -> None:
        """A device asks for work although it was given some in a lane that has closed: that work was lost."""
        late = self._late.pop(device, None)
        if late is not None:
            self._tasks[late.task].dropout.note(lost=1)

    def give_up(self, device: bytes, task_name: str, version: int, now: float) -> list[Effect]:
        """A device reports that it will not join in this version; nothing happens where it was not asked to."""
        effects = self.tick(now)
        held = self._held.get(device)
        if held is None or (held.task, held.version) != (task_name, version) or device in self._tasks[task_name].in_window:
            return effects
        task = self._tasks[task_name]
        task.excuse(device)
        self._release(device, task)
        task.dropout.note(lost=1)
        return effects + self._consider(task, now)

    # --- windows and versions ---------------------------------------------------------------------------------------

    def window_done(self, window_id: int, contributors: Sequence[bytes], now: float) -> list[Effect]:
        """A window's sum is durable. Members that are not in it may join again."""
        lost = set(self._task_of(window_id).windows[window_id]) - set(contributors)
        return self._close(window_id, contributors, sorted(lost), now)

    def window_aborted(self, window_id: int, now: float, lost: Sequence[bytes] = ()) -> list[Effect]:
        """A window will have no sum and its updates are free: its members may join again; `lost` ones are not counted on."""
        return self._close(window_id, (), lost, now)

    def window_late(self, task_name: str, version: int, window: ClosedWindow, now: float) -> tuple[bool, list[Effect]]:
        """A window that was given up has its sum after all: whether it counts, because the round of its version goes on."""
        effects = self.tick(now)
        task = self._tasks[task_name]
        if task.version != version or task.state is not TaskState.RUNNING:
            return False, effects
        task.count(window)
        for device in window.contributors:
            self._release(device, task)
        return True, effects + self._consider(task, now)

    def window_failed(self, window_id: int, now: float, spent: Sequence[bytes] | None = None) -> list[Effect]:
        """A window had its quorum and will never have a sum: the updates of its survivors are lost for good.

        `spent` are the survivors (by default all members); the certificate frees the others, which may join again.
        """
        task = self._task_of(window_id)
        devices = task.windows[window_id]
        self._spend(task, devices if spent is None else spent)
        return self._close(window_id, (), devices, now)

    def _spend(self, task: TaskRun, devices: Sequence[bytes]) -> None:
        for device in devices:
            task.excuse(device)
            self._release(device, task)

    def _close(self, window_id: int, contributors: Sequence[bytes], lost: Sequence[bytes], now: float) -> list[Effect]:
        effects = self.tick(now)
        task = self._task_of(window_id)
        devices = task.windows[window_id]
        task.close(window_id, contributors, lost)
        for device in contributors:
            self._release(device, task)
        for device in devices:
            self._expire_if_due(task, device, now)
        return effects + self._consider(task, now)

    def _task_of(self, window_id: int) -> TaskRun:
        for task in self._tasks.values():
            if window_id in task.windows:
                return task
        raise RuleError(Code.UNKNOWN_WINDOW, f"no window {window_id} is open")

    def _release(self, device: bytes, task: TaskRun) -> None:
        """A device holds no assignment of this task any more."""
        held = self._held.get(device)
        if held is not None and held.task == task.name:
            del self._held[device]

    def published(self, task_name: str, version: int, now: float) -> list[Effect]:
        """The next version is durable: a new round begins, unless it was the last."""
        effects = self.tick(now)
        task = self._tasks[task_name]
        self._late |= {device: task.seats[device] for device in task.training}
        task.dropout.note(kept=len(task.ready))
        for device in task.seats:
            self._release(device, task)
        task.next_round(version, now)
        self._sleepers.new_round()
        return [*effects, Finish(task_name)] if task.state is TaskState.FINISHED else effects

    def _consider(self, task: TaskRun, now: float) -> list[Effect]:
        """What follows from the task's present state."""
        effects: list[Effect] = []
        spare = self._sleepers.spare(now)
        while members := task.next_window(spare):
            effects.append(self._open(task, members))
        verdict = task.verdict(spare)
        if verdict is Verdict.PUBLISH:
            task.state = TaskState.PUBLISHING
            effects.append(Publish(task.name, task.version, tuple(window.window_id for window in task.closed)))
        elif verdict is Verdict.RETRY:
            task.try_again(now)
            self._watch_deadline(task)
            effects.append(Retry(task.name, task.version, task.contributions))
        return effects

    def _open(self, task: TaskRun, members: Sequence[Ready]) -> OpenWindow:
        # 63 bits, so that it is an integer in every database.
        window_id = int.from_bytes(self._random.randbytes(8), "little") >> 1
        for member in members:
            self._tickets.opened(member, window_id)
        task.open(window_id, [member.device for member in members])
        return OpenWindow(task.name, task.version, window_id, tuple(member.entry for member in members))

    # --- timers -----------------------------------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        """When `tick` has something to do next."""
        return self._timers.next()

    def tick(self, now: float) -> list[Effect]:
        """Let the timers fire that are due."""
        return [effect for effects in self._timers.fire(now) for effect in effects]

    def _watch_deadline(self, task: TaskRun) -> None:
        if task.deadline is not None and not task.settings.rendezvous_s:  # else the first rendezvous after it sees to it
            self._timers.at(task.deadline, self._deadline_passes, task, task.deadline)

    def _deadline_passes(self, now: float, task: TaskRun, deadline: float) -> list[Effect]:
        if task.deadline != deadline or task.state is not TaskState.RUNNING:
            return []
        task.overtime = True
        return self._consider(task, now)

    def _rendezvous(self, now: float, task: TaskRun) -> list[Effect]:
        """Open what windows the waiting devices fill; who could not be there at the next rendezvous has to join again."""
        if task.state is TaskState.FINISHED:
            return []
        following = task.next_rendezvous(now)
        self._timers.at(following, self._rendezvous, task)
        if task.state is TaskState.RUNNING and task.deadline is not None and task.deadline <= now:
            task.overtime = True
        task.meeting = True
        effects = self._consider(task, now)
        task.meeting = False
        for waiting in list(task.ready.values()):
            if waiting.expires - ENTRY_MARGIN_S < following:
                task.withdraw(waiting.device)
                self._expire_if_due(task, waiting.device, now)
        return effects

    def _assignment_expires(self, now: float, assignment: Assignment) -> list[Effect]:
        task = self._tasks[assignment.task]
        if self._held.get(assignment.device) == assignment:
            return self._consider(task, now) if self._expire_if_due(task, assignment.device, now) else []
        self._assignments.pop(assignment.id, None)
        if self._late.get(assignment.device) == assignment:
            self._lost_its_work(assignment.device)
        return []

    def _expire_if_due(self, task: TaskRun, device: bytes, now: float) -> bool:
        """Free the seat of a device whose time is over, unless it trained in time and waits or stands in a window."""
        assignment = task.seats.get(device)
        if assignment is None or assignment.expires > now or device in task.ready or device in task.in_window:
            return False
        if device in task.training:
            task.dropout.note(lost=1)
        task.vacate(device)
        self._release(device, task)
        self._assignments.pop(assignment.id, None)
        return True

    def _entry_expires(self, now: float, task: TaskRun, ready: Ready) -> list[Effect]:
        if task.ready.get(ready.device) is not ready:
            return []
        task.withdraw(ready.device)
        self._expire_if_due(task, ready.device, now)
        return self._consider(task, now)

    def _silently(self, _now: float, call: Callable[[], None]) -> list[Effect]:
        call()
        return []
