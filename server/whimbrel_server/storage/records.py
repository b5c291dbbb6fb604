"""What the verbs of `protocols.py` take and give, and the order in which a window's state may change.

Here belong plain values and the one table of a window's states as storage sees them. What they mean to a running window belongs
in `window_run.py`; how they are kept belongs to the back ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from whimbrel_protocol.errors import Code, RuleError

# verb -> the states that it may follow, and the state that it leads to. Everything else is refused and changes nothing.
TRANSITIONS: Mapping[str, tuple[frozenset[str], str]] = {
    "fix_u2": (frozenset({"share"}), "mask"),
    "fix_survivors": (frozenset({"mask"}), "vote"),
    # A window that was given up may still get the commits that it lacked.
    "fix_quorum": (frozenset({"vote", "aborted"}), "unmask"),
    "finish_window": (frozenset({"unmask"}), "done"),
    # An abort may be given up on before its votes are in, and its certificate may still come later.
    "abandon": (frozenset({"share", "mask", "vote"}), "aborted"),
    "fix_abort": (frozenset({"share", "mask", "vote", "aborted"}), "aborted"),
    "fail": (frozenset({"unmask"}), "failed"),
}
UNFINISHED = ("share", "mask", "vote", "unmask")
CERTIFICATE_S = 30 * 86_400.0
ENTRY_LIFE_S = 1800.0  # a join entry lives 15 minutes, give or take the clocks; twice that is safe


def next_state(verb: str, state: str) -> str:
    """The state after `verb`. Raises RuleError OUT_OF_TURN where the table does not allow it."""
    allowed, following = TRANSITIONS[verb]
    if state not in allowed:
        raise RuleError(Code.OUT_OF_TURN, f"{verb} cannot follow the state {state!r} of a window")
    return following


def rolled_back(seq: int, highest: int) -> RuleError:
    """What `count_join` raises."""
    return RuleError(Code.STATE_ROLLED_BACK, f"join counter {seq}, but {highest} was seen of this device with another entry")


@dataclass(frozen=True)
class DeviceRecord:
    """An enrolled installation as the server has seen it; times in Unix seconds."""

    device: bytes
    certificate: bytes
    app_version: str
    protocol: int
    first_seen: float
    last_seen: float
    contributions: int = 0


@dataclass(frozen=True)
class TaskRecord:
    """A task: its immutable settings and hashes (`fixed_sha256` where its plan hands tensors over), and its state `unsigned`,
    `running`, `finished` or `paused`."""

    name: str
    settings: Mapping[str, object]
    model_sha256: bytes
    plan_sha256: bytes
    created_at: float
    state: str = "unsigned"
    fixed_sha256: bytes | None = None


@dataclass(frozen=True)
class VersionRecord:
    """One published state of a task's parameters. `snapshot`, `master` and the values of `deltas` are hashes of blobs.

    `metrics` are means over the contributors, as they measured them from the version before.
    """

    task: str
    version: int
    model_hash: bytes
    parent: int
    header: bytes
    chain_head: bytes
    lane: bytes
    snapshot: bytes
    master: bytes
    published_at: float
    deltas: Mapping[int, bytes] = field(default_factory=dict)
    windows: tuple[bytes, ...] = ()
    contributions: int = 0
    stage: str = "candidate"
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AssignmentRecord:
    """A device's permission to train one task from one version until `expires` (Unix seconds)."""

    id: bytes
    device: bytes
    task: str
    version: int
    expires: float


@dataclass(frozen=True)
class WindowRecord:
    """One masking window. `masked_sum` and `sum_sha256` are hashes of blobs; `dropped` counts members lost by phase."""

    tau0: bytes
    window_id: int
    task: str
    version: int
    lane: bytes
    params: bytes
    roster: tuple[bytes, ...]
    opened_at: float
    state: str = "share"
    u2: bytes | None = None
    u3: bytes | None = None
    masked_sum: bytes | None = None
    quorum: bytes | None = None
    abort: bytes | None = None
    sum_sha256: bytes | None = None
    count: int = 0
    weight_sum: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    applied_in: int | None = None
    closed_at: float | None = None
    failure: int = 0


@dataclass(frozen=True)
class WindowOutcome:
    """The end of a window: the hash of its unmasked sum, who is in it and who was lost where."""

    sum_sha256: bytes
    count: int
    weight_sum: int
    contributors: tuple[bytes, ...]
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class BlameRecord:
    """Why a device was found at fault in a window, and its quarantine's end (Unix seconds; 0: none).

    `kind` is a `FaultKind` of the protocol. `suspects` are all devices of whom at least one did it, this one included: alone it
    is at fault for certain.
    """

    device: bytes
    tau0: bytes
    kind: str
    suspects: tuple[bytes, ...]
    detail: str
    blamed_at: float
    until: float = 0.0


@dataclass(frozen=True)
class EventRecord:
    """An accepted message of a window that its sender may not have to send again; `body` is the encoded message."""

    kind: str
    member: int
    body: bytes


@dataclass(frozen=True)
class Recovery:
    """All that a starting server needs, in one consistent reading.

    `unfinished` are the windows that go on, each with its messages; those that were given up come back with the first late
    vote. `quarantined` are devices whose quarantine goes on, with its end; `unapplied` are done on the current version and in
    no other yet, in order of their end (a sum that came too late for its version is in none); `failed` ones did so on the
    current version; `recent` ones opened within `ENTRY_LIFE_S`.
    """

    policy: bytes | None
    tasks: tuple[TaskRecord, ...]
    current: Mapping[str, VersionRecord]
    assignments: tuple[AssignmentRecord, ...]
    unfinished: tuple[tuple[WindowRecord, tuple[EventRecord, ...]], ...]
    unapplied: Mapping[str, tuple[WindowRecord, ...]]
    failed: Mapping[str, tuple[WindowRecord, ...]]
    recent: tuple[WindowRecord, ...]
    quarantined: Mapping[bytes, float] = field(default_factory=dict)
