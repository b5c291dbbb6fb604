"""The engine's rules, one at a time: whom it asks, whom it lets join, when a window opens, when a version appears."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec
import pytest

from tests.protocol.world import policy
from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.signed import Policy
from whimbrel_server.rounds import pace
from whimbrel_server.rounds.engine import Engine
from whimbrel_server.rounds.events import (
    Assign,
    Effect,
    Finish,
    Joining,
    Opened,
    OpenWindow,
    Publish,
    Retry,
    RunningWindow,
    TaskStart,
    Waiting,
)
from whimbrel_server.rounds.task_run import Assignment, ClosedWindow
from whimbrel_server.settings import TaskSettings, may_open, room

POLICY = policy(n_min=8)
SETTINGS = TaskSettings(contributions=32, contributions_min=20, window=16, round_deadline_s=100, assignment_deadline_s=80)


def device(number: int) -> bytes:
    return number.to_bytes(16, "big")


def entry(who: bytes, seq: int) -> bytes:
    return b"entry" + who + bytes([seq])


class Desk:
    """An engine with a clock, and devices that do as they are told."""

    def __init__(self, settings: TaskSettings = SETTINGS, rules: Policy = POLICY, **tasks: TaskSettings) -> None:
        self.now = 1000.0
        self.engine = Engine(random.Random(1))
        self.effects: list[Effect] = []
        self.tickets: dict[bytes, bytes] = {}
        for name, each in (tasks or {"digits": settings}).items():
            self.effects += self.engine.add_task(TaskStart(name, each, rules), self.now)

    def take(self, kind: type) -> list:
        """The effects of one kind since the last call, removed."""
        found = [effect for effect in self.effects if isinstance(effect, kind)]
        self.effects = [effect for effect in self.effects if not isinstance(effect, kind)]
        return found

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.effects += self.engine.tick(self.now)

    def check_in(self, who: bytes) -> Assignment | None:
        answer, effects = self.engine.check_in(who, self.now)
        self.effects += effects
        return answer.assignment

    def assign(self, numbers: Sequence[int]) -> list[Assignment]:
        """Assignments for those of these devices that get one."""
        found = [self.check_in(device(number)) for number in numbers]
        return [assignment for assignment in found if assignment is not None]

    def join(self, assignment: Assignment, seq: int = 1, lasts: float = 600.0) -> bytes:
        who = assignment.device
        joining = Joining(who, seq, self.now + lasts, entry(who, seq))
        answer, effects = self.engine.join(assignment.id, joining, self.now)
        self.effects += effects
        self.tickets[who] = answer.ticket
        return answer.ticket

    def windows(self, numbers: Sequence[int]) -> list[OpenWindow]:
        """Let these devices check in and join; the windows that opened."""
        for assignment in self.assign(numbers):
            self.join(assignment)
        return self.take(OpenWindow)

    def done(self, window: OpenWindow, lost: int = 0) -> None:
        members = [text[5:21] for text in window.entries]
        self.effects += self.engine.window_done(window.window_id, members[lost:], self.now)

    def publish(self, task: str = "digits") -> None:
        self.effects += self.engine.published(task, self.engine.task(task).version + 1, self.now)


def refused(code: Code, call, *arguments) -> None:
    with pytest.raises(ProtocolError) as caught:
        call(*arguments)
    assert caught.value.code is code


class TestAssignments:
    def test_a_cohort_is_over_selected_by_the_expected_drop_out(self) -> None:
        desk = Desk(msgspec.structs.replace(SETTINGS, expected_dropout=0.2))
        assert len(desk.assign(range(200))) == 43  # 32 / 0.8, and a standard deviation of the losses
        assert len(desk.take(Assign)) == 43

    def test_a_device_that_asks_again_gets_its_assignment_again_until_it_expires(self) -> None:
        desk = Desk()
        first = desk.check_in(device(1))
        desk.wait(79)
        assert desk.check_in(device(1)) == first
        desk.wait(2)
        second = desk.check_in(device(1))
        assert second is not None and first is not None and second.id != first.id
        refused(Code.STALE_VERSION, desk.engine.assignment, first.id, device(1))

    def test_an_assignment_is_its_devices_own(self) -> None:
        desk = Desk()
        [mine] = desk.assign([1])
        refused(Code.NOT_YOURS, desk.engine.assignment, mine.id, device(2))
        refused(Code.STALE_VERSION, desk.engine.assignment, bytes(16), device(1))

    def test_an_expired_assignment_makes_room_for_another_device(self) -> None:
        desk = Desk()
        count = len(desk.assign(range(200)))
        assert desk.check_in(device(500)) is None
        desk.wait(81)
        assert desk.check_in(device(500)) is not None
        assert desk.engine.task("digits").active == 1
        assert count > 32

    def test_a_device_that_gives_up_is_not_asked_again_for_this_version(self) -> None:
        desk = Desk()
        desk.assign([1])
        desk.effects += desk.engine.give_up(device(1), "digits", 1, desk.now)
        assert desk.check_in(device(1)) is None
        assert desk.engine.give_up(device(7), "digits", 1, desk.now) == []

    def test_the_task_that_lacks_most_is_served_first_and_one_at_a_time(self) -> None:
        desk = Desk(large=SETTINGS, small=msgspec.structs.replace(SETTINGS, contributions=16, contributions_min=10))
        names = [assignment.task for assignment in desk.assign(range(30))]
        assert 17 <= names.count("large") <= 21
        assert desk.check_in(device(0)) == desk.check_in(device(0))


class TestEntries:
    def test_only_the_entry_with_the_highest_counter_counts(self) -> None:
        desk = Desk()
        [mine] = desk.assign([1])
        old = desk.join(mine, seq=5)
        assert desk.join(mine, seq=5) == old
        new = desk.join(mine, seq=6)
        refused(Code.UNKNOWN_TICKET, desk.engine.ticket, old, device(1), desk.now)
        assert isinstance(desk.engine.ticket(new, device(1), desk.now), Waiting)
        refused(Code.NOT_YOURS, desk.engine.ticket, new, device(2), desk.now)
        lower = Joining(device(1), 4, desk.now + 600, entry(device(1), 4))
        refused(Code.OUT_OF_TURN, desk.engine.join, mine.id, lower, desk.now)
        other = Joining(device(1), 6, desk.now + 600, b"another body")
        refused(Code.SECOND_BODY, desk.engine.join, mine.id, other, desk.now)
        assert desk.engine.task("digits").ready == 1

    @pytest.mark.rule("1.5 repeats: no entry twice")
    def test_an_entry_that_stood_in_an_open_never_stands_in_another(self) -> None:
        desk = Desk()
        [window, *_] = desk.windows(range(20))
        desk.effects += desk.engine.window_aborted(window.window_id, desk.now)
        mine = desk.check_in(device(0))
        assert mine is not None
        assert desk.join(mine, seq=1) == desk.tickets[device(0)]  # the old ticket, which leads to the old window
        assert desk.engine.ticket(desk.tickets[device(0)], device(0), desk.now) == Opened(window.window_id)
        refused(Code.SECOND_BODY, desk.engine.join, mine.id, Joining(device(0), 1, desk.now + 600, b"x"), desk.now)
        desk.join(mine, seq=2)
        assert isinstance(desk.engine.ticket(desk.tickets[device(0)], device(0), desk.now), Waiting)

    def test_after_a_restart_used_entries_are_still_used(self) -> None:
        desk = Desk()
        desk.engine.entry_used(device(1), 9, desk.now + 600, entry(device(1), 9))
        [mine] = desk.assign([1])
        for seq in (8, 9):
            joining = Joining(device(1), seq, desk.now + 600, entry(device(1), seq))
            refused(Code.OUT_OF_TURN, desk.engine.join, mine.id, joining, desk.now)
        desk.join(mine, seq=10)

    def test_an_entry_that_would_expire_in_its_window_is_left_out(self) -> None:
        desk = Desk()
        short, *others = desk.assign(range(18))
        ticket = desk.join(short, lasts=70)
        desk.wait(11)
        for assignment in others:
            desk.join(assignment)
        assert [window.entries for window in desk.take(OpenWindow)] == []
        refused(Code.UNKNOWN_TICKET, desk.engine.ticket, ticket, short.device, desk.now)
        assert desk.engine.task("digits").ready == 17


class TestWindows:
    def test_a_window_opens_when_enough_are_ready_with_devices_ascending(self) -> None:
        desk = Desk()
        order = list(range(40))
        random.Random(2).shuffle(order)
        windows = desk.windows(order)
        assert [len(window.entries) for window in windows] == [18, 17]  # half of N each, and what may drop out
        assert all(list(window.entries) == sorted(window.entries) for window in windows)
        assert desk.engine.task("digits").open_windows == 2

    def test_a_ticket_leads_to_its_window(self) -> None:
        desk = Desk()
        assignments = desk.assign(range(18))
        tickets = [desk.join(assignment) for assignment in assignments]
        [window] = desk.take(OpenWindow)
        assert desk.engine.ticket(tickets[3], assignments[3].device, desk.now) == Opened(window.window_id)

    def test_at_the_deadline_a_window_opens_with_what_there_is_if_it_has_room(self) -> None:
        desk = Desk()
        for assignment in desk.assign(range(40))[:12]:
            desk.join(assignment)
        desk.wait(99)
        assert desk.take(OpenWindow) == []
        desk.wait(2)
        assert [len(window.entries) for window in desk.take(OpenWindow)] == [12]

    @pytest.mark.parametrize("ready", [7, 8, 10])
    def test_a_window_without_room_for_drop_outs_does_not_open(self, ready: int) -> None:
        """With n_min 8 and gamma 0.2, 10 members may lose two, and half a one is expected to drop out."""
        desk = Desk()
        for assignment in desk.assign(range(40))[:ready]:
            desk.join(assignment)
        desk.wait(101)
        assert desk.take(OpenWindow) == []
        assert desk.take(Retry) == [Retry("digits", 1, 0)]

    @pytest.mark.parametrize("everybody", [True, False])
    def test_the_last_window_waits_for_the_deadline_unless_nobody_else_can_come(self, everybody: bool) -> None:
        """A fleet of 14 cannot fill a window of 16; in its second round the engine knows that it is all there."""
        desk = Desk(msgspec.structs.replace(SETTINGS, contributions=16, contributions_min=10))
        assert desk.windows(range(14)) == []
        desk.wait(101)
        [first] = desk.take(OpenWindow)
        desk.done(first)
        assert len(desk.take(Publish)) == 1
        desk.publish()
        assignments = desk.assign(range(14 if everybody else 13))
        for assignment in assignments[:12]:
            desk.join(assignment, seq=2)
        assert desk.take(OpenWindow) == []
        for assignment in assignments[12:]:
            desk.effects += desk.engine.give_up(assignment.device, "digits", 2, desk.now)
        windows = desk.take(OpenWindow)
        assert [len(window.entries) for window in windows] == ([12] if everybody else [])
        if everybody:
            desk.done(windows[0])
            assert desk.take(Publish) == [Publish("digits", 2, (windows[0].window_id,))]

    def test_windows_of_one_lane_run_side_by_side_and_end_in_any_order(self) -> None:
        desk = Desk()
        first, second = desk.windows(range(40))
        assert first.version == second.version and not set(first.entries) & set(second.entries)
        assert desk.engine.task("digits").open_windows == 2
        desk.done(second)
        assert not desk.take(Publish)
        desk.done(first)
        assert [each.windows for each in desk.take(Publish)] == [(second.window_id, first.window_id)]

    def test_members_of_an_aborted_window_join_again_and_the_lost_are_replaced(self) -> None:
        desk = Desk()
        assignments = desk.assign(range(60))
        for assignment in assignments[:18]:
            desk.join(assignment)
        [window] = desk.take(OpenWindow)
        active = desk.engine.task("digits").active
        lost = [assignments[0].device, assignments[1].device]
        desk.effects += desk.engine.window_aborted(window.window_id, desk.now, lost)
        assert desk.engine.task("digits").active == active - 2
        assert desk.check_in(device(800)) is not None
        desk.join(assignments[5], seq=2)
        desk.join(assignments[0], seq=2)
        assert desk.engine.task("digits").ready == 2

    def test_a_member_that_was_lost_may_come_back_in_the_same_round(self) -> None:
        desk = Desk()
        [window] = desk.windows(range(18))
        desk.done(window, lost=2)
        assert desk.engine.task("digits").contributions == 16
        again = desk.check_in(device(0))
        assert again is not None
        desk.join(again, seq=2)
        assert desk.check_in(device(5)) is None

    def test_a_sum_that_comes_after_its_window_was_given_up_counts_in_the_round_of_its_version_alone(self) -> None:
        desk = Desk()
        window, other = desk.windows(range(36))
        members = tuple(text[5:21] for text in window.entries)
        desk.effects += desk.engine.window_aborted(window.window_id, desk.now, members)
        late = ClosedWindow(window.window_id, members)
        assert desk.engine.window_late("digits", 2, late, desk.now) == (False, [])
        counts, _ = desk.engine.window_late("digits", 1, late, desk.now)
        assert counts and desk.engine.task("digits").contributions == len(members)
        assert desk.check_in(members[0]) is None, "its update is counted"
        desk.done(other)
        assert [effect.windows for effect in desk.take(Publish)] == [(window.window_id, other.window_id)]
        assert desk.engine.window_late("digits", 1, late, desk.now) == (False, []), "the version is being made"

    def test_survivors_of_a_failed_window_are_spent_and_the_others_are_free(self) -> None:
        desk = Desk()
        [window] = desk.windows(range(18))
        survivors = [device(number) for number in range(2, 18)]
        desk.effects += desk.engine.window_failed(window.window_id, desk.now, survivors)
        assert desk.check_in(device(5)) is None
        again = desk.check_in(device(0))
        assert again is not None
        desk.join(again, seq=2)
        assert (desk.engine.task("digits").contributions, desk.engine.task("digits").ready) == (0, 1)
        refused(Code.UNKNOWN_WINDOW, desk.engine.window_failed, window.window_id, desk.now)

    @pytest.mark.parametrize(("fleet", "verdict"), [(30, Publish("digits", 1, ())), (60, Retry("digits", 1, 0))])
    def test_a_base_that_the_fleet_has_used_up_is_renewed(self, fleet: int, verdict: Effect) -> None:
        """A device trains a version once: where a failed window took most of a small fleet, only a new version helps."""
        desk = Desk()
        assignments = desk.assign(range(fleet))
        for assignment in assignments[:18]:
            desk.join(assignment)
        [window] = desk.take(OpenWindow)
        desk.effects += desk.engine.window_failed(window.window_id, desk.now)
        desk.assign(range(fleet))
        desk.wait(101)
        desk.assign(range(fleet))
        assert [effect for effect in desk.effects if isinstance(effect, Publish | Retry)] == [verdict]

    def test_a_device_that_joins_anew_while_its_window_runs_is_not_in_two(self) -> None:
        desk = Desk()
        assignments = desk.assign(range(60))
        for assignment in assignments[:18]:
            desk.join(assignment)
        [first] = desk.take(OpenWindow)
        desk.join(assignments[0], seq=2)
        for assignment in assignments[18:34]:
            desk.join(assignment)
        assert desk.take(OpenWindow) == []
        desk.join(assignments[34])
        [second] = desk.take(OpenWindow)
        assert not {text[:21] for text in first.entries} & {text[:21] for text in second.entries}
        desk.done(first)
        refused(Code.STALE_VERSION, desk.engine.ticket, desk.tickets[device(0)], device(0), desk.now)

    def test_a_newer_policy_sends_those_who_wait_to_join_its_lane(self) -> None:
        desk = Desk()
        assignments = desk.assign(range(30))
        for assignment in assignments[:15]:
            desk.join(assignment)
        desk.effects += desk.engine.set_policy(policy(n_min=8, serial=2), desk.now)
        refused(Code.UNKNOWN_TICKET, desk.engine.ticket, desk.tickets[device(0)], device(0), desk.now)
        assert desk.check_in(device(0)) == assignments[0], "its work is not lost"
        for assignment in assignments[15:]:
            desk.join(assignment)
        assert desk.take(OpenWindow) == [], "fifteen of the new lane, none of the old"
        for assignment in assignments[:3]:
            desk.join(assignment, seq=2)
        [window] = desk.take(OpenWindow)
        old = {entry(assignment.device, 1) for assignment in assignments[:15]}
        assert entry(device(0), 2) in window.entries and not old & set(window.entries)


class TestVersions:
    def test_a_version_appears_when_enough_are_in_and_no_window_is_open(self) -> None:
        desk = Desk()
        one, two = desk.windows(range(40))
        desk.done(one)
        assert desk.take(Publish) == []
        desk.done(two)
        assert desk.take(Publish) == [Publish("digits", 1, (one.window_id, two.window_id))]

    def test_who_waits_when_the_lane_closes_is_told_so(self) -> None:
        desk = Desk(msgspec.structs.replace(SETTINGS, expected_dropout=0.3))
        one, two = desk.windows(range(40))
        waiting = [desk.tickets[device(number)] for number in range(36, 40)]
        assert isinstance(desk.engine.ticket(waiting[0], device(36), desk.now), Waiting)
        late = desk.check_in(device(50))
        assert late is not None
        desk.done(one)
        desk.done(two)
        for moment in (lambda: None, desk.publish):
            moment()
            refused(Code.STALE_VERSION, desk.engine.ticket, waiting[0], device(36), desk.now)
            refused(Code.STALE_VERSION, desk.engine.assignment, late.id, device(50))
            refused(Code.STALE_VERSION, desk.engine.join, late.id, Joining(device(50), 1, desk.now + 600, b""), desk.now)

    def test_while_a_version_is_made_nothing_is_assigned(self) -> None:
        desk = Desk()
        for window in desk.windows(range(40)):
            desk.done(window)
        assert desk.check_in(device(99)) is None
        desk.publish()
        fresh = desk.check_in(device(99))
        assert fresh is not None and fresh.version == 2
        assert desk.check_in(device(0)) is not None  # a new version, a new chance for everybody

    def test_at_the_deadline_enough_is_enough(self) -> None:
        desk = Desk()
        assignments = desk.assign(range(40))
        for assignment in assignments[:30]:
            desk.join(assignment)
        [one] = desk.take(OpenWindow)
        desk.done(one)
        desk.wait(101)
        [two] = desk.take(OpenWindow)
        assert len(two.entries) == 12
        desk.done(two, lost=1)
        assert desk.take(Publish) == [Publish("digits", 1, (one.window_id, two.window_id))]

    def test_too_little_is_tried_again_from_the_same_base_and_keeps_its_windows(self) -> None:
        desk = Desk()
        [one] = desk.windows(range(18))
        desk.done(one, lost=1)
        desk.wait(101)
        assert desk.take(Retry) == [Retry("digits", 1, 17)]
        assert desk.check_in(device(3)) is None
        [two] = desk.windows(range(100, 117))
        desk.done(two)
        assert desk.take(Publish) == [Publish("digits", 1, (one.window_id, two.window_id))]

    def test_a_task_ends_after_its_rounds(self) -> None:
        desk = Desk(msgspec.structs.replace(SETTINGS, rounds=1))
        for window in desk.windows(range(40)):
            desk.done(window)
        desk.publish()
        assert desk.take(Finish) == [Finish("digits")]
        assert desk.engine.task("digits").state == "finished"
        assert desk.check_in(device(77)) is None

    def test_a_restarted_round_counts_what_was_done_and_waits_for_what_is_open(self) -> None:
        desk = Desk()
        done, running = tuple(device(n) for n in range(16)), tuple(device(n) for n in range(16, 32))
        kept = Assignment(b"k" * 16, device(40), "digits", 1, desk.now + 50)
        engine = Engine(random.Random(3))
        start = TaskStart(
            "digits",
            SETTINGS,
            POLICY,
            windows=(ClosedWindow(7, done),),
            open_windows=(RunningWindow(8, running),),
            assignments=(kept,),
        )
        assert engine.add_task(start, desk.now) == []
        answer, _ = engine.check_in(device(40), desk.now)
        assert answer.assignment == kept
        assert engine.check_in(device(3), desk.now)[0].assignment is None
        assert engine.window_done(8, running, desk.now) == [Publish("digits", 1, (7, 8))]

    def test_after_a_restart_devices_that_did_their_part_or_are_sent_away_hold_no_seat(self) -> None:
        desk, engine = Desk(), Engine(random.Random(3))
        seats = [Assignment(bytes([n]) * 16, device(n), "digits", 1, desk.now + 80) for n in range(20)]
        done = ClosedWindow(7, tuple(device(n) for n in range(16)))
        engine.quarantine(device(16), desk.now + 1e6, desk.now)
        engine.add_task(TaskStart("digits", SETTINGS, POLICY, windows=(done,), assignments=tuple(seats)), desk.now)
        assert engine.task("digits").active == 20 - 17
        answer, _ = engine.check_in(device(40), desk.now)
        assert answer.assignment is not None, "there is work for somebody new"

    def test_a_round_that_was_complete_when_the_server_stopped_is_published_at_once(self) -> None:
        closed = (ClosedWindow(1, tuple(map(device, range(16)))), ClosedWindow(2, tuple(map(device, range(16, 33)))))
        effects = Engine(random.Random(3)).add_task(TaskStart("digits", SETTINGS, POLICY, windows=closed), 0.0)
        assert effects == [Publish("digits", 1, (1, 2))]


class TestPace:
    def test_a_small_fleet_comes_back_when_the_next_round_begins(self) -> None:
        desk = Desk()
        desk.assign(range(45))
        delays = [desk.engine.check_in(device(100 + n), desk.now)[0].come_back_s for n in range(20)]
        assert all(100 <= delay <= 102 for delay in delays)

    def test_a_large_fleet_is_spread_at_the_rate_that_the_work_needs(self) -> None:
        settings = msgspec.structs.replace(SETTINGS, come_back_max_s=86_400)
        desk = Desk(settings)
        answers = [desk.engine.check_in(device(n), desk.now)[0] for n in range(20_000)]
        delays = [answer.come_back_s for answer in answers if answer.assignment is None]
        # 20,000 devices, 32 wanted in 100 s: each is needed every 62,500 s. The first ones to come could not know.
        late = delays[15_000:]
        assert max(delays) <= 86_400
        assert 20_000 < sum(late) / len(late) < 40_000
        assert min(late) < 1000 and max(late) > 50_000

    def test_the_estimate_follows_what_is_seen_and_keeps_within_reason(self) -> None:
        estimate = pace.DropOut(0.1)
        assert estimate.rate == pytest.approx(0.1)
        for _ in range(30):
            estimate.note(lost=40, kept=60)
            estimate.fade()
        assert estimate.rate == pytest.approx(0.4, abs=0.03)
        for _ in range(30):
            estimate.note(lost=100)
            estimate.fade()
        assert estimate.rate == 0.75
        assert [pace.over_select(32, rate) for rate in (0.0, 0.2, 0.5)] == [32, 43, 70]

    def test_slow_devices_are_not_taken_for_lost_ones(self) -> None:
        """Whoever joins late was slow; whoever asks for new work, or never comes, lost what it had."""
        rates = {}
        for what in ("joins late", "asks for work", "never comes"):
            desk = Desk(msgspec.structs.replace(SETTINGS, expected_dropout=0.3))
            assignments = desk.assign(range(46))
            for assignment in assignments[:36]:
                desk.join(assignment)
            for window in desk.take(OpenWindow):
                desk.done(window)
            desk.publish()
            for assignment in assignments[36:]:
                if what == "joins late":
                    refused(Code.STALE_VERSION, desk.engine.assignment, assignment.id, assignment.device)
                if what == "asks for work":
                    desk.check_in(assignment.device)
            desk.wait(1000)
            rates[what] = desk.engine.task("digits").dropout
        assert rates["joins late"] < rates["asks for work"]
        assert rates["joins late"] < rates["never comes"]


class TestSettings:
    @pytest.mark.parametrize(
        ("n", "n_min", "lose"), [(8, 4, 3), (16, 8, 6), (32, 8, 12), (64, 8, 25), (8, 8, 0), (10, 8, 2), (32, 32, 0)]
    )
    def test_how_many_a_window_may_lose(self, n: int, n_min: int, lose: int) -> None:
        assert room(n, policy(n_min=n_min)) == lose

    def test_a_window_that_the_policy_never_lets_open_is_refused_with_one_that_would_do(self) -> None:
        settings = TaskSettings(contributions=32, window=32, expected_window_dropout=0.05)
        with pytest.raises(ProtocolError, match="a window of 36 to 64 would do") as caught:
            settings.validate(policy(n_min=32))
        assert caught.value.code is Code.POLICY_UNSATISFIABLE
        assert may_open(36, policy(n_min=32), 0.05)
        assert not may_open(35, policy(n_min=32), 0.05)
        msgspec.structs.replace(settings, window=36, contributions=36).validate(policy(n_min=32))

    @pytest.mark.parametrize(
        ("wrong", "code"),
        [
            ({"contributions": 10, "window": 16}, Code.CONFIGURATION),
            ({"contributions_min": 40}, Code.CONFIGURATION),
            ({"scale": 3000.0}, Code.CONFIGURATION),
            ({"bits": 8, "n_max": 1024}, Code.CONFIGURATION),
            ({"masked": False}, Code.CONFIGURATION),
            ({"rendezvous_s": 30.0}, Code.CONFIGURATION),
            ({"rendezvous_s": 700.0}, Code.CONFIGURATION),  # rounds last 600 s
            ({"window": 32, "n_max": 20}, Code.POLICY_UNSATISFIABLE),
            ({"window": 16, "expected_window_dropout": 0.9}, Code.POLICY_UNSATISFIABLE),
        ],
    )
    def test_numbers_that_make_no_sense_are_refused(self, wrong: dict, code: Code) -> None:
        with pytest.raises(ProtocolError) as caught:
            TaskSettings(**wrong).validate(POLICY)
        assert caught.value.code is code

    @pytest.mark.parametrize(
        "wrong", [{"lrr": 0.1}, {"lr": "fast"}, {"lr": 0}, {"contributions": 0}, {"bits": 7}, {"epochs": 1.5}]
    )
    def test_a_typing_error_is_no_setting(self, wrong: dict) -> None:
        with pytest.raises(ProtocolError) as caught:
            TaskSettings.from_json(wrong)
        assert caught.value.code is Code.CONFIGURATION

    def test_settings_go_to_json_and_back(self) -> None:
        settings = TaskSettings(lr=0.05, train=("conv*", "head.weight"), rounds=20)
        assert TaskSettings.from_json(settings.to_json()) == settings

    def test_the_header_holds_what_devices_train_with(self) -> None:
        settings = TaskSettings(lr=0.5, lr_decay=0.5, decay_after=3, epochs=4, mu=0.25, seed=9)
        assert [settings.header(version).lr for version in (1, 3, 4, 6)] == [0.5, 0.5, 0.25, 0.0625]
        header = settings.header(4)
        assert (header.version, header.epochs, header.mu, header.seed, header.scale) == (4, 4, 0.25, 9, 1024.0)
