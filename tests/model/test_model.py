"""Small windows, searched whole: the product's rules keep every invariant, and no rule that protects one can be left out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.model.mutants import FURTHER, NAMED, PRODUCT, Mutant
from tests.model.search import explore, plain_worlds, reduced_worlds, shortened
from tests.model.story import tell
from tests.model.window_model import ABORT, INVARIANTS, Move, Rules, Setting, Window, World, settings, steps_of
from whimbrel_protocol.window import MEMBER, MemberEvent, MemberState

# Worlds up to names, as they were counted when the model was written: a search that shrinks has lost its way.
SEARCHED = {(3, 0): 400, (3, 1): 20, (4, 0): 800, (4, 1): 400, (5, 0): 30_000, (5, 1): 800}
DEEPLY = {(6, 2): 500, (6, 1): 100_000}


def holds(n: int, corrupt: int, least_worlds: int) -> None:
    report = explore(n, corrupt, PRODUCT)
    print(f"\n{n} members, {corrupt} corrupt: {report.settings} settings, {report.worlds} worlds")
    assert not report.found, "\n".join(tell(shortened(found, PRODUCT), PRODUCT) for found in report.found.values())
    assert report.worlds >= least_worlds


@pytest.mark.rule("8 invariants: I1 to I6")
@pytest.mark.parametrize(("n", "corrupt"), SEARCHED)
def test_no_run_of_the_product_breaks_an_invariant(n: int, corrupt: int) -> None:
    holds(n, corrupt, SEARCHED[n, corrupt])


@pytest.mark.deep
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("n", "corrupt"), DEEPLY)
def test_no_run_of_six_members_breaks_an_invariant(n: int, corrupt: int) -> None:
    holds(n, corrupt, DEEPLY[n, corrupt])


@pytest.mark.rule("8 invariants: I1 to I6")
def test_nine_named_nine_caught() -> None:
    caught = [name for name, mutant in NAMED.items() if set(mutant.caught()) == set(mutant.breaks)]
    print(f"\n{len(NAMED)} named, {len(caught)} caught: {', '.join(caught)}")
    assert len(NAMED) == 9
    assert caught == list(NAMED)


@pytest.mark.rule("8 invariants: I1 to I6")
@pytest.mark.parametrize("mutant", FURTHER.values(), ids=FURTHER.keys())
def test_each_other_check_that_privacy_needs_is_missed(mutant: Mutant) -> None:
    assert set(mutant.caught()) == set(mutant.breaks)


def test_the_traces_can_be_read() -> None:
    mutant = NAMED["no msig check"]
    story = tell(mutant.caught()["alone"], mutant.rules)
    print(f"\n{story}")
    assert "member 2 accepts the other window's OPEN" in story
    assert story.endswith(f"alone is broken: {INVARIANTS['alone']}.")


# --- the model itself -------------------------------------------------------------------------------------------------


def test_the_model_is_not_stuck() -> None:
    """Honest runs get to the end: a sum is released, an abort and an exclusion set updates free."""
    assert {"all released", "freed by abort", "freed by exclusion"} <= {
        end for world, _ in reduced_worlds(Window(Setting(4, 1, 1, 3, 3), PRODUCT)) for end in outcomes(world)
    }


def outcomes(world: World) -> Iterator[str]:
    """What became of the updates in a world."""
    if all(member.released and not member.freed for member in world):
        yield "all released"
    if any(member.freed and member.sent and member.votes == (ABORT,) for member in world):
        yield "freed by abort"
    if any(member.freed and member.released for member in world):
        yield "freed by exclusion"


SECRETLESS = {MemberEvent.DONE, MemberEvent.END, MemberEvent.BLAME}
MODELLED = {*MemberEvent} - SECRETLESS


def test_each_event_of_the_members_table_is_in_the_model() -> None:
    """An event that is added to the product must be given a meaning here, and so must new places for those left out."""
    assert {move.event for move in moves_made()} == MODELLED | {None}
    after = {MemberState.RELEASED, MemberState.DONE}
    assert {at for at, event in MEMBER if event in (MemberEvent.DONE, MemberEvent.BLAME)} <= after
    assert steps_of(MEMBER) == dict(MEMBER)


def moves_made() -> Iterator[Move]:
    window = Window(Setting(3, 1, 1, 3, 3), PRODUCT)
    return (move for world, _ in plain_worlds(window) for i in range(window.honest) for move, _ in window.moves(world, i))


def test_only_the_policys_numbers_are_accepted() -> None:
    assert list(settings(4, 1, PRODUCT)) == [Setting(4, 1, 1, 3, 3), Setting(4, 1, 1, 3, 4), Setting(4, 1, 1, 4, 4)]


PLAINLY = {
    "the product": PRODUCT,
    "no quorum check": NAMED["no quorum check"].rules,
    "free on the server's word": NAMED["free on the server's word"].rules,
}


@pytest.mark.parametrize("rules", PLAINLY.values(), ids=PLAINLY.keys())
def test_reductions_lose_no_violation_among_three_honest_members(rules: Rules) -> None:
    same_violations(3, 0, rules)


@pytest.mark.parametrize("mutant", [*NAMED.values(), *FURTHER.values()], ids=[*NAMED, *FURTHER])
def test_reductions_lose_no_violation_beside_a_corrupt_member(mutant: Mutant) -> None:
    same_violations(3, 1, mutant.rules)


def test_reductions_lose_no_violation_of_four_members() -> None:
    same_violations(4, 1, PRODUCT)


@pytest.mark.deep
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mutant", NAMED.values(), ids=NAMED.keys())
def test_reductions_lose_no_violation_of_any_named_mutant(mutant: Mutant) -> None:
    same_violations(3, 0, mutant.rules)


def same_violations(n: int, corrupt: int, rules: Rules) -> None:
    reduced, plain = explore(n, corrupt, rules), explore(n, corrupt, rules, plain=True)
    assert reduced.found.keys() == plain.found.keys()
    assert reduced.worlds < plain.worlds
