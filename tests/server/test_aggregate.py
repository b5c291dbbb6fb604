"""The arithmetic of a version: exact sums, error feedback, a lattice that deltas compose on."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whimbrel_protocol import delta, wire
from whimbrel_protocol.encoding import Encoding, mean_update
from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.messages import ModelDelta
from whimbrel_protocol.objects import VectorSpec
from whimbrel_protocol.signed import chain_next
from whimbrel_server.rounds import aggregate
from whimbrel_server.rounds.aggregate import ModelState, Published, WindowTotal
from whimbrel_server.settings import TaskSettings

SETTINGS = TaskSettings(server_lr=1.0, step_fraction=0.25)
SCALE = 2.0**12
SHAPES = {"w": (40, 30), "b": (30,), "v": (30, 10)}
D = 40 * 30 + 30 + 300
ENCODING = Encoding(VectorSpec.make(32, 64, D, SCALE, 1))


def start(seed: int = 0) -> Published:
    rng = np.random.default_rng(seed)
    parameters = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in SHAPES.items()}
    parameters["b"][:] = 0
    return aggregate.first_version(parameters)


def window(values: np.ndarray, count: int, label: str = "w") -> WindowTotal:
    return WindowTotal(hashlib.sha256(label.encode()).digest(), hashlib.sha256(values.tobytes()).digest(), values, count)


def rounds(number: int, size: float = 0.01, seed: int = 1) -> list[Published]:
    """Versions 1 to `number`, their updates shrinking from `size`."""
    rng = np.random.default_rng(seed)
    made = [start()]
    for v in range(1, number):
        values = np.rint(rng.normal(0, size / v, D) * SCALE * 20).astype(np.int64)
        made.append(aggregate.next_version(made[-1].state, [window(values, 20)], ENCODING, SETTINGS))
    return made


def deltas(made: list[Published]) -> dict[int, bytes]:
    """To the last of the versions, from each wanted one that has a delta."""
    wanted = aggregate.wanted_deltas(len(made))
    coded = {number: aggregate.delta_from(number, made[number - 1].state.lattice, made[-1]) for number in wanted}
    return {number: data for number, data in coded.items() if data is not None}


class TestMean:
    def test_large_sums_do_not_overflow(self) -> None:
        encoding = Encoding(VectorSpec.make(32, 2, 4, 1.0, 1))
        values = np.full(4, 2**31 - 1, np.int64)
        mean = mean_update(encoding, [window(values, 2**20).total] * 1000)
        assert np.allclose(mean, (2**31 - 1) / 2**20, rtol=1e-12)


class TestVersions:
    def test_the_master_moves_by_the_servers_rate_times_the_mean(self) -> None:
        first = start().state
        values = np.arange(D, dtype=np.int64) - D // 2
        halved = TaskSettings(server_lr=0.5)
        after = aggregate.next_version(first, [window(values, 10)], ENCODING, halved)
        assert np.allclose(after.state.master, first.master + 0.5 * values / 10 / 2.0**12, rtol=0, atol=1e-15)
        assert after.update_norm == pytest.approx(float(np.linalg.norm(0.5 * values / 10 / 2.0**12)))

    def test_what_rounding_leaves_is_not_lost(self) -> None:
        """Updates far below half a published step still move the published model, because the master keeps them."""
        state = start().state
        tiny, fine = TaskSettings(step_fraction=1.0), Encoding(VectorSpec.make(32, 64, D, 2.0**30, 1))
        fixed = ModelState(1, state.shapes, state.master, state.lattice, state.model_hash, state.chain_head)
        steps = [2.0**t.exponent for t in state.lattice]
        values = np.full(D, round(0.3 * min(steps) * 2**30), np.int64)
        now = fixed
        for _ in range(10):
            now = aggregate.next_version(now, [window(values, 1)], fine, tiny).state
        moved = np.concatenate([v.ravel() for v in aggregate.parameters(now).values()]) - state.master
        assert np.all(np.abs(moved - 10 * values / 2.0**30) <= 0.5 * max(2.0**t.exponent for t in now.lattice) + 1e-12)
        assert float(moved.min()) > 0

    def test_published_values_are_the_nearest_lattice_points_and_exact_in_float32(self) -> None:
        for published in rounds(6):
            state = published.state
            flat = np.concatenate([value.ravel().astype(np.float64) for value in aggregate.parameters(state).values()])
            steps = np.repeat([2.0**t.exponent for t in state.lattice], [t.integers.size for t in state.lattice])
            assert np.all(np.abs(flat - state.master) <= steps / 2)
            assert np.all(flat / steps == np.rint(flat / steps))
            assert {n: v.shape for n, v in aggregate.parameters(state).items()} == SHAPES

    def test_steps_are_halved_when_updates_get_small_and_never_raised(self) -> None:
        made = rounds(40, 0.001)
        exponents = np.array([[tensor.exponent for tensor in published.state.lattice] for published in made])
        assert np.all(np.diff(exponents, axis=0) <= 0)
        assert np.all(exponents[-1] < exponents[0])
        update_rms = 0.001 / 39
        assert np.all(2.0 ** exponents[-1] <= update_rms * 0.25 * 1.2)

    def test_a_parameter_that_outgrows_its_step_gets_a_larger_one_and_no_delta(self) -> None:
        huge = np.full(D, 2**40, np.int64)
        first = start()
        after = aggregate.next_version(first.state, [window(huge, 1)], ENCODING, SETTINGS)
        assert aggregate.parameters(after.state)["w"][0, 0] == pytest.approx(2.0**28, rel=1e-6)
        assert deltas([first, after]) == {}

    def test_without_a_window_the_same_master_shows_one_bit_more_so_that_devices_may_contribute_again(self) -> None:
        state = rounds(3)[-1].state
        after = aggregate.next_version(state, [], ENCODING, SETTINGS)
        assert (after.state.version, after.update_norm) == (4, 0.0)
        assert np.array_equal(after.state.master, state.master)
        assert after.state.model_hash != state.model_hash
        for old, new in zip(state.lattice, after.state.lattice, strict=True):
            assert new.exponent == old.exponent - 1
            assert np.max(np.abs(new.values() - old.values())) <= 2.0**new.exponent
        assert after.state.chain_head == chain_next(state.chain_head, 4, after.state.model_hash, ())

    def test_the_chain_names_every_window_in_order(self) -> None:
        state = start().state
        one, two = window(np.ones(D, np.int64), 3, "one"), window(np.ones(D, np.int64), 4, "two")
        after = aggregate.next_version(state, [one, two], ENCODING, SETTINGS).state
        names = [(one.tau1, one.sum_sha256), (two.tau1, two.sum_sha256)]
        assert after.chain_head == chain_next(state.chain_head, 2, after.model_hash, names)
        swapped = aggregate.next_version(state, [two, one], ENCODING, SETTINGS).state
        assert (swapped.model_hash, swapped.chain_head != after.chain_head) == (after.model_hash, True)


class TestBlobs:
    @settings(max_examples=15, deadline=None)
    @given(st.integers(2, 12), st.floats(1e-5, 1.0))
    def test_every_delta_and_the_snapshot_lead_to_the_same_bits(self, number: int, size: float) -> None:
        made = rounds(number, size)
        last = made[-1]
        for since, coded in deltas(made).items():
            old = made[since - 1].state.lattice
            reached = delta.apply(wire.decode(coded, ModelDelta), SHAPES, old)
            assert delta.lattice_hash(reached) == last.state.model_hash
        whole = aggregate.decode_lattice(last.snapshot, SHAPES)
        assert delta.lattice_hash(whole) == last.state.model_hash

    def test_deltas_reach_back_by_powers_of_two_and_are_smaller_than_the_whole(self) -> None:
        assert aggregate.wanted_deltas(1) == ()
        assert aggregate.wanted_deltas(10) == (9, 8, 6, 2)
        assert aggregate.wanted_deltas(200) == (199, 198, 196, 192, 184, 168, 136)
        made = rounds(10)
        coded = deltas(made)
        assert {9, 8, 6} <= set(coded)
        assert all(len(data) < len(made[-1].snapshot) for data in coded.values())

    def test_a_version_is_loaded_from_its_blobs(self) -> None:
        made = rounds(3)[-1]
        state = made.state
        master = aggregate.encode_master(state.master)
        loaded = aggregate.load_state(3, SHAPES, master, made.snapshot, state.chain_head)
        assert np.array_equal(loaded.master, state.master)
        assert (loaded.version, loaded.model_hash, loaded.chain_head) == (3, state.model_hash, state.chain_head)
        for damaged in (master[:-8], master[:-1]):
            with pytest.raises(ProtocolError) as caught:
                aggregate.load_state(3, SHAPES, damaged, made.snapshot, state.chain_head)
            assert caught.value.code is Code.DATA_DAMAGED
