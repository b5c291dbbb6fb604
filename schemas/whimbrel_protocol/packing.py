"""From an update to words of the ring Z_2^64 and from a sum of words back to integers (masking protocol, section 1.7).

Here belong quantisation, the layout of a vector (canaries, count, weight limbs, values) and the checks of a sum. Masks belong
in `masks.py`; the lane arithmetic itself is the kernels'.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from whimbrel_kernels import pack_lanes, unpack_lanes
from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.masks import WORD_BYTES
from whimbrel_protocol.objects import VectorSpec
from whimbrel_protocol.primitives import sha256
from whimbrel_protocol.trust import demand

# First and last word of each vector: only a true sum of k vectors has k times it in both.
CANARY = 0xA5C3


@dataclass(frozen=True)
class WindowSum:
    """What a window ends with: the sum of `count` updates.

    `values` int32 [d] on the lattice (divide by the spec's scale), `weight_sum` the sum of integer weights, `words` the
    unmasked vector W as little-endian bytes, canaries included.
    """

    values: NDArray[np.int32]
    count: int
    weight_sum: int
    words: bytes

    @cached_property
    def sha256(self) -> bytes:
        """The sum's hash as it enters the chain and the receipt."""
        return sha256(self.words)


def quantise(update: NDArray[np.floating], spec: VectorSpec, uniforms: NDArray[np.floating]) -> NDArray[np.int32]:
    """Round an update [d] stochastically to the lattice and clamp it to the spec's limit: int32 [d].

    floor(scale * x + u) with u uniform in [0, 1) has the expectation scale * x. `uniforms` [d] are the caller's randomness: the
    same ones may never serve two roundings of one update. Raises RuleError UPDATE_OUT_OF_RANGE for a value that is not finite,
    a uniform outside [0, 1) or a shape other than [d].
    """
    _demand_shape(update.shape == uniforms.shape == (spec.d,), f"{update.shape} and {uniforms.shape}", spec)
    demand(bool(np.isfinite(update).all()), Code.UPDATE_OUT_OF_RANGE, "a value of the update is not finite")
    fair = bool(((uniforms >= 0) & (uniforms < 1)).all())
    demand(fair, Code.UPDATE_OUT_OF_RANGE, "a uniform is not within [0, 1)")
    steps = np.floor(update.astype(np.float64) * spec.scale + uniforms)
    return np.clip(steps, -spec.limit, spec.limit).astype(np.int32)


def _demand_shape(holds: bool, found: str, spec: VectorSpec) -> None:
    demand(holds, Code.UPDATE_OUT_OF_RANGE, f"the spec needs shape ({spec.d},), not {found}")


def pack(spec: VectorSpec, update: NDArray[np.integer], weight: int) -> bytes:
    """A member's plain vector: 8 * words bytes.

    `update` integers [d] within the spec's limit, `weight` an integer below 2^weight_bits. Raises RuleError
    UPDATE_OUT_OF_RANGE for anything else: what would overflow in a sum is refused here, where it is known whose it is.
    """
    _demand_shape(update.shape == (spec.d,), str(update.shape), spec)
    within = bool((update <= spec.limit).all() and (update >= -spec.limit).all())
    demand(within, Code.UPDATE_OUT_OF_RANGE, f"a value exceeds the limit of {spec.limit}")
    weight_fits = 0 <= weight < 1 << spec.weight_bits
    demand(weight_fits, Code.UPDATE_OUT_OF_RANGE, f"weight {weight} needs more than {spec.weight_bits} bits")
    lanes = np.zeros(spec.lanes * (spec.words - 2), np.int32)
    head = [1, *_limbs(spec, weight)]
    lanes[: len(head)] = head
    lanes[len(head) : len(head) + spec.d] = update
    run = bytearray(WORD_BYTES * (spec.words - 2))
    pack_lanes(run, lanes.data, spec.bits)
    canary = CANARY.to_bytes(WORD_BYTES, "little")
    return canary + bytes(run) + canary


def _limbs(spec: VectorSpec, weight: int) -> list[int]:
    mask = (1 << spec.limb_bits) - 1
    return [weight >> k * spec.limb_bits & mask for k in range(spec.weight_limbs)]


def decode_sum(spec: VectorSpec, words: bytes, survivors: int) -> WindowSum:
    """The sum of `survivors` vectors, checked: `words` is the unmasked vector, 8 * words bytes.

    Raises RuleError SPOILED_SUM where a canary, the count, a weight limb, a value or the unused lanes are not what a sum of so
    many honest vectors can hold: at least one of them was garbage or the masks were not all removed.
    """
    _demand_sum(len(words) == WORD_BYTES * spec.words, f"{spec.words} words are needed, not {len(words)} bytes")
    canary = (survivors * CANARY).to_bytes(WORD_BYTES, "little")
    _demand_sum(words[:WORD_BYTES] == canary and words[-WORD_BYTES:] == canary, "a canary is wrong")
    lanes = np.zeros(spec.lanes * (spec.words - 2), np.int32)
    unpack_lanes(lanes.data, memoryview(words)[WORD_BYTES:-WORD_BYTES], spec.bits)
    start = 1 + spec.weight_limbs
    limbs, values, unused = lanes[1:start], lanes[start : start + spec.d], lanes[start + spec.d :]
    _demand_sum(int(lanes[0]) == survivors, f"the count lane is {lanes[0]}, not {survivors}")
    _demand_sum(_all_within(limbs, 0, survivors * ((1 << spec.limb_bits) - 1)), "a weight limb is out of range")
    _demand_sum(_all_within(values, -survivors * spec.limit, survivors * spec.limit), "a value is out of range")
    _demand_sum(not unused.any(), "an unused lane is not zero")
    weight_sum = sum(int(limb) << k * spec.limb_bits for k, limb in enumerate(limbs))
    return WindowSum(values, survivors, weight_sum, words)


def _all_within(values: NDArray[np.int32], least: int, greatest: int) -> bool:
    return not values.size or bool(least <= values.min() and values.max() <= greatest)


def _demand_sum(holds: bool, reason: str) -> None:
    if not holds:
        raise RuleError(Code.SPOILED_SUM, reason)
