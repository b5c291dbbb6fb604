"""Damaged requests at the calls of a masking window, in the phase that each belongs to, and after its end.

As `test_fuzz_endpoints.py`, with a window behind them: whatever is thrown at it, the members that keep to the protocol get the
exact sum, or the certificate that frees their updates.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from random import Random
from time import time

import msgspec
import numpy as np
import pytest

from tests.hostile_http import Call, Line, reworded
from tests.server.world import Device
from tests.under_fire import OCTETS, Site, headers, under_fire
from whimbrel_protocol import messages as m
from whimbrel_protocol import wire
from whimbrel_protocol.errors import Code, WireError
from whimbrel_protocol.member import Member
from whimbrel_protocol.packing import decode_sum
from whimbrel_protocol.signed import Policy
from whimbrel_protocol.spent import Verdict
from whimbrel_server.windows import live_windows


def member(device: Device) -> Member:
    assert device.member is not None
    return device.member


def dealt(device: Device, opened: m.Open) -> m.Shares:
    assert device.checked is not None
    return member(device).on_open(opened, int(time()), Policy.decode(device.checked.policy))


def stand_in_a_window(site: Site) -> list[m.Open]:
    site.all(*(device.train() for device in site.devices))
    joined = site.all(*(device.join() for device in site.devices))
    return site.all(*(device.open(each) for device, each in zip(site.devices, joined, strict=True)))


def throw_polls(site: Site, device: Device, phase: str, status: int = 200) -> None:
    call = site.poll(device, f"{device.window}/{phase}?wait=0")
    site.throw(call, site.device, {Code.UNKNOWN_WINDOW, Code.TOKEN_INVALID, Code.NOT_FOUND})
    site.still(call, status, site.device)


def throw_posts(
    site: Site, device: Device, phase: str, message: m.Message, numbers: Iterable[int], signed: Iterable[str] = ()
) -> Call:
    """Throw at the POST of a phase. Of a message that is not signed as a whole, `signed` are the fields one of which must be
    wrong: a member may send in its own name what it likes, and only what comes before it is judged.
    """
    call = site.message(device, f"{device.window}/{phase}", message)
    names = set(signed) or {field.name for field in fields(message)}

    def wrong(call: Call, random: Random) -> Call:
        while says_the_same(bad := reworded(call, random), message, names):
            pass
        return bad

    site.throw(call, site.device, {100, 102, *numbers}, wrong)
    return call


def says_the_same(call: Call, message: m.Message, names: set[str]) -> bool:
    try:
        other = wire.decode(call.body, type(message))
    except WireError:
        return False
    return all(getattr(other, name) == getattr(message, name) for name in names)


def throw_around(site: Site, call: Call) -> Call:
    """Throw at a POST whose message may be taken."""
    site.throw(call, site.device, {100, Code.UNKNOWN_WINDOW, Code.NOT_FOUND})
    return call


# --- phase by phase -----------------------------------------------------------------------------------------------------


def throw_shares(site: Site, hostile: Device, opened: m.Open) -> None:
    shares = dealt(hostile, opened)
    throw_polls(site, hostile, "u2")
    numbers = {Code.NOT_YOURS, Code.BAD_SIGNATURE, Code.SHARES_MALFORMED}
    call = throw_around(site, throw_posts(site, hostile, "shares", shares, numbers))
    site.still(call, 200, site.device)


def throw_masked(site: Site) -> list[bytes]:
    """Throw at the calls of the masked phase; returns the members' vectors, only the first of them taken yet."""
    u2s = site.all(*(device.poll(f"{device.window}/u2") for device in site.devices))
    vectors = [device.masked(u2) for device, u2 in zip(site.devices, u2s, strict=True)]
    first, hostile = site.devices[0], site.devices[-1]
    throw_polls(site, hostile, "u2")
    head = member(hostile).head(hashlib.sha256(vectors[-1]).digest())
    numbers = {Code.NOT_YOURS, Code.BAD_SIGNATURE, Code.MASKED_MALFORMED}
    throw_around(site, throw_posts(site, hostile, "masked", head, numbers, ("tau1", "i", "words", "msig")))
    throw_chunks(site, first, vectors[0])
    return vectors


def throw_chunks(site: Site, device: Device, vector: bytes) -> None:
    """Whatever chunks came before, and however they stalled, the device can still deliver its vector."""
    announced = member(device).head(hashlib.sha256(vector).digest())
    site.run(device.call("POST", f"{device.window}/masked", announced))
    path = f"{device.window}/masked"
    put = Call(b"PUT", f"{path}?offset=0".encode(), headers(device.token, OCTETS), vector)
    head = Call(b"HEAD", path.encode(), headers(device.token))
    wrong = replace(put, body=vector[::-1])  # so that none is taken by accident, which would end the upload
    site.throw(wrong, site.device, {Code.BAD_OFFSET, Code.OUT_OF_RANGE, Code.BAD_REQUEST})
    site.throw(head, site.device)
    deliver(site, put, head)


def deliver(site: Site, put: Call, head: Call) -> None:
    held = int(site.still(head, 200, site.device).headers["upload-offset"])
    if 0 < 8 * held < len(put.body):  # a damaged chunk lies there: the whole is refused, and begins again
        rest = Call(b"PUT", put.target[:-1] + b"%d" % held, put.headers, put.body[8 * held :])
        site.still(rest, Code.UPLOAD_HASH.http, site.device)
    half = len(put.body) // 16 * 8
    line = Line(site.server.device_url)
    stalled = site.run(line.exchange(put.on_the_wire()[: half - len(put.body)]))
    line.close()
    assert stalled.status == Code.UPLOAD_TOO_SLOW.http, stalled
    assert int(site.still(head, 200, site.device).headers["upload-offset"]) == half // 8
    rest = Call(b"PUT", put.target[:-1] + b"%d" % (half // 8), put.headers, put.body[half:])
    site.still(rest, 200, site.device)


async def vanish(site: Site, hostile: Device, other: Device) -> None:
    """Let connections of a waiting member break until the phase waits for it no longer."""
    limits = site.server.desk.limits
    while isinstance(await other.call("GET", f"{other.window}/survivors"), m.Wait):
        site.server.desk.limits = msgspec.structs.replace(limits, poll_s=20.0)
        waiting = Line(site.server.device_url)
        with contextlib.suppress(TimeoutError):
            await waiting.ask(site.poll(hostile, f"{hostile.window}/survivors?wait=20"), 0.1)
        waiting.close()
        site.server.desk.limits = limits
        await asyncio.sleep(0.5)


def throw_votes(site: Site, honest: list[Device]) -> None:
    voter, *others = honest
    vote = member(voter).on_survivors(site.run(voter.poll(f"{voter.window}/survivors")))
    throw_polls(site, voter, "survivors")
    call = throw_posts(site, voter, "vote", vote, {Code.NOT_YOURS, Code.BAD_SIGNATURE})
    site.still(throw_around(site, call), 200, site.device)
    site.all(*(device.vote() for device in others))


def throw_unmasking(site: Site, honest: list[Device]) -> None:
    first, *others = honest
    revealed = member(first).on_quorum(site.run(first.poll(f"{first.window}/quorum")))
    throw_polls(site, first, "quorum")
    call = throw_posts(site, first, "unmask", revealed, {Code.NOT_YOURS, Code.UNMASK_MALFORMED}, ("i", "present"))
    site.still(call, 200, site.device)  # first: a wrong share in the member's own name may cost the window its sum
    site.still(throw_around(site, call), 200, site.device)
    site.all(*(device.unmask() for device in others))
    site.run(first.poll(f"{first.window}/done"))
    throw_polls(site, first, "done")


async def sum_is_exact(site: Site, honest: list[Device]) -> str:
    """Check the window's sum and wait for the version; returns the window's name."""
    (window,) = await site.operator.call("GET", "/v1/tasks/digits/windows")
    assert (window["state"], window["u3"]) == ("done", [device.id.hex() for device in honest])
    words = await site.operator.call("GET", f"/v1/windows/{window['tau0']}/sum")
    assert honest[0].spec is not None
    total = decode_sum(honest[0].spec, words, len(honest))
    assert np.array_equal(total.values, np.sum([device.values for device in honest], axis=0))
    for _ in range(500):
        versions = await site.operator.call("GET", "/v1/tasks/digits/versions")
        if len(versions) == 2:
            break
        await asyncio.sleep(0.02)
    assert versions[1]["windows"] == [window["tau0"]]
    return str(window["tau0"])


def throw_at_what_ended(site: Site, device: Device, tau0: str) -> None:
    """The window has left the memory: its record answers, operators as well."""
    forgotten(site, tau0)
    for phase, status in (("u2", 409), ("quorum", 200), ("done", 200)):
        throw_polls(site, device, phase, status)
    for phase, message in (("unmask", m.Unmask(0, bytes(2), b"")), ("canaries", m.CanaryMasks(0, bytes(2), bytes(16)))):
        late = throw_posts(site, device, phase, message, {Code.PHASE_OVER})
        site.still(throw_around(site, late), Code.PHASE_OVER.http, site.device)
    for path in (f"/v1/windows/{tau0}", f"/v1/windows/{tau0}/sum", "/v1/tasks/digits/versions/latest/model"):
        order = site.order("GET", path)
        site.throw(order, site.admin, {Code.TOKEN_INVALID, Code.NOT_FOUND})
        site.still(order, 200, site.admin)


def forgotten(site: Site, tau0: str) -> None:
    while bytes.fromhex(tau0) in site.server.coordinator.windows:
        site.run(asyncio.sleep(0.01))


# --- windows ------------------------------------------------------------------------------------------------------------


def test_a_window_under_fire_ends_with_the_exact_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine honest members, and one whose token sends much of the damage: it may fall out, nothing else may happen."""
    monkeypatch.setattr(live_windows, "_LINGER_S", 0.01)
    with under_fire(tmp_path) as site:
        opened = stand_in_a_window(site)
        *honest, hostile = site.devices
        throw_shares(site, hostile, opened[-1])
        site.all(*(device.shares(each) for device, each in zip(honest, opened[:-1], strict=True)))
        _, *vectors, _ = throw_masked(site)
        site.all(*(device.upload(vector) for device, vector in zip(honest[1:], vectors, strict=True)))
        site.run(vanish(site, hostile, honest[0]))
        throw_votes(site, honest)
        throw_unmasking(site, honest)
        throw_at_what_ended(site, hostile, site.run(sum_is_exact(site, honest)))


def test_a_window_that_was_given_up_is_freed_under_fire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Votes for the abort reach a window that has left the memory, and comes back for them."""
    monkeypatch.setattr(live_windows, "_LINGER_S", 0.01)
    with under_fire(tmp_path, share_s=1.0, patience_s=0.0) as site:
        for device, opened in zip(site.devices, stand_in_a_window(site), strict=True):
            dealt(device, opened)
        voter, *others = site.devices
        forgotten(site, member(voter).record.cohort.tau0.hex())
        throw_polls(site, voter, "survivors")
        site.throw(site.poll(voter, f"{voter.window}/quorum"), site.device)  # none yet: to wait for, or not to be had
        call = throw_posts(site, voter, "vote", member(voter).abort_vote(), {Code.NOT_YOURS, Code.BAD_SIGNATURE})
        site.still(throw_around(site, call), 200, site.device)
        for device in others:
            site.run(device.say("vote", member(device).abort_vote()))
        certificate = site.run(voter.poll(f"{voter.window}/quorum"))
        assert {member(device).on_certificate(certificate) for device in site.devices} == {Verdict.FREED}
