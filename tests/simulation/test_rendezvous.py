"""Rare devices under a virtual clock: online two minutes of every fifteen, they meet at the rendezvous and fill a window."""

from __future__ import annotations

import heapq
import random
from contextlib import suppress
from itertools import count

import pytest

from tests.protocol.world import policy
from whimbrel_protocol.errors import RuleError
from whimbrel_server.rounds.engine import Engine
from whimbrel_server.rounds.events import Joining, Opened, OpenWindow, TaskStart
from whimbrel_server.settings import TaskSettings

PERIOD, ONLINE = 900.0, 120.0
NAPPERS = 40


def task(rendezvous_s: float) -> TaskSettings:
    deadlines = {"round_deadline_s": 3600.0, "assignment_deadline_s": 3600.0}
    return TaskSettings(contributions=32, window=16, rendezvous_s=rendezvous_s, **deadlines)


class Nap:
    """Devices that are online for two minutes, then away for a quarter of an hour, or until the rendezvous they are told."""

    def __init__(self, rendezvous_s: float, seed: int) -> None:
        dice = random.Random(seed)
        self.engine, self.now, self.number = Engine(random.Random(seed)), 1_000_000.0, count()
        self.meets = rendezvous_s > 0
        self.online_until: dict[bytes, float] = {}
        self.opened: list[tuple[float, int, int]] = []  # when, members, of them online
        self.seq = count(1)
        self.perform(self.engine.add_task(TaskStart("digits", task(rendezvous_s), policy(n_min=8)), self.now))
        self.queue = [(self.now + dice.uniform(0, PERIOD), next(self.number), bytes([n]) * 16, b"") for n in range(NAPPERS)]
        heapq.heapify(self.queue)

    def perform(self, effects: list) -> None:
        for effect in effects:
            if isinstance(effect, OpenWindow):
                members = [entry[:16] for entry in effect.entries]
                # A phone's alarm may be a few seconds late; a window waits that long for its members' shares.
                here = sum(self.online_until.get(device, 0.0) > self.now or self.due(device) for device in members)
                self.opened.append((self.now, len(members), here))

    def due(self, device: bytes) -> bool:
        return any(who == device and when <= self.now + 5 for when, _, who, _ in self.queue)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.queue[0][0] <= end:
            while (timer := self.engine.next_timer()) is not None and timer <= self.queue[0][0]:
                self.now = timer
                self.perform(self.engine.tick(timer))
            self.now, _, device, ticket = heapq.heappop(self.queue)
            self.online_until[device] = self.now + ONLINE
            delay, ticket = self.visit(device, ticket)
            heapq.heappush(self.queue, (self.now + delay, next(self.number), device, ticket))

    def visit(self, device: bytes, ticket: bytes) -> tuple[float, bytes]:
        """Ask after the ticket, or join; how long to be away then, and the ticket held."""
        with suppress(RuleError):  # an entry that found no window: join again for the next rendezvous
            if ticket and isinstance(self.engine.ticket(ticket, device, self.now), Opened):
                return PERIOD, b""
        answer, effects = self.engine.check_in(device, self.now)
        self.perform(effects)
        if answer.assignment is None:
            return PERIOD, b""
        opens = self.engine.rendezvous("digits", self.now) or self.now
        joining = Joining(device, seq := next(self.seq), opens + 840, device + seq.to_bytes(4, "big"))
        joined, effects = self.engine.join(answer.assignment.id, joining, self.now)
        self.perform(effects)
        return joined.come_back_s if self.meets else PERIOD, joined.ticket


@pytest.mark.parametrize("seed", range(3))
def test_rare_devices_fill_windows_at_the_rendezvous_and_are_all_there(seed: int) -> None:
    world = Nap(PERIOD, seed)
    world.run(3 * PERIOD)
    assert len(world.opened) >= 2
    for when, members, here in world.opened:
        assert when % PERIOD == 0
        assert members == here >= 16


def test_without_a_rendezvous_they_miss_each_other() -> None:
    world = Nap(0.0, 0)
    world.run(PERIOD)
    _, members, here = world.opened[0]
    assert here < members / 2
