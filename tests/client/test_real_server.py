"""Participants against the real server over real HTTP: devices that die at every stage, and a server that starts again.

What is proved at the end reads both sides: the server's unmasked sums, and the plain words in the devices' own journals.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np

from tests.server.world import CLASSES, FEATURES, ROOT, SETTINGS, Device, Operator, World, policy
from whimbrel import DevicePolicy, Participant
from whimbrel.device import Stage
from whimbrel.journal import Journal, contributed, inspect
from whimbrel.records import UpdateState
from whimbrel_protocol.primitives import SigningKey
from whimbrel_server.app import running

TASK = "clouds"
WINDOWS = f"/v1/tasks/{TASK}/windows"
QUICK = {"share_s": 1.5, "mask_s": 1.5, "vote_s": 4.0, "unmask_s": 8.0, "patience_s": 3.0, "round_deadline_s": 5.0}
POLICY = DevicePolicy(history=50, backoff_min_s=0.2, backoff_max_s=1.0, window_patience_s=8.0, poll_s=2.0)
# Who dies when: in a window of ten the protocol bears two losses before the survivors are fixed, and three in all.
FATES = ((1, Stage.TRAIN), (1, Stage.MASK), (1, Stage.UNMASK), (2, Stage.JOIN), (2, Stage.SHARE), (3, Stage.VOTE))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def examples() -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng()
    label = rng.integers(0, CLASSES, 12)
    yield {"x": (rng.normal(0, 0.3, (12, FEATURES)) + 2 * np.eye(CLASSES, FEATURES)[label]).astype(np.float32), "@label": label}


def enrolled(path: Path, number: int) -> Path:
    """A state directory whose device has its certificate already."""
    journal = Journal.open(path, lambda size: random.Random(f"{number} {size}").randbytes(size))
    state, key = journal.load(), SigningKey(journal.seed())
    certificate = Device(number, None, None).certificate(device=state.device, public_key=key.public)  # type: ignore[arg-type]
    journal.commit(replace(state, certificate=certificate, policy=policy(), policy_serial=1))
    journal.close()
    return path


class Mortal:
    """One device whose process dies once, at a stage of its work on a version or a later one, and is started again soon."""

    def __init__(self, url: str, state: Path, fate: tuple[int, Stage] | None) -> None:
        self.url, self.state, self.fate = url, state, fate
        self.deaths = 0

    async def live(self) -> None:
        while True:
            participant = Participant.open(
                self.url, state=self.state, examples=examples, authority=ROOT.public.hex(), policy=POLICY
            )
            async with participant:
                await self._until_death(participant)
                participant.save = lambda: None  # type: ignore[method-assign]  # the dead save nothing
            self.deaths += 1
            await asyncio.sleep(0.3)

    async def _until_death(self, participant: Participant) -> None:
        while not self._dies(participant):  # noqa: ASYNC110  # each tick changes what is waited for
            await asyncio.sleep(await participant.tick())
        self.fate = None

    def _dies(self, participant: Participant) -> bool:
        assigned = participant.state.assigned
        if assigned is None or self.fate is None:
            return False
        version, stage = self.fate
        return assigned.assignment.version >= version and participant.stage is stage


async def until(operator: Operator, version: int) -> None:
    async with asyncio.timeout(60):
        while (await operator.call("GET", f"/v1/tasks/{TASK}"))["version"] < version:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def finished_and_exact(operator: Operator, states: list[Path]) -> int:
    """Every finished window's sum is the plain sum of its survivors' words; return how many windows finished."""
    plain = {}
    for state in states:
        device = inspect(state).device.hex()
        plain |= {(record.tau0.hex(), device): np.frombuffer(words, "<u8") for record, words in contributed(state)}
    done = 0
    for row in await operator.call("GET", WINDOWS):
        window = await operator.call("GET", f"/v1/windows/{row['tau0']}")
        if window["state"] != "done":
            continue
        done += 1
        total = np.frombuffer(await operator.call("GET", f"/v1/windows/{row['tau0']}/sum"), "<u8")
        words = [plain[row["tau0"], device] for device in window["u3"]]
        assert np.array_equal(total, np.sum(words, axis=0, dtype=np.uint64))
    return done


async def settled(states: list[Path]) -> None:
    """Return when no device holds an update of which it does not know whether it counts."""
    async with asyncio.timeout(30):
        while any(one.state is UpdateState.SPENT for state in states for one in inspect(state).updates):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def all_died(devices: list[Mortal]) -> None:
    async with asyncio.timeout(30):
        while any(device.fate for device in devices):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def a_window_runs(operator: Operator) -> None:
    async with asyncio.timeout(20):
        while all(row["state"] in ("done", "aborted") for row in await operator.call("GET", WINDOWS)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_sums_stay_exact_whoever_dies(tmp_path: Path) -> None:
    world, port = await World.make(tmp_path), free_port()
    config = msgspec.structs.replace(world.config, listen=msgspec.structs.replace(world.config.listen, port=port))
    states = [enrolled(tmp_path / f"device{number}", number) for number in range(14)]
    fates = [*FATES, *[None] * (len(states) - len(FATES))]
    devices = [Mortal(f"http://127.0.0.1:{port}", state, fate) for state, fate in zip(states, fates, strict=True)]
    async with aiohttp.ClientSession() as http:
        async with running(world.data, config) as server:
            operator = Operator(server, http)
            await operator.start_task(TASK, **{**SETTINGS, **QUICK})
            lives = [asyncio.create_task(device.live()) for device in devices]
            await until(operator, 2)
            await a_window_runs(operator)
        async with running(world.data, config) as server:
            operator = Operator(server, http)
            await until(operator, 4)
            await all_died(devices)
            await settled(states)
            for life in lives:
                life.cancel()
            await asyncio.gather(*lives, return_exceptions=True)
            assert await finished_and_exact(operator, states) >= 3
    assert sum(device.deaths for device in devices) == len(FATES)
