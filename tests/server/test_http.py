"""Both listeners over real HTTP: a whole window, its numbers, and a numbered no for everything that is wrong."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import pytest

from tests.server.world import Device, Refused, World, policy
from whimbrel_protocol import messages as m
from whimbrel_protocol import wire
from whimbrel_protocol.errors import Code
from whimbrel_protocol.objects import VectorSpec
from whimbrel_protocol.packing import decode_sum
from whimbrel_protocol.rules import members_of
from whimbrel_protocol.signed import Policy


async def test_a_window_ends_with_the_exact_sum_and_the_next_version(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (_, operator, devices):
        assert (await operator.start_task())["state"] == "running"
        await asyncio.gather(*(device.train() for device in devices))
        done = await asyncio.gather(*(device.take_part() for device in devices))
        assert len({each.sum_sha256 for each in done if each}) == 1 and None not in done

        (window,) = await operator.call("GET", "/v1/tasks/digits/windows")
        assert (window["state"], window["count"], len(window["u3"])) == ("done", 10, 10)
        words = await operator.call("GET", f"/v1/windows/{window['tau0']}/sum")
        assert devices[0].spec is not None
        total = decode_sum(devices[0].spec, words, 10)
        assert np.array_equal(total.values, np.sum([device.values for device in devices], axis=0))

        for _ in range(100):
            versions = await operator.call("GET", "/v1/tasks/digits/versions")
            if len(versions) == 2:
                break
            await asyncio.sleep(0.05)
        assert versions[1]["windows"] == [window["tau0"]]
        checked = await devices[0].check_in()
        assert isinstance(checked.assignment, m.Assignment) and checked.assignment.version == 2


@pytest.mark.parametrize("stop_at", ["shares", "masked", "vote", "unmask"])
async def test_members_that_vanish_do_not_spoil_the_sum(tmp_path: Path, stop_at: str) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (_, operator, devices):
        await operator.start_task(share_s=0.5, mask_s=0.5)
        await asyncio.gather(*(device.train() for device in devices))
        await asyncio.gather(*(device.take_part(stop_at if device.number <= 2 else "") for device in devices))
        (window,) = await operator.call("GET", "/v1/tasks/digits/windows")
        survivors = [device for device in devices if device.id.hex() in window["u3"]]
        assert len(survivors) == (8 if stop_at in ("shares", "masked") else 10)
        words = await operator.call("GET", f"/v1/windows/{window['tau0']}/sum")
        total = decode_sum(spec_of(devices[0]), words, len(survivors))
        assert np.array_equal(total.values, np.sum([device.values for device in survivors], axis=0))
        # Who is left out gets the certificate that frees its update, whenever it comes back.
        assert devices[0].member is not None
        if stop_at == "masked":
            certificate = await devices[0].call("GET", f"{devices[0].window}/quorum")
            assert members_of(certificate.u3, 10) == tuple(range(2, 10))


async def test_a_broken_poll_does_not_hold_up_the_others(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (_, operator, devices):
        await operator.start_task(share_s=60)
        await asyncio.gather(*(device.train() for device in devices))

        async def vanishing(device: Device) -> None:
            opened = await open_window(device)
            assert device.member is not None and device.checked is not None
            device.member.on_open(opened, int(time()), Policy.decode(device.checked.policy))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(device.call("GET", f"{device.window}/u2?wait=25"), 0.1)

        gone, rest = devices[:2], devices[2:]
        lives = [*(vanishing(device) for device in gone), *(device.take_part() for device in rest)]
        await asyncio.wait_for(asyncio.gather(*lives), 10)
        (window,) = await operator.call("GET", "/v1/tasks/digits/windows")
        assert window["count"] == 8


async def test_too_few_members_end_in_an_abort_that_frees_everybody(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (_, operator, devices):
        await operator.start_task(share_s=0.3, mask_s=0.3)
        await asyncio.gather(*(device.train() for device in devices))
        voters = devices[3:]

        async def member(device: Device) -> None:
            await device.shares(await device.open(await device.join()))
            if device in voters:
                await device.upload(device.masked(await device.poll(f"{device.window}/u2")))

        await asyncio.gather(*(member(device) for device in devices))
        for device in voters:
            await device.vote()  # the survivors' answer asks for an abort
        certificate = await voters[0].poll(f"{voters[0].window}/quorum")
        assert (certificate.kind, len(certificate.idx)) == (m.VoteKind.ABORT, 7)
        (window,) = await operator.call("GET", "/v1/tasks/digits/windows")
        assert (window["state"], window["count"]) == ("aborted", 0)
        # All of them may join again, and then the window is whole.
        assert None not in await asyncio.gather(*(device.take_part() for device in devices))


async def test_an_upload_is_resumed_and_repeats_are_welcome(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (_, operator, devices):
        await operator.start_task()
        await asyncio.gather(*(device.train() for device in devices))
        first, rest = devices[0], devices[1:]

        async def in_pieces() -> None:
            shares = await first.shares(await first.open(await first.join()))
            await first.call("POST", f"{first.window}/shares", shares)
            vector = first.masked(await first.poll(f"{first.window}/u2"))
            path, octets = f"{first.window}/masked", {"Content-Type": "application/octet-stream"}
            assert await refusal(first.call("HEAD", path)) == 409
            with pytest.raises(Refused) as caught:
                await first.call("PUT", f"{path}?offset=0", data=vector, headers=octets)
            assert caught.value.number is Code.PHASE_NOT_YET
            assert first.member is not None
            head = first.member.head(hashlib.sha256(vector).digest())
            await first.call("POST", path, head)
            await first.call("PUT", f"{path}?offset=0", data=vector[:80], headers=octets)
            assert (await first.call("HEAD", path)).headers["Upload-Offset"] == "10"
            for offset, data, number in ((9, vector[72:], 419), (10, vector[80:87], 102), (10, vector, 102)):
                with pytest.raises(Refused) as caught:
                    await first.call("PUT", f"{path}?offset={offset}", data=data, headers=octets)
                assert caught.value.number == number
            await first.call("PUT", f"{path}?offset=10", data=vector[80:], headers=octets)
            await first.call("PUT", f"{path}?offset=0", data=vector, headers=octets)
            await first.vote()
            await first.unmask()

        await asyncio.gather(in_pieces(), *(device.take_part() for device in rest))
        (window,) = await operator.call("GET", "/v1/tasks/digits/windows")
        assert window["count"] == 10


async def test_a_wrong_vector_is_refused_and_the_right_one_taken(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (_, operator, devices):
        await operator.start_task()
        await asyncio.gather(*(device.train() for device in devices))

        async def member(device: Device) -> None:
            await device.shares(await device.open(await device.join()))
            vector = device.masked(await device.poll(f"{device.window}/u2"))
            assert device.member is not None
            await device.call("POST", f"{device.window}/masked", device.member.head(hashlib.sha256(vector).digest()))
            octets = {"Content-Type": "application/octet-stream"}
            if device.number == 1:
                with pytest.raises(Refused) as caught:
                    await device.call("PUT", f"{device.window}/masked", data=bytes(len(vector)), headers=octets)
                assert caught.value.number is Code.UPLOAD_HASH
            await device.call("PUT", f"{device.window}/masked", data=vector, headers=octets)
            await device.vote()
            await device.unmask()
            await device.poll(f"{device.window}/done")

        await asyncio.gather(*(member(device) for device in devices))
        (window,) = await operator.call("GET", "/v1/tasks/digits/windows")
        assert (window["state"], window["count"]) == ("done", 10)


async def test_blobs_are_immutable_cacheable_and_come_in_ranges(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (server, operator, devices):
        await operator.start_task()
        (version,) = await operator.call("GET", "/v1/tasks/digits/versions")
        name, data = version["snapshot"], await devices[0].blob(bytes.fromhex(version["snapshot"]))
        url, size = f"{server.device_url}/v1/blobs/{name}", len(data)

        async def get(**headers: str) -> tuple[int, bytes, Any]:
            async with devices[0].http.get(url, headers=headers) as response:
                return response.status, await response.read(), response.headers

        status, body, headers = await get()
        assert (status, body, headers["ETag"]) == (200, data, f'"{name}"')
        assert "immutable" in headers["Cache-Control"]
        assert (await get(**{"If-None-Match": headers["ETag"]}))[:2] == (304, b"")
        parts = {"0-0": (0, 1), "10-19": (10, 20), "50-": (50, size), "-24": (size - 24, size), "1-999999": (1, size)}
        for asked, (start, stop) in parts.items():
            status, body, headers = await get(Range=f"bytes={asked}")
            assert (status, body, headers["Content-Range"]) == (206, data[start:stop], f"bytes {start}-{stop - 1}/{size}")
        for asked in (f"{size}-", "2-1", "a-b", "0-1,5-6", "-0"):
            status, body, _ = await get(Range=f"bytes={asked}")
            assert (status, wire.decode(body, m.Failure).number) == (416, Code.BAD_RANGE), asked
        # The server's own blobs, such as the model file or a window's sum, are nobody else's.
        octets = {"Content-Type": "application/octet-stream"}
        own = await operator.call("POST", "/v1/blobs", data=b"the server's own", headers=octets)
        url = f"{server.device_url}/v1/blobs/{own['sha256']}"
        for headers in ({}, {"If-None-Match": f'"{own["sha256"]}"'}):
            status, body, _ = await get(**headers)
            assert (status, wire.decode(body, m.Failure).number) == (404, Code.UNKNOWN_BLOB)


async def test_a_check_in_is_believed_once_and_only_from_its_device(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (_, operator, (device, other, *_rest)):
        await operator.start_task()
        message = device.check_in_message()
        first = await device.call("POST", "/v1/check-in", message)
        assert (await other.check_in()).assignment is not None
        strange = {
            Code.KEY_MISMATCH: other.certificate(),
            Code.BAD_SIGNATURE: device.certificate(public_key=other.key.public),
            Code.CERTIFICATE_EXPIRED: device.certificate(not_after=int(time()) - 700),
            Code.OTHER_FLEET: device.certificate(fleet=b"x" * 16),
            Code.BAD_CERTIFICATE: device.certificate()[:-40] + bytes(40),
        }
        cases = [
            (message, Code.REPLAYED),
            (device.check_in_message(now=int(time()) - 700), Code.CLOCK_SKEW),
            (device.check_in_message(now=int(time()) + 700), Code.CLOCK_SKEW),
            (device.check_in_message(fleet=b"x" * 16), Code.OTHER_FLEET),
            (device.check_in_message(device=other.id), Code.KEY_MISMATCH),
            *((replace(device.check_in_message(), certificate=each), code) for code, each in strange.items()),
        ]
        for sent, code in cases:
            with pytest.raises(Refused) as caught:
                await device.call("POST", "/v1/check-in", sent)
            assert caught.value.number is code
        again = await device.check_in()
        assert again.assignment is not None and again.assignment.id == first.assignment.id
        assert [each["device"] for each in await operator.call("GET", "/v1/devices")] == [device.id.hex(), other.id.hex()]


async def test_a_join_counter_that_goes_back_is_refused_also_after_a_restart(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (_, operator, (device, *_rest)):
        await operator.start_task()
        await device.train()
        joined = await device.join()
        assert device.member is not None and device.checked is not None and device.checked.assignment is not None
        id_, first, seq = device.checked.assignment.id, device.member.entry, device.seq
        assert await device.call("POST", "/v1/joins", m.Join(first, id_)) == joined, "the very same entry is welcome again"
        device.seq = seq - 2  # as a restored copy would count
        with pytest.raises(Refused) as caught:
            await device.join()
        assert caught.value.number is Code.STATE_ROLLED_BACK
    async with world.serving() as (_, _operator, (device, *_rest)):
        await device.train()
        device.seq = seq - 2
        with pytest.raises(Refused) as caught:
            await device.join()
        assert caught.value.number is Code.STATE_ROLLED_BACK
        device.seq = seq
        assert (await device.join()).ticket


async def test_a_rendezvous_is_told_and_the_entry_must_reach_it(tmp_path: Path) -> None:
    # Of two periods the one whose next multiple is further away: hours.
    period = max((86_400, 80_000), key=lambda each: each - time() % each)
    deadlines = {"round_deadline_s": 90_000, "assignment_deadline_s": 90_000}
    world = await World.make(tmp_path)
    async with world.serving() as (_, operator, (device, *_rest)):
        await operator.start_task(rendezvous_s=period, **deadlines)
        await device.train()
        left = int(period - time() % period)
        certificate = device.certificate
        device.certificate = lambda **changes: certificate(**{"not_after": int(time()) + 200_000, **changes})  # type: ignore[method-assign]
        for lasts in (600, left + 30, left + 1000):
            with pytest.raises(Refused) as caught:
                await device.join(lasts)
            assert caught.value.number is Code.ENTRY_SHORT_LIVED
        joined = await device.join(left + 600)
        assert left - 5 <= joined.come_back_s <= left + 1
        waits = await device.call("GET", f"/v1/joins/{joined.ticket.hex()}")
        assert left - 5 <= waits.come_back_s <= left + 1
        device.certificate = lambda **changes: certificate(**{"not_after": int(time()) + left, **changes})  # type: ignore[method-assign]
        with pytest.raises(Refused) as caught:
            await device.join(left + 600)
        assert caught.value.number is Code.ENTRY_CERTIFICATE_DATES


async def test_a_window_opens_at_the_rendezvous_and_comes_to_its_sum(tmp_path: Path) -> None:
    world, period, ahead = await World.make(tmp_path), 60.0, 0.0
    async with world.serving(lambda: time() + ahead) as (_, operator, devices):
        await operator.start_task(rendezvous_s=period, round_deadline_s=600.0, assignment_deadline_s=600.0)
        await asyncio.gather(*(device.train() for device in devices))
        ahead = -(time() + 3) % period  # the server's clock jumps, well within what devices allow: three seconds are left
        part = [asyncio.create_task(device.take_part(lasts=700)) for device in devices]
        await asyncio.sleep(0.5)
        assert await operator.call("GET", "/v1/tasks/digits/windows") == []
        done = await asyncio.gather(*part)
        assert None not in done
        (window,) = await operator.call("GET", "/v1/tasks/digits/windows")
        assert (window["state"], window["count"]) == ("done", 10) and window["opened_at"] % period < 2
        words = await operator.call("GET", f"/v1/windows/{window['tau0']}/sum")
        assert devices[0].spec is not None
        total = decode_sum(devices[0].spec, words, 10)
        assert np.array_equal(total.values, np.sum([device.values for device in devices], axis=0))


async def test_no_device_can_act_for_another(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (server, operator, devices):
        await operator.start_task()
        await asyncio.gather(*(device.train() for device in devices))
        opened = await asyncio.gather(*(open_window(device) for device in devices))
        first, second = devices[0], devices[1]
        assert first.member is not None and second.member is not None and first.checked is not None
        shares = second.member.on_open(opened[1], int(time()), Policy.decode(first.checked.policy))
        stranger = Device(77, server, first.http)
        await stranger.check_in()
        first.member.on_open(opened[0], int(time()), Policy.decode(first.checked.policy))
        window = first.window
        for device, path, message in (
            (first, f"{window}/shares", shares),
            (stranger, f"{window}/shares", shares),
            (stranger, "/v1/joins", m.Join(first.entry(), bytes(16))),
            (stranger, "/v1/joins", m.Join(first.entry(), first.checked.assignment.id)),  # type: ignore[union-attr]
        ):
            with pytest.raises(Refused) as caught:
                await device.call("POST", path, message)
            assert caught.value.number in (Code.NOT_YOURS, Code.STALE_VERSION), path
        for phase in ("u2", "survivors", "quorum", "done"):
            with pytest.raises(Refused) as caught:
                await stranger.call("GET", f"{window}/{phase}")
            assert caught.value.number is Code.NOT_YOURS


async def test_a_newer_policy_begins_a_new_lane(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (_, operator, devices):
        await operator.start_task()
        await asyncio.gather(*(device.train() for device in devices))
        early, late = devices[:4], devices[4:]
        tickets = [await device.join() for device in early]
        octets = {"Content-Type": "application/octet-stream"}
        await operator.call("PUT", "/v1/policy", data=policy(serial=2), headers=octets)
        with pytest.raises(Refused) as caught:
            await late[0].join()
        assert caught.value.number is Code.ENTRY_LANE
        # Who waited is told to join again, at once, and the next check-in says under what, with the same assignment.
        for device, ticket in zip(early, tickets, strict=True):
            with pytest.raises(Refused) as caught:
                await device.open(ticket)
            assert caught.value.number is Code.UNKNOWN_TICKET
        before = [device.checked.assignment.id for device in devices if device.checked and device.checked.assignment]
        await asyncio.gather(*(device.train() for device in devices))
        assert before == [device.checked.assignment.id for device in devices if device.checked and device.checked.assignment]
        assert None not in await asyncio.gather(*(device.take_part() for device in devices))


async def test_a_policy_is_judged_by_the_tasks_that_run_and_a_refusal_names_the_one(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    octets = {"Content-Type": "application/octet-stream"}
    async with world.serving() as (server, operator, devices):
        await operator.start_task("over", rounds=1)
        narrow = {"n_min": 12, "n_max": 12}
        with pytest.raises(Refused, match="the task over: ") as caught:
            await operator.call("PUT", "/v1/policy", data=policy(2, **narrow), headers=octets)
        assert caught.value.number is Code.POLICY_UNSATISFIABLE
        await asyncio.gather(*(device.train() for device in devices))
        await asyncio.gather(*(device.take_part() for device in devices))
        for _ in range(100):
            if server.coordinator.engine.task("over").state == "finished":
                break
            await asyncio.sleep(0.05)
        await operator.call("PUT", "/v1/policy", data=policy(2, **narrow), headers=octets)
        assert server.coordinator.fleet.policy.serial == 2


async def open_window(device: Device) -> m.Open:
    return await device.open(await device.join())


def spec_of(device: Device) -> VectorSpec:
    assert device.spec is not None
    return device.spec


async def refusal(call: Awaitable[Any]) -> int:
    response = await call
    return int(response.status)
