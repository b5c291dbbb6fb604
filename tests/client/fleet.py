"""Many lives under one virtual clock against the fake server: the shell of a simulation, with a memory instead of a disk.

Every update is unique, each rule about what must be durable before something is sent is asserted as it happens, and a device
may be killed at any action and started again from what it had made durable.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from tests.client.fake_server import TOKEN, FakeServer
from whimbrel.actions import Action, Ask, Fetch, Load, Persist, Send, Sleep, Train, Trained, Upload
from whimbrel.device import Settings
from whimbrel.device_policy import DevicePolicy
from whimbrel.lifecycle import Lifecycle
from whimbrel.records import DeviceState, UpdateState
from whimbrel_protocol import messages as m
from whimbrel_protocol.encoding import Measured
from whimbrel_protocol.errors import Code
from whimbrel_protocol.messages import Binding, PlanBody

START = 1_800_000_000.0
SHAPES = {"w": (5, 4), "b": (3,)}

Dies = Callable[["SimDevice", Action], bool]


def plain_body(**changes: Any) -> PlanBody:
    """A plan body whose graphs nobody runs."""
    inputs = tuple(Binding("param", name, "float32", shape) for name, shape in SHAPES.items())
    return replace(PlanBody("cross_entropy", 8, b"t", b"e", inputs, (), (), ()), **changes)


def base_parameters() -> tuple[Any, ...]:
    return tuple(np.zeros(shape, np.float32) for shape in SHAPES.values())


class SimDevice:
    """One device: what is durable, and the life that goes on from it."""

    def __init__(self, fleet: Fleet, number: int, policy: DevicePolicy) -> None:
        self.fleet, self.number = fleet, number
        self.rng = random.Random(number)
        self.seed = self.rng.randbytes(32)
        self.state = DeviceState(self.rng.randbytes(16))
        self.files: dict[str, bytes] = {}
        self.settings = Settings(fleet.server.root.public, TOKEN, "sim", policy)
        self.trained: dict[int, list[Any]] = {}
        self.measured: tuple[int, dict[str, float]] = (10, {})  # examples, and metrics by name
        self.deaths = 0
        self.clock_ahead_s = 0.0
        self.actions: list[Action] = []
        self.life: Lifecycle
        self.start()

    def start(self) -> None:
        """Start, or start again, from the durable state."""
        self.life = Lifecycle(self.settings, self.seed, self.state, self.rng.randbytes, self.now)

    @property
    def now(self) -> float:
        """What its own clock says."""
        return self.fleet.now + self.clock_ahead_s

    def step(self) -> float:
        """Perform actions until one takes time; return the seconds it took."""
        while True:
            action = self.life.action
            if self.fleet.dies(self, action):
                self.deaths += 1
                self.start()
                return self.rng.uniform(1.0, 20.0)
            if isinstance(action, Sleep):
                wait = action.until - self.now
                if wait > 0:
                    return wait
            self.actions.append(action)
            self.life.resume(self._perform(action), self.now)
            if isinstance(action, Send | Fetch | Upload | Train):
                return self.rng.uniform(0.01, 0.3)

    def _perform(self, action: Action) -> Any:
        match action:
            case Ask():
                return self.settings.policy.allow(action.cost)
            case Persist():
                self._persist(action)
            case Load():
                return self.files.get(action.name)
            case Train():
                return self._train(action)
            case Fetch():
                data = self.fleet.server.blobs.get(action.ref.sha256)
                return data if data is not None else m.Failure(int(Code.UNKNOWN_BLOB), "gone")
            case Upload():
                self._assert_spent(action)
                return self.fleet.server.put(action.path, action.data, action.token) or _NOBODY
            case Send():
                self._assert_vote_durable(action)
                return self.fleet.server.call(action.method, action.path, action.message, action.token) or _NOBODY
        return None

    def _persist(self, action: Persist) -> None:
        for name, data in action.files.items():
            self.files.pop(name, None)
            if data is not None:
                self.files[name] = data
        self.state = action.state
        assert set(self.files) == self.state.files()

    def _train(self, action: Train) -> Trained:
        number = len(self.fleet.updates)
        update = np.random.default_rng(number).normal(0, 0.01, 23).astype(np.float32)
        self.fleet.updates.append(update)
        self.trained.setdefault(action.job.header.version, []).append(update)
        return Trained(1.0, 1, Measured(update, *self.measured))

    def _assert_spent(self, action: Upload) -> None:
        tau0 = bytes.fromhex(action.path.split("/")[3])
        spent = [one for one in self.state.updates if one.state is UpdateState.SPENT and one.tau0 == tau0]
        assert len(spent) == 1, "a masked byte leaves before the update is durably spent"
        words = self.files[spent[0].words_file]
        record = spent[0].spent or {}
        self.fleet.sent[tau0, record["i"]] = (spent[0].update_id, words)
        self.fleet.seen.setdefault(hashlib.sha256(words).digest(), set()).add(tau0)

    def _assert_vote_durable(self, action: Send) -> None:
        if isinstance(action.message, m.Vote):
            tau0 = bytes.fromhex(action.path.split("/")[3])
            votes = [one.spent["vote"] for one in self.state.updates if one.spent and one.tau0 == tau0]
            sent_nothing = (tau0, action.message.i) not in self.fleet.sent
            assert sent_nothing or [vote["sig"] for vote in votes if vote] == [action.message.sig.hex()]
            known = self.fleet.votes.setdefault((tau0, action.message.i), action.message)
            assert known == action.message, "two votes in one window"


class Fleet:
    """A server, devices, and the order in which time lets them act."""

    def __init__(self, devices: int, dies: Dies = lambda device, action: False, **knobs: Any) -> None:
        self.now = START
        self.dies = dies
        self.updates: list[Any] = []
        self.sent: dict[tuple[bytes, int], tuple[bytes, bytes]] = {}
        self.seen: dict[bytes, set[bytes]] = {}
        self.votes: dict[tuple[bytes, int], m.Vote] = {}
        policy = knobs.pop("device_policy", DevicePolicy(backoff_min_s=5.0, window_patience_s=40.0))
        body = plain_body(**knobs.pop("body", {}))
        self.server = FakeServer(body, base_parameters(), lambda: self.now, **knobs)
        self.devices = [SimDevice(self, number, policy) for number in range(devices)]
        self._order = itertools.count()
        self._queue = [(START + number / 100, next(self._order), device) for number, device in enumerate(self.devices)]

    def run_until(self, true: Callable[[], bool], limit_s: float = 1200.0) -> None:
        """Let time pass until it is true. Fails after `limit_s` virtual seconds."""
        end = self.now + limit_s
        while not true():
            self.now, _, device = heapq.heappop(self._queue)
            assert self.now < end, [(d.life.stage.name, str(d.life.trouble)) for d in self.devices]
            heapq.heappush(self._queue, (self.now + device.step(), next(self._order), device))
            self.server.tick()


_NOBODY = m.Failure(int(Code.UNREACHABLE), "nobody answers")
