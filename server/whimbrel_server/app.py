"""The running server: one data directory, two listeners.

What belongs here: putting the parts together and taking them down. What does not: any part. Nothing imports this module but
the command line.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib import metadata

import aiohttp

from whimbrel_server.config import Config
from whimbrel_server.coordinator import Coordinator
from whimbrel_server.datadir import DataDir
from whimbrel_server.listeners import admin_api, device_api
from whimbrel_server.listeners.enrolment import Enrolment
from whimbrel_server.listeners.hot_blobs import HotBlobs
from whimbrel_server.listeners.listener import Terms, listening
from whimbrel_server.listeners.metrics import Metrics
from whimbrel_server.listeners.problems import failure, problem
from whimbrel_server.recovery import started


@dataclass(frozen=True)
class Running:
    """A server that answers on these two addresses."""

    device_url: str
    admin_url: str
    admin_token: str
    coordinator: Coordinator
    desk: device_api.Desk


def version() -> str:
    """Return the installed distribution's version, `source` where it runs from a working tree."""
    try:
        return metadata.version("whimbrel")
    except metadata.PackageNotFoundError:
        return "source"


@asynccontextmanager
async def running(data: DataDir, config: Config, clock: Callable[[], float] = time.time) -> AsyncIterator[Running]:
    """Serve a data directory while the block runs. Raises ProtocolError where it cannot start; see `recovery.started`."""
    async with AsyncExitStack() as stack:
        stack.enter_context(data.locked())
        data.make_secrets()
        metrics = Metrics()
        coordinator = await started(data, config, metrics, clock)
        stack.push_async_callback(coordinator.close)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        hot = HotBlobs(coordinator.services.blobs, config.limits.hot_bytes)
        enrolment = Enrolment(config.authority.url, config.authority.timeout_s, session, coordinator)
        desk = device_api.Desk(coordinator, enrolment, hot, config.limits)
        token = config.admin.token or data.read(data.admin_token).decode().strip()
        office = admin_api.Office(coordinator, hot, config.limits, token, version(), time.monotonic())
        terms = Terms(config.limits.connections, config.limits.idle_s)
        apps = device_api.make_app(desk, metrics), admin_api.make_app(office, metrics)
        where = config.listen, config.admin
        device = await stack.enter_async_context(listening(apps[0], where[0].host, where[0].port, terms, failure))
        admin = await stack.enter_async_context(listening(apps[1], where[1].host, where[1].port, terms, problem))
        data.note_running(device, admin)
        yield Running(device, admin, token, coordinator, desk)


async def serve(data: DataDir, config: Config) -> None:
    """Serve until SIGINT or SIGTERM; says on standard output where, as soon as it does."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(data, config) as server:
        print(f"listening on {server.device_url}", flush=True)
        print(f"admin on {server.admin_url}", flush=True)
        await stop.wait()
