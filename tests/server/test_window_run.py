"""A running window's time: when phases close, what is shown only when it is durable, and how a window survives a restart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from tests.protocol.world import NOW, Window, policy
from whimbrel_kernels import ring_add
from whimbrel_protocol.blame import Fault, FaultKind, canaries_of
from whimbrel_protocol.collector import Collector
from whimbrel_protocol.errors import Code, ProtocolError, RuleError
from whimbrel_protocol.messages import Blame, Quorum, Survivors, Unmask, Vote, VoteKind
from whimbrel_protocol.rules import bitmap, members_of
from whimbrel_protocol.window import Discarded
from whimbrel_server.settings import WindowLimits
from whimbrel_server.storage.records import EventRecord, WindowRecord
from whimbrel_server.windows.window_effects import (
    Blamed,
    Closed,
    FixAbort,
    FixQuorum,
    FixSurvivors,
    FixU2,
    GiveUp,
    Log,
    RunUnmasking,
    Wake,
    WindowEffect,
)
from whimbrel_server.windows.window_restore import restore
from whimbrel_server.windows.window_run import Phase, WindowRun

LIMITS = WindowLimits(share_s=5, mask_s=10, vote_s=5, unmask_s=5, patience_s=30, early_min_s=1)
# n = 24, gamma 0.2: c = 4, t = s_min = 15; nine may be lost, two of them by closing early.
N, S_MIN, T = 24, 15, 15


class Shell:
    """A window of honest members under a shell that keeps what it is told to keep, and settles only when it is told to."""

    def __init__(self, n: int = N, limits: WindowLimits = LIMITS) -> None:
        self.play = Window(n, policy(n_min=8))
        self.now = float(NOW)
        c = self.play.collector
        self.run = WindowRun(c, limits, self.now)
        self.record = WindowRecord(c.tau0, 1, "digits", 1, c.params.lane, c.open.params, c.open.roster, self.now)
        self.events: list[EventRecord] = []
        self.total = bytearray(8 * self.play.spec.words)
        self.closed: list[str] = []
        self.asked: list[WindowEffect] = []
        self.garbage: set[int] = set()

    def keep(self, effects: Sequence[WindowEffect]) -> list[WindowEffect]:
        """Make the messages durable; the rest waits for `settle`."""
        for effect in effects:
            if isinstance(effect, Log):
                self.events.append(EventRecord(effect.kind, effect.member, effect.body))
            elif isinstance(effect, Closed):
                self.closed.append(effect.outcome)
            elif isinstance(effect, GiveUp):
                self.record = self.changed(state=effect.state)
            elif not isinstance(effect, Wake):
                self.asked.append(effect)
        return list(effects)

    def changed(self, **changes: object) -> WindowRecord:
        return WindowRecord(**{**vars(self.record), **changes})

    def settle(self) -> None:
        """Do what the last effect asked for, and say so."""
        [effect] = self.asked
        self.asked = []
        match effect:
            case FixU2(u2):
                self.record = self.changed(state="mask", u2=u2)
            case FixSurvivors(u3, heads):
                self.events += heads
                self.record = self.changed(state="vote", u3=u3, masked_sum=bytes(self.total))
            case FixQuorum(quorum):
                self.record = self.changed(state="unmask", quorum=quorum)
            case FixAbort(certificate):
                self.record = self.changed(state="aborted", abort=certificate)
            case RunUnmasking():
                done = self.run.collector.finish(bytearray(self.record.masked_sum or b""))
                self.record = self.changed(state="done", sum_sha256=done.sha256)
        self.keep(self.run.settle(self.now))

    def wait(self, seconds: float) -> list[WindowEffect]:
        self.now += seconds
        return self.keep(self.run.tick(self.now))

    # --- members ------------------------------------------------------------------------------------------------------

    def deal(self, there: Iterable[int], every: float = 0.0) -> None:
        for i in there:
            self.now += every
            message = self.play.members[i].on_open(self.run.open(), NOW, self.play.rules)
            self.keep(self.run.on_shares(message, self.now))

    def mask(self, there: Iterable[int], every: float = 0.0) -> None:
        for i in there:
            self.now += every
            message = self.run.u2_for(i)
            assert message is not None and not isinstance(message, Survivors)
            head, vector = self.play.masked(i, message)
            vector = bytes(8) + vector[8:] if i in self.garbage else vector
            self.keep(self.run.on_head(head, self.now))
            effects = self.run.on_vector(i, self.now, canaries_of(vector))
            ring_add(self.total, vector)
            self.keep(effects)

    def vote(self, there: Iterable[int]) -> None:
        for i in there:
            survivors = self.run.survivors()
            assert survivors is not None
            if self.run.phase in (Phase.VOTE, Phase.ABORT):
                self.keep(self.run.on_vote(self.play.members[i].on_survivors(survivors), self.now))

    def reveal(self, there: Iterable[int]) -> None:
        for i in there:
            certificate = self.run.quorum()
            assert certificate is not None
            if self.run.phase is Phase.UNMASK:
                self.keep(self.run.on_unmask(self.play.members[i].on_quorum(certificate), self.now))

    def revealed(self) -> list[Unmask]:
        """What all members answer to the certificate, those too whose votes were not needed."""
        survivors, certificate = self.run.survivors(), self.run.quorum()
        assert survivors is not None and certificate is not None
        for member in self.play.members:
            member.on_survivors(survivors)
        return [member.on_quorum(certificate) for member in self.play.members]

    def until(self, phase: Phase) -> Shell:
        """Everybody answers at once, until the window is in `phase`."""
        everybody = range(self.play.n)
        steps = [self.deal, None, self.mask, None, self.vote, None, self.reveal, None]
        for step in steps:
            if self.run.phase is phase:
                break
            if step is None:
                self.settle()
            else:
                step(everybody)
        assert self.run.phase is phase
        return self

    def plain(self) -> list[int]:
        members = members_of(self.record.u3 or b"", self.play.n)
        return sum(self.play.update(i) for i in members).tolist()

    def restored(self) -> list[WindowEffect]:
        """The server was killed: a new run from what was kept. Returns what it asks for first."""
        self.asked, self.closed = [], []
        self.run, effects = restore(self.record, self.events, self.play.spec, LIMITS, self.now)
        return self.keep(effects)


class TestPhases:
    def test_a_window_in_which_all_answer_takes_no_time_and_sums_exactly(self) -> None:
        shell = Shell().until(Phase.DONE)
        assert shell.now == NOW
        result = shell.run.collector.result
        assert result is not None and result.values.tolist() == shell.plain() and result.count == N
        assert shell.closed == ["done"]
        assert shell.run.dropped == {"shares": 0, "masked": 0, "vote": N - T, "unmask": N - T}

    @pytest.mark.parametrize(
        ("before", "shown"),
        [
            (Phase.FIX_U2, lambda run: run.u2_for(0)),
            (Phase.FIX_SURVIVORS, lambda run: run.survivors()),
            (Phase.FIX_QUORUM, lambda run: run.quorum()),
            (Phase.UNMASKING, lambda run: run.done(0)),
        ],
    )
    def test_nothing_is_shown_before_it_is_durable(self, before: Phase, shown) -> None:
        shell = Shell().until(before)
        assert shown(shell.run) is None
        assert shell.run.deadline is None, "the disk may take its time"
        assert shell.wait(10_000) == []
        shell.settle()
        assert shown(shell.run) is not None

    def test_settling_what_was_not_asked_for_is_refused(self) -> None:
        shell = Shell()
        with pytest.raises(ProtocolError) as caught:
            shell.run.settle(shell.now)
        assert caught.value.code is Code.OUT_OF_TURN

    def test_messages_are_counted_as_accepted_repeated_rejected_or_discarded(self) -> None:
        shell = Shell()
        message = shell.play.members[0].on_open(shell.run.open(), NOW, shell.play.rules)
        logged = [shell.run.on_shares(message, shell.now) for _ in range(2)]
        assert [effects[0] for effects in logged] == [logged[0][0]] * 2, "a repeat waits for the first one's durability"
        with pytest.raises(ProtocolError):
            shell.run.on_shares(type(message)(1, message.tau0, message.cts, message.bcommit, message.sig), shell.now)
        late = shell.play.members[1].on_open(shell.run.open(), NOW, shell.play.rules)
        shell.deal(range(2, N))
        shell.wait(1.1)
        with pytest.raises(ProtocolError) as caught:
            shell.run.on_shares(late, shell.now)
        assert caught.value.code is Code.TOO_LATE
        counted = {outcome: count for (kind, outcome), count in shell.run.counts.items() if kind == "shares"}
        assert counted == {"accepted": N - 1, "repeated": 1, "rejected": 1, "discarded": 1}

    def test_a_vector_is_added_once(self) -> None:
        shell = Shell().until(Phase.MASK)
        shell.mask([0])
        with pytest.raises(ProtocolError) as caught:
            shell.run.on_vector(0, shell.now, shell.run.collector.events()[-1].canaries)
        assert caught.value.code is Code.TOO_LATE


class TestEarlyClosing:
    def test_few_slow_members_are_given_up_after_three_medians(self) -> None:
        shell = Shell()
        shell.deal(range(22), every=0.1)  # median 1.15 s: closes 3.45 s into the phase
        assert shell.run.deadline == pytest.approx(NOW + 3.45)
        assert shell.wait(1.2) == []
        assert shell.wait(0.1) == [FixU2(bitmap(range(22), N))]

    def test_not_before_a_second_even_if_all_others_were_quick(self) -> None:
        shell = Shell()
        shell.deal(range(22))
        assert shell.run.deadline == NOW + 1
        assert shell.wait(0.99) == []
        assert shell.wait(0.01) == [FixU2(bitmap(range(22), N))]

    def test_more_than_a_quarter_of_what_may_be_lost_is_waited_for(self) -> None:
        shell = Shell()
        shell.deal(range(21))
        assert shell.wait(4.9) == []
        assert shell.wait(0.1) == [FixU2(bitmap(range(21), N))]

    def test_the_quarter_holds_for_the_whole_window(self) -> None:
        shell = Shell()
        shell.deal(range(22))
        shell.wait(1)
        shell.settle()
        shell.mask(range(21))
        assert shell.wait(9.9) == []
        effects = shell.wait(0.1)
        assert isinstance(effects[0], FixSurvivors) and effects[0].u3 == bitmap(range(21), N)

    def test_who_is_gone_holds_up_nobody_but_who_is_back_does(self) -> None:
        shell = Shell()
        for i in (20, 21, 22, 23):
            shell.run.gone(i, shell.now)
        shell.deal(range(20))
        shell.run.here(23)
        assert shell.wait(1.5) == []
        shell.run.gone(23, shell.now)
        assert shell.run.deadline == shell.now + 1
        assert shell.wait(1) == [FixU2(bitmap(range(20), N))]

    def test_a_phase_with_too_few_answers_is_not_closed_early(self) -> None:
        shell = Shell(limits=WindowLimits(share_s=5, early_min_s=0))
        for i in range(S_MIN - 1, N):
            shell.run.gone(i, shell.now)
        shell.deal(range(S_MIN - 1))
        assert shell.wait(4.9) == []


class TestShortage:
    def test_too_few_shares_end_in_an_abort_that_frees_all(self) -> None:
        shell = Shell()
        shell.deal(range(S_MIN - 1))
        effects = shell.wait(5)
        assert effects == [Wake(), GiveUp("aborted"), Closed("aborted")]
        assert shell.run.lost == list(range(S_MIN - 1, N))
        assert shell.run.dropped == {"shares": N - S_MIN + 1, "masked": 0, "vote": 0, "unmask": 0}
        assert shell.run.u2_for(0) == shell.run.survivors() == Survivors(b"", b"", abort=True)
        shell.vote(range(S_MIN - 1))
        assert shell.run.quorum() is None
        # The other members come back from wherever they were: an abort vote needs nothing but the roster.
        for i in range(S_MIN - 1, T):
            shell.play.members[i].on_open(shell.run.open(), NOW, shell.play.rules)
        shell.vote(range(S_MIN - 1, T))
        shell.settle()
        certificate = shell.run.quorum()
        assert isinstance(certificate, Quorum) and certificate.kind is VoteKind.ABORT
        assert shell.closed == ["aborted"], "the engine hears of it once"

    def test_too_few_vectors_end_in_an_abort(self) -> None:
        shell = Shell().until(Phase.MASK)
        shell.mask(range(S_MIN - 1))
        assert shell.wait(10) == [Wake(), GiveUp("aborted"), Closed("aborted")]
        assert shell.run.lost == list(range(S_MIN - 1, N))
        shell.vote(range(T))
        shell.settle()
        assert shell.run.phase is Phase.ABORTED

    def test_without_enough_votes_an_abort_is_asked_for_and_late_commits_may_still_win(self) -> None:
        shell = Shell().until(Phase.VOTE)
        members, survivors = shell.play.members, shell.run.survivors()
        assert survivors is not None
        commits = [members[i].on_survivors(survivors) for i in range(T)]
        for vote in commits[:10]:
            shell.keep(shell.run.on_vote(vote, shell.now))
        assert shell.wait(5) == [Wake()]
        assert (shell.run.phase, shell.closed) == (Phase.ABORT, [])
        # Ten committed: with 24 members an abort needs 15 of the other 14 and can never come, so nobody is asked for one.
        assert shell.run.survivors() == survivors and shell.run.done(0) is None and shell.run.u2_for(0) is not None
        for vote in commits[10:]:
            shell.keep(shell.run.on_vote(vote, shell.now))
        shell.settle()
        assert shell.run.phase is Phase.UNMASK
        shell.reveal(range(T))
        shell.settle()
        result = shell.run.collector.result
        assert result is not None and result.values.tolist() == shell.plain()

    def abandoned(self, commits: int) -> tuple[Shell, list[Vote]]:
        """A window that its round no longer waits for after so many commits, and nine more members' votes, not cast."""
        shell = Shell().until(Phase.VOTE)
        survivors = shell.run.survivors()
        assert survivors is not None
        votes = [member.on_survivors(survivors) for member in shell.play.members[: commits + N - T]]
        for vote in votes[:commits]:
            shell.keep(shell.run.on_vote(vote, shell.now))
        shell.wait(5)
        assert shell.wait(30) == [GiveUp("aborted"), Closed("aborted")]
        return shell, votes[commits:]

    def test_votes_that_never_come_end_the_window_for_its_round_and_an_abort_may_follow(self) -> None:
        shell, _ = self.abandoned(0)
        shell.vote(range(N - T, N))
        shell.settle()
        assert (shell.run.phase, shell.closed) == (Phase.ABORTED, ["aborted"])

    def test_commits_that_an_abort_cannot_overtake_are_completed_however_late_and_the_sum_is_exact(self) -> None:
        shell, votes = self.abandoned(T - 1)
        shell.wait(86_400)
        assert shell.restored() == [], "nor does a restart lose the votes"
        assert shell.run.survivors() != Survivors(b"", b"", abort=True), "an abort is asked of nobody"
        shell.keep(shell.run.on_vote(votes[0], shell.now))
        shell.settle()
        certificate = shell.run.quorum()
        assert isinstance(certificate, Quorum) and certificate.kind is VoteKind.COMMIT
        assert shell.restored() == [] and shell.run.phase is Phase.UNMASK
        shell.reveal(range(T))
        shell.settle()
        result = shell.run.collector.result
        assert result is not None and result.values.tolist() == shell.plain()
        assert shell.closed == ["done"]

    def test_the_first_late_commit_that_rules_the_abort_out_asks_the_others_for_commits_again(self) -> None:
        shell, votes = self.abandoned(N - T)
        assert shell.run.survivors() == Survivors(b"", b"", abort=True)
        shell.keep(shell.run.on_vote(votes[0], shell.now))
        survivors = shell.run.survivors()
        assert survivors is not None and not survivors.abort
        for vote in votes[1 : 2 * T - N]:
            shell.keep(shell.run.on_vote(vote, shell.now))
        assert shell.run.phase is Phase.FIX_QUORUM

    def test_a_late_quorum_whose_answers_do_not_come_still_gives_the_certificate(self) -> None:
        shell, votes = self.abandoned(T - 1)
        shell.keep(shell.run.on_vote(votes[0], shell.now))
        shell.settle()
        assert shell.wait(35)[0] == GiveUp("failed", Code.SHORTAGE)
        assert shell.run.quorum() is not None

    def test_after_the_quorum_a_window_is_never_aborted(self) -> None:
        shell = Shell().until(Phase.UNMASK)
        shell.reveal(range(T - 1))
        assert shell.wait(34.9) == []
        effects = shell.wait(0.1)
        assert effects == [GiveUp("failed", Code.SHORTAGE), Wake(), Closed("failed")]
        with pytest.raises(ProtocolError) as caught:
            shell.run.done(0)
        assert caught.value.code is Code.SHORTAGE
        assert shell.run.quorum() is not None, "it frees whom it leaves out"

    def test_a_shell_that_lost_the_sum_asks_for_an_abort(self) -> None:
        shell = Shell().until(Phase.FIX_SURVIVORS)
        shell.asked = []
        assert shell.keep(shell.run.abort(shell.now)) == [Wake(), GiveUp("aborted"), Closed("aborted")]
        shell.vote(range(T))
        shell.settle()
        assert shell.run.phase is Phase.ABORTED
        with pytest.raises(ProtocolError):
            Shell().until(Phase.VOTE).run.abort(NOW)


class TestUnmasking:
    def test_a_bad_share_waits_for_more_answers(self) -> None:
        shell = Shell().until(Phase.VOTE)
        survivors = shell.run.survivors()
        assert survivors is not None
        for vote in [member.on_survivors(survivors) for member in shell.play.members[: T + 1]][:T]:
            shell.keep(shell.run.on_vote(vote, shell.now))
        shell.settle()
        certificate = shell.run.quorum()
        assert certificate is not None
        answers = [member.on_quorum(certificate) for member in shell.play.members[: T + 1]]
        lie = type(answers[0])(0, answers[0].present, bytes(len(answers[0].shares)))
        for answer in [lie, *answers[1:T]]:
            shell.keep(shell.run.on_unmask(answer, shell.now))
        assert shell.run.phase is Phase.UNMASKING
        with pytest.raises(ProtocolError) as caught:
            shell.run.collector.finish(bytearray(shell.record.masked_sum or b""))
        assert caught.value.code is Code.BAD_SHARES
        assert shell.run.fail(caught.value, shell.now) == []
        assert shell.run.phase is Phase.UNMASK
        assert shell.run.deadline == shell.now + 35
        effects = shell.run.on_unmask(answers[T], shell.now)
        assert effects[1:] == [RunUnmasking()], "one more answer, one more try"

    def test_a_window_that_stays_undecodable_fails_and_says_so(self) -> None:
        shell = Shell().until(Phase.UNMASK)
        answers = shell.revealed()
        for answer in answers[:7]:  # more than floor((24 - 15) / 2)
            shell.keep(shell.run.on_unmask(type(answer)(answer.i, answer.present, bytes(len(answer.shares))), shell.now))
        for answer in answers[7:]:
            shell.keep(shell.run.on_unmask(answer, shell.now))
        with pytest.raises(ProtocolError) as caught:
            shell.run.collector.finish(bytearray(shell.record.masked_sum or b""))
        assert shell.run.fail(caught.value, shell.now) != [], "all answers are in: one more try"
        with pytest.raises(ProtocolError):
            shell.run.collector.finish(bytearray(shell.record.masked_sum or b""))
        shell.run.fail(caught.value, shell.now)
        effects = shell.wait(35)
        assert effects == [GiveUp("failed", Code.BAD_SHARES), Wake(), Closed("failed")], "no dealer is blamed for liars"
        with pytest.raises(ProtocolError) as caught:
            shell.run.done(0)
        assert caught.value.code is Code.BAD_SHARES

    def test_corrected_lies_are_blamed_beside_the_sum(self) -> None:
        shell = Shell().until(Phase.UNMASK)
        for answer in shell.revealed():
            lie = type(answer)(0, answer.present, bytes(len(answer.shares)))
            shell.keep(shell.run.on_unmask(lie if answer.i == 0 else answer, shell.now))
            if shell.asked and len(shell.run.collector.responses) < N:
                shell.asked = []
                shell.run.fail(RuleError(Code.BAD_SHARES), shell.now)
        shell.run.collector.finish(bytearray(shell.record.masked_sum or b""))
        blamed, wake, closed = shell.run.settle(shell.now)
        assert blamed == Blamed((Fault(FaultKind.SHARES, (0,), f"wrong shares of {N} dealers"),))
        assert (wake, closed) == (Wake(), Closed("done"))

    def spoiled(self) -> Shell:
        """A window in which member 3 sent garbage."""
        shell = Shell()
        shell.garbage = {3}
        shell.until(Phase.UNMASK)
        for answer in shell.revealed():
            shell.keep(shell.run.on_unmask(answer, shell.now))
        assert shell.run.phase is Phase.UNMASKING
        with pytest.raises(ProtocolError) as caught:
            shell.run.collector.finish(bytearray(shell.record.masked_sum or b""))
        assert caught.value.code is Code.SPOILED_SUM
        assert shell.keep(shell.run.fail(caught.value, shell.now)) == [Wake()]
        return shell

    def test_after_a_spoiled_sum_survivors_are_asked_once_and_then_it_ends(self) -> None:
        shell = self.spoiled()
        for i, member in enumerate(shell.play.members):
            asked = shell.run.done(i)
            assert isinstance(asked, Blame)
            effects = shell.keep(shell.run.on_canaries(member.on_blame(asked), shell.now))
            assert (effects == []) == (i < N - 1)
            if i < N - 1:
                assert shell.run.done(i) is None
        assert isinstance(effects[0], Blamed)
        assert [(fault.kind, fault.members) for fault in effects[0].faults] == [(FaultKind.VECTOR, (3,))]
        assert effects[1:] == [GiveUp("failed", Code.SPOILED_SUM), Wake(), Closed("failed")]
        with pytest.raises(ProtocolError) as caught:
            shell.run.done(3)
        assert caught.value.code is Code.SPOILED_SUM

    def test_who_does_not_answer_the_blame_is_waited_for_as_long_as_a_phase(self) -> None:
        shell = self.spoiled()
        asked = shell.run.done(0)
        assert isinstance(asked, Blame)
        told = [shell.play.members[i].on_blame(asked) for i in (0, 1)]
        shell.keep(shell.run.on_canaries(told[0], shell.now))
        assert shell.wait(4.9) == []
        effects = shell.wait(0.1)
        assert isinstance(effects[0], Blamed) and effects[0].faults[0].kind is FaultKind.SILENT
        assert effects[1:] == [GiveUp("failed", Code.SPOILED_SUM), Wake(), Closed("failed")]
        with pytest.raises(Discarded):
            shell.run.on_canaries(told[1], shell.now)
        assert shell.run.on_canaries(told[0], shell.now) == [], "a repeat is welcome"

    def test_a_restarted_server_asks_again(self) -> None:
        shell = self.spoiled()
        asked = shell.run.done(0)
        assert isinstance(asked, Blame)
        told = [member.on_blame(asked) for member in shell.play.members]
        run, effects = restore(shell.record, shell.events, shell.play.spec, LIMITS, shell.now)
        assert effects == [RunUnmasking()]
        with pytest.raises(ProtocolError) as caught:
            run.collector.finish(bytearray(shell.record.masked_sum or b""))
        run.fail(caught.value, shell.now)
        assert run.done(0) == asked
        last = [run.on_canaries(message, shell.now) for message in told][-1]
        assert isinstance(last[0], Blamed) and [fault.members for fault in last[0].faults] == [(3,)]

    def test_where_the_canaries_are_not_known_nobody_is_asked(self) -> None:
        shell = Shell().until(Phase.UNMASKING)
        shell.run.collector._arrived[3] = b""
        with pytest.raises(ProtocolError) as caught:
            shell.run.collector.finish(bytearray(len(shell.total)))
        assert caught.value.code is Code.SPOILED_SUM
        expected = [GiveUp("failed", Code.SPOILED_SUM), Wake(), Closed("failed")]
        assert shell.keep(shell.run.fail(caught.value, shell.now)) == expected


class TestRestart:
    @pytest.mark.parametrize("phase", [Phase.SHARE, Phase.FIX_U2, Phase.MASK, Phase.FIX_SURVIVORS])
    def test_before_the_survivors_are_fixed_the_updates_are_freed(self, phase: Phase) -> None:
        shell = Shell().until(phase)
        if phase is Phase.SHARE:
            shell.deal(range(10))
            for i in range(10, T):
                shell.play.members[i].on_open(shell.run.open(), NOW, shell.play.rules)
        effects = shell.restored()
        assert effects == [GiveUp("aborted"), Closed("aborted")]
        shell.vote(range(T))
        shell.settle()
        assert shell.run.phase is Phase.ABORTED

    @pytest.mark.parametrize("phase", [Phase.VOTE, Phase.FIX_QUORUM, Phase.UNMASK, Phase.UNMASKING])
    @pytest.mark.parametrize("answered", [0, 7])
    def test_afterwards_the_window_goes_on_and_sums_exactly(self, phase: Phase, answered: int) -> None:
        shell = Shell().until(phase)
        step = {Phase.VOTE: shell.vote, Phase.UNMASK: shell.reveal}.get(phase, lambda there: None)
        step(range(answered))
        first = shell.restored()
        expected: dict[Phase, list[type]] = {Phase.FIX_QUORUM: [FixQuorum], Phase.UNMASKING: [RunUnmasking]}
        assert [type(effect) for effect in first] == expected.get(phase, [])
        if phase is Phase.VOTE:
            shell.vote(range(answered, N))
        if phase in (Phase.VOTE, Phase.FIX_QUORUM):
            shell.settle()
        if phase is not Phase.UNMASKING:
            shell.reveal(range(answered if phase is Phase.UNMASK else 0, N))
        shell.settle()
        result = shell.run.collector.result
        assert shell.run.phase is Phase.DONE
        assert result is not None and result.values.tolist() == shell.plain()

    def test_an_abort_that_was_asked_for_after_the_survivors_goes_on(self) -> None:
        shell = Shell().until(Phase.VOTE)
        shell.wait(5)
        shell.vote(range(6))
        assert shell.restored() == []
        assert shell.run.phase is Phase.ABORT
        shell.vote(range(6, T))
        shell.settle()
        assert (shell.run.phase, shell.closed) == (Phase.ABORTED, ["aborted"])

    def test_a_window_that_was_given_up_still_collects_abort_votes_and_the_engine_hears_nothing(self) -> None:
        shell = Shell().until(Phase.MASK)
        shell.mask(range(S_MIN - 1))
        shell.wait(10)
        shell.vote(range(8))
        assert shell.restored() == []
        shell.vote(range(8, T))
        shell.settle()
        assert (shell.run.phase, shell.closed) == (Phase.ABORTED, [])

    def test_a_window_that_nobody_voted_in_asks_for_the_abort_again(self) -> None:
        shell = Shell().until(Phase.VOTE)
        shell.wait(5)
        shell.wait(30)
        assert shell.restored() == []
        assert shell.run.survivors() == Survivors(b"", b"", abort=True)
        shell.vote(range(T))
        shell.settle()
        assert (shell.run.phase, shell.closed) == (Phase.ABORTED, [])

    def test_an_abort_certificate_that_was_not_yet_durable_is_made_again(self) -> None:
        shell = Shell().until(Phase.MASK)
        shell.wait(10)
        shell.vote(range(T))
        assert isinstance(shell.asked[0], FixAbort)
        certificate = shell.asked[0]
        assert shell.restored() == [certificate]

    @pytest.mark.parametrize("change", ["u2", "u3", "tau0", "share"])
    def test_a_store_that_contradicts_itself_is_not_believed(self, change: str) -> None:
        shell = Shell().until(Phase.VOTE)
        if change == "share":
            shell.events = [event for event in shell.events if (event.kind, event.member) != ("shares", 3)]
        else:
            other = bytes(32) if change == "tau0" else bitmap(range(N - 1), N)
            shell.record = shell.changed(**{change: other})
        with pytest.raises(ProtocolError) as caught:
            shell.restored()
        assert caught.value.code in (Code.DATA_DAMAGED, Code.MASKED_MALFORMED, Code.NO_SUCH_MEMBER)

    def test_a_restored_collector_is_the_same_collector(self) -> None:
        shell = Shell().until(Phase.UNMASK)
        before: Collector = shell.run.collector
        shell.restored()
        after = shell.run.collector
        assert after is not before
        assert (after.u2, after.u3, after.quorum, after.tau1) == (before.u2, before.u3, before.quorum, before.tau1)
