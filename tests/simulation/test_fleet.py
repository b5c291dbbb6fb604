"""The engine alone with a large fleet under a virtual clock: thousands of devices that come, train, vanish and come back.

Windows are decided by a dice here (the masked ones run in `test_world.py`). The rules that must hold whatever happens are
checked at each step, by a bookkeeping that knows nothing of the engine's insides.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protocol.world import policy
from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_server.rounds.engine import Engine
from whimbrel_server.rounds.events import Assign, Effect, Finish, Joining, Opened, OpenWindow, Publish, TaskStart
from whimbrel_server.settings import TaskSettings, may_open

RULES = policy(n_min=8)


@dataclass
class Fleet:
    """Devices, windows and the server's shell, all on one clock and one dice."""

    engine: Engine
    dice: random.Random
    tasks: dict[str, TaskSettings]
    vanish: float
    train_s: float
    mishaps: float = 0.1  # windows that fail or are aborted, in halves
    now: float = 0.0
    queue: list[tuple[float, int, Callable[..., None], tuple]] = field(default_factory=list)
    number: count = field(default_factory=count)
    versions: dict[str, int] = field(default_factory=dict)
    windows: dict[int, tuple[str, int, list[bytes]]] = field(default_factory=dict)
    running: dict[bytes, int] = field(default_factory=dict)
    outcome: dict[int, list[bytes]] = field(default_factory=dict)
    published: list[tuple[float, str, int]] = field(default_factory=list)
    counted: Counter = field(default_factory=Counter)
    check_ins: list[float] = field(default_factory=list)
    finished: set[str] = field(default_factory=set)
    mishap: set[tuple[str, int]] = field(default_factory=set)
    seq: Counter = field(default_factory=Counter)
    trace: list[tuple] = field(default_factory=list)

    def at(self, delay: float, call: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self.queue, (self.now + delay, next(self.number), call, arguments))

    def run(self, until: float) -> None:
        for name, each in self.tasks.items():
            self.versions[name] = 1
            self.perform(self.engine.add_task(TaskStart(name, each, RULES), self.now))
        while self.queue and self.queue[0][0] <= until and len(self.finished) < len(self.tasks):
            self.fire_timers(self.queue[0][0])
            self.now, _, call, arguments = heapq.heappop(self.queue)
            call(*arguments)

    def fire_timers(self, until: float) -> None:
        while (when := self.engine.next_timer()) is not None and when <= until:
            self.now = max(self.now, when)
            self.perform(self.engine.tick(self.now))

    # --- a device's life ---------------------------------------------------------------------------------------------

    def arrive(self, who: bytes) -> None:
        self.check_ins.append(self.now)
        answer, effects = self.engine.check_in(who, self.now)
        assert [e.assignment for e in effects if isinstance(e, Assign)] in ([], [answer.assignment])
        self.perform(effects)
        if answer.assignment is None:
            assert answer.come_back_s > 0
            self.at(answer.come_back_s, self.arrive, who)
            return
        if self.dice.random() < self.vanish:
            self.at(self.dice.uniform(10, 40) * self.train_s, self.arrive, who)
        else:
            self.at(self.dice.lognormvariate(0, 0.5) * self.train_s, self.join, who, answer.assignment.id)

    def join(self, who: bytes, assignment: bytes) -> None:
        self.seq[who] += 1
        joining = Joining(who, self.seq[who], self.now + 900, who + bytes([self.seq[who] % 256]))
        try:
            self.engine.assignment(assignment, who)
            answer, effects = self.engine.join(assignment, joining, self.now)
        except ProtocolError as error:
            assert error.code is Code.STALE_VERSION
            self.at(1, self.arrive, who)
            return
        self.perform(effects)
        self.at(1 + answer.come_back_s, self.poll, who, answer.ticket, assignment)

    def poll(self, who: bytes, ticket: bytes, assignment: bytes) -> None:
        try:
            answer = self.engine.ticket(ticket, who, self.now)
        except ProtocolError as error:
            assert error.code in (Code.STALE_VERSION, Code.UNKNOWN_TICKET)
            self.at(1, self.arrive if error.code is Code.STALE_VERSION else self.join, who, *self.rest(error, assignment))
            return
        if isinstance(answer, Opened):
            assert who in self.windows[answer.window_id][2]
            self.at(30, self.arrive, who)
        else:
            self.at(max(1.0, answer.come_back_s), self.poll, who, ticket, assignment)

    @staticmethod
    def rest(error: ProtocolError, assignment: bytes) -> tuple[bytes, ...]:
        return () if error.code is Code.STALE_VERSION else (assignment,)

    # --- the server's shell ------------------------------------------------------------------------------------------

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            self.trace.append((round(self.now, 6), effect))
            if isinstance(effect, OpenWindow):
                self.open(effect)
            elif isinstance(effect, Publish):
                self.publish(effect)
            elif isinstance(effect, Finish):
                self.finished.add(effect.task)

    def open(self, effect: OpenWindow) -> None:
        members = [entry[:16] for entry in effect.entries]
        assert effect.version == self.versions[effect.task]
        assert members == sorted(set(members)), "a roster ascends and names a device once"
        assert not set(members) & self.running.keys(), "a device is in one window at a time"
        assert may_open(len(members), RULES, 0.0) and len(members) <= self.tasks[effect.task].n_max
        self.windows[effect.window_id] = (effect.task, effect.version, members)
        self.running |= dict.fromkeys(members, effect.window_id)
        self.at(self.dice.uniform(2, 12), self.close, effect.window_id)

    def close(self, window_id: int) -> None:
        _, _, members = self.windows[window_id]
        for who in members:
            del self.running[who]
        there = [who for who in members if self.dice.random() >= self.vanish / 4]
        fate = self.dice.random()
        if fate < self.mishaps or len(there) < 10:
            self.mishap.add(self.windows[window_id][:2])
        if fate < self.mishaps / 2:
            self.perform(self.engine.window_failed(window_id, self.now))
        elif fate < self.mishaps or len(there) < 10:
            gone = sorted(set(members) - set(there))
            self.perform(self.engine.window_aborted(window_id, self.now, gone))
        else:
            self.outcome[window_id] = there
            self.perform(self.engine.window_done(window_id, there, self.now))

    def publish(self, effect: Publish) -> None:
        task, base, chosen = effect.task, effect.base_version, effect.windows
        assert base == self.versions[task]
        for window_id in chosen:
            assert self.windows[window_id][:2] == (task, base), "a window counts for the version that it was opened for"
            self.counted.update((task, base, who) for who in self.outcome.pop(window_id))
        total = sum(self.counted[key] for key in self.counted if key[:2] == (task, base))
        assert total >= self.tasks[task].least_contributions or (task, base) in self.mishap
        assert max(self.counted.values(), default=1) == 1, "a device counts once a version"
        left = [w for w in self.outcome if self.windows[w][:2] == (task, base)]
        assert left == [], "a finished window of the version was left out"
        assert not [w for w in self.running.values() if self.windows[w][0] == task], "no window of the lane is open"
        self.at(self.dice.uniform(0.1, 2), self.next_version, task)

    def next_version(self, task: str) -> None:
        self.versions[task] += 1
        self.published.append((self.now, task, self.versions[task]))
        self.perform(self.engine.published(task, self.versions[task], self.now))


def fleet(seed: int, devices: int, vanish: float, train_s: float = 20.0, **tasks: TaskSettings) -> Fleet:
    world = Fleet(Engine(random.Random(seed)), random.Random(seed + 1), tasks, vanish, train_s)
    for number in range(devices):
        world.at(world.dice.uniform(0, devices / 30), world.arrive, number.to_bytes(16, "big"))
    return world


SMALL = TaskSettings(contributions=32, contributions_min=16, window=16, round_deadline_s=120, assignment_deadline_s=200)
LARGE = TaskSettings(
    contributions=512, window=64, n_max=128, bits=21, round_deadline_s=300, assignment_deadline_s=400, come_back_max_s=3600
)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.integers(20, 150), st.floats(0, 0.5), st.booleans())
def test_whatever_happens_the_rules_hold(seed: int, devices: int, vanish: float, two: bool) -> None:
    tasks = {"digits": SMALL} | ({"words": TaskSettings(contributions=16, contributions_min=12, window=16)} if two else {})
    world = fleet(seed, devices, vanish, **tasks)
    world.run(3000)
    # Enough devices that mostly stay: then rounds must get done, too.
    if devices >= 80 and vanish < 0.2:
        assert len(world.published) >= 10


def test_the_same_dice_give_the_same_history() -> None:
    one, two = (fleet(5, 100, 0.2, digits=SMALL) for _ in range(2))
    one.run(2000)
    two.run(2000)
    assert len(one.trace) > 100
    assert one.trace == two.trace


@pytest.mark.parametrize("vanish", [0.05, 0.3])
def test_over_selection_settles_at_what_the_fleet_loses(vanish: float) -> None:
    """Rounds stay short although the fleet loses more than the settings say, and no more are asked than that takes."""
    world = fleet(2, 400, vanish, digits=TaskSettings(**{**SMALL.to_json(), "expected_dropout": 0.1, "rounds": 40}))
    world.mishaps = 0
    world.run(100_000)
    assert len(world.published) == 40
    asked = Counter(effect.assignment.version for _, effect in world.trace if isinstance(effect, Assign))
    mean = sum(asked[version] for version in range(20, 41)) / 21
    least = 32 / (1 - vanish)
    assert least <= mean <= 1.6 * least
    lengths = [later - before for (before, *_), (later, *_) in zip(world.published[20:], world.published[21:], strict=False)]
    assert sorted(lengths)[len(lengths) // 2] < 110


def test_twenty_thousand_devices_are_served_in_turn_and_asked_evenly() -> None:
    world = fleet(3, 20_000, 0.1, train_s=40.0, digits=LARGE)
    world.run(4200)
    versions = [version for _, _, version in world.published]
    assert versions == list(range(2, len(versions) + 2)) and len(versions) >= 8
    served = {who for _, _, who in world.counted}
    assert len(served) > 0.6 * sum(world.counted.values()), "the work goes round"
    # From the second half hour on, check-ins come evenly: no minute sees three times the mean.
    minutes = Counter(int(moment // 60) for moment in world.check_ins if moment >= 1800)
    per_minute = [minutes[m] for m in range(30, 70)]
    assert max(per_minute) < 3 * sum(per_minute) / len(per_minute)
