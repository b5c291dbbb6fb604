"""The one way in which a server starts: from what is stored, be it nothing.

What belongs here: opening the storage, and putting every task, assignment and window back where it was promised to be. What
does not: what happens from then on (`coordinator.py`). Anything that is damaged stops the start with its number, but for a
window: that is left out, with an error in the log, because all others go on without it. Nothing is overwritten.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from random import SystemRandom

from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.objects import JoinEntry
from whimbrel_protocol.rules import members_of
from whimbrel_server.catalogue import Catalogue
from whimbrel_server.config import Config
from whimbrel_server.coordinator import Coordinator
from whimbrel_server.datadir import DataDir
from whimbrel_server.fleet import Fleet
from whimbrel_server.ingest.staging import Staging
from whimbrel_server.ingest.upload import Pace
from whimbrel_server.ingest.workers import Workers
from whimbrel_server.listeners.listener import CONNECTION_BYTES
from whimbrel_server.listeners.metrics import Metrics
from whimbrel_server.listeners.tokens import Tokens
from whimbrel_server.rounds.engine import Engine
from whimbrel_server.rounds.events import RunningWindow, TaskStart
from whimbrel_server.rounds.task_run import Assignment, ClosedWindow
from whimbrel_server.storage.files import FileBlobs
from whimbrel_server.storage.memory import MemorySignal
from whimbrel_server.storage.records import UNFINISHED, EventRecord, Recovery, TaskRecord, WindowRecord
from whimbrel_server.storage.sqlite import SqliteRounds
from whimbrel_server.windows import ended
from whimbrel_server.windows.live import LiveWindow, Services
from whimbrel_server.windows.window_effects import WindowEffect
from whimbrel_server.windows.window_restore import restore

logger = logging.getLogger("whimbrel.recovery")


async def started(data: DataDir, config: Config, metrics: Metrics, clock: Callable[[], float]) -> Coordinator:
    """Return a coordinator that goes on where the last one stopped. The caller holds the directory's lock.

    Raises ProtocolError CONFIGURATION, SCHEMA_NEWER, DATA_DAMAGED, UNKNOWN_BLOB or BAD_POLICY.
    """
    rounds = SqliteRounds.open(data.database)
    try:
        stored = await rounds.recover(clock())
        coordinator = _assemble(data, config, metrics, clock, rounds, stored)
        await _restore(coordinator, stored)
    except BaseException:
        await rounds.close()
        raise
    coordinator.start()
    return coordinator


def _assemble(
    data: DataDir, config: Config, metrics: Metrics, clock: Callable[[], float], rounds: SqliteRounds, stored: Recovery
) -> Coordinator:
    if stored.policy is None:
        raise ProtocolError(Code.CONFIGURATION, f"{data.root} holds no policy: run `whimbrel-server init` first")
    limits = config.limits
    fleet = Fleet(bytes.fromhex(config.authority.root), stored.policy, int(clock()))
    if fleet.policy.not_after < clock():
        logger.warning("the policy is past its date: devices will refuse it until a newer one is installed")
    services = Services(
        rounds=rounds,
        blobs=FileBlobs(data.blobs),
        signal=MemorySignal(),
        clock=clock,
        metrics=metrics,
        staging=Staging(data.spill, limits.staging_bytes, limits.spill_bytes, limits.block_bytes, CONNECTION_BYTES),
        pace=Pace(limits.upload_bytes_per_s, limits.upload_grace_s),
        inline_bytes=config.work.inline_bytes,
        quarantine=config.quarantine,
        keep=config.keep,
    )
    workers = Workers(config.work.threads)
    catalogue = Catalogue(rounds, services.blobs, workers, fleet)
    tokens = Tokens(data.read(data.token_key), fleet.id)
    return Coordinator(services, fleet, catalogue, Engine(SystemRandom()), tokens, workers)


async def _restore(coordinator: Coordinator, stored: Recovery) -> None:
    for task in stored.tasks:
        if task.name in stored.current:
            await coordinator.catalogue.restore(task, stored.current[task.name])
    for window in stored.recent:
        for entry in window.roster:
            decoded = JoinEntry.decode(entry)
            coordinator.engine.entry_used(decoded.device, decoded.seq, float(decoded.expires), entry)
    for device, until in stored.quarantined.items():
        coordinator.engine.quarantine(device, until, coordinator.now())
    windows = [
        found
        for window, events in stored.unfinished
        if (found := await _restore_window(coordinator, window, events)) is not None
    ]
    for task in stored.tasks:
        if task.name in stored.current:
            for done in stored.unapplied[task.name]:
                coordinator.windows.remember(done)
            effects = coordinator.engine.add_task(_task_start(coordinator, task, stored), coordinator.now())
            coordinator.carry_out_later(effects)
    for live, begin in windows:
        live.begin(begin)
    logger.info("recovered", extra={"tasks": len(stored.tasks), "windows": len(windows)})


async def _restore_window(
    coordinator: Coordinator, record: WindowRecord, events: Sequence[EventRecord]
) -> tuple[LiveWindow, list[WindowEffect]] | None:
    """Let a window go on; None where what is stored of it does not allow that."""
    try:
        spec = await coordinator.catalogue.spec(record)
        limits = coordinator.catalogue.task(record.task).settings.limits(spec.words)
        run, begin = restore(record, events, spec, limits, coordinator.now())
    except ProtocolError as error:
        fields = {"window": record.tau0.hex(), "code": int(error.code), "detail": error.detail}
        logger.error("a window is damaged and left out", extra=fields)
        return None
    if _is_awaited(record, coordinator.catalogue.task(record.task).version.version):
        return coordinator.windows.adopt(run, record.masked_sum), begin
    return coordinator.windows.take_in(run, record.masked_sum), begin


def _is_awaited(record: WindowRecord, version: int) -> bool:
    """Whether the round waits for a window: one that had its quorum late may be of an older version."""
    return record.state in UNFINISHED and record.version == version


def _task_start(coordinator: Coordinator, task: TaskRecord, stored: Recovery) -> TaskStart:
    version = stored.current[task.name].version
    return TaskStart(
        name=task.name,
        settings=coordinator.catalogue.task(task.name).settings,
        policy=coordinator.fleet.policy,
        version=version,
        rounds_done=version - 1,
        windows=tuple(ClosedWindow(w.window_id, _contributors(w)) for w in stored.unapplied[task.name]),
        open_windows=tuple(
            RunningWindow(w.window_id, tuple(ended.devices(w)))
            for w, _ in stored.unfinished
            if w.tau0 in coordinator.windows and w.task == task.name and _is_awaited(w, version)
        ),
        assignments=tuple(
            Assignment(a.id, a.device, a.task, a.version, a.expires)
            for a in stored.assignments
            if (a.task, a.version) == (task.name, version)
        ),
        spent=tuple(device for window in stored.failed[task.name] for device in _contributors(window)),
    )


def _contributors(record: WindowRecord) -> tuple[bytes, ...]:
    devices = ended.devices(record)
    return tuple(devices[i] for i in members_of(record.u3 or b"", len(devices)))
