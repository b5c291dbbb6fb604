"""The three protocols in plain dictionaries: for simulation, and as the second opinion that the contract tests need.

Nothing here survives the process. The signal is the embedded server's as well: its waiters live in the process that wakes them.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import weakref
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from whimbrel_protocol.errors import Code, RuleError
from whimbrel_server.storage import records
from whimbrel_server.storage.records import (
    AssignmentRecord,
    BlameRecord,
    DeviceRecord,
    EventRecord,
    Recovery,
    TaskRecord,
    VersionRecord,
    WindowOutcome,
    WindowRecord,
)


class MemoryRounds:
    """See `protocols.Rounds`."""

    def __init__(self) -> None:
        self._policies: dict[int, bytes] = {}
        self._devices: dict[bytes, DeviceRecord] = {}
        self._joins: dict[bytes, tuple[int, bytes]] = {}
        self._tasks: dict[str, TaskRecord] = {}
        self._versions: dict[str, list[VersionRecord]] = defaultdict(list)
        self._assignments: dict[bytes, AssignmentRecord] = {}
        self._windows: dict[bytes, WindowRecord] = {}
        self._events: dict[bytes, dict[tuple[str, int], EventRecord]] = defaultdict(dict)
        self._blames: dict[tuple[bytes, bytes, str, tuple[bytes, ...]], BlameRecord] = {}

    async def close(self) -> None:
        """Nothing is held."""

    # --- fleet ------------------------------------------------------------------------------------------------------

    async def install_policy(self, serial: int, policy: bytes, now: float) -> None:
        newest = max(self._policies, default=-1)
        if serial < newest or self._policies.get(serial, policy) != policy:
            raise RuleError(Code.POLICY_ROLLED_BACK, f"serial {serial}, but {newest} is installed")
        self._policies[serial] = policy

    async def policy(self) -> bytes | None:
        return self._policies[max(self._policies)] if self._policies else None

    async def seen(self, device: bytes, certificate: bytes, app_version: str, protocol: int, now: float) -> None:
        known = self._devices.get(device) or DeviceRecord(device, certificate, app_version, protocol, now, now)
        self._devices[device] = replace(
            known, certificate=certificate, app_version=app_version, protocol=protocol, last_seen=now
        )

    async def count_join(self, device: bytes, seq: int, entry: bytes) -> None:
        known = self._joins.get(device)
        if known is not None and seq <= known[0] and known != (seq, entry):
            raise records.rolled_back(seq, known[0])
        self._joins[device] = seq, entry

    async def devices(self, after: bytes = b"", limit: int = 1000) -> list[DeviceRecord]:
        return [self._devices[device] for device in sorted(self._devices) if device > after][:limit]

    # --- tasks and versions -----------------------------------------------------------------------------------------

    async def create_task(self, task: TaskRecord) -> None:
        if task.name in self._tasks:
            raise RuleError(Code.TASK_EXISTS, task.name)
        self._tasks[task.name] = task

    async def sign_task(self, name: str, plan_sha256: bytes, version: VersionRecord) -> None:
        if self._known_task(name).state != "unsigned":
            raise RuleError(Code.OUT_OF_TURN, f"the task {name} is {self._tasks[name].state}")
        self._tasks[name] = replace(self._tasks[name], state="running", plan_sha256=plan_sha256)
        self._versions[name].append(version)

    async def set_task_state(self, name: str, state: str) -> None:
        self._tasks[name] = replace(self._known_task(name), state=state)

    def _known_task(self, name: str) -> TaskRecord:
        if name not in self._tasks:
            raise RuleError(Code.UNKNOWN_TASK, name)
        return self._tasks[name]

    async def task(self, name: str) -> TaskRecord | None:
        return self._tasks.get(name)

    async def tasks(self) -> list[TaskRecord]:
        return [self._tasks[name] for name in sorted(self._tasks)]

    async def publish(self, version: VersionRecord, windows: Sequence[bytes]) -> None:
        newest = self._versions[version.task][-1].version
        if version.parent != newest or version.version != newest + 1 or len(set(windows)) != len(windows):
            raise RuleError(Code.OUT_OF_TURN, f"version {version.version} cannot follow version {newest}")
        for tau0 in windows:
            window = self._windows.get(tau0)
            if window is None or (window.state, window.task, window.version) != ("done", version.task, version.parent):
                raise RuleError(Code.OUT_OF_TURN, f"window {tau0.hex()} is no finished window of version {version.parent}")
        self._versions[version.task].append(replace(version, windows=tuple(windows)))
        for tau0 in windows:
            self._windows[tau0] = replace(self._windows[tau0], applied_in=version.version)

    async def versions(self, task: str) -> list[VersionRecord]:
        return list(self._versions[task])

    async def version(self, task: str, number: int) -> VersionRecord | None:
        return next((version for version in self._versions[task] if version.version == number), None)

    async def assign(self, assignment: AssignmentRecord) -> None:
        self._assignments[assignment.id] = assignment

    # --- windows ----------------------------------------------------------------------------------------------------

    async def open_window(self, window: WindowRecord) -> None:
        if window.tau0 in self._windows:
            raise RuleError(Code.OUT_OF_TURN, "the window is open already")
        self._windows[window.tau0] = window

    def _known_window(self, tau0: bytes) -> WindowRecord:
        if tau0 not in self._windows:
            raise RuleError(Code.UNKNOWN_WINDOW, tau0.hex())
        return self._windows[tau0]

    def _advance(self, tau0: bytes, verb: str, **changes: Any) -> None:
        window = self._known_window(tau0)
        self._windows[tau0] = replace(window, state=records.next_state(verb, window.state), **changes)

    async def log(self, tau0: bytes, kind: str, member: int, body: bytes) -> None:
        self._known_window(tau0)
        self._events[tau0].setdefault((kind, member), EventRecord(kind, member, body))

    async def fix_u2(self, tau0: bytes, u2: bytes, now: float) -> None:
        self._advance(tau0, "fix_u2", u2=u2)

    async def fix_survivors(self, tau0: bytes, u3: bytes, heads: Sequence[EventRecord], masked_sum: bytes, now: float) -> None:
        self._advance(tau0, "fix_survivors", u3=u3, masked_sum=masked_sum)
        for head in heads:
            await self.log(tau0, head.kind, head.member, head.body)

    async def fix_quorum(self, tau0: bytes, quorum: bytes, now: float) -> None:
        self._advance(tau0, "fix_quorum", quorum=quorum)

    async def fix_abort(self, tau0: bytes, certificate: bytes, dropped: Mapping[str, int], now: float) -> None:
        self._advance(tau0, "fix_abort", abort=certificate, dropped=dict(dropped), closed_at=now)
        self._events.pop(tau0, None)

    async def close_window(self, tau0: bytes, state: str, dropped: Mapping[str, int], now: float, failure: int = 0) -> None:
        verb = "fail" if state == "failed" else "abandon"
        self._advance(tau0, verb, dropped=dict(dropped), closed_at=now, failure=failure)

    async def blame(self, blames: Sequence[BlameRecord]) -> None:
        for one in blames:
            self._known_window(one.tau0)
        for one in blames:
            self._blames.setdefault((one.device, one.tau0, one.kind, one.suspects), one)

    async def blames(self, device: bytes = b"", tau0: bytes = b"") -> list[BlameRecord]:
        found = [b for b in self._blames.values() if device in (b"", b.device) and tau0 in (b"", b.tau0)]
        return sorted(found, key=lambda b: (b.blamed_at, b.device, b.tau0, b.kind, b"".join(b.suspects)))

    async def finish_window(self, tau0: bytes, outcome: WindowOutcome, now: float) -> None:
        o = outcome
        numbers: dict[str, Any] = {"sum_sha256": o.sum_sha256, "count": o.count, "weight_sum": o.weight_sum}
        self._advance(tau0, "finish_window", **numbers, dropped=dict(o.dropped), closed_at=now)
        self._events.pop(tau0, None)
        for device in o.contributors:
            if device in self._devices:
                known = self._devices[device]
                self._devices[device] = replace(known, contributions=known.contributions + 1)

    async def window(self, tau0: bytes) -> WindowRecord | None:
        return self._windows.get(tau0)

    async def windows(self, task: str, limit: int = 100) -> list[WindowRecord]:
        mine = [window for window in self._windows.values() if window.task == task]
        return sorted(mine, key=lambda window: window.opened_at)[::-1][:limit]

    async def events(self, tau0: bytes) -> list[EventRecord]:
        return list(self._events[tau0].values())

    async def certificate(self, tau0: bytes) -> bytes | None:
        window = self._windows.get(tau0)
        return (window.quorum or window.abort) if window else None

    # --- recovery and oblivion --------------------------------------------------------------------------------------

    async def recover(self, now: float) -> Recovery:
        windows = list(self._windows.values())
        done = sorted((w for w in windows if self._unapplied(w)), key=lambda w: w.closed_at or 0.0)
        valid = [assignment for assignment in self._assignments.values() if assignment.expires > now]
        return Recovery(
            policy=await self.policy(),
            tasks=tuple(await self.tasks()),
            current={task: versions[-1] for task, versions in self._versions.items() if versions},
            assignments=tuple(sorted(valid, key=lambda a: (a.expires, a.id))),
            unfinished=tuple([(w, tuple(await self.events(w.tau0))) for w in windows if w.state in records.UNFINISHED]),
            unapplied={name: tuple(w for w in done if w.task == name) for name in sorted(self._tasks)},
            failed={name: tuple(w for w in windows if self._failed_now(w, name)) for name in sorted(self._tasks)},
            recent=tuple(w for w in windows if w.opened_at > now - records.ENTRY_LIFE_S),
            quarantined=self._quarantined(now),
        )

    def _quarantined(self, now: float) -> dict[bytes, float]:
        ends: dict[bytes, float] = {}
        for one in self._blames.values():
            if one.until > now:
                ends[one.device] = max(one.until, ends.get(one.device, 0.0))
        return ends

    def _failed_now(self, window: WindowRecord, task: str) -> bool:
        return window.state == "failed" and window.task == task and self._newest(window)

    def _unapplied(self, window: WindowRecord) -> bool:
        return window.state == "done" and window.applied_in is None and self._newest(window)

    def _newest(self, window: WindowRecord) -> bool:
        versions = self._versions[window.task]
        return bool(versions) and window.version == versions[-1].version

    async def prune(self, now: float) -> int:
        before = now - records.CERTIFICATE_S
        expired = [key for key, assignment in self._assignments.items() if assignment.expires < now]
        for key in expired:
            del self._assignments[key]
        old = [w for w in self._windows.values() if w.closed_at is not None and w.closed_at < before]
        messages = sum(len(self._events.pop(w.tau0, {})) for w in old)
        certified = [w for w in old if w.quorum or w.abort]
        for window in certified:
            self._windows[window.tau0] = replace(window, quorum=None, abort=None)
        return len(expired) + messages + len(certified)

    async def referenced(self, versions: int, sums_s: float, now: float) -> set[bytes]:
        named = {(task.model_sha256, task.plan_sha256, task.fixed_sha256) for task in self._tasks.values()}
        found = {value for names in named for value in names if value}
        for version in (version for every in self._versions.values() for version in every[-versions:]):
            found |= {version.snapshot, version.master, *version.deltas.values()}
        for window in self._windows.values():
            age_s = now - (window.closed_at or 0.0)
            given_up = window.state == "aborted" and window.abort is None and age_s <= records.CERTIFICATE_S
            if window.masked_sum is not None and (window.state in records.UNFINISHED or given_up):
                found.add(window.masked_sum)
            if window.sum_sha256 is not None and (age_s <= sums_s or self._unapplied(window)):
                found.add(window.sum_sha256)
        return found


class MemoryBlobs:
    """See `protocols.Blobs`."""

    def __init__(self) -> None:
        self._blobs: dict[bytes, bytes] = {}
        self._put_at: dict[bytes, float] = {}

    async def put(self, data: bytes | memoryview) -> bytes:
        sha256 = hashlib.sha256(data).digest()
        self._blobs.setdefault(sha256, bytes(data))
        self._put_at[sha256] = time.monotonic()
        return sha256

    async def get(self, sha256: bytes, start: int = 0, stop: int | None = None) -> bytes:
        if sha256 not in self._blobs:
            raise RuleError(Code.UNKNOWN_BLOB, sha256.hex())
        blob = self._blobs[sha256]
        end = len(blob) if stop is None else stop
        if not 0 <= start <= end <= len(blob):
            raise RuleError(Code.BAD_RANGE, f"bytes {start} to {end} of {len(blob)}")
        return blob[start:end]

    async def size(self, sha256: bytes) -> int | None:
        return len(self._blobs[sha256]) if sha256 in self._blobs else None

    async def delete(self, sha256: bytes, age_s: float = 0.0) -> bool:
        if sha256 in self._blobs and time.monotonic() - self._put_at[sha256] < age_s:
            return False
        self._blobs.pop(sha256, None)
        return True

    async def names(self) -> list[bytes]:
        return sorted(self._blobs)


class MemoryMark:
    """See `protocols.Mark`."""

    def __init__(self) -> None:
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Let everybody go who waits at this mark."""
        self._woken.set()

    async def wait(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return False
        return True


class MemorySignal:
    """See `protocols.Signal`: one mark a topic, replaced when it is woken, so that waking thousands is one call."""

    def __init__(self) -> None:
        # Weak, so that a topic takes no memory once nobody waits for it.
        self._marks: weakref.WeakValueDictionary[bytes, MemoryMark] = weakref.WeakValueDictionary()

    def mark(self, topic: bytes) -> MemoryMark:
        mark = self._marks.get(topic)
        if mark is None:
            mark = self._marks[topic] = MemoryMark()
        return mark

    def wake(self, topic: bytes) -> None:
        mark = self._marks.pop(topic, None)
        if mark is not None:
            mark.wake()
