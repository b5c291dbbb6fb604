"""From a trained update to the d values of a vector, and from a sum of vectors back to means (masking protocol, section 4).

Here belong the steps on both sides, in the protocol's order: weight, clip, rotate, round, and the metrics beside the update;
then sum, inverse rotation, mean. All is fixed by the signed plan and the version's header, hence by the lane. Lanes, canaries
and the limits of a word belong in `packing.py`; what a clip bound or scale should be is the server's choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import frexp, isfinite, ldexp, log, prod, sqrt
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from whimbrel_kernels import rotate, unrotate
from whimbrel_protocol.errors import Code
from whimbrel_protocol.messages import Metric, PlanBody
from whimbrel_protocol.objects import VectorSpec
from whimbrel_protocol.packing import quantise
from whimbrel_protocol.primitives import kdf, stream
from whimbrel_protocol.signed import Plan, VersionHeader
from whimbrel_protocol.trust import demand

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer]

# A rotation works on blocks of this many values: one fits a first-level cache, and mixes enough values to look normal.
BLOCK = 2**12
# A light member could otherwise be one of many round a single heavy victim, whose update the sum then is.
LIGHTEST = 4
# The metric that says whether an update's norm was within the clip bound: the bit of Andrew et al. 2021, section 2.
WITHIN_CLIP = "within_clip"
# What a scale leaves to chance: that one value of an update is clamped. Less chance would cost more in rounding than it saves.
_CLAMPED = 1 / 16


class Contribution(NamedTuple):
    """What a member packs: int32 [d] within the spec's limit, and an integer weight."""

    values: npt.NDArray[np.int32]
    weight: int


@dataclass(frozen=True)
class Measured:
    """What training left: the update (float32, flat, plan order), the number of examples, and metrics by name."""

    update: Float32
    examples: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Encoding:
    """How updates become values: everything that plan and header say of it.

    `spec.d` counts the limbs of `metrics` and then the update's values. `clip` is the L2 bound (0: none), `weight_max` the
    number of examples from which on an update has full weight (0: every update weighs the same).
    """

    spec: VectorSpec
    metrics: tuple[Metric, ...] = ()
    rotate: bool = False
    weight_max: int = 0
    clip: float = 0.0

    @classmethod
    def of(cls, plan: Plan, body: PlanBody, header: VersionHeader) -> Self:
        """The encoding of a version. Raises WireError BAD_SPEC for a scale outside the plan's range, RuleError BAD_SPEC for
        such a clip bound, PLAN_UNSUPPORTED for a plan whose numbers do not fit each other.
        """
        within = body.clip_min <= header.clip <= body.clip_max
        demand(within, Code.BAD_SPEC, f"clip {header.clip} is outside the plan's {body.clip_min} to {body.clip_max}")
        made = cls(plan.spec(header.scale), body.metrics, body.rotate, body.weight_max, header.clip)
        size = sum(prod(one.shape) for one in body.shared)
        fits = f"{made.metric_lanes} lanes of metrics and {size} shared parameters, the plan's head says {plan.d}"
        demand(made.metric_lanes + size == plan.d and size > 0, Code.PLAN_UNSUPPORTED, fits)
        return made

    def __post_init__(self) -> None:
        names = [one.name for one in self.metrics]
        for holds, reason in (
            (len(set(names)) == len(names), "two metrics have one name"),
            (all(one.maximum > 0 and isfinite(one.maximum) for one in self.metrics), "a metric's maximum is not positive"),
            (all(1 <= one.bits <= 32 for one in self.metrics), "a metric's bits are not within 1..32"),
            (not self.weight_max or self.spec.weight_bits > 0, "weights by examples need weight bits"),
            (isfinite(self.clip) and self.clip >= 0, f"the clip bound {self.clip} is negative or not finite"),
        ):
            demand(holds, Code.PLAN_UNSUPPORTED, reason)

    @cached_property
    def metric_lanes(self) -> int:
        """How many of the d lanes hold limbs of metrics: they come first."""
        return metric_lanes(self.metrics, self.spec.limb_bits)

    @property
    def size(self) -> int:
        """Values of an update."""
        return self.spec.d - self.metric_lanes

    @property
    def full_weight(self) -> int:
        """The integer weight that stands for 1."""
        return 2**self.spec.weight_bits - 1 if self.weight_max else min(self.spec.weight_bits, 1)

    # --- a member -----------------------------------------------------------------------------------------------------

    def encode(self, measured: Measured, lane: bytes, uniforms: Float64) -> Contribution:
        """What is packed, masked and summed. `uniforms` [size] within [0, 1) are this rounding's alone.

        Raises RuleError UPDATE_OUT_OF_RANGE for shapes or values that cannot be, TOO_FEW_EXAMPLES for less than a quarter of
        the full weight, PLAN_UNSUPPORTED for a metric that was not measured.
        """
        update = measured.update
        demand(update.shape == (self.size,), Code.UPDATE_OUT_OF_RANGE, f"{self.size} values are needed, not {update.shape}")
        weight = self.weight_of(measured.examples)
        if self.weight_max:
            update = (update * np.float32(weight / self.full_weight)).astype(np.float32)
        update, within = clipped(update, self.clip)
        values = self.rotated(update, lane) if self.rotate else update
        rounded = quantise(values, replace(self.spec, d=self.size), uniforms)
        limbs = self._limbs({**measured.metrics, WITHIN_CLIP: float(within)})
        return Contribution(np.concatenate([limbs, rounded]), weight)

    def weight_of(self, examples: int) -> int:
        """u = round(min(examples, W) / W * (2^wbits - 1)); without weights 1, or 0 where the spec has no limb for it.

        Raises RuleError TOO_FEW_EXAMPLES for less than a quarter of the full weight.
        """
        if not self.weight_max:
            return self.full_weight
        weight = _fixed_point(examples, self.weight_max, self.spec.weight_bits)
        reason = f"{examples} examples weigh less than a quarter of {self.weight_max}"
        demand(LIGHTEST * weight >= self.full_weight, Code.TOO_FEW_EXAMPLES, reason)
        return weight

    def rotated(self, update: Float32, lane: bytes) -> Float32:
        """The update [size] after the lane's block Hadamard rotation."""
        values = np.array(update, np.float32)
        rotate(values, rotation_signs(lane, self.size), BLOCK)
        return values

    def _limbs(self, measured: Mapping[str, float]) -> npt.NDArray[np.int32]:
        unknown = [one.name for one in self.metrics if one.name not in measured]
        demand(not unknown, Code.PLAN_UNSUPPORTED, f"the plan wants metrics that are not measured: {', '.join(unknown)}")
        limbs: list[int] = []
        for one in self.metrics:
            limbs += limbs_of(_fixed_point(measured[one.name], one.maximum, one.bits), one.bits, self.spec.limb_bits)
        return np.array(limbs, np.int32)

    # --- the server ---------------------------------------------------------------------------------------------------

    def decode(self, total: Integers, lane: bytes) -> Float64:
        """The sum of the updates, float64 [size] in parameter units, from a sum of values [d] of one lane."""
        values = total[self.metric_lanes :]
        if self.rotate:
            turned = values.astype(np.float32)
            unrotate(turned, rotation_signs(lane, self.size), BLOCK)
            return np.divide(turned, self.spec.scale, dtype=np.float64)
        return np.divide(values, self.spec.scale, dtype=np.float64)

    def mass(self, count: int, weight_sum: int) -> float:
        """What the sum of updates is divided by for their mean: how many there are, or the sum of their weights."""
        return weight_sum / self.full_weight if self.weight_max else float(count)

    def metric_means(self, total: Integers, count: int) -> dict[str, float] | None:
        """Each metric's mean over `count` members; None where a limb's sum is not what honest members can give."""
        limbs, most = total[: self.metric_lanes], count * (2**self.spec.limb_bits - 1)
        if count < 1 or bool((limbs < 0).any() or (limbs > most).any()):
            return None
        means, at = {}, 0
        for one in self.metrics:
            used = limb_count(one.bits, self.spec.limb_bits)
            sum_ = sum(int(limb) << k * self.spec.limb_bits for k, limb in enumerate(limbs[at : at + used]))
            means[one.name] = sum_ / count / (2**one.bits - 1) * one.maximum
            at += used
        return means


# --- parts ------------------------------------------------------------------------------------------------------------


def rotation_signs(lane: bytes, size: int) -> bytes:
    """The signs of a lane's rotation: value i is negated where bit i % 8 of byte i // 8 is 1."""
    return stream(kdf(lane, bytes(32), "rotate"), (size + 7) // 8)


def clipped(update: Float32, bound: float) -> tuple[Float32, bool]:
    """The update scaled down to an L2 norm of at most `bound` (0: none), and whether it was within it before."""
    norm = float(np.linalg.norm(update.astype(np.float64)))
    if bound <= 0 or norm <= bound:
        return update, True
    return (update * np.float32(bound / norm)).astype(np.float32), False


def limb_count(bits: int, limb_bits: int) -> int:
    """Limbs of a number of `bits` bits."""
    return -(-bits // limb_bits)


def limbs_of(number: int, bits: int, limb_bits: int) -> list[int]:
    """The limbs of a number of `bits` bits, low one first."""
    return [number >> k * limb_bits & (1 << limb_bits) - 1 for k in range(limb_count(bits, limb_bits))]


def metric_lanes(metrics: Iterable[Metric], limb_bits: int) -> int:
    """Lanes that a table of metrics takes."""
    return sum(limb_count(one.bits, limb_bits) for one in metrics)


def _fixed_point(value: float, maximum: float, bits: int) -> int:
    """floor(clamp(value / maximum, 0, 1) * (2^bits - 1) + 1/2), in doubles."""
    demand(isfinite(value), Code.UPDATE_OUT_OF_RANGE, f"a metric is {value}")
    return int(min(max(value / maximum, 0.0), 1.0) * (2**bits - 1) + 0.5)


def scale_for(clip: float, limit: int, size: int, rotated: bool) -> float:
    """The largest power of two by which an update of norm `clip` [size] hardly ever exceeds `limit`, the spec's M.

    After the rotation of an update whose blocks are about even a value is nearly normal with variance clip^2 / size, and the
    greatest of them below clip * sqrt(2 ln(2 size / beta) / size) but for a chance of beta; without it one value may be the
    whole norm. A power of two multiplies exactly, on every platform.
    """
    spread = sqrt(2 * log(2 * size / _CLAMPED) / size) if rotated else 1.0
    _, exponent = frexp(limit / (clip * min(spread, 1.0)))
    return ldexp(0.5, exponent)


class Total(NamedTuple):
    """One window's sum as the server decoded it: integer values [d], how many, the sum of weights, the window's lane."""

    values: Integers
    members: int
    weight_sum: int
    lane: bytes


def mean_update(encoding: Encoding, totals: Sequence[Total]) -> Float64:
    """The mean of all updates of some windows of one version, float64 [size] in parameter units.

    Windows of one lane are added as integers, so their order does not matter; lanes differ where the policy changed in
    between, and each has its own rotation. Raises RuleError SHORTAGE where nothing weighs anything.
    """
    mass = sum(encoding.mass(one.members, one.weight_sum) for one in totals)
    demand(mass > 0, Code.SHORTAGE, "a mean needs at least one contribution")
    sums: dict[bytes, Integers] = {}
    for one in totals:
        sums[one.lane] = np.add(sums[one.lane], one.values, dtype=np.int64) if one.lane in sums else one.values
    # In place from here on: a model may have a hundred million values.
    first, *others = sums
    mean = encoding.decode(sums[first], first)
    for lane in others:
        mean += encoding.decode(sums[lane], lane)
    mean /= mass
    return mean


def mean_metrics(encoding: Encoding, totals: Sequence[Total]) -> dict[str, float]:
    """Each metric's mean over all members of the windows whose limbs make sense; empty where there is none."""
    found = [(one.members, encoding.metric_means(one.values, one.members)) for one in totals]
    sound = [(members, means) for members, means in found if means is not None]
    everyone = sum(members for members, _ in sound)
    names = [one.name for one in encoding.metrics] if sound else []
    return {name: sum(members * means[name] for members, means in sound) / everyone for name in names}
