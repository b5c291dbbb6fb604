"""What a device's life asks of the shell around it: one value an action, each with the answer that it waits for.

What belongs here: the requests. What does not: how they are fulfilled (`participant.py` with its transport, journal and
trainer; a simulation has its own) and why they are made (`lifecycle.py`). An action may be performed twice, because a tick may
be cut short: the shell keeps no memory of it, and every call of the contract but the check-in is idempotent.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from whimbrel.device_policy import Cost
from whimbrel.records import DeviceState
from whimbrel_protocol.encoding import Measured
from whimbrel_protocol.messages import BlobRef, Message, PlanBody
from whimbrel_protocol.signed import VersionHeader

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Send:
    """Call the server. Answer: one message of `expects`, or a Failure (505 where none came, 1xx where it is no message)."""

    method: Literal["GET", "POST"]
    path: str
    expects: tuple[type, ...]
    message: Message | None = None
    token: str = field(default="", repr=False)
    wait_s: float = 0.0  # of a long poll: the server may hold the answer so long
    repeatable: bool = True  # a check-in is not: the server refuses its nonce the second time


@dataclass(frozen=True)
class Fetch:
    """Fetch an immutable blob. Answer: its bytes, whose size and hash are the reference's, or a Failure."""

    ref: BlobRef


@dataclass(frozen=True)
class Upload:
    """Put a masked vector at `path`, going on where the server stands. Answer: Accepted or a Failure."""

    path: str
    data: bytes = field(repr=False)
    token: str = field(repr=False)


@dataclass(frozen=True)
class Persist:
    """Make the state durable, with large files by name (None deletes one). Answer: None, once it is on the disk."""

    state: DeviceState = field(repr=False)
    files: Mapping[str, bytes | None] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Load:
    """Read a large file of the journal. Answer: its bytes, or None where it is not there."""

    name: str


@dataclass(frozen=True)
class TrainingJob:
    """Everything that local training depends on but the examples and the shuffle's seed (32 bytes of the system's entropy).

    `base` holds the version, float32 in the shapes and order of `PlanBody.shared`. `basis` names the job: a checkpoint of
    another basis is not its own. `held` is what the device has by name: frozen weights, and its local parameters.
    """

    basis: bytes
    body: PlanBody = field(repr=False)
    base: tuple[Float32, ...] = field(repr=False)
    header: VersionHeader = field(repr=False)
    seed: bytes = field(repr=False)
    held: Mapping[str, Array] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Train:
    """Train for one slice of time. Answer: a `Trained`, or a Failure with a 5xx number of the device."""

    job: TrainingJob


@dataclass(frozen=True)
class Trained:
    """How far training came.

    Once all steps are done there are `measured`, the update and its metrics, and the `local` parameters in plan order.
    """

    seconds: float
    steps: int
    measured: Measured | None = field(default=None, repr=False)
    local: tuple[Array, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Ask:
    """May this be spent? Answer: what the app's `DevicePolicy.allow` says."""

    cost: Cost


@dataclass(frozen=True)
class Sleep:
    """Nothing to do until then (Unix seconds on the device's clock). Answer: None, not before."""

    until: float


Action = Ask | Send | Fetch | Upload | Persist | Load | Train | Sleep

T = TypeVar("T")
Script = Generator[Action, Any, T]
"""A part of a device's life: yields actions, is sent their answers, returns what it was for."""
