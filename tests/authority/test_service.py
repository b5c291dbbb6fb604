"""The enrolment service over real HTTP: who gets a certificate, who gets the same again, and how everybody else is refused."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nacl.bindings import crypto_core_ed25519_add

from tests.authority.fleet import Device, Fleet
from whimbrel_authority import service
from whimbrel_authority.keys import Directory
from whimbrel_authority.service import make_app
from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.messages import Accepted, Enrol, Enrolled, Failure, Message
from whimbrel_protocol.objects import Certificate
from whimbrel_protocol.primitives import SigningKey
from whimbrel_protocol.trust import accept_certificate
from whimbrel_protocol.wire import CONTENT_TYPE, decode, encode

DAY = 86_400
START = 1_900_000_000


class Desk:
    """A running service with a clock that the test turns, and a client."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.now = float(START)
        self.server = TestServer(make_app(Directory(fleet.path), lambda: self.now))
        self.client = aiohttp.ClientSession()

    async def send(self, path: str, body: bytes, kind: str = CONTENT_TYPE) -> tuple[int, bytes]:
        url = self.server.make_url(path)
        async with self.client.post(url, data=body, headers={"Content-Type": kind}) as answer:
            assert answer.content_type == CONTENT_TYPE
            return answer.status, await answer.read()

    async def ask(self, message: Message) -> Certificate:
        """Send an Enrol or Renew that must succeed; return the certificate, which a device would accept."""
        status, body = await self.send(f"/v1/{type(message).__name__.lower()}", encode(message))
        assert status == 200, decode(body, Failure)
        answer = decode(body, Enrolled)
        return accept_certificate(answer.certificate, self.fleet.root, self.fleet.policy(), int(self.now))

    async def refused(self, message: Message | bytes, path: str = "") -> Code:
        """Send what must be refused; return the number, whose HTTP status must be the table's."""
        body = message if isinstance(message, bytes) else encode(message)
        status, answer = await self.send(path or f"/v1/{type(message).__name__.lower()}", body)
        code = Code(decode(answer, Failure).number)
        assert status == code.http
        return code


@pytest.fixture
async def desk(fleet: Fleet) -> AsyncIterator[Desk]:
    fleet.run("sign-policy")
    desk = Desk(fleet)
    # Only these are needed: the root and the plan signer may live elsewhere.
    for name in ("root.key", "plan.key"):
        (fleet.path / name).rename(fleet.path.parent / name)
    await desk.server.start_server()
    yield desk
    await desk.client.close()
    await desk.server.close()
    for name in ("root.key", "plan.key"):
        (fleet.path.parent / name).rename(fleet.path / name)


def bring_keys(fleet: Fleet) -> None:
    for name in ("root.key", "plan.key"):
        (fleet.path / name).write_bytes((fleet.path.parent / name).read_bytes())
        (fleet.path / name).chmod(0o600)


async def give_tokens(desk: Desk, count: int = 1, *arguments: object) -> list[str]:
    """Tokens that hold at the service's time, which is far from the command's."""
    days = (START - 1_700_000_000) // DAY + 10 * 365
    return desk.fleet.tokens(count, "--days", days, *arguments)


# --- enrolment ------------------------------------------------------------------------------------------------------


async def test_a_token_enrols_one_device_and_repeats_its_answer(desk: Desk) -> None:
    (token,) = await give_tokens(desk)
    one = Device(desk.fleet.fleet, 1)
    first = await desk.ask(one.enrol(token))
    assert (first.device, first.public_key) == (one.device, one.key().public)
    assert await desk.ask(one.enrol(token)) == first
    assert await desk.ask(one.enrol(token, nonce=9)) == first
    assert await desk.refused(Device(desk.fleet.fleet, 2).enrol(token)) is Code.ENROLMENT_TOKEN


async def test_a_token_of_several_uses_admits_so_many_devices(desk: Desk) -> None:
    (token,) = await give_tokens(desk, 1, "--uses", 3)
    devices = [Device(desk.fleet.fleet, number) for number in range(1, 5)]
    certificates = await asyncio.gather(*(desk.ask(device.enrol(token)) for device in devices[:3]))
    assert {certificate.serial for certificate in certificates} == {1, 2, 3}
    assert await desk.refused(devices[3].enrol(token)) is Code.ENROLMENT_TOKEN


async def test_one_use_is_one_use_under_concurrency(desk: Desk) -> None:
    (token,) = await give_tokens(desk)
    bodies = [encode(Device(desk.fleet.fleet, number).enrol(token)) for number in range(1, 9)]
    answers = await asyncio.gather(*(desk.send("/v1/enrol", body) for body in bodies))
    assert sorted(status for status, _ in answers) == [200] + [403] * 7


async def test_wrong_and_outdated_tokens(desk: Desk) -> None:
    device = Device(desk.fleet.fleet)
    assert await desk.refused(device.enrol("nothing")) is Code.ENROLMENT_TOKEN
    (token,) = desk.fleet.tokens(1, "--days", 1)
    assert await desk.refused(device.enrol(token)) is Code.ENROLMENT_TOKEN


async def test_an_enrolled_device_may_enrol_again_with_its_key_only(desk: Desk) -> None:
    one, two, three = await give_tokens(desk, 3)
    device = Device(desk.fleet.fleet)
    first = await desk.ask(device.enrol(one))
    assert await desk.refused(device.enrol(two, generation=1)) is Code.DEVICE_TAKEN
    second = await desk.ask(device.enrol(two))
    assert second.serial > first.serial
    # The same key under another name would be one device with two seats.
    thief = replace(device.enrol(three), request=_signed_as(device, bytes(16)))
    assert await desk.refused(thief) is Code.DEVICE_TAKEN


def _signed_as(device: Device, name: bytes) -> bytes:
    request = bytearray(device.request())
    request[20:36] = name
    return bytes(request[:-64]) + device.key().sign("request", bytes(request[:-64]))


async def test_requests_that_prove_nothing(desk: Desk) -> None:
    (token,) = await give_tokens(desk)
    device = Device(desk.fleet.fleet)
    good = device.request()
    altered = good[:30] + bytes([good[30] ^ 1]) + good[31:]
    assert await desk.refused(Enrol(altered, token)) is Code.BAD_REQUEST_SIGNATURE
    assert await desk.refused(Enrol(Device(bytes(16)).request(), token)) is Code.OTHER_FLEET
    assert await desk.refused(Enrol(good + b"\0", token)) is Code.BAD_SIZE
    assert await desk.refused(Enrol(b"MWR2" + good[4:], token)) is Code.BAD_MAGIC
    await desk.ask(device.enrol(token))  # the token is still good


_ORDER_8 = bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a")


@pytest.mark.parametrize(
    "public",
    [
        bytes(32),
        b"\1" + bytes(31),
        _ORDER_8,
        crypto_core_ed25519_add(SigningKey(bytes(32)).public, _ORDER_8),
        b"\xff" * 32,
        # y = 2 + p, a non-canonical encoding
        (2**255 - 19 + 2).to_bytes(32, "little"),
    ],
    ids=["order 4", "order 1", "order 8", "mixed order", "off the curve", "non-canonical"],
)
async def test_keys_that_libraries_disagree_about_are_never_certified(desk: Desk, public: bytes) -> None:
    (token,) = await give_tokens(desk)
    request = Device(desk.fleet.fleet).request()
    assert await desk.refused(Enrol(request[:36] + public + request[68:], token)) is Code.WEAK_KEY


# --- renewal --------------------------------------------------------------------------------------------------------


async def enrolled(desk: Desk, number: int = 1) -> tuple[Device, Certificate]:
    (token,) = await give_tokens(desk)
    device = Device(desk.fleet.fleet, number)
    return device, await desk.ask(device.enrol(token))


@pytest.mark.parametrize(
    ("days", "number"), [(1, None), (90, None), (91, None), (90 + 365, None), (90 + 365 + 1 / 1440, Code.RENEWAL_TOO_LATE)]
)
async def test_renewal_is_possible_until_a_year_after_expiry(desk: Desk, days: float, number: Code | None) -> None:
    device, first = await enrolled(desk)
    desk.now += days * DAY
    message = device.renew(first.encode())
    if number is not None:
        assert await desk.refused(message) is number
        return
    second = await desk.ask(message)
    assert (second.serial, second.not_after) == (first.serial + 1, int(desk.now) + 90 * DAY)
    desk.now += 60
    assert await desk.ask(message) == second


async def test_a_new_key_replaces_the_old_one(desk: Desk) -> None:
    device, first = await enrolled(desk)
    rotation = device.renew(first.encode(), nonce=1, old=0, new=1)
    second = await desk.ask(rotation)
    assert second.public_key == device.key(1).public
    assert await desk.ask(rotation) == second
    assert await desk.refused(device.renew(first.encode(), nonce=2)) is Code.KEY_MISMATCH
    third = await desk.ask(device.renew(second.encode(), nonce=3, old=1, new=1))
    assert third.public_key == second.public_key
    assert await desk.refused(rotation) is Code.KEY_MISMATCH  # its certificate's key is gone for good


async def test_renewals_that_are_not_the_devices(desk: Desk) -> None:
    device, certificate = await enrolled(desk, 1)
    other, others = await enrolled(desk, 2)
    good = device.renew(certificate.encode())
    assert await desk.refused(replace(good, signature=other.key().sign("renew", good.request))) is Code.BAD_REQUEST_SIGNATURE
    assert await desk.refused(replace(good, signature=device.key().sign("request", good.request))) is Code.BAD_REQUEST_SIGNATURE
    assert await desk.refused(other.renew(certificate.encode(), old=2)) is Code.KEY_MISMATCH
    stolen = replace(good, certificate=others.encode())
    assert await desk.refused(stolen) is Code.KEY_MISMATCH
    forged = replace(certificate, not_after=certificate.not_after + 1).encode()
    assert await desk.refused(device.renew(forged)) is Code.BAD_CERTIFICATE
    foreign = Certificate.issue(SigningKey(bytes(32)), **_fields(certificate))
    assert await desk.refused(device.renew(foreign.encode())) is Code.BAD_CERTIFICATE


def _fields(certificate: Certificate) -> dict[str, Any]:
    return {name: value for name, value in vars(certificate).items() if name not in ("issuer", "signature")}


async def test_a_key_of_another_device_cannot_be_taken_over(desk: Desk) -> None:
    device, certificate = await enrolled(desk, 1)
    other, _ = await enrolled(desk, 2)
    request = bytearray(device.request())
    request[36:68] = other.key().public
    request = request[:-64] + other.key().sign("request", bytes(request[:-64]))
    message = replace(device.renew(certificate.encode()), request=bytes(request))
    assert await desk.refused(replace(message, signature=device.key().sign("renew", bytes(request)))) is Code.DEVICE_TAKEN


async def test_a_certificate_of_a_device_that_the_ledger_does_not_know(desk: Desk) -> None:
    device = Device(desk.fleet.fleet, 7)
    _, template = await enrolled(desk)
    fields = {**_fields(template), "device": device.device, "public_key": device.key().public}
    issuer = SigningKey((desk.fleet.path / "issuer.key").read_bytes())
    assert await desk.refused(device.renew(Certificate.issue(issuer, **fields).encode())) is Code.UNKNOWN_DEVICE


async def test_a_revoked_device_gets_nothing_and_the_others_renew_into_the_new_epoch(desk: Desk) -> None:
    device, certificate = await enrolled(desk, 1)
    other, others = await enrolled(desk, 2)
    earlier = other.renew(others.encode())
    others = await desk.ask(earlier)
    bring_keys(desk.fleet)
    desk.fleet.run("revoke", "--device", device.device.hex())
    assert await desk.refused(device.renew(certificate.encode())) is Code.DEVICE_REVOKED
    (token,) = await give_tokens(desk)
    assert await desk.refused(device.enrol(token)) is Code.DEVICE_REVOKED
    with pytest.raises(ProtocolError, match="error 207"):
        accept_certificate(others.encode(), desk.fleet.root, desk.fleet.policy(), int(desk.now))
    # Also where the renewal is a repeat: the answer of an epoch that is over would help nobody.
    renewed = await desk.ask(earlier)
    assert (renewed.epoch, renewed.serial > others.serial) == (1, True)


# --- everything else ------------------------------------------------------------------------------------------------


async def test_the_policy_is_served_as_it_lies_there(desk: Desk) -> None:
    for _ in range(2):
        async with desk.client.get(desk.server.make_url("/v1/policy")) as answer:
            assert await answer.read() == desk.fleet.policy().encode()
        bring_keys(desk.fleet)
        desk.fleet.run("sign-policy")
    async with desk.client.get(desk.server.make_url("/health")) as answer:
        assert (answer.status, await answer.text()) == (200, "ok\n")


async def test_calls_that_are_none(desk: Desk) -> None:
    assert await desk.refused(b"", "/v1/enrol") is Code.MALFORMED
    assert await desk.refused(b"x" * 100_000, "/v1/enrol") is Code.TOO_LARGE
    assert await desk.refused(encode(Accepted()), "/v1/renew") is Code.UNEXPECTED_MESSAGE
    assert await desk.refused(b"", "/v1/revoke") is Code.NOT_FOUND
    assert await desk.refused(b"", "/v1/policy") is Code.METHOD_NOT_ALLOWED
    status, body = await desk.send("/v1/enrol", b"{}", "application/json")
    assert (status, decode(body, Failure).number) == (415, Code.WRONG_CONTENT_TYPE)


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Encoding: deflate\r\nContent-Length: 5",
        b"Content-Encoding: gzip\r\nContent-Length: 5",
        b"Transfer-Encoding: chunked",
        b"Content-Length: -5",
        b"Content-Length: 5\r\nExpect: nonsense",
        b"Content-Type: application/json\r\nContent-Length: 5",
    ],
)
async def test_http_that_is_wrong_is_the_callers_failure(desk: Desk, head: bytes) -> None:
    assert 400 <= await status_of(desk, head + b"\r\n\r\nzzzzz\r\nzzzzz") < 500


async def test_a_body_that_never_comes_is_given_up(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "BODY_S", 0.05)
    assert await status_of(desk, b"Content-Length: 9\r\n\r\n") == 408


async def status_of(desk: Desk, rest: bytes) -> int:
    """Send an enrolment whose head goes on with `rest`, byte for byte, and return the answer's status."""
    reader, writer = await asyncio.open_connection(desk.server.host, desk.server.port)
    writer.write(f"POST /v1/enrol HTTP/1.1\r\nHost: a\r\nContent-Type: {CONTENT_TYPE}\r\n".encode() + rest)
    status = int((await reader.readline()).split()[1])
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return status


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_no_crafted_body_is_the_services_failure(desk: Desk, data: st.DataObject) -> None:
    device = Device(desk.fleet.fleet)
    certificate = Certificate.issue(device.key(), **_anything(device)).encode()
    path, message = data.draw(st.sampled_from([("/v1/enrol", device.enrol("t")), ("/v1/renew", device.renew(certificate))]))
    body = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    status, answer = await desk.send(path, bytes(body))
    assert 400 <= status < 500
    assert Code(decode(answer, Failure).number).http == status


def _anything(device: Device) -> dict[str, Any]:
    numbers = {"not_before": 0, "not_after": 2**40, "serial": 1, "attest_class": 0, "flags": 0, "epoch": 0}
    return {"fleet": device.fleet, "device": device.device, "public_key": device.key().public, **numbers}


async def test_a_policy_that_does_not_name_the_issuer_stops_the_start(fleet: Fleet, tmp_path: Path) -> None:
    other = Fleet(tmp_path / "other", fleet.capture).init()
    (fleet.path / "policy.bin").write_bytes(other.policy().encode())
    with pytest.raises(ProtocolError, match="error 431"):
        await TestServer(make_app(Directory(fleet.path))).start_server()


@pytest.mark.processes
async def test_the_real_process_says_where_it_listens_and_ends_on_request(fleet: Fleet) -> None:
    command = [sys.executable, "-m", "whimbrel_authority.cli", "serve", str(fleet.path), "--port", "0"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=env)
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        url = line.removeprefix("authority on ").strip()
        (token,) = fleet.tokens()
        async with aiohttp.ClientSession() as client:
            body, headers = encode(Device(fleet.fleet).enrol(token)), {"Content-Type": CONTENT_TYPE}
            async with client.post(url + "/v1/enrol", data=body, headers=headers) as answer:
                assert decode(await answer.read(), Enrolled).policy == fleet.policy().encode()
    finally:
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
