"""Whole lives in a simulated world: what is summed, what survives deaths of devices and of the server.

Every update is unique, so a double count or a wrong word shows in the sum. `fleet.py` asserts at each action that what must be
durable before it is durable.
"""

from __future__ import annotations

import random

import pytest

from tests.client.fleet import Dies, Fleet, SimDevice
from whimbrel.actions import Action, Send, Sleep, Upload
from whimbrel.device_policy import DevicePolicy
from whimbrel.records import UNSENT, UpdateState
from whimbrel_kernels import ring_add
from whimbrel_protocol.messages import Survivors
from whimbrel_protocol.packing import decode_sum
from whimbrel_protocol.window import ServerState


def assert_honest(fleet: Fleet) -> None:
    """Each sum is the plain sum of its survivors' frozen words, and no device counts twice for a version."""
    counted: dict[int, list[bytes]] = {}
    for tau0, window in fleet.server.windows.items():
        c = window.collector
        if c.state is not ServerState.DONE or c.result is None:
            continue
        plain = bytearray(8 * c.spec.words)
        for i in c.u3:
            ring_add(plain, fleet.sent[tau0, i][1])
        assert c.result.words == bytes(plain)
        assert decode_sum(c.spec, bytes(plain), len(c.u3)).count == len(c.u3)
        counted.setdefault(window.version, []).extend(fleet.sent[tau0, i][0] for i in c.u3)
    for updates in counted.values():
        assert len(updates) == len(set(updates))
    devices = {v: [d for w in _done(fleet, v) for d in _survivors(w)] for v in counted}
    assert all(len(names) == len(set(names)) for names in devices.values())


def _done(fleet: Fleet, version: int) -> list[object]:
    windows = fleet.server.windows.values()
    return [w.collector for w in windows if w.version == version and w.collector.state is ServerState.DONE]


def _survivors(collector: object) -> list[bytes]:
    return [collector.devices[i] for i in collector.u3]  # type: ignore[attr-defined]


def test_eight_devices_train_three_versions() -> None:
    fleet = Fleet(8, device_policy=DevicePolicy(backoff_min_s=5.0, history=2))
    fleet.run_until(lambda: fleet.server.version == 4)
    assert_honest(fleet)
    fleet.run_until(lambda: all(len(d.state.task("clouds").contributions) >= 3 for d in fleet.devices))
    for device in fleet.devices:
        kept = [one for one in device.state.updates if one.state is UpdateState.CONTRIBUTED]
        assert [one.version for one in kept] == [2, 3]
        assert all(one.words_file in device.files and one.receipt for one in kept)
        assert [one.version for one in device.state.task("clouds").contributions] == [1, 2, 3]
        assert all(len(updates) == 1 for updates in device.trained.values())


def test_clocks_that_are_ten_minutes_off_meet_in_one_window() -> None:
    fleet = Fleet(8, cohort=8)
    for device in fleet.devices:
        device.clock_ahead_s = (-590.0, 0.0, 590.0)[device.number % 3]
        device.start()
    fleet.run_until(lambda: fleet.server.version == 3)
    assert_honest(fleet)
    assert all(len(device.state.task("clouds").contributions) >= 1 for device in fleet.devices)


def test_without_history_nothing_of_an_update_stays_on_the_device() -> None:
    fleet = Fleet(8, wanted=8)
    fleet.run_until(lambda: fleet.server.version == 2)
    fleet.run_until(lambda: all(d.state.task("clouds").contributions for d in fleet.devices))
    kept = [name for d in fleet.devices for name in d.files if name.startswith("updates/")]
    newer = [one.words_file for d in fleet.devices for one in d.state.updates if one.version > 1]
    assert sorted(kept) == sorted(newer)


@pytest.mark.parametrize("seed", range(4))
def test_sums_stay_exact_while_devices_die_at_any_action(seed: int) -> None:
    rng = random.Random(seed)

    def dies(device: SimDevice, action: Action) -> bool:
        idle = isinstance(action, Sleep) or (isinstance(action, Send) and action.method == "GET")
        return not idle and rng.random() < 0.015

    fleet = Fleet(24, dies, cohort=12, wanted=8)
    fleet.run_until(lambda: fleet.server.version == 5)
    assert_honest(fleet)
    assert sum(device.deaths for device in fleet.devices) > 10


def at(phase: str) -> Dies:
    """The first device dies once, as it is about to do this."""

    def dies(device: SimDevice, action: Action) -> bool:
        if device.number or device.deaths:
            return False
        name = "upload" if isinstance(action, Upload) else ""
        if isinstance(action, Send):
            name = f"{action.method} {action.path.rsplit('/', 1)[-1]}"
        return name == phase

    return dies


@pytest.mark.parametrize(
    "phase",
    ["POST joins", "POST shares", "GET u2", "POST masked", "upload", "GET survivors", "POST vote", "GET quorum",
     "POST unmask", "GET done"],
)  # fmt: skip
def test_a_device_that_dies_once_anywhere_loses_nothing_and_repeats_nothing(phase: str) -> None:
    fleet = Fleet(11, at(phase), cohort=10, wanted=8)
    first = fleet.devices[0]
    fleet.run_until(lambda: first.deaths == 1 and len(first.state.task("clouds").contributions) >= 2)
    assert_honest(fleet)
    assert all(len(updates) == 1 for updates in first.trained.values()), "an update was trained twice for one base"
    assert not [one for one in first.state.updates if one.state is UpdateState.SPENT]


def test_a_server_that_crashes_in_a_window_gets_abort_votes_and_the_updates_join_again() -> None:
    fleet = Fleet(8, device_policy=DevicePolicy(backoff_min_s=5.0, window_patience_s=60.0))
    server = fleet.server
    fleet.run_until(lambda: any(call == "PUT masked" for call, _ in server.calls))
    server.forget()
    server.deaf = True
    silent_until = fleet.now + 20.0
    fleet.run_until(lambda: fleet.now >= silent_until)
    server.deaf = False
    fleet.run_until(lambda: server.version == 2)
    assert_honest(fleet)
    states = [window.collector.state for window in server.windows.values()]
    assert states == [ServerState.ABORTED, ServerState.DONE]
    assert all(len(updates) == 1 for d in fleet.devices for updates in d.trained.values()), "freed updates were not used again"
    assert any(len(windows) == 2 for windows in fleet.seen.values())


def test_a_server_silent_for_longer_than_patience_leaves_updates_spent_until_their_certificate() -> None:
    fleet = Fleet(8, device_policy=DevicePolicy(backoff_min_s=5.0, backoff_max_s=60.0, window_patience_s=10.0))
    server = fleet.server
    fleet.run_until(lambda: len([1 for call, _ in server.calls if call == "POST vote"]) == 2)
    server.deaf = True
    silent_until = fleet.now + 120.0
    fleet.run_until(lambda: fleet.now >= silent_until)
    spent = [one for d in fleet.devices for one in d.state.updates if one.state is UpdateState.SPENT]
    assert len(spent) == 8
    for window in server.windows.values():
        window.deadline = fleet.now + 600
    server.deaf = False
    fleet.run_until(lambda: all(d.state.task("clouds").contributions for d in fleet.devices))
    assert_honest(fleet)
    assert not [one for d in fleet.devices for one in d.state.updates if one.state is UpdateState.SPENT]
    assert next(iter(server.windows.values())).collector.state is ServerState.UNMASK, "keys are gone, so no sum, yet no repeat"


def test_an_abort_that_is_asked_for_before_anything_left_costs_nothing() -> None:
    silent = {7}

    def dies(device: SimDevice, action: Action) -> bool:
        return device.number in silent and isinstance(action, Send) and action.path.endswith("/shares")

    fleet = Fleet(8, dies)
    fleet.run_until(lambda: any(w.collector.state is ServerState.ABORTED for w in fleet.server.windows.values()))
    silent.clear()
    fleet.run_until(lambda: fleet.server.version == 2)
    assert_honest(fleet)
    aborted = next(iter(fleet.server.windows.values())).collector
    assert isinstance(aborted.survivors, Survivors) and aborted.survivors.abort
    assert all(len(updates) == 1 for d in fleet.devices for updates in d.trained.values())


@pytest.mark.parametrize("asks", [1, 2])
def test_survivors_of_a_spoiled_sum_tell_their_canary_masks_and_never_send_their_updates_again(asks: int) -> None:
    fleet = Fleet(8)
    server = fleet.server
    server.garbage, server.asks = {fleet.devices[3].state.device}, asks
    fleet.run_until(lambda: all(d.state.task("clouds").contributions for d in fleet.devices))
    (window,) = server.windows.values()
    c = window.collector
    assert (c.state, len(c.told)) == (ServerState.FAILED, 8)
    assert [fault.members for fault in c.faults] == [(c.devices.index(fleet.devices[3].state.device),)]
    assert len([1 for call, _ in server.calls if call == "POST canaries"]) == 8 * asks
    for device in fleet.devices:
        assert [one.version for one in device.state.task("clouds").contributions] == [1]
        assert not [one for one in device.state.updates if one.version == 1 and one.state in (*UNSENT, UpdateState.SPENT)]


def test_a_hundred_lives_sum_in_windows_side_by_side() -> None:
    fleet = Fleet(100, cohort=20, wanted=80)
    fleet.run_until(lambda: fleet.server.version == 2)
    assert_honest(fleet)
