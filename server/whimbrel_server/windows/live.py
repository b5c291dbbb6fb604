"""A window while it runs: its state machine, its sum, its uploads, and what must be durable before anybody is told.

What belongs here: carrying out what `window_run.py` asks for, in its order, and answering members. What does not: the
window's rules and deadlines (`window_run.py`), which windows there are (`coordinator.py`), HTTP (`device_api.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import ceil

from aiohttp import StreamReader

from whimbrel_protocol import messages as m
from whimbrel_protocol.blame import Fault
from whimbrel_protocol.errors import Code, ProtocolError, RuleError
from whimbrel_server.config import Keep, Quarantine
from whimbrel_server.ingest.staging import Staging
from whimbrel_server.ingest.upload import WORD, Accumulator, Pace, Upload
from whimbrel_server.ingest.workers import Worker
from whimbrel_server.listeners.metrics import Metrics
from whimbrel_server.memory import LARGE_BYTES, trim
from whimbrel_server.rounds import quarantine
from whimbrel_server.storage.protocols import Blobs, Rounds, Signal
from whimbrel_server.storage.records import BlameRecord, WindowOutcome
from whimbrel_server.windows import window_effects as effects
from whimbrel_server.windows.window_run import Phase, WindowRun

logger = logging.getLogger("whimbrel.windows")

Posted = m.Shares | m.MaskedHead | m.Vote | m.Unmask | m.CanaryMasks

_RETRY_S = 1.0
_BEFORE_SURVIVORS = (Phase.SHARE, Phase.FIX_U2, Phase.MASK)


@dataclass(frozen=True)
class Services:
    """What all windows share."""

    rounds: Rounds
    blobs: Blobs
    signal: Signal
    clock: Callable[[], float]
    metrics: Metrics
    staging: Staging
    pace: Pace
    inline_bytes: int
    quarantine: Quarantine
    keep: Keep


class LiveWindow:
    """One window of one lane, from its durable roster to its end."""

    def __init__(
        self,
        run: WindowRun,
        services: Services,
        worker: Worker,
        closed: Callable[[LiveWindow, str], None],
        masked_sum: bytes | None = None,
    ) -> None:
        self.run = run
        self.tau0 = run.collector.tau0
        self.members = {device: i for i, device in enumerate(run.collector.devices)}
        self._services, self._worker, self._closed = services, worker, closed
        words = run.collector.spec.words
        self._size = WORD * words
        self._accumulator = Accumulator(words, worker, services.inline_bytes)
        self._uploads: dict[int, Upload] = {}
        self._masked_sum = masked_sum
        self.blamed: list[BlameRecord] = []
        self._unlogged: dict[tuple[str, int], effects.Log] = {}
        self._todo: asyncio.Queue[effects.WindowEffect] = asyncio.Queue()
        self._task = asyncio.create_task(self._carry_out_all())

    def member(self, device: bytes) -> int:
        """Return the index of a device. Raises RuleError NOT_YOURS."""
        if device not in self.members:
            raise RuleError(Code.NOT_YOURS, "this device is not in the window's roster")
        return self.members[device]

    def begin(self, asked: Sequence[effects.WindowEffect]) -> None:
        """Carry out what brings a restored window on its way again."""
        self._queue(asked)

    @property
    def ended(self) -> bool:
        """Whether nothing more happens by itself; an abort may still wait for votes."""
        return self.run.phase in (Phase.DONE, Phase.FAILED, Phase.ABORTED) or (
            self.run.phase is Phase.ABORT and self.run.deadline is None
        )

    def stop(self) -> None:
        """Let go of everything; what was durable stays."""
        self._task.cancel()
        self._drop_uploads()

    def tick(self, now: float) -> None:
        """Let deadlines pass."""
        self._queue(self.run.tick(now))

    # --- what members send ------------------------------------------------------------------------------------------

    async def accept(self, message: Posted) -> None:
        """Take a member's message; returns when it is durable, as far as it must be."""
        name = type(message).__name__.lower()
        await self._log(self._counted(name, lambda: self._take(message, self._services.clock())))

    def _take(self, message: Posted, now: float) -> list[effects.WindowEffect]:
        match message:
            case m.Shares():
                return self.run.on_shares(message, now)
            case m.MaskedHead():
                return self._on_head(message, now)
            case m.Vote():
                return self.run.on_vote(message, now)
            case m.CanaryMasks():
                return self.run.on_canaries(message, now)
        return self.run.on_unmask(message, now)

    def _on_head(self, message: m.MaskedHead, now: float) -> list[effects.WindowEffect]:
        follows = self.run.on_head(message, now)
        if message.i not in self._uploads and self.run.phase is Phase.MASK:
            self._uploads[message.i] = Upload(self._services.staging, self._size, message.sha256)
        return follows

    def _counted(self, name: str, take: Callable[[], list[effects.WindowEffect]]) -> list[effects.WindowEffect]:
        try:
            follows = take()
        except RuleError as error:
            self._services.metrics.note_message(name, "discarded" if error.code is Code.TOO_LATE else "rejected")
            raise
        self._services.metrics.note_message(name, "accepted")
        return follows

    async def _log(self, asked: Sequence[effects.WindowEffect]) -> None:
        """Make accepted messages durable at once, all that come together in one commit; the rest follows in order."""
        logs = [effect for effect in asked if isinstance(effect, effects.Log)]
        for log in logs:
            self._unlogged[log.kind, log.member] = log
        self._queue([effect for effect in asked if not isinstance(effect, effects.Log)])
        await asyncio.gather(*(self._log_one(log) for log in logs))

    async def _log_one(self, log: effects.Log) -> None:
        await self._services.rounds.log(self.tau0, log.kind, log.member, log.body)
        self._unlogged.pop((log.kind, log.member), None)

    # --- masked vectors ---------------------------------------------------------------------------------------------

    def words_held(self, i: int) -> int:
        """Return how many words of a member's vector are here. Raises RuleError PHASE_NOT_YET or PHASE_OVER."""
        return self._upload(i).words_held

    def _upload(self, i: int) -> Upload:
        if i in self._uploads:
            return self._uploads[i]
        if self.run.phase in _BEFORE_SURVIVORS:
            raise RuleError(Code.PHASE_NOT_YET, "announce the vector with a MaskedHead first")
        raise RuleError(Code.PHASE_OVER)

    async def receive(
        self, i: int, offset: int, length: int, content: StreamReader, invite: Callable[[], Awaitable[None]]
    ) -> None:
        """Take a chunk of `length` bytes that begins at word `offset`; `invite` is awaited before the first byte is read.

        Returns when the chunk, or with the last one the whole vector, is taken. Raises RuleError for what does not fit, before
        anything is read; PHASE_OVER or TOO_LATE where the phase ended meanwhile.
        """
        upload = self._upload(i)
        if upload.finishing is None:
            if length % WORD or offset * WORD + length > self._size:
                raise RuleError(Code.OUT_OF_RANGE, f"{length} bytes from word {offset} are no part of the vector")
            if upload.words_held != offset:
                raise RuleError(Code.BAD_OFFSET, f"word {offset}, not {upload.words_held}")
            await invite()
            await upload.receive(offset * WORD, length, content, self._services.pace)
            if not upload.whole:
                return
        await asyncio.shield(upload.finish(self._accumulator, lambda ends: self._arrived(i, ends)))

    def _arrived(self, i: int, ends: bytes) -> None:
        self._queue(self._counted("vector", lambda: self.run.on_vector(i, self._services.clock(), ends)))

    def _drop_uploads(self) -> None:
        """Give memory back once no vector can be taken any more; those that were taken still answer a repeat."""
        for upload in self._uploads.values():
            upload.drop()
        self._uploads = {i: upload for i, upload in self._uploads.items() if upload.finishing is not None}

    # --- what members ask -------------------------------------------------------------------------------------------

    async def answer(self, phase: str, i: int, seconds: float) -> m.Message:
        """Return the phase's message for member `i`, or Wait after so many seconds without one."""
        ask: dict[str, Callable[[], m.Message | None]] = {
            "u2": lambda: self.run.u2_for(i),
            "survivors": self.run.survivors,
            "quorum": self.run.quorum,
            "done": lambda: self.run.done(i),
        }
        # Once a call: waking up is no sign of life, since the connection may have broken meanwhile (see `lost`).
        self.run.here(i)
        end = asyncio.get_running_loop().time() + seconds
        while True:
            mark = self._services.signal.mark(self.tau0)
            found = ask[phase]()
            left = end - asyncio.get_running_loop().time()
            if found is not None:
                return found
            if left <= 0 or not await mark.wait(left):
                return m.Wait(0 if seconds else 1)

    def lost(self, i: int) -> None:
        """Note that a member's connection broke while it waited: it holds up no phase until it is back."""
        self.run.gone(i, self._services.clock())

    # --- what the state machine asks --------------------------------------------------------------------------------

    def _queue(self, asked: Sequence[effects.WindowEffect]) -> None:
        for effect in asked:
            self._todo.put_nowait(effect)
        if self.run.phase not in _BEFORE_SURVIVORS:
            self._drop_uploads()

    async def _carry_out_all(self) -> None:
        while True:
            effect = await self._todo.get()
            await self._until_durable(effect)

    async def _until_durable(self, effect: effects.WindowEffect) -> None:
        """Carry out one effect; a full disk is waited out, so that nothing is told that a crash could undo."""
        while True:
            try:
                return await self._carry_out(effect)
            except ProtocolError as error:
                fields = {"window": self.tau0.hex(), "code": int(error.code), "detail": error.detail}
                logger.error("a step of the window failed", extra=fields)
                if self.run.phase is Phase.UNMASKING and error.code is not Code.STORAGE_FULL:
                    return self._queue(self.run.fail(error, self._services.clock()))
                if isinstance(effect, effects.FixSurvivors) and error.code is Code.DATA_DAMAGED:
                    return self._queue(self.run.abort(self._services.clock()))
            except Exception:
                logger.exception("a step of the window failed", extra={"window": self.tau0.hex()})
            await asyncio.sleep(_RETRY_S)

    async def _carry_out(self, effect: effects.WindowEffect) -> None:
        match effect:
            case effects.Wake():
                self._services.signal.wake(self.tau0)
            case effects.Log():
                await self._log_one(effect)
            case effects.GiveUp(state, failure):
                await self._services.rounds.close_window(self.tau0, state, self.run.dropped, self._services.clock(), failure)
            case effects.Blamed(faults):
                await self._blame(faults)
            case effects.Closed(outcome):
                fields = {"window": self.tau0.hex(), "outcome": outcome, "dropped": self.run.dropped}
                logger.info("window closed", extra=fields)
                self._closed(self, outcome)
            case _:
                for log in list(self._unlogged.values()):
                    await self._log_one(log)
                await self._fix(effect)
                self._queue(self.run.settle(self._services.clock()))

    async def _blame(self, faults: Sequence[Fault]) -> None:
        now, devices = self._services.clock(), self.run.collector.devices
        self.blamed = quarantine.records(faults, self.tau0, devices, self._services.quarantine, now)
        await self._services.rounds.blame(self.blamed)
        for one in self.blamed:
            fields = {"window": self.tau0.hex(), "device": one.device.hex(), "kind": one.kind, "detail": one.detail}
            logger.warning("device blamed", extra={**fields, "suspects": len(one.suspects), "until": one.until})

    async def _fix(self, effect: effects.WindowEffect) -> None:
        """Make durable what a phase decided, behind the messages that it decided by."""
        rounds, now = self._services.rounds, self._services.clock()
        match effect:
            case effects.FixU2(u2):
                await rounds.fix_u2(self.tau0, u2, now)
                if self._size > LARGE_BYTES:  # what the many small messages so far left behind makes room for vectors
                    await self._worker.run(trim)
            case effects.FixSurvivors(u3, heads):
                self._masked_sum = await self._services.blobs.put(await self._accumulator.copy())
                await rounds.fix_survivors(self.tau0, u3, heads, self._masked_sum, now)
                self._accumulator.release()
            case effects.FixQuorum(quorum):
                await rounds.fix_quorum(self.tau0, quorum, now)
            case effects.FixAbort(certificate):
                await rounds.fix_abort(self.tau0, certificate, self.run.dropped, now)
            case effects.RunUnmasking():
                await self._unmask()

    async def _unmask(self) -> None:
        if self._masked_sum is None:
            raise RuleError(Code.DATA_DAMAGED, "the masked sum of the window is not known")
        total = bytearray(await self._services.blobs.get(self._masked_sum))
        collector = self.run.collector
        done = await self._worker.run(lambda: collector.finish(total))
        words = await self._services.blobs.put(done.words)
        contributors = tuple(collector.devices[i] for i in collector.u3)
        outcome = WindowOutcome(words, done.count, done.weight_sum, contributors, self.run.dropped)
        await self._services.rounds.finish_window(self.tau0, outcome, self._services.clock())


def seconds(value: float) -> int:
    """Return a time to come back as whole seconds, at least one."""
    return max(1, ceil(value))
