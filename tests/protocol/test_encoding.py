"""Updates and metrics into values and back: the rotation by its definition, unbiased means, limbs, and no overflow ever."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whimbrel_kernels import ring_add
from whimbrel_protocol.encoding import (
    WITHIN_CLIP,
    Encoding,
    Measured,
    Total,
    clipped,
    mean_metrics,
    mean_update,
    rotation_signs,
    scale_for,
)
from whimbrel_protocol.errors import Code, ProtocolError, RuleError
from whimbrel_protocol.messages import Binding, Metric, PlanBody
from whimbrel_protocol.objects import VectorSpec
from whimbrel_protocol.packing import decode_sum, pack
from whimbrel_protocol.primitives import kdf
from whimbrel_protocol.signed import MASKED, Plan, VersionHeader

VECTORS: list[dict[str, Any]] = json.loads((Path(__file__).parents[2] / "schemas/vectors/rotation.json").read_text())["cases"]
LANE = bytes(range(32))
METRICS = (Metric("loss", 16.0, 16), Metric("accuracy", 1.0, 10), Metric(WITHIN_CLIP, 1.0, 1))


def encoding_of(size: int, bits: int = 16, n_max: int = 16, **values: Any) -> Encoding:
    """An encoding of updates of this size; the vector's d follows from the metrics."""
    weight_bits = 16 if values.get("weight_max") else 1
    plain = Encoding(VectorSpec.make(bits, n_max, 1, 1.0, weight_bits), values.get("metrics", ()))
    scale = values.pop("scale", 256.0)
    return Encoding(VectorSpec.make(bits, n_max, plain.metric_lanes + size, scale, weight_bits), **values)


def measured(update: Any, examples: int = 1, **metrics: float) -> Measured:
    return Measured(np.array(update, np.float32), examples, metrics)


def halves(size: int) -> np.ndarray:
    """Uniforms that round to the nearest."""
    return np.full(size, 0.5)


def summed(encoding: Encoding, everyone: list[Measured], lane: bytes = LANE, seed: int = 0) -> Total:
    """One window: every update encoded, packed, added as words and decoded."""
    rng, total = np.random.default_rng(seed), bytearray(8 * encoding.spec.words)
    for one in everyone:
        values, weight = encoding.encode(one, lane, rng.random(encoding.size))
        ring_add(total, pack(encoding.spec, values, weight))
    result = decode_sum(encoding.spec, bytes(total), len(everyone))
    return Total(result.values, result.count, result.weight_sum, lane)


# --- rotation ---------------------------------------------------------------------------------------------------------


def by_definition(values: np.ndarray, signs: bytes) -> np.ndarray:
    """The rotation of section 4 in float64, by explicit matrices."""
    flips = np.array([-1.0 if signs[i // 8] >> i % 8 & 1 else 1.0 for i in range(len(values))])
    rest, parts, block = values * flips, [], 4096
    while rest.size:
        while block > rest.size:
            block //= 2
        matrix = np.array([[1.0]])
        while len(matrix) < block:
            matrix = np.block([[matrix, matrix], [matrix, -matrix]])
        parts.append(matrix @ rest[:block] / math.sqrt(block))
        rest = rest[block:]
    return np.concatenate(parts)


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["name"])
def test_rotation_vectors(case: dict[str, Any]) -> None:
    lane = bytes.fromhex(case["lane"])
    count = case.get("count") or len(case["values"])
    values = np.array(case.get("values") or [((37 * i) % 101 - 50) / 64 for i in range(count)], np.float32)
    signs = rotation_signs(lane, count)
    assert kdf(lane, bytes(32), "rotate").hex() == case["key"]
    assert signs.hex() == case["signs"] if "signs" in case else hashlib.sha256(signs).hexdigest() == case["signs_sha256"]
    rotated, exact = encoding_of(count, rotate=True).rotated(values, lane), by_definition(values.astype(float), signs)
    expected = case.get("rotated_at") or {str(i): value for i, value in enumerate(case["rotated"])}
    for i, value in expected.items():
        assert exact[int(i)] == pytest.approx(value, abs=1e-11)
        assert rotated[int(i)] == pytest.approx(value, abs=1e-5)
    assert np.allclose(rotated, exact, rtol=0, atol=1e-5)


def test_each_lane_has_its_own_rotation_and_only_it_gives_the_update_back() -> None:
    encoding = encoding_of(100, scale=4096.0, rotate=True)
    update = np.linspace(-0.01, 0.02, 100, dtype=np.float32)
    total = summed(encoding, [Measured(update, 1, {})])
    assert np.allclose(encoding.decode(total.values, LANE), update, atol=2e-3)
    assert not np.allclose(encoding.decode(total.values, bytes(32)), update, atol=5e-3)


@pytest.mark.parametrize("size", [1, 1000, 6090])
def test_a_single_spike_is_spread_over_its_block(size: int) -> None:
    update = np.zeros(size, np.float32)
    update[0] = 1
    rotated = encoding_of(size, rotate=True).rotated(update, LANE)
    block = min(4096, 1 << size.bit_length() - 1)
    assert np.abs(rotated[:block]) == pytest.approx(np.full(block, 1 / math.sqrt(block)), rel=1e-5)
    assert not rotated[block:].any()


# --- means ------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 300),
    members=st.integers(1, 12),
    rotate=st.booleans(),
    weighted=st.booleans(),
    bits=st.sampled_from([12, 16, 21, 32]),
)
def test_the_decoded_mean_is_the_weighted_mean(
    seed: int, size: int, members: int, rotate: bool, weighted: bool, bits: int
) -> None:
    rng = np.random.default_rng(seed)
    limit = VectorSpec.make(bits, 16, 1, 1.0, 1).limit
    scale = 2.0 ** math.floor(math.log2(limit / 2))
    encoding = encoding_of(size, bits, scale=scale, metrics=METRICS, rotate=rotate, weight_max=40 if weighted else 0, clip=1.0)
    updates = rng.normal(size=(members, size))
    updates /= np.linalg.norm(updates, axis=1)[:, None] * rng.uniform(1.2, 3, (members, 1))
    examples = rng.integers(10, 60, members)
    everyone = [measured(u, int(n), loss=1.0, accuracy=0.5) for u, n in zip(updates, examples, strict=True)]
    shares = [encoding.weight_of(int(n)) / encoding.full_weight for n in examples]
    expected = np.average(updates, axis=0, weights=shares)
    found = mean_update(encoding, [summed(encoding, everyone, seed=seed)])
    # Each value is within a step of its own; a rotation keeps the error's norm.
    assert np.linalg.norm(found - expected) <= 1.5 * math.sqrt(size) / scale * members / sum(shares)


def test_stochastic_rounding_is_unbiased_after_the_rotation() -> None:
    encoding = encoding_of(64, scale=16.0, rotate=True)
    update = measured(np.linspace(-0.3, 0.3, 64))
    means = [mean_update(encoding, [summed(encoding, [update], seed=seed)]) for seed in range(400)]
    # One value's error has a standard deviation of at most half a step: 1/32/sqrt(400) for the mean.
    assert np.abs(np.mean(means, axis=0) - update.update).max() < 4.5 / 32 / 20


def test_windows_of_one_version_under_several_policies_add_up() -> None:
    encoding = encoding_of(50, scale=2048.0, rotate=True)
    first, second = measured(np.full(50, 0.05)), measured(np.linspace(-0.1, 0.1, 50))
    cohorts = [([first, second], LANE), ([first], bytes(32)), ([second], LANE), ([second, second], b"c" * 32)]
    totals = [summed(encoding, cohort, lane) for cohort, lane in cohorts]
    expected = (2 * first.update + 4 * second.update) / 6
    assert np.allclose(mean_update(encoding, totals), expected, atol=1e-3)
    assert np.array_equal(mean_update(encoding, totals), mean_update(encoding, totals[::-1]))
    with pytest.raises(RuleError) as refused:
        mean_update(encoding, [])
    assert refused.value.code is Code.SHORTAGE


# --- weights and clipping ---------------------------------------------------------------------------------------------


def test_weights_are_shares_of_the_full_one_down_to_a_quarter() -> None:
    encoding = encoding_of(3, weight_max=100)
    assert [encoding.weight_of(n) for n in (25, 50, 100, 5000)] == [16384, 32768, 65535, 65535]
    assert encoding.encode(measured([1, 1, 1], 50), LANE, halves(3)).values.tolist() == [128, 128, 128]
    for examples in (0, 24):
        with pytest.raises(RuleError) as refused:
            encoding.encode(measured([1, 1, 1], examples), LANE, halves(3))
        assert refused.value.code is Code.TOO_FEW_EXAMPLES


@pytest.mark.parametrize(("weight_bits", "weight"), [(0, 0), (1, 1), (16, 1)])
def test_without_weights_an_update_weighs_one_whatever_its_examples(weight_bits: int, weight: int) -> None:
    encoding = Encoding(VectorSpec.make(16, 16, 2, 4.0, weight_bits))
    assert encoding.weight_of(0) == encoding.weight_of(10**6) == weight
    assert encoding.mass(7, 7 * weight) == 7


def test_clipping_bounds_the_norm_after_the_weight_and_says_so() -> None:
    update = np.array([3, 4], np.float32)
    assert clipped(update, 0)[0].tolist() == clipped(update, 5)[0].tolist() == [3, 4] and clipped(update, 5)[1]
    short, within = clipped(update, 2.5)
    assert short.tolist() == [1.5, 2] and not within
    encoding = encoding_of(2, scale=16.0, metrics=METRICS[2:], weight_max=100, clip=2.5)
    for examples, bit, values in ((100, 0, [24, 32]), (48, 1, [23, 31]), (25, 1, [12, 16])):
        assert encoding.encode(measured(update, examples), LANE, halves(2)).values.tolist() == [bit, *values]


# --- metrics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 9, 12, 16, 21, 32])
def test_metrics_are_means_to_their_last_bit(bits: int) -> None:
    encoding = encoding_of(2, bits, metrics=METRICS, clip=1.0)
    losses, rights = [0.25, 2.5, 100.0, -1.0], [1.0, 0.5, 0.25, 0.0]
    everyone = [measured([i / 8, 1], loss=a, accuracy=b) for i, (a, b) in enumerate(zip(losses, rights, strict=True))]
    means = mean_metrics(encoding, [summed(encoding, everyone[:3]), summed(encoding, everyone[3:])])
    assert means["loss"] == pytest.approx((0.25 + 2.5 + 16.0 + 0.0) / 4, abs=16 / 2**16)
    assert means["accuracy"] == pytest.approx(np.mean(rights), abs=1 / 2**10)
    assert means[WITHIN_CLIP] == 1 / 4


def test_metrics_do_not_touch_the_update_and_are_not_rotated() -> None:
    bare, full = encoding_of(40, rotate=True), encoding_of(40, rotate=True, metrics=METRICS)
    update = measured(np.linspace(-1, 1, 40), loss=3.0, accuracy=0.7)
    values = full.encode(update, LANE, halves(40)).values
    assert (full.spec.limb_bits, full.metric_lanes, len(values)) == (11, 2 + 1 + 1, 44)
    assert values[full.metric_lanes :].tolist() == bare.encode(update, LANE, halves(40)).values.tolist()
    limbs, wq = values[: full.metric_lanes], full.spec.limb_bits
    share = sum(int(limb) << wq * k for k, limb in enumerate(limbs[: -(-16 // wq)]))
    assert share == math.floor(3 / 16 * 65535 + 0.5)


@pytest.mark.parametrize("limb", [-1, 2**11])
def test_limbs_that_no_honest_member_makes_give_no_metric_but_the_update_counts(limb: int) -> None:
    encoding = encoding_of(2, metrics=METRICS)
    good = summed(encoding, [measured([1, 1], loss=1.0, accuracy=1.0)])
    spoiled = good._replace(values=np.array([limb, *good.values[1:]]))
    assert mean_metrics(encoding, [good, spoiled]) == mean_metrics(encoding, [good])
    assert mean_metrics(encoding, [spoiled]) == {}
    assert mean_update(encoding, [good, spoiled]).tolist() == [1, 1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_is_missing_or_no_number_stops_the_update(value: float) -> None:
    encoding = encoding_of(1, metrics=METRICS[:1])
    cases: list[tuple[dict[str, float], Code]] = [({}, Code.PLAN_UNSUPPORTED), ({"loss": value}, Code.UPDATE_OUT_OF_RANGE)]
    for metrics, code in cases:
        with pytest.raises(RuleError) as refused:
            encoding.encode(Measured(np.zeros(1, np.float32), 1, metrics), LANE, halves(1))
        assert refused.value.code is code


# --- no overflow ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(8, 33))
def test_no_cohort_that_the_spec_allows_overflows_a_lane(bits: int) -> None:
    greatest = 2 ** (bits - 1) - 1
    for n_max in {n for n in (2, 3, 8, 16, 33, 64, 100, 127, 128, 1000, 1024) if n <= greatest}:
        encoding = encoding_of(1, bits, n_max, metrics=METRICS, weight_max=10)
        spec = encoding.spec
        assert n_max * spec.limit <= greatest < n_max * (spec.limit + 1)
        assert n_max * (2**spec.limb_bits - 1) <= greatest
        with pytest.raises(ProtocolError):
            replace(spec, limit=spec.limit + 1)


@pytest.mark.parametrize("bits", range(8, 33))
@pytest.mark.parametrize("sign", [1, -1])
def test_a_full_cohort_at_its_limits_comes_back(bits: int, sign: int) -> None:
    n_max = 8
    encoding = encoding_of(5, bits, n_max, scale=2.0**31, metrics=METRICS, weight_max=10)
    extreme = Measured(np.float32(sign) * np.array([1, -1, 1, 1, -1], np.float32), 10, {"loss": 99.0, "accuracy": 1.0})
    total = summed(encoding, [extreme] * n_max)
    limit = n_max * encoding.spec.limit
    assert total.values[encoding.metric_lanes :].tolist() == [sign * limit * s for s in (1, -1, 1, 1, -1)]
    assert total.weight_sum == n_max * (2**16 - 1)
    assert encoding.metric_means(total.values, n_max) == {"loss": 16.0, "accuracy": 1.0, WITHIN_CLIP: 1.0}


# --- scales -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 1000, 6090, 200_000])
@pytest.mark.parametrize("bits", [12, 16, 21])
def test_the_scale_hardly_ever_clamps_and_wastes_less_than_two_bits(size: int, bits: int) -> None:
    limit, clip = VectorSpec.make(bits, 32, 1, 1.0, 1).limit, 0.7
    scale = scale_for(clip, limit, size, True)
    assert math.frexp(scale)[0] == 0.5
    update = np.random.default_rng(size).normal(size=size)
    values = encoding_of(size, bits, rotate=True).rotated((clip * update / np.linalg.norm(update)).astype(np.float32), LANE)
    assert np.abs(values).max() * scale <= limit < 8 * np.abs(values).max() * scale


@pytest.mark.parametrize("limit", [7, 255, 511, 512])
def test_without_rotation_one_value_may_be_the_whole_norm(limit: int) -> None:
    scale = scale_for(2.0, limit, 10**6, False)
    assert 2 * scale <= limit < 4 * scale


# --- what plans may say -----------------------------------------------------------------------------------------------

BODY = PlanBody("mse", 8, b"t", b"e", (Binding("param", "w", "float32", (3, 2)),), (), (), ())
HEADER = VersionHeader(1, 4.0, 0.5, 0.1, 0.0, 0.0, 0.0, 1, 0, 0, 0, 0)


def encoding_by(d: int = 6, header: VersionHeader = HEADER, **changes: Any) -> Encoding:
    body = replace(BODY, **{"clip_min": 0.25, "clip_max": 2.0, **changes})
    return Encoding.of(Plan(bytes(16), 1, 2, MASKED, 16, 16, 1, d, 1.0, 8.0, "t", b""), body, header)


def test_plan_and_header_make_the_encoding() -> None:
    made = encoding_by(6 + 2, metrics=(Metric("loss", 16.0, 16),), rotate=True, weight_max=9)
    assert (made.metric_lanes, made.size, made.rotate, made.weight_max, made.clip) == (2, 6, True, 9, 0.5)
    assert made.spec.scale == 4.0


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"d": 7}, Code.PLAN_UNSUPPORTED),
        ({"d": 6, "metrics": (Metric("loss", 1.0, 1),)}, Code.PLAN_UNSUPPORTED),
        ({"d": 8, "metrics": (Metric("loss", 1.0, 1), Metric("loss", 2.0, 1))}, Code.PLAN_UNSUPPORTED),
        ({"d": 7, "metrics": (Metric("loss", 0.0, 1),)}, Code.PLAN_UNSUPPORTED),
        ({"d": 0, "inputs": ()}, Code.BAD_SPEC),
        ({"header": replace(HEADER, clip=0.0)}, Code.BAD_SPEC),
        ({"header": replace(HEADER, clip=2.5)}, Code.BAD_SPEC),
        ({"header": replace(HEADER, scale=16.0)}, Code.BAD_SPEC),
    ],
)
def test_a_plan_that_does_not_fit_itself_is_refused(changes: dict[str, Any], code: Code) -> None:
    with pytest.raises(ProtocolError) as refused:
        encoding_by(**changes)
    assert refused.value.code is code


def test_weights_need_bits() -> None:
    with pytest.raises(RuleError, match="weight bits"):
        Encoding(VectorSpec.make(16, 16, 2, 4.0, 0), weight_max=5)
