"""What a device must remember over its death, as plain values, and their one JSON form.

What belongs here: the shape of the journal. What does not: files and locks (`journal.py`) and what the records mean
(`lifecycle.py` and the scripts beside it). Every number that an attacker could gain by rolling back is here: the highest policy
and plan serials seen, the counter of joins, what was contributed, what is spent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import StrEnum
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from whimbrel_protocol.messages import Assignment

T = TypeVar("T")

_LATER = "later"
"""Marks a field that the journal of an older release does not have."""


class UpdateState(StrEnum):
    """Where an update stands."""

    TRAINED = "trained"  # frozen in the journal; no window knows of it
    JOINED = "joined"  # an entry was sent for it; no byte of it has left
    SPENT = "spent"  # a byte of it may have left: only a certificate frees it
    CONTRIBUTED = "contributed"  # a certificate or a receipt counts it
    FREED = "freed"  # a certificate says that it was not counted: it may join again


UNSENT = (UpdateState.TRAINED, UpdateState.JOINED, UpdateState.FREED)
"""The states in which an update may join a window."""


@dataclass(frozen=True)
class UpdateRecord:
    """One update. `basis` fixes everything that it was trained from; `words_sha256` its packed vector in the journal, encoded
    for `lane` where the plan rotates updates.

    An update that can no longer be used has no record: its words are deleted with it. `spent` is the protocol's SpentRecord in
    its JSON form, present from the moment a byte may leave until a certificate decides.
    """

    update_id: bytes
    task: str
    version: int
    model_hash: bytes
    basis: bytes
    words_sha256: bytes
    state: UpdateState = UpdateState.TRAINED
    lane: bytes = b""
    tau0: bytes = b""
    spent: dict[str, Any] | None = None
    spent_at: int = 0
    receipt: bytes = b""

    @property
    def words_file(self) -> str:
        """Where the packed words lie in the state directory."""
        return f"updates/{self.update_id.hex()}.words"


@dataclass(frozen=True)
class Contribution:
    """One update that counts, or may count: a base is never contributed to twice."""

    at: int
    version: int
    model_hash: bytes


@dataclass(frozen=True)
class TaskMemory:
    """What is known of a task: the highest plan serial seen, the cached plan, model and fixed tensors, the parameters that stay
    here, and past contributions."""

    plan_serial: int = 0
    plan_sha256: bytes = b""
    version: int = 0
    model_hash: bytes = b""
    contributions: tuple[Contribution, ...] = ()
    fixed_sha256: bytes = field(default=b"", metadata={_LATER: True})
    local_sha256: bytes = field(default=b"", metadata={_LATER: True})

    @property
    def plan_file(self) -> str:
        """Where the signed plan lies in the state directory."""
        return f"plans/{self.plan_sha256.hex()}"

    @property
    def model_file(self) -> str:
        """Where the held model lies in the state directory, as a snapshot message."""
        return f"models/{self.model_hash.hex()}"

    @property
    def fixed_file(self) -> str:
        """Where the plan's fixed tensors lie in the state directory."""
        return f"fixed/{self.fixed_sha256.hex()}"

    @property
    def local_file(self) -> str:
        """Where the parameters lie that never leave the device, as they were last trained."""
        return f"local/{self.local_sha256.hex()}"

    def contributed_to(self, version: int, model_hash: bytes) -> bool:
        """Whether this base, or a later one, was contributed to: versions only grow, so an older one is a repeat."""
        return any(version <= one.version or model_hash == one.model_hash for one in self.contributions)


@dataclass(frozen=True)
class Assigned:
    """An assignment with its deadline on the device's own clock (Unix seconds)."""

    assignment: Assignment
    deadline: float


@dataclass(frozen=True)
class DeviceState:
    """The whole journal but the identity's seed and the large files."""

    device: bytes
    certificate: bytes = b""
    policy: bytes = b""
    policy_serial: int = 0
    server_time: int = 0  # of the last check-in
    authority_time: int = 0  # the latest not_before that the authority signed
    join_seq: int = 0
    assigned: Assigned | None = None
    tasks: dict[str, TaskMemory] = field(default_factory=dict)
    updates: tuple[UpdateRecord, ...] = ()

    def task(self, name: str) -> TaskMemory:
        """Return what is known of a task, nothing at first."""
        return self.tasks.get(name, TaskMemory())

    def with_task(self, name: str, memory: TaskMemory) -> DeviceState:
        """Return the state with the task's memory replaced."""
        return replace(self, tasks={**self.tasks, name: memory})

    def with_update(self, record: UpdateRecord) -> DeviceState:
        """Return the state with the record added, or put in the place of its predecessor."""
        others = tuple(one for one in self.updates if one.update_id != record.update_id)
        return replace(self, updates=(*others, record))

    def without_update(self, record: UpdateRecord) -> DeviceState:
        """Return the state without the record."""
        return replace(self, updates=tuple(one for one in self.updates if one.update_id != record.update_id))

    def files(self) -> set[str]:
        """Return the names of the large files that the state speaks of."""
        named = {record.words_file for record in self.updates}
        for memory in self.tasks.values():
            named |= {memory.plan_file} if memory.plan_sha256 else set()
            named |= {memory.model_file} if memory.model_hash else set()
            named |= {memory.fixed_file} if memory.fixed_sha256 else set()
            named |= {memory.local_file} if memory.local_sha256 else set()
        return named


# --- JSON -----------------------------------------------------------------------------------------------------------


def dumps(state: DeviceState) -> str:
    """Return the state's JSON text: keys in order, byte strings in hexadecimal."""
    return json.dumps(_plain(state), sort_keys=True, indent=1)


def loads(text: str) -> DeviceState:
    """Return the state of its JSON text. Raises ValueError, TypeError or KeyError where anything is amiss."""
    state: DeviceState = _typed(DeviceState, json.loads(text))
    return state


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _typed(hint: Any, value: Any) -> Any:
    if get_origin(hint) is UnionType:
        return None if value is None else _typed(next(a for a in get_args(hint) if a is not type(None)), value)
    if is_dataclass(hint):
        return _dataclass(hint, value)
    if get_origin(hint) is tuple:
        return tuple(_typed(get_args(hint)[0], item) for item in value)
    if get_origin(hint) is dict:
        return {str(key): _typed(get_args(hint)[1], item) for key, item in value.items()}
    return value if hint is Any else _scalar(hint, value)


def _dataclass(cls: Any, value: Any) -> Any:
    hints = get_type_hints(cls)
    names = {f.name for f in fields(cls)}
    needed = {f.name for f in fields(cls) if not f.metadata.get(_LATER)}
    if not isinstance(value, dict) or not needed <= set(value) <= names:
        raise ValueError(f"{cls.__name__}: fields {sorted(names ^ set(value))} are missing or unknown")
    return cls(**{name: _typed(hints[name], value[name]) for name in value})


def _scalar(hint: type[T], value: Any) -> T:
    if hint is bytes:
        return bytes.fromhex(value)  # type: ignore[return-value]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError(f"{value!r} is no {hint.__name__}")
    typed: T = hint(value)  # type: ignore[call-arg]
    if typed != value:
        raise ValueError(f"{value!r} is no {hint.__name__}")
    return typed
