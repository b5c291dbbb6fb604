"""What binds a whole fleet or lane: the policy, a task's plan, a version's header, and the hashes over them.

Here belong the bytes (masking protocol, section 1.4; plan and header are this project's). Whether a policy or plan may be
accepted belongs in `trust.py`; the blobs of single devices belong in `objects.py`. Times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from struct import Struct
from typing import Any, ClassVar, Self

from whimbrel_protocol.errors import Code, WireError
from whimbrel_protocol.layout import FixedLayout, Signed, expect, pack
from whimbrel_protocol.objects import VectorSpec
from whimbrel_protocol.primitives import KEY_BYTES, SIGNATURE_BYTES, sha256, th, u64

# Bit 1 of a policy's flags: plans without masks may be accepted. Bit 0 of a plan's: it uses masks.
UNMASKED_ALLOWED = 1 << 1
MASKED = 1 << 0

# Before the first version there is nothing to chain to.
CHAIN_START = bytes(32)

_U16, _U32 = Struct("<H"), Struct("<I")


@dataclass(frozen=True)
class Policy(Signed):
    """The fleet's rules, signed by the authority's root: no server may soften them.

    `gamma_milli` is the tolerated share of colluding devices in thousandths, `sigma` the graph's security in bits, `n_min` and
    `n_max` the cohort sizes, `issuers` and `plan_signers` the keys that the root trusts to certify devices and to sign plans.
    """

    MAGIC: ClassVar[bytes] = b"MWP1"
    KIND: ClassVar[str] = "policy"
    LAYOUT: ClassVar[Struct] = Struct("<16sQQHHHHIH")

    fleet: bytes
    serial: int
    not_after: int
    gamma_milli: int
    sigma: int
    n_min: int
    n_max: int
    min_epoch: int
    flags: int
    issuers: tuple[bytes, ...]
    plan_signers: tuple[bytes, ...]

    @property
    def unmasked_allowed(self) -> bool:
        """Whether plans without masks may be accepted; clear by default."""
        return bool(self.flags & UNMASKED_ALLOWED)

    def signed_bytes(self) -> bytes:
        """The policy without its signature."""
        dates, sizes = (self.serial, self.not_after), (self.n_min, self.n_max)
        numbers = (*dates, self.gamma_milli, self.sigma, *sizes, self.min_epoch, self.flags)
        head = self.MAGIC + pack(self.LAYOUT, self.fleet, *numbers)
        return head + _key_list(self.issuers) + _key_list(self.plan_signers)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The policy's fields. Raises WireError BAD_SIZE or BAD_MAGIC; judges nothing else."""
        start = len(cls.MAGIC) + cls.LAYOUT.size
        expect(data[:start], cls.MAGIC, start, "Policy's head")
        issuers, rest = _take_keys(data[start:])
        plan_signers, signature = _take_keys(rest)
        expect(signature, b"", SIGNATURE_BYTES, "Policy's signature")
        values: list[Any] = [*cls.LAYOUT.unpack_from(data, len(cls.MAGIC)), issuers, plan_signers]
        return cls(*values, signature=signature)


def _key_list(keys: tuple[bytes, ...]) -> bytes:
    if len(keys) > 255 or any(len(key) != KEY_BYTES for key in keys):
        raise WireError(Code.BAD_FIELD, f"at most 255 keys of {KEY_BYTES} bytes, not {[len(key) for key in keys]}")
    return bytes([len(keys)]) + b"".join(keys)


def _take_keys(data: bytes) -> tuple[tuple[bytes, ...], bytes]:
    end = 1 + KEY_BYTES * (data[0] if data else 0)
    if not data or len(data) < end:
        raise WireError(Code.BAD_SIZE, "Policy ends within a list of keys")
    return tuple(data[at : at + KEY_BYTES] for at in range(1, end, KEY_BYTES)), data[end:]


@dataclass(frozen=True)
class Plan(Signed):
    """What a device needs to work on a task, signed by a plan signer of the policy.

    The head fixes the vector spec but for the scale, which a version states within the range given here; `body` is opaque
    here (a PlanBody message). A lane hashes `signed_bytes()`, the plan without its signature.
    """

    MAGIC: ClassVar[bytes] = b"MWN1"
    KIND: ClassVar[str] = "plan"
    LAYOUT: ClassVar[Struct] = Struct("<16sQQHBHBQdd")

    fleet: bytes
    serial: int
    not_after: int
    flags: int
    bits: int
    n_max: int
    weight_bits: int
    d: int
    scale_min: float
    scale_max: float
    task: str
    body: bytes

    @property
    def masked(self) -> bool:
        """Whether updates travel under masks."""
        return bool(self.flags & MASKED)

    def spec(self, scale: float) -> VectorSpec:
        """The vector spec of a version with this scale. Raises WireError BAD_SPEC outside the plan's range."""
        if not self.scale_min <= scale <= self.scale_max:
            raise WireError(Code.BAD_SPEC, f"scale {scale} is outside the plan's {self.scale_min} to {self.scale_max}")
        return VectorSpec.make(self.bits, self.n_max, self.d, scale, self.weight_bits)

    def signed_bytes(self) -> bytes:
        """The plan without its signature."""
        dates, sizes = (self.serial, self.not_after, self.flags), (self.bits, self.n_max, self.weight_bits, self.d)
        head = self.MAGIC + pack(self.LAYOUT, self.fleet, *dates, *sizes, self.scale_min, self.scale_max)
        task = self.task.encode()
        return head + pack(_U16, len(task)) + task + pack(_U32, len(self.body)) + self.body

    def signature_input(self) -> bytes:
        """SHA-256 of the plan: a signer need not be handed megabytes of graph."""
        return sha256(self.signed_bytes())

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The plan's fields. Raises WireError BAD_SIZE, BAD_MAGIC, or BAD_FIELD for a name that is not UTF-8."""
        start = len(cls.MAGIC) + cls.LAYOUT.size
        expect(data[:start], cls.MAGIC, start, "Plan's head")
        task, rest = _take_bytes(data[start:], _U16)
        body, signature = _take_bytes(rest, _U32)
        expect(signature, b"", SIGNATURE_BYTES, "Plan's signature")
        values: list[Any] = [*cls.LAYOUT.unpack_from(data, len(cls.MAGIC)), _text(task), body]
        return cls(*values, signature=signature)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as reason:
        raise WireError(Code.BAD_FIELD, f"the task's name: {reason}") from None


def _take_bytes(data: bytes, length: Struct) -> tuple[bytes, bytes]:
    if len(data) < length.size:
        raise WireError(Code.BAD_SIZE, "Plan ends within a length")
    end = length.size + int(length.unpack_from(data)[0])
    if len(data) < end:
        raise WireError(Code.BAD_SIZE, "Plan ends within its task or body")
    return data[length.size : end], data[end:]


@dataclass(frozen=True)
class VersionHeader(FixedLayout):
    """All that a device is told to train with, 64 bytes; it stands in the lane, so no device can be told something else.

    `scale` is the vector spec's, `clip` the L2 bound of an update (0: none), `lr`, `momentum`, `mu` (FedProx) and
    `weight_decay` the optimiser's, float32 on the wire; `max_steps` and `time_budget_ms` 0 mean no such limit.
    """

    MAGIC: ClassVar[bytes] = b"MWH1"
    LAYOUT: ClassVar[Struct] = Struct("<QdfffffIIIQI")

    version: int
    scale: float
    clip: float
    lr: float
    momentum: float
    mu: float
    weight_decay: float
    epochs: int
    max_steps: int
    time_budget_ms: int
    seed: int
    flags: int

    def __post_init__(self) -> None:
        real = (self.scale, self.clip, self.lr, self.momentum, self.mu, self.weight_decay)
        if not all(isfinite(value) for value in real):
            raise WireError(Code.BAD_FIELD, "a value of the version header is not finite")


def lane_hash(
    *,
    fleet: bytes,
    task_id: str,
    plan: bytes,
    version: int,
    model_hash: bytes,
    chain_head: bytes,
    spec: bytes,
    policy: bytes,
    header: bytes,
) -> bytes:
    """What the members of a window must agree on, 32 bytes.

    `plan` is the plan without its signature, `policy` and `header` the bytes as received, `model_hash` the SHA-256 of the base
    model's bytes, `spec` the 39 bytes.
    """
    documents = (sha256(plan), u64(version), model_hash, chain_head, spec, sha256(policy), sha256(header))
    return th("mw1/lane", fleet, task_id.encode(), *documents)


def chain_next(head: bytes, version: int, model_hash: bytes, windows: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The chain head of `version`, made from its predecessor's, 32 bytes.

    `windows` are (tau1, SHA-256 of the unmasked sum's words) of the windows applied since, in order of application.
    """
    return th("mw1/chain", head, u64(version), model_hash, b"".join(tau1 + total for tau1, total in windows))
