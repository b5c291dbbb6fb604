"""Every message of the contract as a plain value, one class a FlatBuffers table.

What belongs here: the shape of what travels, in the names of `schemas/whimbrel.fbs`. What does not: bytes (see `wire.py`) and
judgement (see `member.py`, `collector.py` and the shells on both sides). Byte fields hold the blobs of `objects.py` exactly as
they were received; nothing is ever encoded again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class VoteKind(IntEnum):
    """What a vote says of its window (masking protocol, vote body)."""

    COMMIT = 1
    ABORT = 2


# --- enrolment ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Enrol:
    """A certificate request with the token that entitles to it."""

    request: bytes
    token: str


@dataclass(frozen=True)
class Renew:
    """A certificate request for a device that has a certificate, signed by the old key as well."""

    request: bytes
    certificate: bytes
    signature: bytes


@dataclass(frozen=True)
class Enrolled:
    """The answer to both: the certificate and the policy in force, each as signed by the authority."""

    certificate: bytes
    policy: bytes


# --- check-in -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """A version of a task's parameters that the device already holds."""

    task: str
    version: int


@dataclass(frozen=True)
class CheckIn:
    """Signed presence: `body` is the fixed-layout check-in blob, signed by the certificate's key."""

    certificate: bytes
    body: bytes
    app_version: str
    protocol: int
    held: tuple[Held, ...] = ()


@dataclass(frozen=True)
class BlobRef:
    """An immutable blob: SHA-256 and size in bytes."""

    sha256: bytes
    size: int


@dataclass(frozen=True)
class Assignment:
    """Permission to train one task from one base version until a deadline (seconds from now).

    Nothing here may change an update: what a device trains with stands in the plan and in `header`, both part of the lane.
    """

    id: bytes
    task: str
    version: int
    plan: BlobRef
    header: bytes
    chain_head: bytes
    model_hash: bytes
    snapshot: BlobRef
    delta: BlobRef | None
    delta_from: int
    deadline_s: int


@dataclass(frozen=True)
class CheckedIn:
    """The answer to a check-in: a bearer token, a time to come back, perhaps an assignment, and the policy in force."""

    token: str
    token_expires_s: int
    come_back_s: int
    now: int
    policy: bytes
    assignment: Assignment | None = None


# --- the masking window, in the order of its phases -----------------------------------------------------------------


@dataclass(frozen=True)
class Join:
    """A 404-byte join entry."""

    entry: bytes
    assignment: bytes


@dataclass(frozen=True)
class Joined:
    """A ticket that names the entry, and the seconds until it is worth asking."""

    ticket: bytes
    come_back_s: int


@dataclass(frozen=True)
class Wait:
    """Nothing yet: ask again after so many seconds."""

    come_back_s: int


@dataclass(frozen=True)
class Open:
    """The window opens: its parameters (72 bytes) and its roster (404-byte entries, device ids ascending)."""

    params: bytes
    roster: tuple[bytes, ...]


@dataclass(frozen=True)
class Shares:
    """Member `i` deals its shares: n-1 ciphertexts of 80 bytes joined in order of recipient, its own left out."""

    i: int
    tau0: bytes
    cts: bytes
    bcommit: bytes
    sig: bytes


@dataclass(frozen=True)
class U2:
    """Who dealt, and the ciphertexts for the recipient in order of sender, its own left out."""

    bitmap: bytes
    cts: bytes


@dataclass(frozen=True)
class MaskedHead:
    """Announces a masked vector of `words` 64-bit words; the vector itself travels as raw bytes."""

    tau1: bytes
    i: int
    words: int
    sha256: bytes
    msig: bytes
    present: bytes


@dataclass(frozen=True)
class Survivors:
    """Whose vectors arrived, each with its signature over tau1; or the request to vote for an abort."""

    bitmap: bytes
    msigs: bytes
    abort: bool = False


@dataclass(frozen=True)
class Vote:
    """Member `i` signs the one vote that it has in this window."""

    i: int
    kind: VoteKind
    sig: bytes


@dataclass(frozen=True)
class Quorum:
    """At least t votes on one body: a commit certificate (it also excludes who is not in `u3`) or an abort certificate."""

    kind: VoteKind
    tau1: bytes
    u3: bytes
    idx: tuple[int, ...]
    sigs: bytes


@dataclass(frozen=True)
class Unmask:
    """Member `i` reveals, for each j of U2 ascending whose share it holds (`present`), one 32-byte share."""

    i: int
    present: bytes
    shares: bytes


@dataclass(frozen=True)
class Done:
    """The receipt: the lane and the SHA-256 of the window's sum."""

    lane: bytes
    sum_sha256: bytes


@dataclass(frozen=True)
class Blame:
    """The window's sum failed its checks: survivors are asked once for their masks on the two canary words."""

    tau1: bytes


@dataclass(frozen=True)
class CanaryMasks:
    """Member `i` tells, for each j of U2 with which it has an edge (`edges`), 16 bytes of their mask: both canary words."""

    i: int
    edges: bytes
    masks: bytes


# --- after the window -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """Why a step failed: numbers only, nothing of the data."""

    code: int
    step: int
    task: str
    version: int
    duration_class: int


@dataclass(frozen=True)
class Accepted:
    """The empty yes."""


@dataclass(frozen=True)
class Failure:
    """The no of every device call: an error number of `errors.py`, a sentence for people, and when to come back."""

    number: int
    detail: str
    come_back_s: int = 0


# --- what blobs hold ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Binding:
    """One input or output of a graph, found by its role; see the train-step contract in `schemas/README.md`."""

    role: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    default: float = 0.0


@dataclass(frozen=True)
class Metric:
    """A number that devices report in the sum: a share of `maximum` in fixed point, `bits` bits."""

    name: str
    maximum: float
    bits: int


@dataclass(frozen=True)
class PlanBody:
    """What a device needs to work on a task, behind the plan's signed head. Graphs are ONNX files, zstd-compressed.

    `fixed` tensors are fetched once, as `fixed_blob`: frozen weights, and start values of parameters that stay on the device.
    """

    loss: str
    batch: int
    train_graph: bytes
    eval_graph: bytes
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    eval_inputs: tuple[Binding, ...]
    eval_outputs: tuple[Binding, ...]
    min_examples: int = 1
    contributions_cap: int = 0
    cap_period_s: int = 0
    operators: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = ()
    rotate: bool = False
    weight_max: int = 0
    clip_min: float = 0.0
    clip_max: float = 0.0
    drop_ragged: bool = False
    fixed: tuple[Binding, ...] = ()
    fixed_blob: BlobRef | None = None

    @property
    def shared(self) -> tuple[Binding, ...]:
        """What a version consists of, in plan order: the trained parameters, then the running statistics."""
        return self.of("param") + self.of("running")

    def of(self, role: str) -> tuple[Binding, ...]:
        """The train step's inputs of one role, in order."""
        return tuple(one for one in self.inputs if one.role == role)


@dataclass(frozen=True)
class TensorDelta:
    """One tensor on the exact lattice: `count` integers in units of 2**`exponent`, as zstd-compressed byte planes."""

    count: int
    exponent: int
    planes: bytes


@dataclass(frozen=True)
class ModelDelta:
    """A snapshot (`from_version` is none) or the integer differences between two versions, in plan order."""

    from_version: int
    to_version: int
    model_hash: bytes
    tensors: tuple[TensorDelta, ...]
    snapshot: bool = False


Message = (
    Enrol
    | Renew
    | Enrolled
    | CheckIn
    | CheckedIn
    | Join
    | Joined
    | Wait
    | Open
    | Shares
    | U2
    | MaskedHead
    | Survivors
    | Vote
    | Quorum
    | Unmask
    | Done
    | Report
    | Accepted
    | Failure
    | PlanBody
    | ModelDelta
    | Blame
    | CanaryMasks
)
