"""From the sums of a round's windows to the next version: mean, server step, lattice, snapshot, deltas, chain.

Here belongs the arithmetic, exact where it can be: window sums are integers, so their order does not matter; the master keeps
float64 and with it what the lattice rounds away (error feedback). When a version is made belongs in `task_run.py`, where its
blobs go in the shell. Runs on a worker: it takes milliseconds a million parameters, and where an array may be changed in place
it is, because a model may have a hundred million of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from whimbrel_protocol import delta, wire
from whimbrel_protocol.delta import Lattice
from whimbrel_protocol.encoding import Encoding, Total, mean_metrics, mean_update
from whimbrel_protocol.errors import Code, RuleError, WireError
from whimbrel_protocol.messages import ModelDelta
from whimbrel_protocol.signed import CHAIN_START, chain_next
from whimbrel_server.settings import TaskSettings

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Integers = npt.NDArray[np.integer]
Shapes = Mapping[str, tuple[int, ...]]

# The first step, as a fraction of a tensor's root mean square: rounding costs 0.1 %, and finer steps only make larger deltas.
_FIRST_FRACTION = 2.0**-8
# What a tensor of zeros gets where all are zeros.
_FIRST_EXPONENT = -12
# A step is not halved further than leaves parameters room to grow by 2 to this power.
_HEADROOM_BITS = 6
# Composite deltas reach back this far (performance: a longer absence fetches the snapshot).
_FARTHEST = 64


@dataclass(frozen=True)
class WindowTotal:
    """A finished window: its U2's name, the sum's hash, the sum of values (integers [d]), how many, their weight, the lane."""

    tau1: bytes
    sum_sha256: bytes
    values: Integers
    count: int
    weight_sum: int = 0
    lane: bytes = b""

    @property
    def total(self) -> Total:
        """What the encoding makes means of."""
        return Total(self.values, self.count, self.weight_sum, self.lane)


@dataclass(frozen=True)
class ModelState:
    """One version: `master` is float64 [d] in plan order, `lattice` what was published of it."""

    version: int
    shapes: Shapes
    master: Float64
    lattice: Lattice
    model_hash: bytes
    chain_head: bytes


@dataclass(frozen=True)
class Statistics:
    """Which tensors of a version are running statistics: averaged as they are, whatever the server's rate; and which of them
    are variances, which rounding must not make negative."""

    running: frozenset[str] = frozenset()
    variances: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Published:
    """A version with its encoded snapshot.

    `update_norm` is the L2 norm of the server's step, `metrics` the means that its contributors reported.
    """

    state: ModelState
    snapshot: bytes
    update_norm: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)


NO_STATISTICS = Statistics()


def first_version(parameters: Mapping[str, Float32]) -> Published:
    """Version 1 from the initial parameters, given in plan order."""
    shapes = {name: tuple(int(side) for side in value.shape) for name, value in parameters.items()}
    flat = [value.astype(np.float64).ravel() for value in parameters.values()]
    own = [delta.step_exponent(value, _FIRST_FRACTION) if value.any() else None for value in flat]
    # A tensor of zeros, such as a bias, will soon hold updates like the others'.
    finest = min((exponent for exponent in own if exponent is not None), default=_FIRST_EXPONENT)
    exponents = [finest if exponent is None else exponent for exponent in own]
    master = np.concatenate(flat) if flat else np.zeros(0)
    lattice = _lattice(master, shapes, exponents)
    model_hash = delta.lattice_hash(lattice)
    head = chain_next(CHAIN_START, 1, model_hash, ())
    return _published(ModelState(1, shapes, master, lattice, model_hash, head))


def next_version(
    previous: ModelState,
    sums: Sequence[WindowTotal],
    encoding: Encoding,
    settings: TaskSettings,
    statistics: Statistics = NO_STATISTICS,
) -> Published:
    """The version after `previous`: FedAvg with the server's learning rate on the mean of the windows' updates.

    `sums` are the windows applied, in order (none: the same parameters, published one bit finer), `encoding` is that of
    `previous`. Source: Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 1 with plain SGD on the server.
    """
    totals = [window.total for window in sums]
    step = mean_update(encoding, totals) if sums else np.zeros_like(previous.master)
    _scale(step, previous.shapes, settings.server_lr, statistics)
    norm, wanted = float(np.linalg.norm(step)), _wanted_exponents(previous, step, settings.step_fraction)
    master = np.add(step, previous.master, out=step)
    _raise_variances(master, previous.shapes, statistics)
    lattice = _lattice(master, previous.shapes, _next_exponents(previous, master, wanted))
    model_hash, version = delta.lattice_hash(lattice), previous.version + 1
    windows = [(window.tau1, window.sum_sha256) for window in sums]
    head = chain_next(previous.chain_head, version, model_hash, windows)
    state = ModelState(version, previous.shapes, master, lattice, model_hash, head)
    return replace(_published(state), update_norm=norm, metrics=mean_metrics(encoding, totals))


def _scale(step: Float64, shapes: Shapes, rate: float, statistics: Statistics) -> None:
    """Multiply by the server's rate, except running statistics."""
    for name, values in zip(shapes, _split(step, shapes), strict=True):
        if name not in statistics.running:
            values *= rate


def _raise_variances(master: Float64, shapes: Shapes, statistics: Statistics) -> None:
    """Make no variance less than zero."""
    for name, values in zip(shapes, _split(master, shapes), strict=True):
        if name in statistics.variances:
            np.maximum(values, 0.0, out=values)


def _published(state: ModelState) -> Published:
    return Published(state, wire.encode(delta.snapshot(state.version, state.lattice, state.model_hash)))


def wanted_deltas(version: int) -> tuple[int, ...]:
    """The versions that `version` gets a delta from: one, two, four ... back."""
    backs = (1 << power for power in range(_FARTHEST.bit_length()))
    return tuple(version - back for back in backs if version - back >= 1)


def delta_from(number: int, old: Lattice, made: Published) -> bytes | None:
    """The encoded delta from version `number` to the one made, or None where it serves nobody.

    That is where it is no smaller than the snapshot, or where there is none: a tensor outgrew its step, or the two are too far
    apart.
    """
    state = made.state
    try:
        coded = wire.encode(delta.delta(number, old, state.version, state.lattice, state.model_hash))
    except WireError:
        return None
    return coded if len(coded) < len(made.snapshot) else None


def _wanted_exponents(previous: ModelState, step: Float64, fraction: float) -> list[int]:
    """Each tensor's step by its update alone.

    A base that comes again after a failed window shows one bit more of the master: a device contributes to the same bytes only
    once, so without it a small fleet whose window failed would have nobody left.
    """
    tensors = zip(previous.lattice, _split(step, previous.shapes), strict=True)
    return [delta.step_exponent(update, fraction) if update.any() else old.exponent - 1 for old, update in tensors]


def _next_exponents(previous: ModelState, master: Float64, wanted: Sequence[int]) -> list[int]:
    """Each tensor's step: halved when updates get small; raised only where a parameter would not be exact any more."""
    tensors = zip(previous.lattice, _split(master, previous.shapes), wanted, strict=True)
    return [_next_exponent(old.exponent, delta.greatest(values), wish) for old, values, wish in tensors]


def _next_exponent(old: int, peak: float, wanted: int) -> int:
    finest = math.ceil(math.log2(peak / (delta.LIMIT - 1))) if peak > 0 else -126
    return max(min(old, max(wanted, finest + _HEADROOM_BITS)), finest)


def _split(flat: Float64, shapes: Shapes) -> list[Float64]:
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    return np.split(flat, ends[:-1])


def _lattice(master: Float64, shapes: Shapes, exponents: Sequence[int]) -> Lattice:
    tensors = zip(_split(master, shapes), exponents, strict=True)
    return tuple(delta.quantise(values, exponent) for values, exponent in tensors)


def parameters(state: ModelState) -> dict[str, Float32]:
    """The published parameters in float32, shaped, in plan order."""
    tensors = zip(state.shapes.items(), state.lattice, strict=True)
    return {name: tensor.values().reshape(shape) for (name, shape), tensor in tensors}


# --- to and from blobs ------------------------------------------------------------------------------------------------


def encode_master(master: Float64) -> memoryview:
    """Little-endian float64, plan order."""
    return master.astype("<f8", copy=False).data.cast("B")


def decode_lattice(snapshot: bytes, shapes: Shapes) -> Lattice:
    """The lattice in an encoded snapshot. Raises WireError."""
    return delta.apply(wire.decode(snapshot, ModelDelta), shapes)


def load_state(version: int, shapes: Shapes, master: bytes, snapshot: bytes, chain_head: bytes) -> ModelState:
    """A version from its blobs. Raises WireError for a snapshot, RuleError DATA_DAMAGED for a master that does not fit."""
    lattice = decode_lattice(snapshot, shapes)
    values = np.frombuffer(master, "<f8").astype(np.float64) if len(master) % 8 == 0 else np.zeros(0)
    if values.size != sum(tensor.integers.size for tensor in lattice):
        raise RuleError(Code.DATA_DAMAGED, f"the master of version {version} has {len(master)} bytes")
    return ModelState(version, shapes, values, lattice, delta.lattice_hash(lattice), chain_head)
