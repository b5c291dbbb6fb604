"""Who lies about shares, deals them wrong or sends garbage is named, and no honest member can be made to look like it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protocol import world
from tests.protocol.test_window import check_sum
from tests.protocol.world import Window
from whimbrel_kernels import mask_add
from whimbrel_protocol.blame import (
    Fault,
    FaultKind,
    Pair,
    Spoiled,
    _remainder,
    canaries_of,
    canary_faults,
    canary_mask,
    read_masks,
    share_faults,
)
from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.masks import Channel
from whimbrel_protocol.member import Member
from whimbrel_protocol.messages import Blame, CanaryMasks, Done, Shares, Unmask
from whimbrel_protocol.reed_solomon import _inverse, _multiply, _products
from whimbrel_protocol.rules import members_of
from whimbrel_protocol.signed import Policy
from whimbrel_protocol.transcript import shares_body
from whimbrel_protocol.window import MemberState, Outcome, ServerState

N = 14  # c = 2, t = 9: two liars among all answers are corrected, and enough answers (t + 2c) leave one to spare
ALL = frozenset(range(N))


def rules(n: int) -> Policy:
    """Of a complete graph among N, of a sparse one among more."""
    return world.policy(sigma=40 if n == N else 8)


def refuses(code: Code, act: Callable[[], object]) -> None:
    with pytest.raises(ProtocolError) as refused:
        act()
    assert refused.value.code is code


def named(window: Window) -> set[tuple[FaultKind, tuple[int, ...]]]:
    return {(fault.kind, fault.members) for fault in window.collector.faults}


# --- wrong shares -----------------------------------------------------------------------------------------------------


def voted(dropped: frozenset[int] = frozenset(), n: int = N) -> Window:
    window = Window(n, rules(n))
    window.deal(range(n))
    window.mask(set(range(n)) - dropped)
    window.vote(set(range(n)) - dropped)
    return window


def answers(window: Window) -> dict[int, Unmask]:
    quorum = window.collector.quorum
    assert quorum is not None
    return {i: window.members[i].on_quorum(quorum) for i in window.collector.u3}


def lying(answer: Unmask, dealers: Sequence[int]) -> Unmask:
    """The answer with a bit of the shares of these dealers changed."""
    shares = bytearray(answer.shares)
    for at in dealers:
        shares[32 * at + at % 32] ^= 1 + answer.i  # another one each: equal errors may cancel
    return replace(answer, shares=bytes(shares))


@settings(max_examples=8, deadline=None)
@given(st.sets(st.integers(0, N - 1), max_size=2), st.sets(st.integers(0, N - 1), max_size=1))
def test_liars_are_corrected_and_blamed_whoever_dropped(liars: set[int], dropped: set[int]) -> None:
    window = voted(frozenset(dropped))
    told = answers(window)
    liars -= dropped
    for i, answer in told.items():
        window.collector.on_unmask(lying(answer, range(N)) if i in liars else answer)
    check_sum(window, window.collector.finish(window.total()))
    noticed = liars if liars & set(sorted(told)[: window.collector.t]) else set()  # the first t answers were right
    assert named(window) == {(FaultKind.SHARES, (i,)) for i in noticed}


def test_more_answers_help_where_too_few_could_not_correct() -> None:
    window = voted()
    told = answers(window)
    told[0] = lying(told[0], range(N))
    for i in range(window.collector.t + 1):
        window.collector.on_unmask(told[i])
    total = window.total()
    before = bytes(total)
    refuses(Code.BAD_SHARES, lambda: window.collector.finish(total))
    assert (bytes(total), window.collector.faults) == (before, []), "fewer than t + 2c answers convict no dealer"
    window.collector.on_unmask(told[window.collector.t + 1])
    check_sum(window, window.collector.finish(total))
    assert named(window) == {(FaultKind.SHARES, (0,))}


def test_one_wrong_share_may_be_its_dealers_fault() -> None:
    window = voted()
    told = answers(window)
    told[3] = lying(told[3], [7])
    for answer in told.values():
        window.collector.on_unmask(answer)
    check_sum(window, window.collector.finish(window.total()))
    assert named(window) == {(FaultKind.SHARE, (3, 7))}


def test_a_lie_about_the_own_secret_is_the_liars() -> None:
    window = voted()
    told = answers(window)
    told[3] = lying(told[3], [3])
    for answer in told.values():
        window.collector.on_unmask(answer)
    check_sum(window, window.collector.finish(window.total()))
    assert named(window) == {(FaultKind.SHARES, (3,))}


def dealing_wrong(window: Window, dealer: int, victims: Sequence[int]) -> Shares:
    """Member `dealer`'s SHARES in which the victims get shares that fit nothing; all signatures and seals are right."""
    member, collector = window.members[dealer], window.collector
    honest = member.on_open(collector.open, world.NOW, window.rules)
    cts = bytearray(honest.cts)
    for victim in victims:
        at = 80 * (victim - (victim > dealer))
        channel = Channel(member._held.channels[victim], collector.tau0, dealer, victim)
        cts[at : at + 80] = channel.seal(hashlib.sha512(b"%d" % victim).digest())
    body = shares_body(collector.tau0, dealer, honest.bcommit, bytes(cts))
    return replace(honest, cts=bytes(cts), sig=window.identities[dealer].key.sign("shares", body))


def with_wrong_dealer(victims: Sequence[int], there: Sequence[int]) -> Window:
    window = Window(N)
    window.collector.on_shares(dealing_wrong(window, 5, victims))
    window.deal(sorted(ALL - {5}))
    window.mask(ALL)
    window.vote(ALL)
    window.unmask(there)
    return window


def test_a_dealer_whose_secret_cannot_be_decoded_is_blamed_once_liars_could_not_have_done_it() -> None:
    """Four wrong shares of fourteen: undecodable. With fewer than t + 2c = 13 answers c liars could have done it."""
    window = with_wrong_dealer([0, 1, 2, 3], range(12))
    refuses(Code.BAD_SHARES, lambda: window.collector.finish(window.total()))
    assert named(window) == set()
    window.unmask([12])
    refuses(Code.BAD_SHARES, lambda: window.collector.finish(window.total()))
    assert named(window) == {(FaultKind.DEALING, (5,))}


def test_a_dealer_cannot_frame_the_holders_of_its_shares() -> None:
    window = with_wrong_dealer([0, 3], range(N))
    check_sum(window, window.collector.finish(window.total()))
    assert named(window) == {(FaultKind.SHARE, (0, 5)), (FaultKind.SHARE, (3, 5))}


def cancelling(told: dict[int, Unmask], liars: tuple[int, int], dealer: int, basis: Sequence[int]) -> None:
    """Let two liars change their shares of a dealer so that the secret that comes out of this basis is right all the same."""
    xs = np.array([i + 1 for i in basis])
    for liar in liars:
        others = xs[xs != liar + 1]
        weight = _products(others[None, :])[0], _products((others ^ (liar + 1))[None, :])[0]
        error = int(_multiply(_multiply(np.int64(1234), weight[1]), _inverse(weight[0])))
        shares = bytearray(told[liar].shares)
        for byte, part in enumerate(error.to_bytes(2, "little")):
            shares[32 * dealer + byte] ^= part
        told[liar] = replace(told[liar], shares=bytes(shares))


def test_liars_whose_errors_cancel_in_the_secrets_frame_nobody() -> None:
    """A dealer's wrong share makes member 0 a suspect; two liars make the others' shares look as if it lied about all."""
    window = Window(N, rules(N))
    window.collector.on_shares(dealing_wrong(window, 5, [0]))
    window.deal(sorted(ALL - {5}))
    window.mask(ALL)
    window.vote(ALL)
    told = answers(window)
    for dealer in sorted(ALL - {5}):
        cancelling(told, (3, 4), dealer, range(9) if dealer < 5 else range(1, 10))  # suspects come last
    for answer in told.values():
        window.collector.on_unmask(answer)
    check_sum(window, window.collector.finish(window.total()))
    assert named(window) == {(FaultKind.SHARES, (3,)), (FaultKind.SHARES, (4,)), (FaultKind.SHARE, (0, 5))}


def test_who_differs_from_more_than_may_collude_is_alone_at_fault() -> None:
    def of(wrong: set[tuple[int, int]], c: int) -> set[tuple[FaultKind, tuple[int, ...]]]:
        return {(fault.kind, fault.members) for fault in share_faults(wrong, c)}

    assert of({(1, 2), (1, 3), (1, 4)}, 2) == {(FaultKind.SHARES, (1,))}
    assert of({(2, 1), (3, 1), (4, 1)}, 2) == {(FaultKind.DEALING, (1,))}
    assert of({(2, 1), (3, 1)}, 2) == {(FaultKind.SHARE, (2, 1)), (FaultKind.SHARE, (3, 1))}
    assert of({(2, 1)}, 0) == {(FaultKind.SHARE, (2, 1))}
    assert of(set(), 0) == set()


# --- wrong vectors: phase 4b ------------------------------------------------------------------------------------------


def spoiled(garbage: dict[int, Callable[[bytearray], None]], dropped: frozenset[int] = frozenset(), n: int = N) -> Window:
    """A window whose sum fails since these members changed their vectors; all survivors answered UNMASK."""
    window = Window(n, rules(n))
    window.deal(range(n))
    window.collector.close_shares()
    for i in sorted(set(range(n)) - dropped):
        window.members[i].on_u2(window.collector.u2_for(i))
        vector = bytearray(window.members[i].mask(window.plain(i)))
        garbage.get(i, lambda vector: None)(vector)
        head = window.members[i].head(hashlib.sha256(vector).digest())
        window.vectors[i] = head, bytes(vector)
        window.collector.on_head(head)
        window.collector.on_vector(i, canaries_of(vector))
    window.vote(set(range(n)) - dropped)
    window.unmask(set(range(n)) - dropped)
    refuses(Code.SPOILED_SUM, lambda: window.collector.finish(window.total()))
    assert window.collector.state is ServerState.FAILED
    return window


def noise(vector: bytearray) -> None:
    vector[:] = hashlib.shake_256(b"garbage").digest(len(vector))


def last(vector: bytearray) -> None:
    vector[-3] ^= 4


def tells(window: Window, there: Sequence[int]) -> dict[int, CanaryMasks]:
    blame = window.collector.blame
    assert blame is not None
    return {i: window.members[i].on_blame(blame) for i in there}


def hear(window: Window, told: dict[int, CanaryMasks]) -> None:
    for message in told.values():
        window.collector.on_canaries(message)


@pytest.mark.parametrize("n", [N, 26])  # complete, and a sparse hidden graph
@pytest.mark.parametrize("dropped", [frozenset(), frozenset({2})])
@pytest.mark.parametrize("change", [noise, last])
def test_garbage_is_its_senders(n: int, dropped: frozenset[int], change: Callable[[bytearray], None]) -> None:
    window = spoiled({3: change, 9: noise}, dropped, n)
    hear(window, tells(window, window.collector.u3))
    assert named(window) == {(FaultKind.VECTOR, (3,)), (FaultKind.VECTOR, (9,))}


def test_garbage_whose_canaries_cancel_in_the_sum_is_found_once_the_sum_failed() -> None:
    def up(vector: bytearray) -> None:
        vector[:8] = (int.from_bytes(vector[:8], "little") + 7 & 2**64 - 1).to_bytes(8, "little")
        vector[8] ^= 1

    def down(vector: bytearray) -> None:
        vector[:8] = (int.from_bytes(vector[:8], "little") - 7 & 2**64 - 1).to_bytes(8, "little")

    window = spoiled({1: up, 2: down})
    hear(window, tells(window, window.collector.u3))
    assert named(window) == {(FaultKind.VECTOR, (1,)), (FaultKind.VECTOR, (2,))}


def test_garbage_under_right_canaries_is_noticed_but_nobody_can_be_named() -> None:
    window = spoiled({3: lambda vector: vector.__setitem__(slice(8, 16), bytes(8))})
    hear(window, tells(window, window.collector.u3))
    assert window.collector.faults == []


def covering(window: Window, told: dict[int, CanaryMasks], liar: int, partner: int) -> CanaryMasks:
    """What the liar says so that its garbage canary fits its own words: another mask of one pair."""
    message = told[liar]
    edges = members_of(message.edges, window.n)
    ring, at = 2**64, 16 * edges.index(partner)
    masks = bytearray(message.masks)
    rest = _left_over(window, message)
    for word in range(2):
        where = slice(at + 8 * word, at + 8 * word + 8)
        value = int.from_bytes(masks[where], "little") + (rest[word] if liar < partner else -rest[word])
        masks[where] = (value % ring).to_bytes(8, "little")
    return replace(message, masks=bytes(masks))


def _left_over(window: Window, message: CanaryMasks) -> tuple[int, int]:
    case = window.collector._spoiled
    assert case is not None
    return _remainder(case, message.i, read_masks(message, window.n))


def test_a_liar_that_covers_itself_shares_the_blame_with_one_partner_only() -> None:
    window = spoiled({3: noise})
    told = tells(window, window.collector.u3)
    told[3] = covering(window, told, 3, 8)
    hear(window, told)
    assert named(window) == {(FaultKind.MASK, (3, 8))}


def test_a_liar_that_accuses_more_than_may_collude_is_alone() -> None:
    window = spoiled({3: noise})
    told = tells(window, window.collector.u3)
    told[3] = covering(window, told, 3, 8)
    masks = bytearray(told[3].masks)  # two more masks, by amounts that cancel
    edges = members_of(told[3].edges, N)
    first, second = 16 * edges.index(4), 16 * edges.index(6)
    for where, by in ((first, 5), (second, -5)):
        word = slice(where, where + 8)
        masks[word] = (int.from_bytes(masks[word], "little") + by & 2**64 - 1).to_bytes(8, "little")
    told[3] = replace(told[3], masks=bytes(masks))
    hear(window, told)
    assert named(window) == {(FaultKind.MASK, (3,))}


def test_a_liar_about_a_mask_with_a_dropped_member_is_alone() -> None:
    window = spoiled({3: noise}, frozenset({8}))
    told = tells(window, window.collector.u3)
    told[3] = covering(window, told, 3, 8)
    hear(window, told)
    assert named(window) == {(FaultKind.VECTOR, (3,))}


def test_who_sent_garbage_and_says_nothing_is_suspected_and_who_only_says_nothing_is_not() -> None:
    window = spoiled({3: noise})
    told = tells(window, window.collector.u3)
    hear(window, {i: message for i, message in told.items() if i not in (3, 6)})
    assert named(window) == {(FaultKind.SILENT, (3, 6))}
    window.collector.on_canaries(told[3])
    assert named(window) == {(FaultKind.VECTOR, (3,))}, "the other silent one is cleared"


@cache
def two_liars() -> tuple[Spoiled, dict[int, dict[int, Pair]]]:
    """A window that members 3 and 9 spoiled, and what all would say if they were honest."""
    window = spoiled({3: noise, 9: last}, frozenset({12}))
    told = tells(window, window.collector.u3)
    case = window.collector._spoiled
    assert case is not None
    return case, {i: read_masks(message, N) for i, message in told.items()}


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_an_honest_member_is_never_alone_to_blame(data: st.DataObject) -> None:
    """c liars may tell what they like, also edges that there are not, and any honest ones may be silent."""
    case, told = two_liars()
    words = st.integers(0, 2**64 - 1)
    tales = st.dictionaries(st.sampled_from(sorted(ALL - {3, 9})), st.builds(Pair, words, words), max_size=4)
    lies = {i: told[i] | {j: pair for j, pair in data.draw(tales).items() if j != i} for i in (3, 9)}
    silent = data.draw(st.sets(st.sampled_from(sorted(told)), max_size=4))
    heard = {i: masks for i, masks in (told | lies).items() if i not in silent}
    faults = canary_faults(replace(case, told=heard))
    assert faults
    for fault in faults:
        assert fault.kind is FaultKind.SILENT or {3, 9} & set(fault.members), fault


# --- what a member tells ----------------------------------------------------------------------------------------------


def test_what_is_told_is_two_words_of_each_mask_and_no_others() -> None:
    key, words = world.secret("key"), 1001
    stream = bytearray(8 * words)
    mask_add(stream, key, 0)
    assert canary_mask(key, words) == bytes(stream[:8] + stream[-8:])
    window = spoiled({3: noise})
    (told,) = tells(window, [0]).values()
    assert len(told.masks) == 16 * (N - 1)


def before_unmask() -> tuple[Window, Member]:
    window = voted()
    return window, window.members[0]


def test_a_member_tells_nothing_before_its_own_unmask() -> None:
    window, member = before_unmask()
    refuses(Code.OUT_OF_TURN, lambda: member.on_blame(Blame(window.collector.tau1)))
    assert member.state is MemberState.COMMITTED


def test_a_member_tells_once_and_repeats_only_that() -> None:
    window = spoiled({3: noise})
    member, tau1 = window.members[0], window.collector.tau1
    told = member.on_blame(Blame(tau1))
    assert member.on_blame(Blame(tau1)) == told
    refuses(Code.SECOND_BODY, lambda: member.on_blame(Blame(bytes(32))))
    refuses(Code.TOO_LATE, lambda: member.on_done(Done(world.LANE, bytes(32))))
    assert (member.state, member.counts[Outcome.REPEATED]) == (MemberState.SHOWN, 1)
    member.wipe()
    refuses(Code.WINDOW_ENDED, lambda: member.on_blame(Blame(tau1)))


@pytest.mark.rule("1.9 blame: own window")
@pytest.mark.rule("1.9 blame: survivors alone")
def test_a_member_tells_nothing_of_another_window_or_of_one_that_it_did_not_survive() -> None:
    window = spoiled({3: noise})
    refuses(Code.BLAME_OTHER_WINDOW, lambda: window.members[0].on_blame(Blame(bytes(32))))
    refuses(Code.WINDOW_ENDED, lambda: window.members[0].on_blame(Blame(window.collector.tau1)))
    late = Window(N)
    late.deal(ALL)
    late.mask(ALL - {2})
    late.masked(2, late.collector.u2_for(2))  # its vector comes too late, but it votes and reveals shares
    late.vote(ALL)
    late.unmask(ALL)
    refuses(Code.BLAME_NOT_SURVIVED, lambda: late.members[2].on_blame(Blame(late.collector.tau1)))


def test_the_server_asks_only_where_the_sum_failed_and_takes_only_what_fits() -> None:
    window = voted()
    window.unmask(ALL)
    assert window.collector.blame is None
    empty = CanaryMasks(0, bytes(2), b"")
    refuses(Code.OUT_OF_TURN, lambda: window.collector.on_canaries(empty))
    check_sum(window, window.collector.finish(window.total()))
    assert window.collector.blame is None
    window = spoiled({3: noise}, frozenset({8}))
    (told,) = tells(window, [0]).values()
    for wrong in (
        replace(told, masks=told.masks[:-1]),
        replace(told, edges=bytes(1)),
        replace(told, edges=b"\x01\x00", masks=bytes(16)),
        replace(told, edges=b"\xff\xff"),
    ):
        refuses(Code.CANARIES_MALFORMED, lambda wrong=wrong: window.collector.on_canaries(wrong))  # type: ignore[misc]
    refuses(Code.NO_SUCH_MEMBER, lambda: window.collector.on_canaries(replace(told, i=8)))
    window.collector.on_canaries(told)
    window.collector.on_canaries(told)
    refuses(Code.SECOND_BODY, lambda: window.collector.on_canaries(replace(told, masks=bytes(len(told.masks)))))


def test_a_fault_says_what_was_wrong() -> None:
    assert all(fault.detail for fault in share_faults({(1, 2), (3, 1), (3, 2), (3, 4), (4, 4)}, 2))
    assert Fault(FaultKind.SHARE, (1, 2), "x") in [replace(f, detail="x") for f in share_faults({(1, 2)}, 2)]
