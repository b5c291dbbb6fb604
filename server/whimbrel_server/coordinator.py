"""The shell around the pure core: engine and windows on one side, storage, clock and waiting devices on the other.

What belongs here: carrying out the engine's effects, the alarm that lets deadlines pass, and the calls that both listeners
make. What does not: starting from what is stored (`recovery.py`), one window's effects (`live.py`), HTTP. One event loop
owns all of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from whimbrel_protocol import messages as m
from whimbrel_protocol.collector import Collector
from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.forming import check_entry
from whimbrel_protocol.objects import JoinEntry
from whimbrel_server.catalogue import Catalogue, check_policy_change
from whimbrel_server.fleet import Fleet
from whimbrel_server.ingest.workers import Workers
from whimbrel_server.listeners.problems import numbered
from whimbrel_server.listeners.tokens import Tokens
from whimbrel_server.rounds import events
from whimbrel_server.rounds.engine import Engine
from whimbrel_server.rounds.events import Joining, Opened
from whimbrel_server.rounds.task_run import Assignment, ClosedWindow, TaskState
from whimbrel_server.settings import TaskSettings
from whimbrel_server.storage.records import AssignmentRecord, TaskRecord, WindowRecord
from whimbrel_server.sweeping import sweep
from whimbrel_server.windows.live import LiveWindow, Services, seconds
from whimbrel_server.windows.live_windows import LiveWindows
from whimbrel_server.windows.window_restore import restore
from whimbrel_server.windows.window_run import WindowRun

logger = logging.getLogger("whimbrel.coordinator")

# All who hold a ticket wait here: a window that opens wakes them.
_TICKETS = b"tickets"
_RETRY_S = 5.0
_LEAST_SLEEP_S = 0.02
_PRUNE_S = 3600.0
_TIDY_LEAST_S = 60.0


class Coordinator:
    """One data directory at work."""

    def __init__(
        self, services: Services, fleet: Fleet, catalogue: Catalogue, engine: Engine, tokens: Tokens, workers: Workers
    ) -> None:
        self.services, self.fleet, self.catalogue = services, fleet, catalogue
        self.engine, self.tokens, self.workers = engine, tokens, workers
        self.windows = LiveWindows(services, workers, self._window_closed)
        self._opening: set[int] = set()
        self._keeping: dict[bytes, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._kick = asyncio.Event()
        self._littered = asyncio.Event()

    def now(self) -> float:
        """Unix seconds."""
        return self.services.clock()

    # --- the alarm --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Let deadlines pass from now on."""
        self.spawn(self._alarm())
        self.spawn(self._forget_the_old())

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` beside everything else."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned_done)

    def _spawned_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("unforeseen", exc_info=task.exception())

    async def close(self) -> None:
        """Let go of everything. Nothing needs saving: what was promised is durable, and a start is a recovery."""
        for task in list(self._tasks):
            task.cancel()
        self.windows.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self.workers.close)
        await self.services.rounds.close()

    async def _alarm(self) -> None:
        while True:
            self._kick.clear()
            try:
                self._let_pass()
            except Exception:
                logger.exception("unforeseen")
                await asyncio.sleep(_RETRY_S)
            due = (self.engine.next_timer(), self.windows.next_deadline())
            delay = min((when - self.now() for when in due if when is not None), default=3600.0)
            try:
                async with asyncio.timeout(max(delay, _LEAST_SLEEP_S)):
                    await self._kick.wait()
            except TimeoutError:
                continue

    async def _forget_the_old(self) -> None:
        """At the start, after a version was published, and each hour: but seldom, whatever happens."""
        while True:
            self._littered.clear()
            await self._insist(self.tidy, "forgetting what is out of date")
            await asyncio.sleep(_TIDY_LEAST_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(_PRUNE_S):
                    await self._littered.wait()

    async def tidy(self) -> None:
        """Forget what is out of date, and delete the blobs that nothing needs."""
        services, now = self.services, self.now()
        await services.rounds.prune(now)
        deleted = await sweep(services.rounds, services.blobs, services.keep, now)
        logger.info("tidied", extra={"deleted": deleted})

    def _let_pass(self) -> None:
        self.carry_out_later(self.engine.tick(self.now()))
        self.windows.tick(self.now())

    # --- effects of the engine --------------------------------------------------------------------------------------

    async def carry_out(self, effects: Sequence[events.Effect]) -> None:
        """Begin all effects, whatever becomes of the caller; return when its assignments are durable."""
        self.carry_out_later(effects)
        self._kick.set()
        for effect in effects:
            if isinstance(effect, events.Assign):
                await self._kept(effect.assignment)

    async def _kept(self, assignment: Assignment) -> None:
        """Return once an assignment is durable: before that nobody is told of it. Raises what storage raises."""
        keeping = self._keeping.get(assignment.id)
        if keeping is not None and keeping.done() and keeping.exception() is not None:  # the disk was full: once more
            self._keep(assignment)
        if assignment.id in self._keeping:
            await asyncio.shield(self._keeping[assignment.id])
            self._keeping.pop(assignment.id, None)

    def _keep(self, a: Assignment) -> None:
        record = AssignmentRecord(a.id, a.device, a.task, a.version, a.expires)
        self._keeping[a.id] = asyncio.ensure_future(self.services.rounds.assign(record))

    def carry_out_later(self, effects: Sequence[events.Effect]) -> None:
        """Begin effects that nobody waits for."""
        for effect in effects:
            match effect:
                case events.OpenWindow():
                    self._opening.add(effect.window_id)
                    self.spawn(self._open_window(effect))
                case events.Publish():
                    self.spawn(self._publish(effect))
                case events.Finish():
                    self.spawn(self._finish_task(effect.task))
                case events.Retry():
                    logger.warning("round is tried again", extra={"task": effect.task, "contributions": effect.contributions})
                case events.Assign():
                    self._keep(effect.assignment)

    async def _open_window(self, effect: events.OpenWindow) -> None:
        try:
            window = await self._form(effect)
        except Exception as exception:
            error = numbered(exception)
            fields = {"task": effect.task, "code": int(error.code), "detail": error.detail}
            logger.warning("window could not be opened", extra=fields)
            self._opening.discard(effect.window_id)
            self.services.signal.wake(_TICKETS)
            self.carry_out_later(self.engine.window_aborted(effect.window_id, self.now()))
            return
        self._opening.discard(effect.window_id)
        n, tau0 = window.run.collector.n, window.tau0.hex()
        logger.info("window opened", extra={"task": effect.task, "version": effect.version, "window": tau0, "n": n})
        self.services.signal.wake(_TICKETS)
        self._kick.set()

    async def _form(self, effect: events.OpenWindow) -> LiveWindow:
        task, now = self.catalogue.task(effect.task), self.now()
        lane = task.lane(self.fleet.policy_bytes)
        collector = Collector.form(effect.entries, self.fleet.id, lane, task.spec, self.fleet.policy, effect.window_id)
        await self.services.rounds.open_window(
            WindowRecord(
                tau0=collector.tau0,
                window_id=effect.window_id,
                task=effect.task,
                version=effect.version,
                lane=lane,
                params=collector.open.params,
                roster=collector.open.roster,
                opened_at=now,
            )
        )
        return self.windows.adopt(WindowRun(collector, task.settings.limits(task.spec.words), self.now()))

    async def revive(self, record: WindowRecord) -> LiveWindow:
        """Bring back a window that was given up, for the votes that settle its updates; the engine knows of it no more."""
        stored = await self.services.rounds.events(record.tau0)
        spec, limits = await self.catalogue.spec(record), self.catalogue.task(record.task).settings.limits(0)
        held = self.windows.get(record.tau0)
        if held is not None:  # another member's vote was quicker
            return held
        run, begin = restore(record, stored, spec, limits, self.now())
        window = self.windows.take_in(run, record.masked_sum)
        window.begin(begin)
        return window

    def _window_closed(self, window: LiveWindow, outcome: str) -> None:
        window_id, now = window.run.collector.params.window_id, self.now()
        if self.windows.settle(window):
            collector = window.run.collector
            match outcome:
                case "done":
                    follows = self.engine.window_done(window_id, [collector.devices[i] for i in collector.u3], now)
                case "aborted":
                    lost = [collector.devices[i] for i in window.run.lost]
                    follows = self.engine.window_aborted(window_id, now, lost)
                case _:
                    survivors = [collector.devices[i] for i in collector.u3]
                    follows = self.engine.window_failed(window_id, now, survivors)
            if outcome != "done":
                self.windows.forget_name(window_id)
            for one in window.blamed:
                follows = [*follows, *self.engine.quarantine(one.device, one.until, now)]
            self.spawn(self.carry_out(follows))
        elif outcome == "done":
            self.spawn(self._count_late(window))
        self.windows.linger(window)

    async def _count_late(self, window: LiveWindow) -> None:
        """Hand the sum of a window that was given up to the round of its version, if that goes on."""
        record, collector = await self.record(window.tau0), window.run.collector
        done = ClosedWindow(record.window_id, tuple(collector.devices[i] for i in collector.u3))
        counts, follows = self.engine.window_late(record.task, record.version, done, self.now())
        if counts:
            self.windows.remember(record)
        logger.info("late sum", extra={"window": record.tau0.hex(), "version": record.version, "counts": counts})
        await self.carry_out(follows)

    async def _publish(self, effect: events.Publish) -> None:
        async def publish() -> None:
            records = [await self.record(self.windows.name(window_id)) for window_id in effect.windows]
            await self.catalogue.publish(effect.task, records, self.now())

        await self._insist(publish, f"version after {effect.base_version} of {effect.task}")
        for window_id in effect.windows:
            self.windows.forget_name(window_id)
        version = self.catalogue.task(effect.task).version
        logger.info("version published", extra={"task": effect.task, "version": version.version, "n": version.contributions})
        self._littered.set()
        await self.carry_out(self.engine.published(effect.task, version.version, self.now()))
        self.services.signal.wake(_TICKETS)

    async def _finish_task(self, name: str) -> None:
        await self._insist(lambda: self.services.rounds.set_task_state(name, "finished"), f"end of {name}")
        logger.info("task finished", extra={"task": name})

    async def _insist(self, work: Callable[[], Awaitable[object]], name: str) -> None:
        """Do what must be done, however long the disk takes: meanwhile nothing is promised, and nothing is lost."""
        while True:
            try:
                await work()
                return
            except Exception as exception:
                error = numbered(exception)
                logger.error("tried again soon", extra={"what": name, "code": int(error.code), "detail": error.detail})
                await asyncio.sleep(_RETRY_S)

    async def record(self, tau0: bytes) -> WindowRecord:
        """Return a window's record. Raises UNKNOWN_WINDOW."""
        record = await self.services.rounds.window(tau0)
        if record is None:
            raise RuleError(Code.UNKNOWN_WINDOW, tau0.hex())
        return record

    # --- what devices ask -------------------------------------------------------------------------------------------

    async def check_in(self, message: m.CheckIn, token_s: int) -> m.CheckedIn:
        """Answer a device's signed presence with a token, and with work or a time to come back."""
        now = self.now()
        body = self.fleet.judge(message, int(now))
        answer, effects = self.engine.check_in(body.device, now)
        await self.carry_out(effects)
        app = (message.app_version, message.protocol)
        await self.services.rounds.seen(body.device, message.certificate, *app, now)
        given = answer.assignment
        if given is not None:
            await self._kept(given)
        assignment = None
        if given is not None and given.version == self.catalogue.task(given.task).version.version:
            deadline = seconds(given.expires - now)
            assignment = await self.catalogue.assignment(given.task, given.id, deadline, message.held)
        return m.CheckedIn(
            token=self.tokens.issue(body.device, int(now) + token_s),
            token_expires_s=token_s,
            come_back_s=0 if assignment else seconds(answer.come_back_s),
            now=int(now),
            policy=self.fleet.policy_bytes,
            assignment=assignment,
        )

    async def join(self, device: bytes, message: m.Join) -> m.Joined:
        """Take a device's join entry. Raises STALE_VERSION, NOT_YOURS, or the number of what a member would refuse.

        ENTRY_LANE tells a device that knows an older policy to check in and join again: its assignment goes on.
        STATE_ROLLED_BACK tells one that its counter went back,
        ENTRY_SHORT_LIVED with a time to come back that an entry must live until that rendezvous.
        """
        entry = self._judged(device, message)
        await self.services.rounds.count_join(device, entry.seq, message.entry)
        # While the disk was written the lane may have closed, or a newer policy may have begun another.
        now, assignment = self.now(), self.engine.assignment(message.assignment, device)
        if entry.lane != self.catalogue.task(assignment.task).lane(self.fleet.policy_bytes):
            raise RuleError(Code.ENTRY_LANE)
        joining = Joining(device, entry.seq, float(entry.expires), message.entry)
        answer, effects = self.engine.join(message.assignment, joining, now)
        await self.carry_out(effects)
        return m.Joined(answer.ticket, round(answer.come_back_s))

    def _judged(self, device: bytes, message: m.Join) -> JoinEntry:
        """Check an entry before anything of it is counted."""
        now, assignment = self.now(), self.engine.assignment(message.assignment, device)
        lane = self.catalogue.task(assignment.task).lane(self.fleet.policy_bytes)
        entry = self._check_entry(message.entry, lane, now, self.engine.rendezvous(assignment.task, now))
        if entry.device != device:
            raise RuleError(Code.NOT_YOURS, "the entry names another device than the token")
        return entry

    def _check_entry(self, data: bytes, lane: bytes, now: float, rendezvous: float | None) -> JoinEntry:
        """Check an entry; one that does not live until the rendezvous is told how far that is."""
        fleet, opens = self.fleet, None if rendezvous is None else int(rendezvous)
        try:
            return check_entry(data, fleet.id, lane, fleet.policy, fleet.root, int(now), opens)
        except RuleError as error:
            if error.code is Code.ENTRY_SHORT_LIVED and rendezvous is not None:
                error.come_back_s = seconds(rendezvous - now)
            raise

    async def ticket(self, device: bytes, ticket: bytes, wait_s: float) -> m.Open | m.Wait:
        """Return the OPEN of the window that an entry stands in, or a time to come back."""
        loop = asyncio.get_running_loop()
        end = loop.time() + wait_s
        while True:
            mark = self.services.signal.mark(_TICKETS)
            answer = self.engine.ticket(ticket, device, self.now())
            if isinstance(answer, Opened):
                window = self.windows.awaited(answer.window_id)
                if window is not None:
                    return window.run.open()
                if answer.window_id not in self._opening:
                    raise RuleError(Code.UNKNOWN_TICKET, "the window has ended, or could not be opened: join again")
            left = end - loop.time()
            if left <= 0 or not await mark.wait(left):
                return m.Wait(0 if isinstance(answer, Opened) else round(answer.come_back_s))

    async def report(self, device: bytes, message: m.Report) -> None:
        """Take a device's word that it will not contribute."""
        fields = {"number": message.code, "step": message.step, "task": message.task, "version": message.version}
        logger.info("device reports", extra=fields)
        await self.carry_out(self.engine.give_up(device, message.task, message.version, self.now()))

    async def window(self, tau0: bytes, device: bytes) -> tuple[LiveWindow, int] | WindowRecord:
        """Return a window and the device's index in it, or an ended one's record. Raises UNKNOWN_WINDOW, NOT_YOURS."""
        live = self.windows.get(tau0)
        if live is not None:
            return live, live.member(device)
        return await self.record(tau0)

    def wake_alarm(self) -> None:
        """A deadline may have come nearer."""
        self._kick.set()

    # --- what operators ask -----------------------------------------------------------------------------------------

    async def create_task(self, name: str, model: bytes, settings: TaskSettings) -> TaskRecord:
        """See `Catalogue.create`."""
        return await self.catalogue.create(name, model, settings, self.now())

    async def sign_task(self, name: str, signed: bytes) -> None:
        """Set a task going with its signed plan."""
        task = await self.catalogue.sign(name, signed, self.now())
        start = events.TaskStart(name, task.settings, self.fleet.policy)
        await self.carry_out(self.engine.add_task(start, self.now()))
        logger.info("task started", extra={"task": name})

    async def install_policy(self, data: bytes) -> None:
        """Put a newer policy in force. Raises RuleError 2xx, or POLICY_UNSATISFIABLE where a task could not go on under it."""
        now = self.now()
        policy = self.fleet.accept(data, int(now))
        live = self.catalogue.live.values()
        check_policy_change(policy, [task for task in live if self.engine.task(task.name).state != TaskState.FINISHED.value])
        await self.services.rounds.install_policy(policy.serial, data, now)
        if policy.serial > self.fleet.policy.serial:
            self.fleet.install(data)
            self.carry_out_later(self.engine.set_policy(policy, now))
            self.services.signal.wake(_TICKETS)
            logger.info("policy installed", extra={"serial": policy.serial})

    def task_view(self, name: str) -> events.TaskView | None:
        """Return where a task stands; nothing while it waits for its signed plan."""
        return self.engine.task(name) if name in self.catalogue.live else None
