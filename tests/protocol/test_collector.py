"""The server's discipline: what it takes, takes again, refuses or discards; what it never sums; how it comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.protocol import world
from tests.protocol.test_window import check_sum
from tests.protocol.world import FLEET, LANE, Window, certificate, identity, join, policy
from whimbrel_protocol.collector import Collector
from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.messages import Shares, Unmask, Vote, VoteKind
from whimbrel_protocol.window import Discarded, Outcome, ServerState, Shortage

N = 6


def refuses(code: Code, act: Callable[[], object], kind: type[ProtocolError] = ProtocolError) -> None:
    with pytest.raises(kind) as refused:
        act()
    assert refused.value.code is code


def played(drops: tuple[tuple[int, ...], ...] = ((), (), (), ())) -> Window:
    window = Window(N)
    window.play(drops)
    return window


def until(phase: str) -> Window:
    """A window of honest members just before the server closes a phase."""
    window = Window(N)
    window.deal(range(N))
    if phase == "shares":
        return window
    window.mask(range(N))
    if phase == "masked":
        return window
    window.vote(range(N))
    return window


# --- forming ----------------------------------------------------------------------------------------------------------


def test_a_window_is_formed_within_the_floors_and_ceilings() -> None:
    entries = [join(identity(k), policy()).entry for k in range(5)]

    def form(rules: Any = policy(), lane: bytes = LANE, fleet: bytes = FLEET) -> Collector:  # noqa: B008
        return Collector.form(entries, fleet, lane, world.SPEC, rules, 9)

    formed = form()
    assert (formed.n, formed.t, formed.s_min, formed.params.c, formed.params.window_id) == (5, 4, 4, 1, 9)
    assert list(formed.devices) == sorted(identity(k).device for k in range(5))
    refuses(Code.SHORTAGE, lambda: form(policy(n_min=6)), Shortage)
    refuses(Code.OPEN_TOO_LARGE, lambda: form(policy(n_max=4)))
    refuses(Code.ENTRY_LANE, lambda: form(lane=bytes(32)))
    refuses(Code.OPEN_FLEET, lambda: form(fleet=bytes(16)))


# --- accepted, repeated, rejected, discarded --------------------------------------------------------------------------


def test_an_input_counts_once_however_often_it_comes() -> None:
    window = played()
    collector = window.collector
    for event in collector.events():
        match event:
            case Shares():
                collector.on_shares(event)
            case Vote():
                collector.on_vote(event)
            case Unmask():
                collector.on_unmask(event)
    assert collector.counts[Outcome.REPEATED] == N + collector.t + N
    assert collector.close_shares() == collector.tau1
    assert collector.close_masked() == tuple(range(N))
    assert collector.finish(bytearray(8)) is collector.result


def test_a_second_body_is_refused() -> None:
    window = until("masked")
    collector, head = window.collector, window.vectors[0][0]
    shares = next(event for event in collector.events() if isinstance(event, Shares))
    refuses(Code.SECOND_BODY, lambda: collector.on_shares(replace(shares, sig=bytes(64))))
    refuses(Code.SECOND_BODY, lambda: collector.on_head(replace(head, sha256=bytes(32))))
    window.vote(range(N))
    other = certificate(window, VoteKind.ABORT, [0])
    refuses(Code.SECOND_BODY, lambda: collector.on_vote(Vote(0, VoteKind.ABORT, other.sigs)))
    answer = window.unmask([0])[0]
    refuses(Code.SECOND_BODY, lambda: collector.on_unmask(replace(answer, shares=bytes(len(answer.shares)))))


def test_what_comes_late_is_discarded_and_what_comes_early_is_refused() -> None:
    window = Window(N)
    window.deal(range(N - 1))
    late_shares = window.members[N - 1].on_open(window.collector.open, world.NOW, window.rules)
    early = played()
    refuses(Code.OUT_OF_TURN, lambda: window.collector.on_vote(_vote(early)))
    refuses(Code.OUT_OF_TURN, lambda: window.collector.on_unmask(early.collector.responses[0]))
    window.mask(range(N - 2))
    refuses(Code.TOO_LATE, lambda: window.collector.on_shares(late_shares), Discarded)
    late_head, _ = window.masked(N - 2, window.collector.u2_for(N - 2))
    window.vote(range(N - 2))
    refuses(Code.TOO_LATE, lambda: window.collector.on_head(late_head), Discarded)
    assert window.collector.counts[Outcome.DISCARDED] == 2
    assert window.collector.counts[Outcome.REJECTED] == 2


def _vote(window: Window) -> Vote:
    return next(event for event in window.collector.events() if isinstance(event, Vote))


def test_wrong_messages_are_refused_and_change_nothing() -> None:
    window = until("masked")
    head = window.vectors[0][0]
    fresh = Window(N)
    shares = fresh.members[0].on_open(fresh.collector.open, world.NOW, fresh.rules)
    for code, wrong in (
        (Code.NO_SUCH_MEMBER, replace(shares, i=N)),
        (Code.SHARES_MALFORMED, replace(shares, cts=shares.cts[:-1])),
        (Code.SHARES_MALFORMED, replace(shares, tau0=bytes(32))),
        (Code.BAD_SIGNATURE, replace(shares, i=1)),
        (Code.BAD_SIGNATURE, replace(shares, bcommit=bytes(32))),
        (Code.BAD_SIGNATURE, replace(shares, cts=bytes(80) + shares.cts[80:])),
    ):
        refuses(code, lambda wrong=wrong: fresh.collector.on_shares(wrong))  # type: ignore[misc]
    fresh.collector.on_shares(shares)
    fresh.deal(range(1, N - 1))
    fresh.collector.close_shares()
    masked, _ = fresh.masked(0, fresh.collector.u2_for(0))
    for code, wrong_head in (
        (Code.NO_SUCH_MEMBER, replace(masked, i=N - 1)),
        (Code.MASKED_MALFORMED, head),
        (Code.MASKED_MALFORMED, replace(masked, words=masked.words + 1)),
        (Code.MASKED_MALFORMED, replace(masked, present=b"\x3e")),
        (Code.MASKED_MALFORMED, replace(masked, present=b"\x3f")),
        (Code.MASKED_MALFORMED, replace(masked, present=b"\x7f")),
        (Code.BAD_SIGNATURE, replace(masked, i=1)),
    ):
        refuses(code, lambda wrong=wrong_head: fresh.collector.on_head(wrong))  # type: ignore[misc]
    refuses(Code.NO_SUCH_MEMBER, lambda: fresh.collector.on_vector(0))
    refuses(Code.NO_SUCH_MEMBER, lambda: fresh.collector.u2_for(N - 1))
    fresh.collector.on_head(masked)
    assert fresh.collector.counts[Outcome.ACCEPTED] == N


def test_wrong_votes_and_answers_are_refused() -> None:
    window = until("masked")
    window.collector.close_masked()
    vote = window.members[0].on_survivors(window.collector.survivors)
    refuses(Code.BAD_SIGNATURE, lambda: window.collector.on_vote(replace(vote, i=1)))
    refuses(Code.NO_SUCH_MEMBER, lambda: window.collector.on_vote(replace(vote, i=-1)))
    refuses(Code.OUT_OF_TURN, lambda: window.collector.on_vote(replace(vote, kind=VoteKind.ABORT)))
    window.vote(range(N))
    quorum = window.collector.quorum
    assert quorum is not None
    answer = window.members[0].on_quorum(quorum)
    for wrong in (
        replace(answer, shares=answer.shares[:-1]),
        replace(answer, present=b"\x1f"),
        replace(answer, present=b"\x7f", shares=answer.shares + bytes(32)),
    ):
        refuses(Code.UNMASK_MALFORMED, lambda wrong=wrong: window.collector.on_unmask(wrong))  # type: ignore[misc]


# --- shortage and abort -----------------------------------------------------------------------------------------------


def test_an_abort_frees_when_too_few_masked() -> None:
    window = Window(N)
    window.deal(range(N))
    window.mask(range(3))
    refuses(Code.SHORTAGE, window.collector.close_masked, Shortage)
    refuses(Code.OUT_OF_TURN, lambda: window.collector.survivors)
    window.collector.ask_abort()
    window.collector.ask_abort()
    for i in range(N):
        assert window.collector.abort_certificate is None or i >= window.collector.t
        if window.collector.abort_certificate is None:
            window.collector.on_vote(window.members[i].on_survivors(window.collector.survivors))
    assert window.collector.state is ServerState.ABORTED
    assert window.collector.abort_certificate == certificate(window, VoteKind.ABORT, range(window.collector.t))
    assert window.collector.quorum is None


def test_a_commit_quorum_that_forms_late_wins_over_the_abort() -> None:
    window = until("masked")
    window.collector.close_masked()
    survivors, t = window.collector.survivors, window.collector.t
    votes = [window.members[i].on_survivors(survivors) for i in range(t)]
    for vote in votes[: N - t]:  # with one more no abort could be reached
        window.collector.on_vote(vote)
    window.collector.ask_abort()
    window.collector.on_vote(window.members[N - 1].on_survivors(window.collector.survivors))
    for vote in votes[N - t :]:
        window.collector.on_vote(vote)
    assert window.collector.state is ServerState.UNMASK
    window.unmask(range(t))
    check_sum(window, window.collector.finish(window.total()))


def test_no_commit_is_taken_where_no_survivors_were_fixed() -> None:
    window = until("masked")
    vote = _vote(played())
    window.collector.ask_abort()
    refuses(Code.OUT_OF_TURN, lambda: window.collector.on_vote(vote))


def test_survivors_who_hold_too_few_shares_of_a_dealer_are_not_put_to_the_vote() -> None:
    """Its secret could not be recovered, and after an unmasking no update is freed."""
    window = Window(N)
    window.deal(range(N))
    window.collector.close_shares()
    for i in range(N):
        head, _ = window.masked(i, window.collector.u2_for(i))
        without_five = head.present if i == 5 else bytes([head.present[0] & 0b011111])
        window.collector.on_head(replace(head, present=without_five))
        window.collector.on_vector(i)
    with pytest.raises(Shortage, match="shares of member 5"):
        window.collector.close_masked()


# --- nothing wrong is ever a sum --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropped", [(), (4,)])
def test_a_wrong_share_is_an_error_before_anything_is_unmasked(dropped: tuple[int, ...]) -> None:
    """A byte of the share of a survivor's self seed, or of a lost member's mask secret."""
    window = Window(N)
    window.deal(range(N))
    window.mask(set(range(N)) - set(dropped))
    window.vote(set(range(N)) - set(dropped))
    quorum = window.collector.quorum
    assert quorum is not None
    there = [i for i in range(N - 1 + len(dropped)) if i not in dropped]  # one more than t: too few to correct any
    answers = [window.members[i].on_quorum(quorum) for i in there]
    wrong = bytearray(answers[0].shares)
    wrong[32 * 4] ^= 1
    for answer in (replace(answers[0], shares=bytes(wrong)), *answers[1:]):
        window.collector.on_unmask(answer)
    total = window.total()
    before = bytes(total)
    refuses(Code.BAD_SHARES, lambda: window.collector.finish(total))
    assert (bytes(total), window.collector.state, window.collector.faults) == (before, ServerState.UNMASK, [])


def test_who_dealt_no_shares_has_none_to_reveal() -> None:
    window = Window(N)
    window.deal(range(N - 1))
    window.mask(range(N - 1))
    window.vote(range(N - 1))
    answer = window.unmask([0])[0]
    refuses(Code.NO_SUCH_MEMBER, lambda: window.collector.on_unmask(replace(answer, i=N - 1)))


def test_too_few_answers_give_no_sum() -> None:
    window = until("vote")
    window.unmask(range(window.collector.t - 1))
    assert not window.collector.ready_to_unmask
    refuses(Code.SHORTAGE, lambda: window.collector.finish(window.total()), Shortage)
    window.unmask([window.collector.t - 1])
    assert window.collector.ready_to_unmask
    check_sum(window, window.collector.finish(window.total()))


@pytest.mark.parametrize("at", [0, 8, -1])
def test_a_wrong_vector_ends_the_window_without_a_sum(at: int) -> None:
    """A changed canary, count lane, or last canary: whoever sent garbage changed all of them."""
    window = until("vote")
    window.unmask(range(N))
    total = window.total()
    total[at] ^= 1
    refuses(Code.SPOILED_SUM, lambda: window.collector.finish(total))
    assert window.collector.state is ServerState.FAILED
    assert window.collector.result is None


def test_a_total_of_another_size_does_not_end_the_window() -> None:
    window = until("vote")
    window.unmask(range(N))
    refuses(Code.MASKED_MALFORMED, lambda: window.collector.finish(bytearray(8)))
    check_sum(window, window.collector.finish(window.total()))


# --- coming back ------------------------------------------------------------------------------------------------------


def test_a_collector_comes_back_with_its_whole_roster_alone() -> None:
    opening = Window(N).collector.open
    refuses(Code.OPEN_COUNT, lambda: Collector.restore(opening.params, opening.roster[:-1], world.SPEC, []))


def test_a_collector_comes_back_at_every_point_and_goes_on() -> None:
    window = played(((), (1,), (), (2,)))
    collector, events = window.collector, window.collector.events()
    for at in range(len(events) + 1):
        again = Collector.restore(collector.open.params, collector.open.roster, window.spec, events[:at])
        assert again.events() == events[:at]
        for event in events[at:]:
            again._replay(event)
        assert (again.tau1, again.u3, again.quorum) == (collector.tau1, collector.u3, collector.quorum)
    result = again.finish(window.total())
    assert collector.result is not None
    assert result.words == collector.result.words
