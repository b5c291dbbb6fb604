"""One simulated world with one clock: the engine, masked windows and storage on one side, real members on the other.

Here belong the world's laws: time, chance, and the server's shell in its shortest form. A device's life belongs in `device.py`,
what must hold in `test_world.py`. Nothing waits and nothing runs beside anything else, so a seed is a history.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from tests.protocol.world import AUTHORITY, FLEET, NOW, policy
from whimbrel_kernels import ring_add
from whimbrel_protocol import wire
from whimbrel_protocol.collector import Collector
from whimbrel_protocol.encoding import Encoding
from whimbrel_protocol.errors import Code, ProtocolError, RuleError
from whimbrel_protocol.forming import check_entry
from whimbrel_protocol.messages import U2, Blame, Done, Open, Quorum, Survivors
from whimbrel_protocol.objects import JoinEntry, VectorSpec
from whimbrel_protocol.packing import decode_sum
from whimbrel_protocol.rules import members_of
from whimbrel_protocol.signed import lane_hash
from whimbrel_protocol.transcript import tau1_of
from whimbrel_server.rounds import aggregate, events
from whimbrel_server.rounds.aggregate import ModelState, WindowTotal
from whimbrel_server.rounds.engine import Engine
from whimbrel_server.rounds.task_run import Assignment, ClosedWindow
from whimbrel_server.settings import TaskSettings
from whimbrel_server.storage.memory import MemoryBlobs, MemoryRounds
from whimbrel_server.storage.records import AssignmentRecord, TaskRecord, VersionRecord, WindowOutcome, WindowRecord
from whimbrel_server.windows import ended, window_effects
from whimbrel_server.windows.window_restore import restore
from whimbrel_server.windows.window_run import WindowRun

T = TypeVar("T")
TASK = "digits"
RULES = policy(n_min=8)
SHAPES = {"w": (3, 4), "b": (4,)}
D = 16


def settled(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing, as those of the in-memory back ends do."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("the in-memory back end waited")


class Clock:
    """What happens when."""

    def __init__(self) -> None:
        self.now = float(NOW)
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0

    def after(self, delay: float, call: Callable[..., None], *arguments: object) -> None:
        self._number += 1
        heapq.heappush(self._queue, (self.now + delay, self._number, call, arguments))

    def run(self, seconds: float, over: Callable[[], bool]) -> None:
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end and not over():
            self.now, _, call, arguments = heapq.heappop(self._queue)
            call(*arguments)


class Down(Exception):
    """The server does not answer."""


@dataclass
class Server:
    """The shell: performs effects at once, on storage that outlives it. `crash` forgets everything else."""

    clock: Clock
    dice: random.Random
    settings: TaskSettings
    rounds: MemoryRounds = field(default_factory=MemoryRounds)
    blobs: MemoryBlobs = field(default_factory=MemoryBlobs)
    crash_after: Counter = field(default_factory=Counter)  # effect name -> crash when that many more of it were durable
    up: bool = False

    def install(self) -> None:
        """A new task with its first version."""
        rng = np.random.default_rng(1)
        first = aggregate.first_version({name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in SHAPES.items()})
        settled(self.rounds.create_task(TaskRecord(TASK, self.settings.to_json(), b"m" * 32, b"u" * 32, self.clock.now)))
        settled(self.rounds.sign_task(TASK, b"p" * 32, self._record(first, (), 0)))
        self.start()

    def start(self) -> None:
        """The only start: recovery."""
        stored = settled(self.rounds.recover(self.clock.now))
        self.engine = Engine(random.Random(self.dice.random()))
        self.runs: dict[bytes, WindowRun] = {}
        self.sums: dict[bytes, bytearray] = {}
        self.tau0: dict[int, bytes] = {}
        self.awaited: set[int] = set()  # windows that the engine waits for
        self.version = stored.current[TASK]
        self.state = self._load(self.version)
        self.spec = VectorSpec.make(self.settings.bits, self.settings.n_max, D, self.settings.scale, 16)
        self.up = True
        self._restore(stored)
        self._arm()

    def _restore(self, stored: Any) -> None:
        for window in stored.recent:
            for entry in window.roster:
                decoded = JoinEntry.decode(entry)
                self.engine.entry_used(decoded.device, decoded.seq, float(decoded.expires), entry)
        begun = []
        for window, messages in stored.unfinished:
            run, effects = restore(window, messages, self.spec, self.settings.limits(self.spec.words), self.clock.now)
            self.runs[window.tau0] = run
            self.tau0[window.window_id] = window.tau0
            begun.append((window.tau0, effects))
        done = stored.unapplied[TASK]
        self.tau0 |= {window.window_id: window.tau0 for window in done}
        start = events.TaskStart(
            TASK,
            self.settings,
            RULES,
            version=self.version.version,
            rounds_done=self.version.version - 1,
            windows=tuple(ClosedWindow(w.window_id, self._contributors(w)) for w in done),
            open_windows=tuple(
                events.RunningWindow(w.window_id, self.runs[w.tau0].collector.devices)
                for w, _ in stored.unfinished
                if w.version == self.version.version
            ),
            spent=tuple(device for window in stored.failed[TASK] for device in self._contributors(window)),
            assignments=tuple(
                Assignment(a.id, a.device, a.task, a.version, a.expires)
                for a in stored.assignments
                if a.version == self.version.version
            ),
        )
        self.awaited = {window.window_id for window in start.open_windows}
        self.perform(self.engine.add_task(start, self.clock.now))
        for tau0, effects in begun:
            self.perform_window(tau0, effects)

    def _contributors(self, window: WindowRecord) -> tuple[bytes, ...]:
        return tuple(window.roster[i][20:36] for i in members_of(window.u3 or b"", len(window.roster)))

    def _durable(self, name: str) -> None:
        """A point where the world may pull the plug: what was just written stays, all else is lost."""
        if name in self.crash_after:
            self.crash_after[name] -= 1
            if self.crash_after[name] < 0:
                del self.crash_after[name]
                self.crash()
                raise Down

    def crash(self) -> None:
        self.up = False
        self.clock.after(3.0, self.start)

    # --- time ---------------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        self.clock.after(0.25, self._alarm, self.engine)

    def _alarm(self, engine: Engine) -> None:
        if engine is not self.engine or not self.up:
            return
        try:
            self.perform(self.engine.tick(self.clock.now))
            for tau0, run in list(self.runs.items()):
                self.perform_window(tau0, run.tick(self.clock.now))
        except Down:
            return
        self._arm()

    # --- effects ------------------------------------------------------------------------------------------------------

    def perform(self, effects: list[events.Effect]) -> None:
        for effect in effects:
            match effect:
                case events.Assign(a):
                    settled(self.rounds.assign(AssignmentRecord(a.id, a.device, a.task, a.version, a.expires)))
                    self._durable("assign")
                case events.OpenWindow():
                    self._open(effect)
                case events.Publish():
                    self._publish(effect)
                case events.Finish(name):
                    settled(self.rounds.set_task_state(name, "finished"))

    def _open(self, effect: events.OpenWindow) -> None:
        collector = Collector.form(effect.entries, FLEET, self.version.lane, self.spec, RULES, effect.window_id)
        record = WindowRecord(
            collector.tau0,
            effect.window_id,
            effect.task,
            effect.version,
            self.version.lane,
            collector.open.params,
            collector.open.roster,
            self.clock.now,
        )
        settled(self.rounds.open_window(record))
        self._durable("open")
        self.runs[collector.tau0] = WindowRun(collector, self.settings.limits(self.spec.words), self.clock.now)
        self.sums[collector.tau0] = bytearray(8 * self.spec.words)
        self.tau0[effect.window_id] = collector.tau0
        self.awaited.add(effect.window_id)

    def _publish(self, effect: events.Publish) -> None:
        totals, windows = [], [self._window(self.tau0[window_id]) for window_id in effect.windows]
        for window in windows:
            total = decode_sum(self.spec, settled(self.blobs.get(window.sum_sha256 or b"")), window.count)
            totals.append(WindowTotal(tau1_of(window.tau0, window.u2 or b""), total.sha256, total.values, total.count))
        made = aggregate.next_version(self.state, totals, Encoding(self.spec), self.settings)
        record = self._record(made, tuple(window.tau0 for window in windows), sum(window.count for window in windows))
        settled(self.rounds.publish(record, record.windows))
        self._durable("publish")
        self.version, self.state = record, made.state
        self.perform(self.engine.published(TASK, record.version, self.clock.now))

    def _record(self, made: aggregate.Published, windows: tuple[bytes, ...], contributions: int) -> VersionRecord:
        state, header = made.state, self.settings.header(made.state.version).encode()
        spec = VectorSpec.make(self.settings.bits, self.settings.n_max, D, self.settings.scale, 16)
        names = {"model_hash": state.model_hash, "chain_head": state.chain_head, "version": state.version}
        lane = lane_hash(
            fleet=FLEET, task_id=TASK, plan=b"plan", spec=spec.encode(), policy=RULES.encode(), header=header, **names
        )
        blobs = {
            "snapshot": settled(self.blobs.put(made.snapshot)),
            "master": settled(self.blobs.put(aggregate.encode_master(state.master))),
        }
        return VersionRecord(
            task=TASK,
            parent=state.version - 1,
            header=header,
            lane=lane,
            published_at=self.clock.now,
            windows=windows,
            contributions=contributions,
            **names,
            **blobs,
        )

    def _load(self, version: VersionRecord) -> ModelState:
        master, snapshot = (settled(self.blobs.get(name)) for name in (version.master, version.snapshot))
        return aggregate.load_state(version.version, SHAPES, master, snapshot, version.chain_head)

    def _window(self, tau0: bytes) -> WindowRecord:
        found = settled(self.rounds.window(tau0))
        assert found is not None
        return found

    def perform_window(self, tau0: bytes, effects: list[window_effects.WindowEffect]) -> None:
        run, now, queue = self.runs[tau0], self.clock.now, list(effects)
        while queue:
            effect = queue.pop(0)
            match effect:
                case window_effects.Log(kind, member, body):
                    settled(self.rounds.log(tau0, kind, member, body))
                    self._durable(f"log {kind}")
                case window_effects.GiveUp(state, failure):
                    settled(self.rounds.close_window(tau0, state, run.dropped, now, failure))
                    self._durable("give up")
                case window_effects.Closed(outcome):
                    self._closed(run, outcome)
                case window_effects.Wake():
                    pass
                case _:
                    queue += self._fix(tau0, run, effect)

    def _fix(self, tau0: bytes, run: WindowRun, effect: Any) -> list[window_effects.WindowEffect]:
        now = self.clock.now
        match effect:
            case window_effects.FixU2(u2):
                settled(self.rounds.fix_u2(tau0, u2, now))
            case window_effects.FixSurvivors(u3, heads):
                masked = settled(self.blobs.put(bytes(self.sums[tau0])))
                settled(self.rounds.fix_survivors(tau0, u3, heads, masked, now))
            case window_effects.FixQuorum(quorum):
                settled(self.rounds.fix_quorum(tau0, quorum, now))
            case window_effects.FixAbort(certificate):
                settled(self.rounds.fix_abort(tau0, certificate, run.dropped, now))
            case window_effects.RunUnmasking():
                try:
                    self._unmask(tau0, run)
                except ProtocolError as error:
                    return run.fail(error, now)
        self._durable(type(effect).__name__)
        return run.settle(now)

    def _unmask(self, tau0: bytes, run: WindowRun) -> None:
        masked = self._window(tau0).masked_sum
        assert masked is not None
        total = run.collector.finish(bytearray(settled(self.blobs.get(masked))))
        words = settled(self.blobs.put(total.words))
        contributors = tuple(run.collector.devices[i] for i in run.collector.u3)
        outcome = WindowOutcome(words, total.count, total.weight_sum, contributors, run.dropped)
        settled(self.rounds.finish_window(tau0, outcome, self.clock.now))

    def _closed(self, run: WindowRun, outcome: str) -> None:
        collector, now = run.collector, self.clock.now
        window_id = collector.params.window_id
        if window_id not in self.awaited:
            if outcome == "done":
                done = ClosedWindow(window_id, tuple(collector.devices[i] for i in collector.u3))
                version = self._window(collector.tau0).version
                self.perform(self.engine.window_late(TASK, version, done, now)[1])
            return
        self.awaited.discard(window_id)
        if outcome == "done":
            self.perform(self.engine.window_done(window_id, [collector.devices[i] for i in collector.u3], now))
        elif outcome == "aborted":
            self.perform(self.engine.window_aborted(window_id, now, [collector.devices[i] for i in run.lost]))
        else:
            self.perform(self.engine.window_failed(window_id, now, [collector.devices[i] for i in collector.u3]))

    # --- calls --------------------------------------------------------------------------------------------------------

    def call(self, act: Callable[[], T]) -> T:
        """A device's call: answered, refused with a number, or lost because the server is down or goes down."""
        if not self.up:
            raise Down
        return act()

    def check_in(self, device: bytes) -> events.CheckInAnswer:
        answer, effects = self.engine.check_in(device, self.clock.now)
        self.perform(effects)
        return answer

    def join(self, device: bytes, assignment: bytes, entry: bytes) -> events.JoinAnswer:
        self.engine.assignment(assignment, device)
        checked = check_entry(entry, FLEET, self.version.lane, RULES, AUTHORITY.public, int(self.clock.now))
        joining = events.Joining(device, checked.seq, float(checked.expires), entry)
        answer, effects = self.engine.join(assignment, joining, self.clock.now)
        self.perform(effects)
        return answer

    def give_up(self, device: bytes, version: int) -> None:
        self.perform(self.engine.give_up(device, TASK, version, self.clock.now))

    def ticket(self, device: bytes, ticket: bytes) -> Open | None:
        answer = self.engine.ticket(ticket, device, self.clock.now)
        if isinstance(answer, events.Waiting):
            return None
        return self.runs[self.tau0[answer.window_id]].open()

    def run_of(self, tau0: bytes) -> WindowRun:
        if tau0 not in self.runs:
            self._revive(self._window(tau0))
        return self.runs[tau0]

    def _revive(self, window: WindowRecord) -> None:
        if not ended.waits_for_votes(window, self.clock.now):
            raise RuleError(Code.UNKNOWN_WINDOW)
        messages, limits = settled(self.rounds.events(window.tau0)), self.settings.limits(self.spec.words)
        self.runs[window.tau0], effects = restore(window, messages, self.spec, limits, self.clock.now)
        self.perform_window(window.tau0, effects)

    def send(self, tau0: bytes, method: str, message: object) -> None:
        run = self.run_of(tau0)
        self.perform_window(tau0, getattr(run, method)(message, self.clock.now))

    def upload(self, tau0: bytes, i: int, vector: bytes) -> None:
        run = self.run_of(tau0)
        effects = run.on_vector(i, self.clock.now)
        ring_add(self.sums[tau0], vector)
        self.perform_window(tau0, effects)

    def u2(self, tau0: bytes, i: int) -> U2 | Survivors | None:
        return self.runs[tau0].u2_for(i) if tau0 in self.runs else self.survivors(tau0)

    def survivors(self, tau0: bytes) -> Survivors | None:
        if tau0 in self.runs or ended.waits_for_votes(self._window(tau0), self.clock.now):
            return self.run_of(tau0).survivors()
        aborted = self._window(tau0).state == "aborted"
        return Survivors(b"", b"", abort=True) if aborted else None

    def quorum(self, tau0: bytes) -> Quorum | None:
        if tau0 in self.runs:
            return self.runs[tau0].quorum()
        body = settled(self.rounds.certificate(tau0))
        return wire.decode(body, Quorum) if body else None

    def done(self, tau0: bytes, i: int) -> Done | Survivors | Blame | None:
        if tau0 in self.runs:
            return self.runs[tau0].done(i)
        window = self._window(tau0)
        if window.state == "failed":
            raise RuleError(Code.WINDOW_ENDED)
        return Done(window.lane, window.sum_sha256) if window.sum_sha256 else None
