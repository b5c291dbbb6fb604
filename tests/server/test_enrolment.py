"""Enrolment through the server, by the authority's real service; and real devices, from their token to a third version."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from aiohttp.test_utils import TestServer

from tests.authority.fleet import Device as Applicant
from tests.authority.fleet import Fleet
from tests.server.world import CLASSES, FEATURES, SETTINGS, Device, Operator, Refused, model
from whimbrel import DevicePolicy, Participant
from whimbrel_authority.keys import Directory
from whimbrel_authority.service import make_app
from whimbrel_protocol.errors import Code
from whimbrel_protocol.objects import Certificate
from whimbrel_server import config
from whimbrel_server.app import Running, running
from whimbrel_server.datadir import DataDir
from whimbrel_server.setup import initialise


@pytest.fixture
def fleet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Fleet:
    return Fleet(tmp_path / "authority", capsys).init("--n-min", 8, "--n-max", 64)


@asynccontextmanager
async def serving(fleet: Fleet, folder: Path, down: bool = False) -> AsyncIterator[tuple[Running, Operator, Device]]:
    """The authority's service and a server in front of it; `device` is anybody without a token."""
    data = DataDir(folder / "data")
    async with TestServer(make_app(Directory(fleet.path))) as service, aiohttp.ClientSession() as http:
        url = str(service.make_url("")).rstrip("/")
        await initialise(data, fleet.root, (fleet.path / "policy.bin").read_bytes(), url)
        table = {"authority": {"root": fleet.root.hex(), "url": url}, "listen": {"port": 0}, "admin": {"port": 0}}
        async with running(data, config.merged(table, {})) as server:
            if down:
                await service.close()
            yield server, Operator(server, http), Device(1, server, http)


async def test_enrolment_and_renewal_pass_through_with_their_numbers(fleet: Fleet, tmp_path: Path) -> None:
    (token,) = fleet.tokens()
    applicant = Applicant(fleet.fleet)
    async with serving(fleet, tmp_path) as (_, operator, device):
        enrolled = await device.call("POST", "/v1/enrol", applicant.enrol(token))
        assert Certificate.decode(enrolled.certificate).device == applicant.device
        renewed = await device.call("POST", "/v1/renew", applicant.renew(enrolled.certificate))
        assert Certificate.decode(renewed.certificate).public_key == applicant.key().public
        assert [each["device"] for each in await operator.call("GET", "/v1/devices")] == [applicant.device.hex()]
        stranger = Applicant(fleet.fleet, 2)
        for message, code in (
            (stranger.enrol(token), Code.ENROLMENT_TOKEN),
            (replace(stranger.enrol(token), request=bytes(152)), Code.BAD_MAGIC),
        ):
            with pytest.raises(Refused) as caught:
                await device.call("POST", "/v1/enrol", message)
            assert caught.value.number is code


async def test_a_service_that_is_down_is_said_so(fleet: Fleet, tmp_path: Path) -> None:
    async with serving(fleet, tmp_path, down=True) as (_, _operator, device):
        with pytest.raises(Refused) as caught:
            await device.call("POST", "/v1/enrol", Applicant(fleet.fleet).enrol("x"))
        assert (caught.value.number, caught.value.status) == (Code.ENROLMENT_DOWN, 503)


async def test_a_newer_policy_that_passes_through_is_in_force(fleet: Fleet, tmp_path: Path) -> None:
    (token,) = fleet.tokens()
    async with serving(fleet, tmp_path) as (_, operator, device):
        assert (await operator.call("GET", "/v1/policy"))["serial"] == 1
        fleet.run("sign-policy", "--n-min", 9)
        await device.call("POST", "/v1/enrol", Applicant(fleet.fleet).enrol(token))
        now = await operator.call("GET", "/v1/policy")
        assert (now["serial"], now["n_min"]) == (2, 9)


async def test_real_devices_learn_through_real_windows(fleet: Fleet, tmp_path: Path) -> None:
    tokens, random = fleet.tokens(10), np.random.default_rng(0)

    def examples() -> object:
        labels = random.integers(0, CLASSES, 12)
        images = random.normal(0, 0.3, (12, FEATURES)) + 2 * np.eye(CLASSES, FEATURES)[labels]
        yield {"x": images.astype(np.float32), "@label": labels}

    async with serving(fleet, tmp_path) as (server, operator, _):
        octets = {"Content-Type": "application/octet-stream"}
        blob = await operator.call("POST", "/v1/blobs", data=model(), headers=octets)
        await operator.call("POST", "/v1/tasks", json={"name": "clouds", "model": blob["sha256"], **SETTINGS, "rounds": 2})
        (tmp_path / "plan").write_bytes(await operator.call("GET", "/v1/tasks/clouds/plan"))
        fleet.run("sign-plan", tmp_path / "plan", "--out", tmp_path / "signed")
        await operator.call("PUT", "/v1/tasks/clouds/plan", data=(tmp_path / "signed").read_bytes(), headers=octets)

        async def live(number: int) -> None:
            participant = Participant.open(
                server.device_url,
                state=tmp_path / f"device-{number}",
                examples=examples,  # type: ignore[arg-type]
                authority=fleet.root.hex(),
                token=tokens[number],
                policy=DevicePolicy(backoff_min_s=0.1),
            )
            async with participant as device:
                await device.run()

        lives = [asyncio.create_task(live(number)) for number in range(10)]
        for _ in range(300):
            task = await operator.call("GET", "/v1/tasks/clouds")
            if task["state"] == "finished":
                break
            await asyncio.sleep(0.1)
        for each in lives:
            each.cancel()
        await asyncio.gather(*lives, return_exceptions=True)
        assert (task["state"], task["version"]) == ("finished", 3)
        assert {each["contributions"] for each in await operator.call("GET", "/v1/devices")} == {2}
