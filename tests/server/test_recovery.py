"""A server that dies at any moment and starts again: what was promised holds, and every update counts once or not at all."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from time import time

import aiohttp
import numpy as np
import pytest

from tests.server.world import Device, Operator, Refused, World
from whimbrel_protocol import messages as m
from whimbrel_protocol.errors import Code, ProtocolError, RuleError
from whimbrel_protocol.packing import decode_sum
from whimbrel_protocol.rules import members_of
from whimbrel_server.app import running
from whimbrel_server.windows import live_windows


@asynccontextmanager
async def again(world: World, devices: list[Device]) -> AsyncIterator[Operator]:
    """Another server process's worth of state on the same directory, for the same devices."""
    async with running(world.data, world.config) as server, aiohttp.ClientSession() as http:
        for device in devices:
            device.server, device.http = server, http
        yield Operator(server, http)


async def sums(operator: Operator, devices: list[Device]) -> list[int]:
    """Check each finished window's sum against the devices' own updates; returns how many members each has."""
    counts = []
    for window in await operator.call("GET", "/v1/tasks/digits/windows"):
        if window["state"] != "done":
            continue
        words = await operator.call("GET", f"/v1/windows/{window['tau0']}/sum")
        survivors = [device for device in devices if device.id.hex() in window["u3"]]
        spec = devices[0].spec
        assert spec is not None
        total = decode_sum(spec, words, len(survivors))
        assert np.array_equal(total.values, np.sum([device.values for device in survivors], axis=0))
        counts.append(len(survivors))
    return counts


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(200):
        if holds():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it never came to pass")


async def up_to(device: Device, step: str) -> None:
    """Go through a window up to and including `step`."""
    await device.shares(await device.open(await device.join()))
    if step == "shares":
        return
    await device.upload(device.masked(await device.poll(f"{device.window}/u2")))
    if step == "masked":
        return
    await device.vote()
    if step == "vote":
        return
    await device.poll(f"{device.window}/quorum")


async def test_an_empty_directory_is_recovered_like_any_other(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    for _ in range(2):
        async with world.serving() as (_, operator, _devices):
            assert await operator.call("GET", "/v1/tasks") == []


async def test_assignments_and_tokens_outlive_the_server(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (_, operator, devices):
        await operator.start_task()
        await asyncio.gather(*(device.train() for device in devices))
        before = [device.checked.assignment for device in devices if device.checked]
    async with again(world, devices) as operator:
        # The very same tokens and assignments serve to join, and a check-in gives the same assignment again.
        checked = await devices[0].check_in()
        assert checked.assignment is not None and before[0] is not None and checked.assignment.id == before[0].id
        assert None not in await asyncio.gather(*(device.take_part() for device in devices))
        assert await sums(operator, devices) == [10]


async def test_a_ticket_of_before_is_unknown_and_the_device_joins_again(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (_, operator, devices):
        await operator.start_task()
        await asyncio.gather(*(device.train() for device in devices))
        joined = await devices[0].join()
    async with again(world, devices) as operator:
        with pytest.raises(Refused) as caught:
            await devices[0].open(joined)
        assert caught.value.number is Code.UNKNOWN_TICKET
        assert None not in await asyncio.gather(*(device.take_part() for device in devices))


@pytest.mark.parametrize("step", ["shares", "masked"])
async def test_a_window_without_a_fixed_survivor_set_is_aborted_and_its_updates_are_freed(tmp_path: Path, step: str) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (_, operator, devices):
        await operator.start_task(share_s=30, mask_s=30)
        await asyncio.gather(*(device.train() for device in devices))
        some = devices[:9] if step == "shares" else devices
        await asyncio.gather(
            *(up_to(device, "shares") for device in some), *(open_only(device) for device in devices if device not in some)
        )
        if step == "masked":  # nine of ten vectors: the phase waits for the last one
            for device in devices[:9]:
                await device.upload(device.masked(await device.poll(f"{device.window}/u2")))
    async with again(world, devices) as operator:
        await abort(devices[:3])
    # Three votes make no certificate; they are not lost with the next server either, which waits for the fourth to look.
    async with again(world, devices) as operator:
        assert not list(operator.server.coordinator.windows)
        await abort(devices[3:9])
        certificate = await devices[0].poll(f"{devices[0].window}/quorum")
        assert (certificate.kind, len(certificate.idx)) == (m.VoteKind.ABORT, 7)
        assert None not in await asyncio.gather(*(device.take_part() for device in devices))
        assert await sums(operator, devices) == [10]


async def abort(members: list[Device]) -> None:
    """Vote as the survivors' answer asks."""
    for device in members:
        assert (await device.poll(f"{device.window}/survivors")).abort
        await device.vote()


async def open_only(device: Device) -> None:
    await device.open(await device.join())


@pytest.mark.parametrize("step", ["survivors", "vote", "quorum"])
async def test_from_the_fixed_survivor_set_on_a_window_goes_on(tmp_path: Path, step: str) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (_, operator, devices):
        await operator.start_task(vote_s=30, unmask_s=30)
        await asyncio.gather(*(device.train() for device in devices))
        await asyncio.gather(*(up_to(device, "masked") for device in devices))
        voters = {"survivors": 0, "vote": 6, "quorum": 10}[step]
        await asyncio.gather(*(device.poll(f"{device.window}/survivors") for device in devices))
        for device in devices[:voters]:
            await device.vote()
        if step == "quorum":
            for device in devices[:6]:
                await device.unmask()
    async with again(world, devices) as operator:
        for device in devices[voters:]:
            await device.vote()
        for device in devices[6:] if step == "quorum" else devices:
            await device.unmask()
        for device in devices:
            done = await device.poll(f"{device.window}/done")
            assert isinstance(done, m.Done)
        assert await sums(operator, devices) == [10]


@pytest.mark.parametrize("dies", [False, True])
async def test_the_commit_that_was_missing_may_come_when_the_window_has_left_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    monkeypatch.setattr(live_windows, "_LINGER_S", 0.05)
    world = await World.make(tmp_path)
    async with world.serving() as (server, operator, devices):
        await operator.start_task(vote_s=0.2, patience_s=0.2, rounds=1)
        await asyncio.gather(*(device.train() for device in devices))
        await asyncio.gather(*(up_to(device, "masked") for device in devices))
        for device in devices[:6]:  # more than 10 - 7: no abort can be reached any more
            await device.vote()
        windows = server.coordinator.windows
        [live] = windows
        await until(lambda: live.ended)
        if not dies:
            await until(lambda: live.tau0 not in windows)
            await complete(operator, devices)
    if dies:
        async with again(world, devices) as operator:
            await complete(operator, devices)


async def complete(operator: Operator, devices: list[Device]) -> None:
    """Bring the seventh commit to a window that was given up after six, and see it count in the round that is still open."""
    last = devices[6]
    assert isinstance(await last.call("GET", f"{last.window}/quorum"), m.Wait)
    assert not (await last.poll(f"{last.window}/survivors")).abort
    await last.vote()
    for device in devices[:7]:
        await device.unmask()
    assert isinstance(await last.poll(f"{last.window}/done"), m.Done)
    assert await sums(operator, devices) == [10]
    await until(lambda: operator.server.coordinator.catalogue.task("digits").version.contributions == 10)


async def test_certificates_of_ended_windows_are_there_after_a_restart(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (_, operator, devices):
        await operator.start_task(share_s=0.3, mask_s=0.3, rounds=1)
        await asyncio.gather(*(device.train() for device in devices))
        await asyncio.gather(*(device.take_part("masked" if device.number == 1 else "") for device in devices))
    async with again(world, devices) as operator:
        certificate = await devices[0].call("GET", f"{devices[0].window}/quorum")
        assert 0 not in members_of(certificate.u3, 10)
        assert isinstance(await devices[5].call("GET", f"{devices[5].window}/done"), m.Done)
        with pytest.raises(Refused) as caught:
            await devices[0].call("POST", f"{devices[0].window}/vote", m.Vote(0, m.VoteKind.ABORT, bytes(64)))
        assert caught.value.number is Code.PHASE_OVER


async def test_a_finished_window_is_published_once_however_often_the_server_dies(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (server, operator, devices):
        await operator.start_task(rounds=1)

        async def never(*_: object) -> None:
            await asyncio.Event().wait()

        server.coordinator.catalogue.publish = never  # type: ignore[method-assign, assignment]
        await asyncio.gather(*(device.train() for device in devices))
        await asyncio.gather(*(device.take_part() for device in devices))
        assert len(await operator.call("GET", "/v1/tasks/digits/versions")) == 1
    for _ in range(3):
        async with again(world, devices) as operator:
            for _ in range(100):
                versions = await operator.call("GET", "/v1/tasks/digits/versions")
                if len(versions) == 2:
                    break
                await asyncio.sleep(0.05)
            assert [len(version["windows"]) for version in versions] == [0, 1]
            assert await sums(operator, devices) == [10]
            assert (await devices[0].check_in()).assignment is None


async def test_a_check_in_that_another_process_answered_is_not_answered_again(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (_, operator, devices):
        await operator.start_task()
        seen = devices[0].check_in_message()
        await devices[0].call("POST", "/v1/check-in", seen)
    async with running(world.data, world.config, lambda: time() + 2) as server, aiohttp.ClientSession() as http:
        device = replace(devices[0], server=server, http=http)
        with pytest.raises(Refused) as caught:
            await device.call("POST", "/v1/check-in", seen)
        assert caught.value.number is Code.REPLAYED
        await device.call("POST", "/v1/check-in", device.check_in_message(now=int(time()) + 2))


async def test_a_window_that_is_damaged_is_left_out_and_all_else_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (_, operator, devices):
        await operator.start_task(vote_s=30)
        await asyncio.gather(*(device.train() for device in devices))
        await asyncio.gather(*(up_to(device, "masked") for device in devices))
        await devices[0].poll(f"{devices[0].window}/survivors")
    with sqlite3.connect(world.data.database) as database:
        database.execute("UPDATE events SET body = x'00' WHERE kind = 'shares' AND member = 3")
    database.close()
    async with again(world, devices) as operator:
        assert not list(operator.server.coordinator.windows)
        [left_out] = [record for record in caplog.records if record.levelname == "ERROR"]
        assert (left_out.window, left_out.code) == (devices[0].window[-64:], Code.MALFORMED)
        assert operator.server.coordinator.engine.task("digits").open_windows == 0
        assert (await devices[0].check_in()).assignment is not None


async def test_a_full_disk_delays_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (server, operator, devices):
        await operator.start_task()
        await asyncio.gather(*(device.train() for device in devices))
        rounds, full = server.coordinator.services.rounds, {"fix_u2": 1, "fix_survivors": 1, "finish_window": 1}

        def failing(name: str) -> None:
            real = getattr(rounds, name)

            async def verb(*arguments: object) -> None:
                if full[name]:
                    full[name] -= 1
                    raise RuleError(Code.STORAGE_FULL)
                await real(*arguments)

            monkeypatch.setattr(rounds, name, verb)

        for name in full:
            failing(name)
        monkeypatch.setattr("whimbrel_server.windows.live._RETRY_S", 0.05)
        assert None not in await asyncio.gather(*(device.take_part() for device in devices))
        assert await sums(operator, devices) == [10] and not any(full.values())


async def test_an_assignment_that_could_not_be_kept_is_not_told_before_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (server, operator, devices):
        await operator.start_task()
        rounds, full = server.coordinator.services.rounds, [True]
        real = rounds.assign

        async def assign(record: object) -> None:
            if full[0]:
                raise RuleError(Code.STORAGE_FULL)
            await real(record)  # type: ignore[arg-type]

        monkeypatch.setattr(rounds, "assign", assign)
        for _ in range(2):
            with pytest.raises(Refused) as caught:
                await devices[0].check_in()
            assert caught.value.number is Code.STORAGE_FULL
        full[0] = False
        told = (await devices[0].check_in()).assignment
    async with again(world, devices):
        kept = (await devices[0].check_in()).assignment
        assert told is not None and kept is not None and kept.id == told.id


async def test_what_is_damaged_or_newer_stops_the_start_and_stays_as_it_is(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (_, operator, _devices):
        await operator.start_task()
        versions = await operator.call("GET", "/v1/tasks/digits/versions")
    snapshot = versions[0]["snapshot"]
    path = world.data.blobs / snapshot[:2] / snapshot
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"\0" if good[-1] else good[:-1] + b"\1")
    damaged = path.read_bytes()
    with pytest.raises(ProtocolError) as caught:
        async with world.serving():
            pass
    assert caught.value.code is Code.DATA_DAMAGED and path.read_bytes() == damaged
    path.write_bytes(good)
    with sqlite3.connect(world.data.database) as database:
        later = "SELECT migration_set, 'm999', '' FROM _sqlite_migrations LIMIT 1"
        database.execute(f"INSERT INTO _sqlite_migrations (migration_set, name, applied_at) {later}")
    database.close()
    before = world.data.database.read_bytes()
    with pytest.raises(ProtocolError) as caught:
        async with world.serving():
            pass
    assert caught.value.code is Code.SCHEMA_NEWER and world.data.database.read_bytes() == before
