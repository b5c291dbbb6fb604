"""A window as a story: members vanish at any of its steps, and the sum is exact or there is none."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protocol import world
from tests.protocol.world import Window
from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.masks import CHUNK_WORDS
from whimbrel_protocol.messages import U2, Done, Open
from whimbrel_protocol.objects import VectorSpec
from whimbrel_protocol.packing import WindowSum
from whimbrel_protocol.rules import COMPLETE
from whimbrel_protocol.window import (
    MEMBER,
    SERVER,
    MemberEvent,
    MemberState,
    Outcome,
    ServerEvent,
    ServerState,
    Shortage,
)


def check_sum(window: Window, result: WindowSum) -> None:
    """The result is the plain sum of the survivors' updates, to the bit."""
    survivors = window.collector.u3
    assert result.values.tolist() == np.sum([window.update(i) for i in survivors], axis=0).tolist()
    assert result.weight_sum == sum(window.weight(i) for i in survivors)
    assert result.count == len(survivors)
    assert result.sha256 == hashlib.sha256(result.words).digest()


def play(window: Window, drops: list[set[int]]) -> WindowSum | None:
    """The window's sum, or None where too few members were left to go on."""
    try:
        return window.play(drops)
    except Shortage:
        return None


@st.composite
def vanishing(draw: st.DrawFn) -> tuple[int, int, list[set[int]]]:
    """n, n_min and who vanishes before each of the four steps."""
    n = draw(st.integers(5, 9))
    leaves_at = draw(st.lists(st.sampled_from([0, 1, 2, 3, 4, 4, 4]), min_size=n, max_size=n))
    return n, draw(st.integers(4, n)), [{i for i in range(n) if leaves_at[i] == step} for step in range(4)]


@pytest.mark.rule("1.6 sum: exact")
@settings(max_examples=80, deadline=None)
@given(vanishing())
def test_a_window_succeeds_if_and_only_if_few_enough_members_vanish(case: tuple[int, int, list[set[int]]]) -> None:
    """At most n - t in all, and at most n - s_min of them before their vector is complete."""
    n, n_min, drops = case
    window = Window(n, world.policy(n_min=n_min, gamma_milli=100))
    collector, lost = window.collector, [len(step) for step in drops]
    enough = n - sum(lost) >= collector.t and n - lost[0] - lost[1] >= collector.s_min
    result = play(window, drops)
    assert (result is not None) == enough
    if result is not None:
        check_sum(window, result)
        assert collector.state is ServerState.DONE
        for i in set(range(n)) - set().union(*drops):
            window.members[i].on_done(Done(world.LANE, result.sha256))
            assert window.members[i].state is MemberState.DONE


@pytest.mark.rule("1.6 sum: exact")
@pytest.mark.parametrize("bits", [9, 12, 21, 32])
def test_a_sparse_hidden_graph_with_losses_at_every_step_gives_the_exact_sum(bits: int) -> None:
    spec = VectorSpec.make(bits, 40, 30, 1.0, 16)
    window = Window(26, spec=spec)
    assert window.collector.params.p32 < COMPLETE
    check_sum(window, window.play([{1, 7}, {3, 20}, {11}, {25}]))


def test_a_vector_of_several_chunks_is_the_same_in_any_order_of_chunks() -> None:
    spec = VectorSpec.make(32, 8, 2 * CHUNK_WORDS + 10, 1.0, 0)
    window = Window(5, spec=spec)
    window.deal(range(5))
    window.collector.close_shares()
    member, plain = window.members[0], window.plain(0)
    member.on_u2(window.collector.u2_for(0))
    starts = list(range(0, spec.words, CHUNK_WORDS))
    chunks = {at: member.mask_chunk(plain[8 * at : 8 * (at + CHUNK_WORDS)], at) for at in reversed(starts)}
    assert len(starts) == 2
    assert b"".join(chunks[at] for at in starts) == member.mask(plain)


@pytest.mark.rule("1.5 MASKED: the vector is frozen")
def test_no_two_vectors_leave_under_one_mask() -> None:
    """Their difference would be the difference of the updates."""
    window = Window(5)
    window.deal(range(5))
    window.collector.close_shares()
    member = window.members[0]
    member.on_u2(window.collector.u2_for(0))
    first = member.mask(window.plain(0))
    with pytest.raises(RuleError) as refused:
        member.mask(window.plain(1))
    assert refused.value.code is Code.UPDATE_CHANGED
    assert member.mask(window.plain(0)) == first != window.plain(0)
    with pytest.raises(RuleError) as refused:
        member.mask(window.plain(0) + bytes(8))
    assert refused.value.code is Code.UPDATE_OUT_OF_RANGE


@pytest.mark.parametrize(("start", "size"), [(1, 8), (-CHUNK_WORDS, 64), (0, 0), (0, 8), (CHUNK_WORDS, 8)])
def test_a_piece_that_is_no_chunk_is_not_masked(start: int, size: int) -> None:
    window = Window(5)
    window.deal(range(5))
    window.collector.close_shares()
    window.members[0].on_u2(window.collector.u2_for(0))
    with pytest.raises(RuleError) as refused:
        window.members[0].mask_chunk(bytes(size), start)
    assert refused.value.code is Code.UPDATE_OUT_OF_RANGE


def test_masked_vectors_look_alike_whatever_they_hold() -> None:
    """Every byte of a masked vector of zeros is about equally frequent (chi-square, 255 degrees of freedom)."""
    spec = VectorSpec.make(16, 8, 4 * 20_000, 1.0, 0)
    window = Window(5, spec=spec)
    window.deal(range(5))
    window.collector.close_shares()
    window.members[0].on_u2(window.collector.u2_for(0))
    counts = np.bincount(np.frombuffer(window.members[0].mask(bytes(8 * spec.words)), np.uint8), minlength=256)
    expected = 8 * spec.words / 256
    assert 150 < ((counts - expected) ** 2 / expected).sum() < 380


@pytest.mark.rule("1.5 U2: an unreadable share is none")
def test_a_lost_share_is_a_hole_and_the_window_goes_on() -> None:
    window = Window(6)
    window.deal(range(6))
    window.collector.close_shares()
    u2 = window.collector.u2_for(0)
    window.members[0].on_u2(U2(u2.bitmap, bytes(80) + u2.cts[80:]))
    vector = window.members[0].mask(window.plain(0))
    head = window.members[0].head(hashlib.sha256(vector).digest())
    assert head.present == bytes([0b111101])
    window.collector.on_head(head)
    window.collector.on_vector(0)
    window.mask(range(1, 6))
    window.vectors[0] = head, vector
    window.vote(range(6))
    assert len(window.unmask(range(6))[0].shares) == 5 * 32
    check_sum(window, window.collector.finish(window.total()))


# --- the tables -------------------------------------------------------------------------------------------------------


@pytest.mark.rule("1.9 abort: the last word")
def test_the_members_table_never_gives_after_an_abort_vote() -> None:
    for state in (MemberState.ABORTED, MemberState.ENDED):
        assert {event for at, event in MEMBER if at is state} == {MemberEvent.END}
    assert not [event for at, event in MEMBER if at is MemberState.DONE]


def test_no_path_of_the_servers_table_leads_to_an_abort_and_to_an_unmasking() -> None:
    def reached(start: ServerState) -> set[ServerState]:
        found = {start}
        while new := {to for (at, _), to in SERVER.items() if at in found} - found:
            found |= new
        return found

    assert reached(ServerState.SHARE) == set(ServerState)
    assert ServerState.UNMASK not in reached(ServerState.ABORTED)
    assert ServerState.ABORTED not in reached(ServerState.UNMASK)
    assert {to for (_, event), to in SERVER.items() if event is ServerEvent.QUORUM} == {ServerState.UNMASK}


def test_each_side_counts_what_became_of_its_messages() -> None:
    window = Window(5)
    member, opening = window.members[0], window.collector.open
    window.deal(range(5))
    member.on_open(opening, world.NOW, window.rules)
    with pytest.raises(RuleError):
        member.on_open(Open(opening.params, opening.roster[:-1]), world.NOW, window.rules)
    assert member.counts == {Outcome.ACCEPTED: 1, Outcome.REPEATED: 1, Outcome.REJECTED: 1}
    with pytest.raises(RuleError):
        window.collector.on_vector(0)
    assert window.collector.counts == {Outcome.ACCEPTED: 5, Outcome.REJECTED: 1}
