"""Tasks and their versions: what is trained, what is published, and what an assignment tells a device of it.

What belongs here: making a task, its first version and each next one durable, and finding what belongs to a lane. What does
not: when a version is due (`engine.py`), the arithmetic (`aggregate.py`), who gets an assignment (`coordinator.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from whimbrel_protocol import messages as m
from whimbrel_protocol import wire
from whimbrel_protocol.delta import Lattice
from whimbrel_protocol.encoding import Encoding
from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.objects import VectorSpec
from whimbrel_protocol.packing import decode_sum
from whimbrel_protocol.primitives import sha256
from whimbrel_protocol.signed import Plan, Policy, VersionHeader, lane_hash
from whimbrel_protocol.transcript import tau1_of
from whimbrel_protocol.trust import accept_plan
from whimbrel_server import plans
from whimbrel_server.fleet import Fleet
from whimbrel_server.ingest.workers import Workers
from whimbrel_server.rounds import aggregate, headers
from whimbrel_server.rounds.aggregate import ModelState, Published, Statistics, WindowTotal
from whimbrel_server.settings import TaskSettings
from whimbrel_server.storage.protocols import Blobs, Rounds
from whimbrel_server.storage.records import TaskRecord, VersionRecord, WindowRecord


@dataclass
class LiveTask:
    """A task with a signed plan: what its current version needs to be told and trained on."""

    name: str
    settings: TaskSettings
    plan: Plan
    body: m.PlanBody
    plan_ref: m.BlobRef
    version: VersionRecord
    model: ModelState
    statistics: Statistics

    @property
    def header(self) -> VersionHeader:
        """What the current version is trained with."""
        return VersionHeader.decode(self.version.header)

    @property
    def encoding(self) -> Encoding:
        """How the updates of the current version are encoded."""
        return Encoding.of(self.plan, self.body, self.header)

    @property
    def spec(self) -> VectorSpec:
        """The vector spec of the current version."""
        return self.plan.spec(self.header.scale)

    def lane(self, policy: bytes) -> bytes:
        """The lane of the current version under a policy (its bytes as signed)."""
        return lane_of(self.plan, self.version.header, self.model, policy)


def lane_of(plan: Plan, header: bytes, model: ModelState, policy: bytes) -> bytes:
    """Return what the members of a window must agree on, 32 bytes."""
    return lane_hash(
        fleet=plan.fleet,
        task_id=plan.task,
        plan=plan.signed_bytes(),
        version=model.version,
        model_hash=model.model_hash,
        chain_head=model.chain_head,
        spec=plan.spec(VersionHeader.decode(header).scale).encode(),
        policy=policy,
        header=header,
    )


class Catalogue:
    """All tasks of a data directory."""

    def __init__(self, rounds: Rounds, blobs: Blobs, workers: Workers, fleet: Fleet) -> None:
        self._rounds, self._blobs, self._workers, self._fleet = rounds, blobs, workers, fleet
        self.live: dict[str, LiveTask] = {}
        # What devices may fetch: plans, their fixed tensors, snapshots and deltas. All else in the blobs is the server's own.
        self.served: set[bytes] = set()

    # --- a new task -------------------------------------------------------------------------------------------------

    async def create(self, name: str, model: bytes, settings: TaskSettings, now: float) -> TaskRecord:
        """Compile and keep a task that waits for its signed plan.

        Raises RuleError POLICY_UNSATISFIABLE, UNKNOWN_BLOB, MODEL_REFUSED, TASK_EXISTS.
        """
        settings.validate(self._fleet.policy)
        if await self._rounds.task(name) is not None:
            raise RuleError(Code.TASK_EXISTS, name)
        source = await self._blobs.get(model)
        await self._blobs.put(source)  # from now on it is young, so nothing deletes it before the task names it
        made = await self._workers.pinned(model).run(
            lambda: plans.draft(source, settings, self._fleet.id, name, int(now)),
        )
        plan = await self._blobs.put(made.plan.signed_bytes())
        fixed = None if made.fixed is None else await self._blobs.put(made.fixed)
        record = TaskRecord(name, settings.to_json(), model, plan, now, fixed_sha256=fixed)
        await self._rounds.create_task(record)
        return record

    async def sign(self, name: str, signed: bytes, now: float) -> LiveTask:
        """Set a task going with its signed plan and version 1. Raises RuleError UNKNOWN_TASK, BAD_PLAN, OUT_OF_TURN."""
        record = await self.record(name)
        plan = accept_plan(signed, self._fleet.policy, name, int(now), 0)
        if record.state != "unsigned":
            raise RuleError(Code.OUT_OF_TURN, f"the task {name} is {record.state}, its plan is signed already")
        if sha256(plan.signed_bytes()) != record.plan_sha256:
            raise RuleError(Code.BAD_PLAN, "this is a signature over another plan than the task's")
        settings = TaskSettings.from_json(record.settings)
        source = await self._blobs.get(record.model_sha256)
        first = await self._workers.pinned(record.plan_sha256).run(
            lambda: aggregate.first_version(plans.first_parameters(source, settings))
        )
        plan_sha256 = await self._blobs.put(signed)
        header = headers.first_header(settings, first.state.master.size)
        version = await self._version_record(plan, header, first, (), now)
        await self._rounds.sign_task(name, plan_sha256, version)
        self.served |= {plan_sha256, *_fixed(record), *_fetched(version)}
        return self._live(record, plan, m.BlobRef(plan_sha256, len(signed)), version, first.state)

    def _live(self, record: TaskRecord, plan: Plan, ref: m.BlobRef, version: VersionRecord, model: ModelState) -> LiveTask:
        body, settings = wire.decode(plan.body, m.PlanBody), TaskSettings.from_json(record.settings)
        found = LiveTask(record.name, settings, plan, body, ref, version, model, plans.statistics(body))
        self.live[record.name] = found
        return found

    async def record(self, name: str) -> TaskRecord:
        """Return a task. Raises RuleError UNKNOWN_TASK."""
        record = await self._rounds.task(name)
        if record is None:
            raise RuleError(Code.UNKNOWN_TASK, name)
        return record

    def task(self, name: str) -> LiveTask:
        """Return a task with a signed plan. Raises RuleError UNKNOWN_TASK or TASK_NOT_READY."""
        found = self.live.get(name)
        if found is None:
            raise RuleError(Code.TASK_NOT_READY, name)
        return found

    # --- recovery ---------------------------------------------------------------------------------------------------

    async def restore(self, record: TaskRecord, version: VersionRecord) -> LiveTask:
        """Bring a task back as it was published last. Raises RuleError DATA_DAMAGED or UNKNOWN_BLOB."""
        signed = await self._blobs.get(record.plan_sha256)
        plan = Plan.decode(signed)
        shapes = plans.shapes(wire.decode(plan.body, m.PlanBody))
        master, snapshot = await self._blobs.get(version.master), await self._blobs.get(version.snapshot)
        model = await self._workers.pinned(version.snapshot).run(
            lambda: aggregate.load_state(version.version, shapes, master, snapshot, version.chain_head)
        )
        if model.model_hash != version.model_hash:
            raise RuleError(Code.DATA_DAMAGED, f"version {version.version} of {record.name} is not the model that it was")
        self.served |= {record.plan_sha256, *_fixed(record)}
        for each in await self._rounds.versions(record.name):
            self.served |= _fetched(each)
        return self._live(record, plan, m.BlobRef(record.plan_sha256, len(signed)), version, model)

    async def _lattice(self, version: VersionRecord, shapes: Mapping[str, tuple[int, ...]]) -> Lattice:
        snapshot = await self._blobs.get(version.snapshot)
        return await self._workers.pinned(version.snapshot).run(lambda: aggregate.decode_lattice(snapshot, shapes))

    # --- the next version -------------------------------------------------------------------------------------------

    async def publish(self, name: str, windows: Sequence[WindowRecord], now: float) -> LiveTask:
        """Aggregate finished windows, in this order, into the next version and make it durable with their list."""
        task = self.task(name)
        totals = [await self._total(task, window) for window in windows]
        made = await self._workers.pinned(task.version.snapshot).run(
            lambda: aggregate.next_version(task.model, totals, task.encoding, task.settings, task.statistics)
        )
        header = headers.next_header(task.settings, task.header, made.metrics, made.state.master.size)
        version = await self._version_record(task.plan, header, made, windows, now)
        version = replace(version, deltas=await self._deltas(task, made))
        await self._rounds.publish(version, version.windows)
        self.served |= _fetched(version)
        task.version, task.model = version, made.state
        return task

    async def _total(self, task: LiveTask, window: WindowRecord) -> WindowTotal:
        if window.sum_sha256 is None or window.u2 is None:
            raise RuleError(Code.OUT_OF_TURN, f"window {window.tau0.hex()} has no sum")
        words = await self._blobs.get(window.sum_sha256)
        total = await self._workers.pinned(window.tau0).run(lambda: decode_sum(task.spec, words, window.count))
        names = (tau1_of(window.tau0, window.u2), window.sum_sha256)
        return WindowTotal(*names, total.values, total.count, total.weight_sum, window.lane)

    async def _deltas(self, task: LiveTask, made: Published) -> dict[int, bytes]:
        """The names of the deltas to a version from older ones, one after the other: each older model is big."""
        found: dict[int, bytes] = {}
        for number in aggregate.wanted_deltas(made.state.version):
            coded = await self._delta(task, number, made)
            if coded is not None:
                found[number] = await self._blobs.put(coded)
        return found

    async def _delta(self, task: LiveTask, number: int, made: Published) -> bytes | None:
        older = await self._older(task, number)
        if older is None:
            return None
        return await self._workers.pinned(task.version.snapshot).run(lambda: aggregate.delta_from(number, older, made))

    async def _older(self, task: LiveTask, number: int) -> Lattice | None:
        """A version's lattice, or None where it is too old to be kept."""
        if number == task.model.version:
            return task.model.lattice
        version = await self.version(task.name, number)
        return await self._lattice(version, task.model.shapes) if await self._blobs.size(version.snapshot) is not None else None

    async def _version_record(
        self, plan: Plan, told: VersionHeader, made: Published, windows: Sequence[WindowRecord], now: float
    ) -> VersionRecord:
        state, header = made.state, told.encode()
        return VersionRecord(
            task=plan.task,
            version=state.version,
            model_hash=state.model_hash,
            parent=state.version - 1,
            header=header,
            chain_head=state.chain_head,
            lane=lane_of(plan, header, state, self._fleet.policy_bytes),
            snapshot=await self._blobs.put(made.snapshot),
            master=await self._blobs.put(aggregate.encode_master(state.master)),
            published_at=now,
            windows=tuple(window.tau0 for window in windows),
            contributions=sum(window.count for window in windows),
            metrics=made.metrics,
        )

    # --- what others ask for ----------------------------------------------------------------------------------------

    async def version(self, name: str, number: int) -> VersionRecord:
        """Return one version. Raises RuleError UNKNOWN_VERSION."""
        found = await self._rounds.version(name, number)
        if found is None:
            raise RuleError(Code.UNKNOWN_VERSION, f"{name} has no version {number}")
        return found

    async def spec(self, window: WindowRecord) -> VectorSpec:
        """Return the vector spec that a window was opened with."""
        version = await self.version(window.task, window.version)
        return self.task(window.task).plan.spec(VersionHeader.decode(version.header).scale)

    async def assignment(self, name: str, id_: bytes, deadline_s: int, held: Sequence[m.Held]) -> m.Assignment:
        """Return what a device is told; the delta is from the newest version that it holds and that there is a delta from."""
        task = self.task(name)
        version = task.version
        known = {each.version for each in held if each.task == name} & version.deltas.keys()
        start = max(known, default=0)
        return m.Assignment(
            id=id_,
            task=name,
            version=version.version,
            plan=task.plan_ref,
            header=version.header,
            chain_head=version.chain_head,
            model_hash=version.model_hash,
            snapshot=await self._ref(version.snapshot),
            delta=await self._ref(version.deltas[start]) if start else None,
            delta_from=start,
            deadline_s=deadline_s,
        )

    async def _ref(self, blob: bytes) -> m.BlobRef:
        size = await self._blobs.size(blob)
        if size is None:
            raise RuleError(Code.DATA_DAMAGED, f"blob {blob.hex()} is missing")
        return m.BlobRef(blob, size)

    async def model(self, name: str, number: int) -> bytes:
        """Return the inference model (ONNX) with a version's weights. Raises RuleError UNKNOWN_TASK, UNKNOWN_VERSION."""
        record = await self.record(name)
        task, version = self.task(name), await self.version(name, number)
        source = await self._blobs.get(record.model_sha256)
        lattice = await self._lattice(version, task.model.shapes)
        state = replace(task.model, version=number, lattice=lattice)
        return await self._workers.pinned(version.snapshot).run(
            lambda: plans.inference_model(source, task.settings, aggregate.parameters(state)),
        )


def _fixed(record: TaskRecord) -> set[bytes]:
    return set() if record.fixed_sha256 is None else {record.fixed_sha256}


def _fetched(version: VersionRecord) -> set[bytes]:
    return {version.snapshot, *version.deltas.values()}


def check_policy_change(policy: Policy, running: Iterable[LiveTask]) -> None:
    """Raise RuleError POLICY_UNSATISFIABLE, naming the task, where a running one could open no window under `policy`."""
    for task in running:
        try:
            task.settings.validate(policy)
        except RuleError as error:
            raise RuleError(error.code, f"the task {task.name}: {error.detail}") from error
