"""The three things that a server keeps: rounds (verbs of the engine), blobs (immutable bytes by hash), signals (wake a waiter).

Here belongs what every back end promises; one suite of contract tests holds each of them to it. A verb that returns has made
its change durable: it survives `kill -9`, in the embedded back end a loss of power too. A verb that raises changed nothing.

Every verb may raise RuleError STORAGE_FULL or DATA_DAMAGED besides what it states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

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


class Rounds(Protocol):
    """Fleet, tasks, versions, assignments, windows and certificates. Times are Unix seconds."""

    async def install_policy(self, serial: int, policy: bytes, now: float) -> None:
        """Keep a policy. Raises POLICY_ROLLED_BACK unless its serial is the highest (the same bytes again are welcome)."""

    async def policy(self) -> bytes | None:
        """The policy with the highest serial."""

    async def seen(self, device: bytes, certificate: bytes, app_version: str, protocol: int, now: float) -> None:
        """Note that a device showed itself."""

    async def count_join(self, device: bytes, seq: int, entry: bytes) -> None:
        """Note a device's join entry with its counter.

        Raises STATE_ROLLED_BACK for another entry than the last one with a counter that is not above the highest ever seen.
        """

    async def devices(self, after: bytes = b"", limit: int = 1000) -> list[DeviceRecord]:
        """Devices with an id above `after`, ascending."""

    async def create_task(self, task: TaskRecord) -> None:
        """Keep a new task. Raises TASK_EXISTS."""

    async def sign_task(self, name: str, plan_sha256: bytes, version: VersionRecord) -> None:
        """Set the task running with its signed plan and its first version. Raises UNKNOWN_TASK; OUT_OF_TURN if it runs."""

    async def set_task_state(self, name: str, state: str) -> None:
        """Raises UNKNOWN_TASK."""

    async def task(self, name: str) -> TaskRecord | None:
        """One task."""

    async def tasks(self) -> list[TaskRecord]:
        """All tasks by name."""

    async def publish(self, version: VersionRecord, windows: Sequence[bytes]) -> None:
        """Keep a version and mark the windows (tau0, in order of application) as applied: all of it or nothing.

        Raises OUT_OF_TURN where the version exists, its parent is not the newest, or a window is not done or counted before.
        """

    async def versions(self, task: str) -> list[VersionRecord]:
        """All versions of a task, ascending."""

    async def version(self, task: str, number: int) -> VersionRecord | None:
        """One version."""

    async def assign(self, assignment: AssignmentRecord) -> None:
        """Keep a promise to a device."""

    async def open_window(self, window: WindowRecord) -> None:
        """Keep a window's roster. Raises OUT_OF_TURN if it exists."""

    async def log(self, tau0: bytes, kind: str, member: int, body: bytes) -> None:
        """Keep an accepted message; the first body of a (window, kind, member) stands."""

    async def fix_u2(self, tau0: bytes, u2: bytes, now: float) -> None:
        """Keep who dealt shares. This and the verbs below raise UNKNOWN_WINDOW, and OUT_OF_TURN by `records.TRANSITIONS`."""

    async def fix_survivors(self, tau0: bytes, u3: bytes, heads: Sequence[EventRecord], masked_sum: bytes, now: float) -> None:
        """Keep the survivor set, its heads (as events) and the hash of its masked sum, together."""

    async def fix_quorum(self, tau0: bytes, quorum: bytes, now: float) -> None:
        """Keep the commit certificate."""

    async def fix_abort(self, tau0: bytes, certificate: bytes, dropped: Mapping[str, int], now: float) -> None:
        """Keep the abort certificate and drop what only the window's running needed."""

    async def finish_window(self, tau0: bytes, outcome: WindowOutcome, now: float) -> None:
        """Keep a window's sum and drop what only its running needed."""

    async def close_window(self, tau0: bytes, state: str, dropped: Mapping[str, int], now: float, failure: int = 0) -> None:
        """End a window without a sum: `aborted` (given up before the quorum) or `failed` (after it, with an error number)."""

    async def blame(self, blames: Sequence[BlameRecord]) -> None:
        """Keep what devices were found to have done; the first of a (device, window, kind, suspects) stands.

        Raises UNKNOWN_WINDOW.
        """

    async def blames(self, device: bytes = b"", tau0: bytes = b"") -> list[BlameRecord]:
        """What a device did, or what was done in a window, or all there is: in order of time, then device."""

    async def window(self, tau0: bytes) -> WindowRecord | None:
        """One window."""

    async def windows(self, task: str, limit: int = 100) -> list[WindowRecord]:
        """A task's windows, newest first."""

    async def events(self, tau0: bytes) -> list[EventRecord]:
        """A window's accepted messages in the order in which they came."""

    async def certificate(self, tau0: bytes) -> bytes | None:
        """The encoded commit or abort certificate of a window."""

    async def recover(self, now: float) -> Recovery:
        """All that a starting server needs; assignments past `now` are left out."""

    async def prune(self, now: float) -> int:
        """Forget expired assignments, and certificates and messages of windows that closed 30 days ago; returns how many."""

    async def referenced(self, versions: int, sums_s: float, now: float) -> set[bytes]:
        """The hashes of all blobs that something still needs.

        These are every task's model and plan; snapshot, master and deltas of its newest `versions` versions; the masked sums of
        windows that may still be unmasked; sums of windows that ended within the last `sums_s` seconds or await their version.
        """

    async def close(self) -> None:
        """Finish what is queued and let go."""


class Blobs(Protocol):
    """Immutable bytes by their SHA-256."""

    async def put(self, data: bytes | memoryview) -> bytes:
        """Keep `data` if it is not there yet; returns its hash."""

    async def get(self, sha256: bytes, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes `start` to `stop` of a blob. Raises UNKNOWN_BLOB, BAD_RANGE; DATA_DAMAGED where it fails its hash."""

    async def size(self, sha256: bytes) -> int | None:
        """A blob's length in bytes, None where there is none."""

    async def delete(self, sha256: bytes, age_s: float = 0.0) -> bool:
        """Forget a blob unless it was put within the last `age_s` seconds, if only again; whether there is none now.

        A put of the same bytes at the same moment wins: what it returned stays.
        """

    async def names(self) -> list[bytes]:
        """The hashes of all blobs."""


class Mark(Protocol):
    """A moment in the life of a topic."""

    async def wait(self, seconds: float) -> bool:
        """Return True as soon as the topic is woken after this mark was taken, False when the seconds are over."""


class Signal(Protocol):
    """Wakes who waits for a topic. Free of races in this order: take a mark, look, wait at the mark."""

    def mark(self, topic: bytes) -> Mark:
        """The present moment of a topic."""

    def wake(self, topic: bytes) -> None:
        """Wake everybody who waits at a mark of the topic."""
