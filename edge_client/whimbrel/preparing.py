"""From an assignment to a frozen update: plan, model, training, rounding.

What belongs here: the scripts for everything that a device does alone. What does not: the window in which the update is summed
(`windowing.py`). An update is rounded once: its packed words are in the journal before any server hears of it, and whatever
happens later, these words or none are masked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from whimbrel.actions import Array, Fetch, Load, Script, Train, Trained, TrainingJob
from whimbrel.device import Device, Stage, code_of, expect
from whimbrel.device_policy import Cost
from whimbrel.records import UNSENT, UpdateRecord
from whimbrel_protocol import wire
from whimbrel_protocol.delta import Lattice, apply, lattice_hash, snapshot
from whimbrel_protocol.encoding import WITHIN_CLIP, Encoding, Measured
from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.fixed import decode, encode
from whimbrel_protocol.messages import Assignment, BlobRef, Failure, ModelDelta, PlanBody
from whimbrel_protocol.objects import VectorSpec
from whimbrel_protocol.packing import pack
from whimbrel_protocol.primitives import sha256, stream, th, u64
from whimbrel_protocol.signed import Plan, VersionHeader, lane_hash
from whimbrel_protocol.trust import accept_plan, demand

_METRICS = re.compile(f"loss|accuracy|mae|top[0-9]+|{WITHIN_CLIP}")
"""What a plan may ask a device to measure."""

_UNIFORM_BITS = 24


@dataclass(frozen=True)
class Base:
    """A version to train from, all of it checked: the assignment, its plan and header."""

    assignment: Assignment
    plan: Plan
    body: PlanBody
    header: VersionHeader
    encoding: Encoding

    @property
    def spec(self) -> VectorSpec:
        """How the update's values lie in words."""
        return self.encoding.spec

    @property
    def basis(self) -> bytes:
        """A name for all that an update depends on: one basis, one update."""
        a = self.assignment
        return th("client/basis", a.task.encode(), a.plan.sha256, u64(a.version), a.model_hash, a.header)

    def lane(self, policy: bytes) -> bytes:
        """The lane of this version under a policy (its bytes as received), computed by the device itself."""
        a = self.assignment
        return lane_hash(
            fleet=self.plan.fleet,
            task_id=a.task,
            plan=self.plan.signed_bytes(),
            version=a.version,
            model_hash=a.model_hash,
            chain_head=a.chain_head,
            spec=self.spec.encode(),
            policy=policy,
            header=a.header,
        )

    def takes(self, record: UpdateRecord, policy: bytes) -> bool:
        """Whether a frozen update may join the lane of this policy: a rotated one belongs to the lane that it was made for."""
        return not self.encoding.rotate or record.lane == self.lane(policy)


@dataclass(frozen=True)
class Prepared:
    """An update that is ready for a window: its record and its packed words."""

    base: Base
    record: UpdateRecord
    words: bytes


def prepare(device: Device, assignment: Assignment) -> Script[Prepared]:
    """Fetch what is missing, train unless it was done, and return the frozen update.

    Raises what the plan, the header, the model or training break.
    """
    base = yield from _base(device, assignment)
    for record in device.state.updates:
        if record.basis == base.basis and record.state in UNSENT:
            words = yield Load(record.words_file)
            if words is not None and sha256(words) == record.words_sha256:
                return Prepared(base, record, words)
    lattice = yield from _model(device, base)
    held = yield from _held(device, base)
    trained = yield from _train(device, base, lattice, held)
    assert trained.measured is not None, "training ended"
    return (yield from _freeze(device, base, trained.measured, trained.local))


# --- plan and header ------------------------------------------------------------------------------------------------


def _base(device: Device, assignment: Assignment) -> Script[Base]:
    """Return the checked base of an assignment."""
    header = VersionHeader.decode(assignment.header)
    demand(header.version == assignment.version, Code.BAD_FIELD, "the header is of another version")
    plan = yield from _plan(device, assignment)
    demand(plan.masked, Code.PLAN_UNSUPPORTED, "this client sends no update without masks")
    body = wire.decode(plan.body, PlanBody)
    base = Base(assignment, plan, body, header, Encoding.of(plan, body, header))
    unknown = {one.name for one in body.metrics if not _METRICS.fullmatch(one.name)}
    demand(not unknown, Code.PLAN_UNSUPPORTED, f"metrics that this client does not know: {', '.join(sorted(unknown))}")
    _demand_below_cap(device, base)
    return base


def _demand_below_cap(device: Device, base: Base) -> None:
    """At most q contributions of a device in a rolling period, whatever the server asks for (masking protocol, section 2)."""
    body, since = base.body, device.time - base.body.cap_period_s
    recent = sum(one.at > since for one in device.state.task(base.assignment.task).contributions)
    below = not 0 < body.contributions_cap <= recent
    demand(below, Code.CONTRIBUTION_CAP, f"{recent} in {body.cap_period_s} s")


def _plan(device: Device, assignment: Assignment) -> Script[Plan]:
    memory = device.state.task(assignment.task)
    known = memory.plan_sha256 == assignment.plan.sha256
    held: bytes = ((yield Load(memory.plan_file)) if known else None) or b""
    whole = sha256(held) == assignment.plan.sha256
    data = held if whole else (yield from _fetch(device, assignment.plan))
    plan = accept_plan(data, device.policy, assignment.task, device.time, memory.plan_serial)
    if not whole:
        memory = replace(memory, plan_serial=plan.serial, plan_sha256=assignment.plan.sha256)
        yield from device.commit(device.state.with_task(assignment.task, memory), {memory.plan_file: data})
    return plan


def _fetch(device: Device, ref: BlobRef) -> Script[bytes]:
    device.stage = Stage.FETCH
    yield from device.permission(Cost("fetch", 1.0, 512, ref.size))
    data: bytes = expect((yield Fetch(ref)))
    demand(sha256(data) == ref.sha256, Code.BAD_BLOB)
    return data


# --- model ------------------------------------------------------------------------------------------------------------


def _model(device: Device, base: Base) -> Script[Lattice]:
    """Return the base model: held, or reached by a delta from the held one, or the snapshot where either fails."""
    a, memory = base.assignment, device.state.task(base.assignment.task)
    held = yield from _held_model(device, base)
    if held is not None and memory.model_hash == a.model_hash:
        return held
    lattice = None
    if held is not None and a.delta is not None and a.delta_from == memory.version:
        try:
            lattice = _decoded(base, (yield from _fetch(device, a.delta)), held)
        except ProtocolError as error:
            device.trouble = error  # whatever is wrong with a delta, the snapshot mends it
    if lattice is None:
        lattice = _decoded(base, (yield from _fetch(device, a.snapshot)), None)
    memory = replace(device.state.task(a.task), version=a.version, model_hash=a.model_hash)
    saved = wire.encode(snapshot(a.version, lattice))
    yield from device.commit(device.state.with_task(a.task, memory), {memory.model_file: saved})
    return lattice


def _held_model(device: Device, base: Base) -> Script[Lattice | None]:
    memory = device.state.task(base.assignment.task)
    data = (yield Load(memory.model_file)) if memory.model_hash else None
    try:
        return apply(wire.decode(data, ModelDelta), _shapes(base)) if data is not None else None
    except ProtocolError:
        return None  # of another plan, or damaged: the snapshot replaces it


def _decoded(base: Base, data: bytes, held: Lattice | None) -> Lattice:
    lattice = apply(wire.decode(data, ModelDelta), _shapes(base), held)
    demand(lattice_hash(lattice) == base.assignment.model_hash, Code.BAD_DELTA, "not the assigned model")
    return lattice


def _shapes(base: Base) -> dict[str, tuple[int, ...]]:
    return {one.name: one.shape for one in base.body.shared}


def _held(device: Device, base: Base) -> Script[Mapping[str, Array]]:
    """Return what the plan hands over once, by name, and the local parameters as they were last trained here."""
    task, ref = base.assignment.task, base.body.fixed_blob
    if ref is None:
        return {}
    memory = device.state.task(task)
    data = (yield Load(memory.fixed_file)) if memory.fixed_sha256 == ref.sha256 else None
    if data is None or sha256(data) != ref.sha256:
        data = yield from _fetch(device, ref)
        memory = replace(memory, fixed_sha256=ref.sha256)
        yield from device.commit(device.state.with_task(task, memory), {memory.fixed_file: data})
    trained = (yield Load(memory.local_file)) if memory.local_sha256 else None
    return held_tensors(base.body, data, trained)


def held_tensors(body: PlanBody, data: bytes, trained: bytes | None) -> Mapping[str, Array]:
    """Return the tensors of a plan's fixed blob, with the local ones in `trained` (else as they start), by name."""
    held = decode(data, body.fixed)
    try:
        return {**held, **decode(trained, body.of("local"))} if trained is not None else held
    except ProtocolError:
        return held  # of another plan, or damaged: they start anew


# --- training and rounding --------------------------------------------------------------------------------------------


def _train(device: Device, base: Base, lattice: Lattice, held: Mapping[str, Array]) -> Script[Trained]:
    """Train slice by slice and return what came of it."""
    device.stage = Stage.TRAIN
    arrays = tuple(t.values().reshape(one.shape) for t, one in zip(lattice, base.body.shared, strict=True))
    job = TrainingJob(base.basis, base.body, arrays, base.header, device.entropy(32), held)
    while True:
        yield from device.permission(Cost("train", device.settings.policy.slice_s))
        answer = yield Train(job)
        if isinstance(answer, Failure):
            a = base.assignment
            yield from device.report(code_of(answer), a.task, a.version)
        trained: Trained = expect(answer)
        if trained.measured is not None:
            return trained


def _freeze(device: Device, base: Base, measured: Measured, local: tuple[Array, ...]) -> Script[Prepared]:
    """Encode the update for the present lane, rounded with fresh entropy; the words become durable, and what stays here."""
    a, state, lane = base.assignment, device.state, base.lane(device.state.policy)
    encoded = base.encoding.encode(measured, lane, _uniforms(device.entropy(32), base.encoding.size))
    words = pack(base.spec, encoded.values, encoded.weight)
    for old in state.updates:  # of an earlier version: no lane takes it any more
        if old.task == a.task and old.state in UNSENT:
            state = state.without_update(old)
    record = UpdateRecord(device.entropy(16), a.task, a.version, a.model_hash, base.basis, sha256(words), lane=lane)
    files = {record.words_file: words}
    if local:
        kept = encode(local)
        memory = replace(state.task(a.task), local_sha256=sha256(kept))
        state, files[memory.local_file] = state.with_task(a.task, memory), kept
    yield from device.commit(state.with_update(record), files)
    return Prepared(base, record, words)


def _uniforms(key: bytes, count: int) -> npt.NDArray[np.float64]:
    """Return `count` values within [0, 1), evenly drawn from the key's stream; 24 bits each, as many as a float32 has."""
    drawn = np.frombuffer(stream(key, 4 * count), "<u4") >> (32 - _UNIFORM_BITS)
    return np.ldexp(drawn.astype(np.float64), -_UNIFORM_BITS)
