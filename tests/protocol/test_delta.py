"""Published parameters: exact in float32, the same bits by every road, and nothing believed that does not have its hash."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from whimbrel_protocol import delta as d
from whimbrel_protocol.errors import Code, WireError
from whimbrel_protocol.messages import ModelDelta, TensorDelta
from whimbrel_protocol.wire import decode, encode

SHAPES = {"w": (3, 5), "b": (5,), "scalar": (), "none": (0, 4)}
SIZES = [math.prod(shape) for shape in SHAPES.values()]

seeds = st.integers(0, 2**32 - 1)


def history(seed: int, length: int) -> list[d.Lattice]:
    """A run of versions: random walks whose steps are halved now and then, as a server publishes them."""
    random = np.random.default_rng(seed)
    master = [random.normal(size=size) for size in SIZES]
    exponents = [d.step_exponent(values, 2.0**-10) for values in master]
    versions = []
    for _ in range(length):
        versions.append(tuple(d.quantise(values, exponent) for values, exponent in zip(master, exponents, strict=True)))
        master = [values + random.normal(scale=0.05, size=values.size) for values in master]
        exponents = [exponent - int(random.integers(0, 3) == 0) for exponent in exponents]
    return versions


def same(one: d.Lattice, other: d.Lattice) -> bool:
    return all(a.exponent == b.exponent and np.array_equal(a.integers, b.integers) for a, b in zip(one, other, strict=True))


def over_the_wire(change: ModelDelta) -> ModelDelta:
    return decode(encode(change), ModelDelta)


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(2, 6))
def test_chains_composites_and_snapshots_give_the_same_bits(seed: int, length: int) -> None:
    versions = history(seed, length)
    new = d.apply(over_the_wire(d.snapshot(length, versions[-1])), SHAPES)
    composite = d.apply(over_the_wire(d.delta(1, versions[0], length, versions[-1])), SHAPES, versions[0])
    chain = versions[0]
    for number in range(1, length):
        chain = d.apply(over_the_wire(d.delta(number, chain, number + 1, versions[number])), SHAPES, chain)
    assert same(new, versions[-1]) and same(composite, new) and same(chain, new)
    assert d.lattice_hash(chain) == d.lattice_hash(versions[-1])


def test_large_tensors_are_done_in_blocks_that_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_blocks_of(size: int) -> list[bytes]:
        monkeypatch.setattr(d, "_BLOCK", size)
        old, new = history(3, 2)
        coded = [encode(d.snapshot(2, new)), encode(d.delta(1, old, 2, new))]
        assert same(d.apply(decode(coded[0], ModelDelta), SHAPES), new)
        assert same(d.apply(decode(coded[1], ModelDelta), SHAPES, old), new)
        return coded

    assert by_blocks_of(4) == by_blocks_of(5) == by_blocks_of(2**16)


@given(seeds, st.integers(-149, 103))
def test_lattice_points_are_exact_in_float32(seed: int, exponent: int) -> None:
    integers = np.random.default_rng(seed).integers(-(d.LIMIT - 1), d.LIMIT, size=50, dtype=np.int32)
    values = d.LatticeTensor(exponent, integers).values()
    assert values.dtype == np.float32
    assert [float(value) for value in values] == [math.ldexp(int(integer), exponent) for integer in integers]
    assert np.array_equal(d.quantise(values, exponent).integers, integers)


@given(st.lists(st.floats(-(2.0**100), 2.0**100), min_size=1, max_size=20), st.sampled_from([2.0**-4, 2.0**-12, 2.0**-30]))
def test_the_step_is_a_fraction_of_the_size_and_never_too_fine(values: list[float], fraction: float) -> None:
    array = np.array(values)
    exponent = d.step_exponent(array, fraction)
    d.quantise(array, exponent)  # does not overflow the lattice
    peak = np.max(np.abs(array))
    rms = float(peak * np.sqrt(np.mean(np.square(array / peak)))) if peak else 0.0
    finest = max(exponent == -126, peak == 0, 2.0 ** (exponent - 1) * (d.LIMIT - 1) < peak * (1 + 1e-9))
    assert finest or 2.0**exponent <= fraction * rms * (1 + 1e-9) < 2.0 ** (exponent + 1) * (1 + 1e-8)


def test_known_steps() -> None:
    assert d.step_exponent(np.ones(4), 2.0**-10) == -10
    assert d.step_exponent(np.full(4, 3.0), 2.0**-10) == -9
    assert d.step_exponent(np.zeros(4), 0.5) == -24
    assert d.step_exponent(np.zeros(0), 0.5) == -24
    # One value of 2**23 among a million of 1: an integer must stay under 2**24.
    assert d.step_exponent(np.r_[np.ones(10**6), 2.0**23], 2.0**-20) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_published(bad: float) -> None:
    for refuse in (lambda: d.step_exponent(np.array([1.0, bad]), 0.1), lambda: d.quantise(np.array([1.0, bad]), -10)):
        with pytest.raises(WireError, match="error 103"):
            refuse()


@pytest.mark.parametrize(("value", "exponent"), [(2.0**24, 0), (-(2.0**24), 0), (1.0, -150), (2.0**110, 104)])
def test_what_float32_cannot_hold_is_not_published(value: float, exponent: int) -> None:
    with pytest.raises(WireError, match="error 103"):
        d.quantise(np.array([value]), exponent)


def test_a_step_that_was_raised_makes_no_delta() -> None:
    old, new = (tuple(d.LatticeTensor(e, np.array([4, 8], np.int32)) for e in [exponent]) for exponent in (-3, -2))
    with pytest.raises(WireError, match="cannot become"):
        d.delta(1, old, 2, new)


def test_versions_too_far_apart_make_no_delta() -> None:
    old, new = ((d.LatticeTensor(exponent, np.array([d.LIMIT - 1], np.int32)),) for exponent in (0, -10))
    with pytest.raises(WireError, match="too far apart"):
        d.delta(1, old, 2, new)


def test_the_model_hash_is_over_little_endian_floats_in_order() -> None:
    # SHA-256 of the bytes 00 00 80 3f 00 00 00 c0
    expected = "ee4ac73c2bd27756ab82780f27c73a7bc4d3f0bb6acb37e008bc27eccd7e588b"
    assert d.model_hash([np.array([1.0], np.float32), np.array([-2.0], np.float32)]).hex() == expected


def test_the_coding_is_zigzag_in_planes_lowest_first() -> None:
    (tensor,) = d.snapshot(1, (d.LatticeTensor(-5, np.array([0, -1, 1, 300], np.int32)),)).tensors
    planes = zstandard.ZstdDecompressor().decompress(tensor.planes)
    assert (tensor.count, tensor.exponent) == (4, -5)
    # zigzag: 0, 1, 2, 600 = 0x0258
    assert planes == bytes([0, 1, 2, 0x58]) + bytes([0, 0, 0, 2]) + bytes(8)


# --- hostile deltas -------------------------------------------------------------------------------------------------

OLD, NEW = history(1, 2)
GOOD = d.delta(1, OLD, 2, NEW)


def with_tensor(**changes: object) -> ModelDelta:
    first = replace(GOOD.tensors[0], **changes)  # type: ignore[arg-type]
    return replace(GOOD, tensors=(first, *GOOD.tensors[1:]))


def frame(raw: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(level=1, **options).compress(raw)  # type: ignore[arg-type]


GOOD_PLANES = GOOD.tensors[0].planes
HOSTILE = {
    "another hash": replace(GOOD, model_hash=bytes(32)),
    "a tensor missing": replace(GOOD, tensors=GOOD.tensors[:-1]),
    "a tensor too many": replace(GOOD, tensors=(*GOOD.tensors, TensorDelta(0, 0, frame(b"")))),
    "tensors exchanged": replace(GOOD, tensors=GOOD.tensors[1::-1] + GOOD.tensors[2:]),
    "a snapshot over a version": replace(GOOD, snapshot=True),
    "count": with_tensor(count=14),
    "no frame": with_tensor(planes=b""),
    "noise": with_tensor(planes=b"\x28\xb5\x2f\xfd" + bytes(range(40))),
    "a frame cut short": with_tensor(planes=GOOD_PLANES[:-1]),
    "bytes after the frame": with_tensor(planes=GOOD_PLANES + b"\0"),
    "two frames": with_tensor(planes=GOOD_PLANES + frame(b"")),
    "too few planes": with_tensor(planes=frame(bytes(45))),
    "too many planes": with_tensor(planes=frame(bytes(64))),
    "a frame without its size": with_tensor(planes=frame(bytes(60), write_content_size=False)),
    "a bomb": with_tensor(planes=frame(bytes(2**26))),
    "other values": with_tensor(planes=frame(bytes(60))),
    "values beyond float32": with_tensor(planes=frame(b"\xff" * 60)),
    "a raised step": with_tensor(exponent=OLD[0].exponent + 1),
    "a step too fine": with_tensor(exponent=OLD[0].exponent - 39),
    "an exponent beyond float32": with_tensor(exponent=-1100),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_deltas_are_refused(change: ModelDelta) -> None:
    with pytest.raises(WireError) as refused:
        d.apply(change, SHAPES, OLD)
    assert refused.value.code is Code.BAD_DELTA


def test_the_good_delta_is_good() -> None:
    assert same(d.apply(GOOD, SHAPES, OLD), NEW)


def test_a_delta_needs_the_model_that_it_starts_from() -> None:
    other = tuple(d.LatticeTensor(tensor.exponent, np.zeros(1, np.int64)) for tensor in OLD)
    for old in (None, OLD[:-1], (), other, NEW):
        with pytest.raises(WireError, match="error 103"):
            d.apply(GOOD, SHAPES, old)


@pytest.mark.parametrize("exponent", [-150, 104])
def test_a_snapshot_off_the_float32_lattice_is_refused(exponent: int) -> None:
    change = d.snapshot(1, (d.LatticeTensor(0, np.array([1])),))
    bad = replace(change, tensors=(replace(change.tensors[0], exponent=exponent),))
    with pytest.raises(WireError, match="not exact"):
        d.apply(bad, {"w": (1,)})


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
def test_no_frame_decodes_beyond_its_limit(data: bytes) -> None:
    for payload in (data, GOOD_PLANES[:4] + data, GOOD_PLANES[:9] + data):
        try:
            assert len(d.decompress(payload, 1000)) <= 1000
        except WireError as refused:
            assert refused.code is Code.BAD_DELTA


@given(st.binary(max_size=2000))
def test_blobs_come_back(data: bytes) -> None:
    assert d.decompress(d.compress(data), len(data)) == data
    if data:
        with pytest.raises(WireError, match="error 103"):
            d.decompress(d.compress(data), len(data) - 1)
