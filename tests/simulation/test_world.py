"""The server's core in one simulated world: whatever vanishes, every sum is exactly its survivors' and counts once."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.simulation.device import STEPS, Device, update_of
from tests.simulation.world import TASK, Clock, Server, settled
from whimbrel_protocol.packing import decode_sum
from whimbrel_protocol.rules import members_of
from whimbrel_server.settings import TaskSettings

QUICK = TaskSettings(
    contributions=16,
    contributions_min=10,
    window=12,
    rounds=3,
    round_deadline_s=30,
    assignment_deadline_s=60,
    come_back_max_s=60,
    expected_dropout=0.1,
    bits=16,
    n_max=32,
    share_s=3,
    mask_s=4,
    vote_s=3,
    unmask_s=3,
    patience_s=8,
)


class World:
    """A server, its devices, and what must hold of them."""

    def __init__(self, seed: int, devices: int, vanish: dict[str, float], crash: dict[str, int] | None = None) -> None:
        self.clock, self.dice = Clock(), random.Random(seed)
        self.server = Server(self.clock, self.dice, QUICK)
        self.server.install()
        self.first = self.server.state
        self.server.crash_after.update(crash or {})
        self.devices = [Device(number, self.server, self.dice, vanish) for number in range(devices)]
        for device in self.devices:
            device.soon(device.check_in, self.dice.uniform(0, 3))

    def run(self, seconds: float = 900.0) -> World:
        self.clock.run(seconds, lambda: self.server.up and self.server.version.version > QUICK.rounds)
        # Let everybody hear of the end.
        self.clock.run(120.0, lambda: False)
        return self

    @property
    def windows(self) -> list:
        return settled(self.server.rounds.windows(TASK, 1000))[::-1]

    def survivors(self, window) -> list[bytes]:
        members = members_of(window.u3, len(window.roster)) if window.u3 else ()
        return [window.roster[i][20:36] for i in members]

    def check_sums(self) -> None:
        """Each finished window's sum is the plain sum of its survivors' updates, bit for bit."""
        for window in self.windows:
            if window.state == "done":
                words = settled(self.server.blobs.get(window.sum_sha256))
                total = decode_sum(self.server.spec, words, window.count)
                limit = self.server.spec.limit
                plain = sum(update_of(device, window.version, limit) for device in self.survivors(window))
                assert np.array_equal(total.values, plain)
                assert total.count == len(self.survivors(window)) == window.count

    def check_versions(self) -> None:
        """Each version is its base and the mean of what was applied; nothing counts twice or for another version."""
        master, counted = self.first.master, Counter()
        for version in settled(self.server.rounds.versions(TASK))[1:]:
            applied = [settled(self.server.rounds.window(tau0)) for tau0 in version.windows]
            assert all((window.version, window.applied_in) == (version.parent, version.version) for window in applied)
            who = [(device, version.parent) for window in applied for device in self.survivors(window)]
            counted.update(who)
            assert len(who) == version.contributions
            mishap = any(window.version == version.parent and window.state in ("failed", "aborted") for window in self.windows)
            assert len(who) >= QUICK.contributions_min or mishap
            updates = [update_of(device, base, self.server.spec.limit) for device, base in who]
            master = master + np.sum(updates, axis=0) / (QUICK.scale * max(len(who), 1))
            stored = settled(self.server.blobs.get(version.master))
            assert np.allclose(np.frombuffer(stored, "<f8"), master, rtol=0, atol=1e-12)
        assert max(counted.values(), default=1) == 1

    def check_devices(self) -> None:
        """What a device believes of its update is what became of it."""
        windows = {window.tau0: window for window in self.windows}
        for device in self.devices:
            for tau0 in device.freed:
                window = windows[tau0]
                assert window.state == "aborted" or device.id not in self.survivors(window)
            for version, fate in device.fate.items():
                # A window with an abort certificate gave its updates back, whoever survived in it.
                spending = [w for w in windows.values() if w.version == version and w.abort is None]
                inside = [w for w in spending if device.id in self.survivors(w)]
                assert (fate, [w.state for w in inside]) in [("contributed", ["done"]), ("contributed", ["failed"])]

    def check(self) -> World:
        self.check_sums()
        self.check_versions()
        self.check_devices()
        return self

    def states(self) -> Counter:
        return Counter(window.state for window in self.windows)


CHANCES = st.sampled_from([0, 0.03, 0.15, 0.5])
# What can become durable before a survivor set is fixed, and the rest.
EARLY = ("open", "log shares", "FixU2")
LATE = ("assign", "FixSurvivors", "log vote", "FixQuorum", "log unmask", "RunUnmasking", "publish")


def evenly(chance: float) -> dict[str, float]:
    return dict.fromkeys(STEPS, chance)


def test_a_quiet_world_makes_its_versions() -> None:
    world = World(1, 30, {}).run().check()
    assert world.server.version.version == QUICK.rounds + 1
    assert world.states().keys() == {"done"}
    assert all(not device.spent for device in world.devices)
    # Some device contributed to several versions, each time with another update.
    assert max(len(device.fate) for device in world.devices) >= 3


@pytest.mark.parametrize("step", STEPS)
def test_devices_vanish_at_one_step(step: str) -> None:
    world = World(2, 34, {step: 0.05 if step == "wait_for_open" else 0.15}).run().check()
    assert world.server.version.version >= 3
    assert sum(device.deaths for device in world.devices) >= 5


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 10**6),
    st.integers(12, 36),
    st.fixed_dictionaries(dict.fromkeys(STEPS, st.sampled_from([0, 0.03, 0.15, 0.5]))),
)
def test_whatever_vanishes_the_sums_are_exact(seed: int, devices: int, vanish: dict[str, float]) -> None:
    World(seed, devices, vanish).run(400).check()


POINTS = [
    "assign",
    "open",
    "log shares",
    "FixU2",
    "FixSurvivors",
    "log vote",
    "FixQuorum",
    "log unmask",
    "RunUnmasking",
    "publish",
]


@pytest.mark.parametrize("point", [*EARLY, *LATE])
@pytest.mark.parametrize("times", [0, 2])
def test_the_server_dies_right_after_something_became_durable(point: str, times: int) -> None:
    """Nothing promised is lost: the rounds go on, the sums stay exact, no update is spent for nothing before the quorum."""
    world = World(3, 30, evenly(0.01), {point: times}).run().check()
    assert world.server.crash_after == {}, "the world came to this point"
    assert world.server.version.version == QUICK.rounds + 1
    assert world.states()["aborted"] >= (1 if point in EARLY else 0)


def test_an_aborted_window_gives_every_update_back() -> None:
    """The server dies when U2 stands: everybody has masked or will, and t abort votes free them all."""
    world = World(4, 30, {}, {"FixU2": 0}).run().check()
    [aborted] = [window for window in world.windows if window.state == "aborted"]
    assert aborted.abort is not None
    assert all(not device.spent for device in world.devices)
    assert world.server.version.version == QUICK.rounds + 1
