"""Signed lanes at their extremes, and each check of a sum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whimbrel_kernels import pack_lanes, ring_add, unpack_lanes
from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.objects import VectorSpec
from whimbrel_protocol.packing import CANARY, decode_sum, pack, quantise

BITS = (8, 9, 10, 12, 16, 21, 32)


def spec_of(bits: int, n_max: int = 16, d: int = 11, weight_bits: int = 16) -> VectorSpec:
    return VectorSpec.make(bits, n_max, d, 4096.0, weight_bits)


def total_of(spec: VectorSpec, updates: list[np.ndarray], weights: list[int]) -> bytes:
    total = bytearray(8 * spec.words)
    for update, weight in zip(updates, weights, strict=True):
        ring_add(total, pack(spec, update, weight))
    return bytes(total)


@pytest.mark.parametrize(
    ("bits", "n_max", "limit"),
    [(16, 128, 255), (16, 64, 511), (16, 1024, 31), (21, 128, 8191), (21, 1024, 1023), (12, 128, 15), (12, 32, 63),
     (32, 128, 16_777_215), (8, 16, 7)],
)  # fmt: skip
def test_the_limit_is_the_largest_whose_sum_fits(bits: int, n_max: int, limit: int) -> None:
    assert spec_of(bits, n_max).limit == limit


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("members", [1, 16])
def test_sums_of_alternating_extremes_come_back(bits: int, members: int) -> None:
    spec = spec_of(bits)
    signs = np.where(np.arange(spec.d) % 2, 1, -1)
    for pattern in (signs, -signs, np.ones_like(signs), -np.ones_like(signs)):
        result = decode_sum(spec, total_of(spec, [pattern * spec.limit] * members, [2**16 - 1] * members), members)
        assert result.values.tolist() == (pattern * spec.limit * members).tolist()
        assert (result.count, result.weight_sum) == (members, members * (2**16 - 1))


@settings(max_examples=60)
@given(data=st.data(), bits=st.sampled_from(BITS), d=st.integers(1, 30), weight_bits=st.sampled_from([0, 1, 16, 32]))
def test_the_sum_of_packed_is_the_packed_sum(data: st.DataObject, bits: int, d: int, weight_bits: int) -> None:
    spec = spec_of(bits, 16, d, weight_bits)
    members = data.draw(st.integers(1, 16))
    value = st.integers(-spec.limit, spec.limit)
    updates = [np.array(data.draw(st.lists(value, min_size=d, max_size=d))) for _ in range(members)]
    weights = [data.draw(st.integers(0, 2**weight_bits - 1)) for _ in range(members)]
    result = decode_sum(spec, total_of(spec, updates, weights), members)
    assert result.values.tolist() == np.sum(updates, axis=0).tolist()
    assert result.weight_sum == sum(weights)


def corrupted(spec: VectorSpec, lane: int, change: int) -> bytes:
    """A sum of two vectors with one lane of the run changed."""
    words = bytearray(total_of(spec, [np.zeros(spec.d, np.int64)] * 2, [0, 0]))
    lanes = np.zeros(spec.lanes * (spec.words - 2), np.int32)
    unpack_lanes(lanes, memoryview(words)[8:-8], spec.bits)
    lanes[lane] += change
    pack_lanes(memoryview(words)[8:-8], lanes, spec.bits)
    return bytes(words)


@pytest.mark.rule("1.7 sum: canaries, count and ranges")
# count, a weight limb below and above, a value below and above, the unused lane at the end of 12 in three words.
@pytest.mark.parametrize(("lane", "change"), [(0, 1), (0, -1), (1, -1), (2, 2**11), (3, 1023), (9, -1023), (11, 1), (11, -1)])
def test_each_lane_of_a_spoiled_sum_is_noticed(lane: int, change: int) -> None:
    spec = VectorSpec.make(16, 64, 8, 1.0, 12)
    assert (spec.lanes, spec.limb_bits, spec.weight_limbs, spec.words) == (4, 9, 2, 5)
    decode_sum(spec, corrupted(spec, lane, 0), 2)
    with pytest.raises(RuleError) as refused:
        decode_sum(spec, corrupted(spec, lane, change), 2)
    assert refused.value.code is Code.SPOILED_SUM


@pytest.mark.rule("1.7 sum: canaries, count and ranges")
@pytest.mark.parametrize("at", [0, 1, 7, -8, -1])
def test_a_changed_canary_is_noticed(at: int) -> None:
    spec = spec_of(16)
    words = bytearray(total_of(spec, [np.zeros(spec.d, np.int64)], [0]))
    assert int.from_bytes(words[:8], "little") == int.from_bytes(words[-8:], "little") == CANARY
    words[at] ^= 1
    with pytest.raises(RuleError, match="canary"):
        decode_sum(spec, bytes(words), 1)


def test_a_sum_of_another_number_of_members_or_words_is_refused() -> None:
    spec = spec_of(16)
    words = total_of(spec, [np.zeros(spec.d, np.int64)] * 3, [0] * 3)
    assert decode_sum(spec, words, 3).count == 3
    longer = words[:8] + bytes(8) + words[8:]
    for bad, members in ((words, 2), (words, 4), (words[:-8], 3), (longer, 3)):
        with pytest.raises(RuleError) as refused:
            decode_sum(spec, bad, members)
        assert refused.value.code is Code.SPOILED_SUM


@pytest.mark.rule("1.7 update: within its limit")
@pytest.mark.parametrize("bad", ["value", "negative value", "weight", "negative weight", "shape"])
def test_what_could_overflow_a_sum_is_not_packed(bad: str) -> None:
    spec = spec_of(16)
    update, weight = np.zeros(spec.d + (bad == "shape"), np.int64), 0
    if "value" in bad:
        update[3] = spec.limit + 1 if bad == "value" else -spec.limit - 1
    if "weight" in bad:
        weight = 2**16 if bad == "weight" else -1
    with pytest.raises(RuleError) as refused:
        pack(spec, update, weight)
    assert refused.value.code is Code.UPDATE_OUT_OF_RANGE


def test_quantising_rounds_by_the_uniforms_given_and_clamps() -> None:
    spec = VectorSpec.make(16, 64, 6, 2.0, 0)
    update = np.array([0.25, 0.25, -0.25, 1e9, -1e9, 0.5], np.float32)
    uniforms = np.array([0.49, 0.5, 0.49, 0.0, 0.0, 0.99])
    assert quantise(update, spec, uniforms).tolist() == [0, 1, -1, 511, -511, 1]


def test_quantising_has_the_right_expectation() -> None:
    spec = VectorSpec.make(16, 64, 1000, 1.0, 0)
    uniforms = (np.arange(1000) + 0.5) / 1000
    assert quantise(np.full(1000, 0.3), spec, uniforms).mean() == pytest.approx(0.3, abs=2e-3)
    assert quantise(np.full(1000, -7.3), spec, uniforms).mean() == pytest.approx(-7.3, abs=2e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(bad: float) -> None:
    spec = VectorSpec.make(16, 64, 2, 1.0, 0)
    for update, uniforms in (([bad, 0], [0, 0]), ([0, 0], [1.0, 0]), ([0, 0, 0], [0, 0, 0])):
        with pytest.raises(RuleError) as refused:
            quantise(np.array(update, float), spec, np.array(uniforms, float))
        assert refused.value.code is Code.UPDATE_OUT_OF_RANGE
