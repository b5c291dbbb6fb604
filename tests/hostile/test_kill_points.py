"""A device process is killed at every point where its life could be cut, and started again: nothing twice, nothing lost."""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hostile.attack import Attack, Update
from tests.hostile.cohort import plain_words
from tests.hostile.driver import live
from tests.hostile.listener import Listener
from tests.hostile.verdict import contradictions
from tests.hostile.world import HostileServer
from whimbrel.journal import inspect
from whimbrel.records import DeviceState, UpdateRecord, UpdateState
from whimbrel_protocol import messages as m
from whimbrel_protocol.collector import Collector
from whimbrel_protocol.window import ServerState

LIMIT_S, LOOK_S, PHASE_S = 20.0, 0.02, 0.5

# Around the writes of the journal, by the process's own hand.
WRITES = [f"{moment} {what}" for what in ("joined", "spent", "vote", "contributed") for moment in ("before", "within", "after")]
# When a request arrives, by the server's.
REQUESTS = [
    *("POST shares", "GET u2", "POST masked", "HEAD masked", "GET survivors"),
    *("POST vote", "GET quorum", "POST unmask", "GET done"),
]

PRELOAD = ["onnxruntime", "aiohttp", "whimbrel.participant", "whimbrel.trainer", "whimbrel.transport", "tests.hostile.driver"]


class Device:
    """The device of one state directory, as often as it is started."""

    def __init__(self, server: HostileServer, path: Path) -> None:
        self.server, self.path = server, path
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOAD)
        self.process: ForkServerProcess | None = None

    def start(self, url: str, point: str = "") -> None:
        arguments = (url, self.server.root.public.hex(), str(self.path), point)
        self.process = self.context.Process(target=live, args=arguments, daemon=True)
        self.process.start()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.join()

    async def death(self) -> None:
        await until(lambda: self.process is not None and not self.process.is_alive())

    @property
    def state(self) -> DeviceState:
        return inspect(self.path)

    @property
    def update(self) -> UpdateRecord:
        (record,) = self.state.updates
        return record

    @property
    def contributions(self) -> int:
        return sum(len(memory.contributions) for memory in self.state.tasks.values())


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not true():  # noqa: ASYNC110  # another process changes what is waited for
            await asyncio.sleep(LOOK_S)


@pytest.mark.processes
@pytest.mark.rule("1.5 MASKED: spent before byte 0")
@pytest.mark.rule("1.5 MASKED: the vector is frozen")
@pytest.mark.rule("3 freed by a certificate alone")
@pytest.mark.rule("1.5 VOTE: persisted before it leaves")
@pytest.mark.parametrize("point", WRITES + REQUESTS)
async def test_a_killed_device_sends_nothing_twice_and_loses_nothing_that_was_free(
    point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    server = HostileServer(Attack("death", "1.5 MASKED: spent before byte 0", None, Update.COUNTED), phase_s=PHASE_S)
    server.windows_left = 5
    device, listener = Device(server, tmp_path / "device"), Listener(server)
    listener.before = killer(device, listener, point)
    async with listener.serving():
        device.start(listener.url, point if point in WRITES else "")
        try:
            await device.death()
            update = device.update
            device.start(listener.url)
            await until(lambda: device.contributions > 0)
            await until(lambda: bool(counting(server)))
        finally:
            device.kill()
    assert contradictions(server) == []
    assert device.contributions == 1
    assert device.update.words_sha256 == update.words_sha256, "the very update that was frozen is the one that counts"
    assert_counted_once(server, (device.path / update.words_file).read_bytes())


def killer(device: Device, listener: Listener, point: str) -> Callable[[str, str], None]:
    """Kill the device when the request arrives, once; an upload is cut half-way, and the device dies when it goes on."""
    listener.half_uploads = int(point == "HEAD masked")
    left = [point]

    def before(method: str, path: str) -> None:
        if left == [f"{method} {path.rsplit('/', 1)[-1]}"]:
            left.clear()
            device.kill()

    return before


def counting(server: HostileServer) -> list[Collector]:
    """The finished windows whose sums have the client's update; time goes on meanwhile."""
    server.tick()
    done = [window.collector for window in server.windows.values() if window.collector.state is ServerState.DONE]
    return [collector for collector in done if collector.devices.index(server.victim) in collector.u3]


def assert_counted_once(server: HostileServer, plain: bytes) -> None:
    """One window's sum has the update, exactly; every other window in which masked words were sent let go of it first."""
    (counted,) = counting(server)
    names = {one.device: one.name for one in server.companions}
    others = [counted.devices[i] for i in counted.u3 if counted.devices[i] != server.victim]
    words = [plain, *(plain_words(counted.spec, names[device]) for device in others)]
    total = np.sum([np.frombuffer(one, "<u8") for one in words], axis=0, dtype=np.uint64)
    assert counted.result is not None
    assert counted.result.words == total.tobytes()
    for tau0 in {one.tau0 for one in server.seen if one.kind == "put"} - {counted.tau0}:
        other = server.windows[tau0].collector
        assert other.abort_certificate is not None or other.quorum is not None, "freed without a certificate"


def deaf_to_votes(server: HostileServer) -> None:
    """Votes come to nothing, and once one was sent the server asks for the opposite."""
    honest = server._window

    def window(method: str, tau0: bytes, phase: str, message: Any, device: bytes) -> Any:
        if phase == "quorum" or (method, phase) == ("POST", "vote"):
            return m.Wait(0) if method == "GET" else m.Accepted()
        if phase == "survivors" and votes(server):
            return m.Survivors(b"", b"", abort=True)
        return honest(method, tau0, phase, message, device)

    server._window = window  # type: ignore[method-assign]


def votes(server: HostileServer) -> list[m.Vote]:
    """The client's votes, each as often as it was sent."""
    return [one.body for one in server.seen if one.kind == "vote"]


@pytest.mark.processes
@pytest.mark.rule("1.5 VOTE: persisted before it leaves")
async def test_a_device_that_was_killed_after_its_vote_repeats_it_whatever_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    server = HostileServer(Attack("death", "1.5 VOTE: persisted before it leaves", None, Update.SPENT))
    deaf_to_votes(server)
    device, listener = Device(server, tmp_path / "device"), Listener(server)
    listener.before = killer(device, listener, "GET quorum")
    async with listener.serving():
        device.start(listener.url)
        try:
            await device.death()
            first = len(votes(server))
            device.start(listener.url)
            await until(lambda: len(votes(server)) > first)
        finally:
            device.kill()
    assert first == 1 and set(votes(server)) == {votes(server)[0]}
    assert contradictions(server) == []
    assert device.update.state is UpdateState.SPENT
