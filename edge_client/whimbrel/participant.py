"""What an app embeds: one device that takes part, a bounded step at a time.

    async with Participant.open(URL, state="dir", examples=examples, authority=ROOT_HEX, token=TOKEN) as participant:
        await participant.run()

What belongs here: the shell around the pure life of `lifecycle.py`: it performs actions with the journal, the transport and the
trainer, and knows the clock. What does not: decisions. Between any two ticks the process may die; the next start goes on from
the journal.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from whimbrel.actions import Action, Array, Ask, Fetch, Load, Persist, Send, Sleep, Train, Trained, TrainingJob, Upload
from whimbrel.device import Settings, Stage
from whimbrel.device_policy import DevicePolicy
from whimbrel.examples import Source, gather
from whimbrel.journal import Journal
from whimbrel.lifecycle import FOR_PEOPLE, Lifecycle
from whimbrel.preparing import held_tensors
from whimbrel.records import DeviceState, TaskMemory
from whimbrel_protocol import wire
from whimbrel_protocol.delta import apply
from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.messages import Failure, ModelDelta, PlanBody
from whimbrel_protocol.primitives import KEY_BYTES
from whimbrel_protocol.signed import Plan

if TYPE_CHECKING:
    from whimbrel.trainer import Metrics, Trainer
    from whimbrel.transport import Transport

log = logging.getLogger("whimbrel")
T = TypeVar("T")

_BOUNDED = (Send, Fetch, Upload, Train)  # one of these makes a tick; all other actions are done in passing


class Participant:
    """One device. Use `open`; only one task at a time may call its coroutines."""

    def __init__(self, url: str, state: Path, examples: Source, settings: Settings) -> None:
        self._url, self._path, self._examples, self._settings = url, state, examples, settings
        self._journal: Journal | None = None
        self._transport: Transport | None = None
        self._trainer: tuple[TrainingJob, Trainer] | None = None
        self._training = threading.Lock()
        self._life: Lifecycle | None = None
        self._told: tuple[Stage, ProtocolError | None] = (Stage.REST, None)

    @classmethod
    def open(
        cls,
        url: str,
        *,
        state: str | Path,
        examples: Source,
        authority: str,
        token: str = "",
        policy: DevicePolicy | None = None,
        app_version: str = "",
    ) -> Self:
        """Return the device that lives in the directory `state`; enter it with `async with`.

        `url` is the server's device listener, `examples` is called at each training, in a thread of its own, `authority` is the
        fleet's root key in hexadecimal, `token` the enrolment token, needed once. Raises ProtocolError 431 if the key is none.
        """
        settings = Settings(_root(authority), token, app_version, policy or DevicePolicy())
        return cls(url, Path(state), examples, settings)

    async def __aenter__(self) -> Self:
        """Lock the state directory and go on from its journal. Raises ProtocolError 500 or 501."""
        from whimbrel.transport import Transport

        self._journal = Journal.open(self._path, os.urandom)
        self._transport = Transport(self._url, _jitter)
        self.restore()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Save what is worth it and let the directory go, once a slice of training that may still run is over."""
        await asyncio.to_thread(self._training.acquire)
        try:
            self.save()
        finally:
            self._training.release()
            await self._opened(self._transport).close()
            self._opened(self._journal).close()
            self._life = self._trainer = None

    # --- what the app sees ------------------------------------------------------------------------------------------------

    @property
    def stage(self) -> Stage:
        """Where the device is in its life."""
        return self._opened(self._life).stage

    @property
    def trouble(self) -> ProtocolError | None:
        """What went wrong last, until something goes right."""
        return self._opened(self._life).trouble

    @property
    def state(self) -> DeviceState:
        """What the journal holds."""
        return self._opened(self._life).device.state

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received in bodies since the start."""
        transport = self._opened(self._transport)
        return transport.bytes_up, transport.bytes_down

    async def run(self) -> None:
        """Take part until cancelled. Raises ProtocolError for a trouble that only a person can put right."""
        while True:
            delay = await self.tick()
            trouble = self.trouble
            if trouble is not None and trouble.code in FOR_PEOPLE:
                raise trouble
            await asyncio.sleep(delay)

    async def tick(self) -> float:
        """Do one bounded step and return the seconds until the next is useful: 0 at once.

        A step is one call of the server (a long poll holds it at most `DevicePolicy.poll_s`), one download, one upload or one
        slice of training. Cancelling it is safe: the next tick does it again.
        """
        life = self._opened(self._life)
        while True:
            action = life.action
            if isinstance(action, Sleep) and action.until > time.time():
                break
            answer = await self._perform(action)
            life.resume(answer, time.time())
            self._tell(life)
            if isinstance(action, _BOUNDED):
                break
        action = life.action
        return max(action.until - time.time(), 0.0) if isinstance(action, Sleep) else 0.0

    def save(self) -> None:
        """Make an unfinished training durable, so that it goes on after a restart; all else is durable already."""
        if self._trainer is not None and self._trainer[1].steps:
            self._opened(self._journal).put_checkpoint(self._trainer[1].save())

    def restore(self) -> None:
        """Go on from the journal, as after a restart: what was only in memory is forgotten. Raises ProtocolError 501."""
        journal = self._opened(self._journal)
        self._trainer = None
        self._life = Lifecycle(self._settings, journal.seed(), journal.load(), os.urandom, time.time())

    async def evaluate(self, task: str, examples: Source | None = None) -> Metrics:
        """Return what the held model of a task is worth on examples, by default the device's own.

        Raises ProtocolError 409 where the device holds no model of the task, 502, 504, 506 or 508 as training does.
        """
        return await asyncio.to_thread(self._evaluate, task, examples or self._examples)

    # --- performing actions -----------------------------------------------------------------------------------------------

    async def _perform(self, action: Action) -> Any:
        journal, transport = self._opened(self._journal), self._opened(self._transport)
        match action:
            case Ask():
                return self._settings.policy.allow(action.cost)
            case Persist():
                return journal.commit(action.state, action.files)
            case Load():
                return journal.read(action.name)
            case Send():
                return await transport.send(action)
            case Fetch():
                return await transport.fetch(action)
            case Upload():
                return await transport.upload(action)
            case Train():
                return await asyncio.to_thread(self._train, action.job)
            case Sleep():
                return None

    def _train(self, job: TrainingJob) -> Trained | Failure:
        """Run one slice, in a thread; a cancelled tick leaves its slice running, so the next one waits for it."""
        with self._training:
            return self._slice(job)

    def _slice(self, job: TrainingJob) -> Trained | Failure:
        try:
            trainer = self._trainer_of(job)
            seconds = trainer.run(self._settings.policy.slice_s)
            if not trainer.done:
                return Trained(seconds, trainer.steps)
            trained = Trained(seconds, trainer.steps, trainer.measured(), trainer.local())
        except ProtocolError as error:
            self._end_training()
            return Failure(int(error.code), error.detail[:1000])
        self._end_training()
        return trained

    def _trainer_of(self, job: TrainingJob) -> Trainer:
        if self._trainer is None or self._trainer[0] is not job:
            runtime = _runtime()
            policy = self._settings.policy
            trainer = runtime.Trainer(job, self._gathered(self._examples, job.body), policy.threads)
            saved = self._opened(self._journal).checkpoint()
            if saved is not None:
                trainer.resume(saved)
            self._trainer = (job, trainer)
        return self._trainer[1]

    def _end_training(self) -> None:
        self._trainer = None
        self._opened(self._journal).put_checkpoint(None)

    def _gathered(self, source: Source, body: PlanBody) -> Any:
        try:
            return gather(source(), body.inputs)
        except ProtocolError:
            raise
        except Exception as error:  # the app's own code: whatever it raises, the device lives on
            log.exception("the app's examples failed")
            raise ProtocolError(Code.DATA_UNUSABLE, f"the app's examples raised {type(error).__name__}") from error

    def _evaluate(self, task: str, source: Source) -> Metrics:
        journal, memory = self._opened(self._journal), self.state.task(task)
        plan, model = journal.read(memory.plan_file), journal.read(memory.model_file)
        if plan is None or model is None:
            raise ProtocolError(Code.UNKNOWN_VERSION, f"this device holds no model of {task!r}")
        body = wire.decode(Plan.decode(plan).body, PlanBody)
        shapes = {one.name: one.shape for one in body.shared}
        lattice = apply(wire.decode(model, ModelDelta), shapes)
        parameters = [t.values().reshape(shape) for t, shape in zip(lattice, shapes.values(), strict=True)]
        policy = self._settings.policy
        judge = _runtime().Evaluator(body, policy.threads, self._held(body, memory))
        metrics: Metrics = judge.evaluate(parameters, self._gathered(source, body))
        return metrics

    def _held(self, body: PlanBody, memory: TaskMemory) -> Mapping[str, Array]:
        if body.fixed_blob is None:
            return {}
        journal = self._opened(self._journal)
        data = journal.read(memory.fixed_file) if memory.fixed_sha256 == body.fixed_blob.sha256 else None
        if data is None:
            raise ProtocolError(Code.UNKNOWN_VERSION, "this device has not fetched the plan's fixed tensors yet")
        return held_tensors(body, data, journal.read(memory.local_file) if memory.local_sha256 else None)

    # --- the rest -----------------------------------------------------------------------------------------------------------

    def _tell(self, life: Lifecycle) -> None:
        """Log what changed: stages for those who follow, troubles for everybody."""
        stage, trouble = life.stage, life.trouble
        if stage is not self._told[0]:
            log.info("stage %s", stage.name.lower())
        if trouble is not None and trouble is not self._told[1]:
            log.warning("%s", trouble)
        self._told = (stage, trouble)

    @staticmethod
    def _opened(part: T | None) -> T:
        if part is None:
            raise RuntimeError("the participant is not open: use `async with Participant.open(...)`")
        return part


def _root(authority: str) -> bytes:
    try:
        root = bytes.fromhex(authority)
    except ValueError:
        root = b""
    if len(root) != KEY_BYTES:
        raise ProtocolError(Code.CONFIGURATION, f"the authority's root key has {2 * KEY_BYTES} hexadecimal digits")
    return root


def _jitter(longest_s: float) -> float:
    return longest_s * int.from_bytes(os.urandom(4), "little") / 2**32


def _runtime() -> Any:
    """Return the trainer's module. Raises ProtocolError 506 where onnxruntime is not installed."""
    try:
        from whimbrel import trainer
    except ImportError as error:
        raise ProtocolError(Code.RUNTIME_MISSING, f"pip install 'whimbrel[train]' ({error})") from error
    return trainer
