"""What a fault costs: a device that spoiled a window gets no work for a while, and the operator sees why."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.server.test_engine import Desk, device, refused
from tests.server.world import Device, Operator, Refused, World
from whimbrel_protocol import messages as m
from whimbrel_protocol.blame import Fault, FaultKind
from whimbrel_protocol.errors import Code
from whimbrel_server.config import Quarantine
from whimbrel_server.rounds.events import OpenWindow
from whimbrel_server.rounds.quarantine import records

DAY, HOUR = 86_400.0, 3600.0


def test_certain_guilt_costs_most_suspicion_less_and_one_corrected_share_nothing() -> None:
    faults = [
        Fault(FaultKind.SHARES, (0,), "x"),
        Fault(FaultKind.DEALING, (1,), "x"),
        Fault(FaultKind.VECTOR, (2,), "x"),
        Fault(FaultKind.MASK, (3,), "x"),
        Fault(FaultKind.MASK, (4, 5), "x"),
        Fault(FaultKind.SILENT, (6,), "x"),
        Fault(FaultKind.SHARE, (7, 8), "x"),
    ]
    devices = [device(number) for number in range(9)]
    found = records(faults, b"t" * 32, devices, Quarantine(), 1000.0)
    assert [one.device for one in found] == devices
    assert [one.until - 1000 if one.until else 0 for one in found] == [DAY] * 4 + [HOUR] * 3 + [0, 0]
    assert (found[4].suspects, found[0].suspects) == ((device(4), device(5)), (device(0),))
    assert all(one.until == 0 for one in records(faults, b"", devices, Quarantine(seconds=0, suspect_seconds=0), 1000.0))


class TestEngine:
    def test_a_device_in_quarantine_is_given_no_work_until_its_end(self) -> None:
        desk = Desk()
        (before,) = desk.assign([1])
        desk.effects += desk.engine.quarantine(device(1), desk.now + 50, desk.now)
        answer, _ = desk.engine.check_in(device(1), desk.now)
        assert (answer.assignment, answer.come_back_s) == (None, 50)
        refused(Code.QUARANTINED, desk.join, before)
        desk.wait(49.9)
        assert desk.check_in(device(1)) is None
        desk.wait(0.1)
        assert desk.check_in(device(1)) is not None

    def test_its_seat_is_another_devices_meanwhile(self) -> None:
        desk = Desk()
        given = desk.assign(range(100))
        assert desk.check_in(device(200)) is None
        desk.effects += desk.engine.quarantine(given[0].device, desk.now + 1e6, desk.now)
        assert desk.check_in(device(200)) is not None

    def test_a_waiting_entry_opens_no_window(self) -> None:
        desk = Desk()
        first = desk.assign(range(18))
        for assignment in first[:17]:
            desk.join(assignment)
        desk.effects += desk.engine.quarantine(device(3), desk.now + 1e6, desk.now)
        opened = [*desk.windows(range(18, 40)), *desk.take(OpenWindow)]
        desk.wait(100)
        opened += desk.take(OpenWindow)
        members = [text[5:21] for window in opened for text in window.entries]
        assert device(2) in members and device(3) not in members

    def test_the_longest_of_several_counts_and_the_past_costs_nothing(self) -> None:
        desk = Desk()
        desk.effects += desk.engine.quarantine(device(1), desk.now - 1, desk.now)
        assert desk.check_in(device(1)) is not None
        for seconds in (50, 90, 20):
            desk.effects += desk.engine.quarantine(device(2), desk.now + seconds, desk.now)
        desk.wait(60)
        assert desk.check_in(device(2)) is None
        desk.wait(30)
        assert desk.check_in(device(2)) is not None

    def test_a_window_that_it_stands_in_goes_on_and_then_it_has_no_work(self) -> None:
        desk = Desk()
        (window,) = desk.windows(range(40))[:1]
        members = [text[5:21] for text in window.entries]
        desk.effects += desk.engine.quarantine(members[0], desk.now + 1e6, desk.now)
        desk.effects += desk.engine.window_done(window.window_id, members, desk.now)
        assert desk.engine.task("digits").contributions == len(members)
        desk.wait(1)
        assert desk.check_in(members[0]) is None


# --- over HTTP ----------------------------------------------------------------------------------------------------------


async def member(each: Device) -> int:
    """Go through the window, tell the canary masks when asked; returns the number that the receipt's call failed with."""
    await each.shares(await each.open(await each.join()))
    vector = each.masked(await each.poll(f"{each.window}/u2"))
    await each.upload(bytes(8) + vector[8:] if each.number == 1 else vector)
    await each.vote()
    await each.unmask()
    assert each.member is not None
    asked = await each.poll(f"{each.window}/done")
    assert isinstance(asked, m.Blame)
    await each.call("POST", f"{each.window}/canaries", each.member.on_blame(asked))
    with pytest.raises(Refused) as caught:
        await each.poll(f"{each.window}/done")
    return caught.value.number


async def failed(operator: Operator) -> dict[str, Any]:
    """The one window, as soon as it is closed."""
    for _ in range(100):
        (window,) = await operator.call("GET", "/v1/tasks/digits/windows")
        if window["closed_at"]:
            break
        await asyncio.sleep(0.05)
    return window


async def test_who_spoils_a_window_is_found_told_shown_and_sent_away_for_a_while(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (_, operator, devices):
        await operator.start_task()
        await asyncio.gather(*(each.train() for each in devices))
        numbers = await asyncio.gather(*(member(each) for each in devices))
        assert set(numbers) == {Code.SPOILED_SUM}
        window = await failed(operator)
        assert (window["state"], window["failure"]) == ("failed", Code.SPOILED_SUM)
        (blame,) = (await operator.call("GET", f"/v1/windows/{window['tau0']}"))["blames"]
        assert (blame["device"], blame["kind"], blame["suspects"]) == (devices[0].id.hex(), "vector", [devices[0].id.hex()])
        for each in devices[1:3]:  # the certificate stays: it says that their updates are spent for good
            quorum = await each.poll(f"{each.window}/quorum")
            assert each.member is not None and quorum.kind is m.VoteKind.COMMIT
    async with world.serving() as (_, operator, devices):  # and after a restart
        shown = {one["device"]: one for one in await operator.call("GET", "/v1/devices")}
        assert shown[devices[0].id.hex()]["blames"] == [blame]
        assert shown[devices[0].id.hex()]["quarantined_until"] == blame["until"]
        assert all(shown[each.id.hex()]["quarantined_until"] is None for each in devices[1:])
        answer = await devices[0].check_in()
        assert answer.assignment is None and DAY - 60 < answer.come_back_s <= DAY
        with pytest.raises(Refused) as caught:
            await devices[0].call("POST", "/v1/joins", m.Join(hashlib.sha512(b"").digest() * 6 + bytes(20), bytes(16)))
        assert caught.value.number == Code.QUARANTINED
