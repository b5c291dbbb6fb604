"""All runs of a window, each once up to what makes no difference; the first that breaks an invariant, as a short trace.

Here belongs the search; the moves and invariants belong in `window_model.py`. `plain_worlds` walks through every order of
all moves and reduces nothing. `reduced_worlds` leaves out runs for four reasons, each of which keeps every violation:

1. Order (partial order). A move needs facts that others made (shares dealt, signatures, votes), and no fact is ever taken
   back, so no member's move disables another member's. What a phase needs, earlier phases made: U2 needs accepted OPENs,
   SURVIVORS signatures, a certificate votes. So the moves of any run, sorted by phase and then by member, are a run as well,
   and it ends in the same world. Only sorted runs are walked through.
2. Progress. A violation is a set of facts; further facts do not mend it. A move that only adds facts is therefore made at
   once: OPEN here or elsewhere, sending, revealing, freeing, casting a vote that may count, and an abort vote by a member
   that is never told a U2. Only masking can mend a violation, of I6, so there both are tried: each U2, and none at all.
   (In I6 a member masks when it derives its masks, so that sending adds facts only.)
3. Idle votes. A vote for a body that can gather no certificate in this run changes nothing, and leaves its voter a vote less:
   the run in which the member did not vote has the same facts. Whether a certificate can still come is asked of the rules
   themselves, with the votes of all who might still cast one.
4. Symmetry. No rule looks at which index a member has (votes are listed by ascending index, whatever the indices), so
   renaming honest members among each other, and corrupt ones, turns runs into runs and violations into violations. While a
   phase is half through, only members that had their turn are exchanged with each other, and likewise those that had not.
   Of worlds that differ by names only, one is followed.

A mutant may take moves in orders that this leaves out (it votes or masks again), so for mutants the reduced search may
miss a run, never invent one. The tests compare both searches where the plain one is feasible.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby, permutations, product
from typing import NamedTuple

from tests.model.window_model import Body, Member, Members, Move, Rules, Setting, Window, World, members, settings
from whimbrel_protocol.messages import VoteKind
from whimbrel_protocol.window import MemberEvent, MemberState

E = MemberEvent

# None is showing a certificate that frees. An early abort is one before U2.
PHASES: tuple[frozenset[MemberEvent | None], ...] = (
    frozenset({E.OPEN}),
    frozenset({E.ABORT}),
    frozenset({E.U2, E.HEAD}),
    frozenset({E.SURVIVORS, E.ABORT}),
    frozenset({E.QUORUM}),
    frozenset({None}),
)
EARLY_ABORT, VOTING = 1, 3

_STATES = {state: k for k, state in enumerate(MemberState)}

Trail = tuple["Trail", Move] | None


class Found(NamedTuple):
    """A run that breaks an invariant."""

    setting: Setting
    invariant: str
    moves: tuple[Move, ...]


class Report(NamedTuple):
    """What a search went through, and the first violation of each invariant."""

    settings: int
    worlds: int
    found: dict[str, Found]


def moves_of(trail: Trail) -> tuple[Move, ...]:
    """The moves that led to a world, in order."""
    moves: list[Move] = []
    while trail is not None:
        trail, move = trail
        moves.append(move)
    return tuple(reversed(moves))


def explore(n: int, corrupt: int, rules: Rules, *, plain: bool = False, until: Sequence[str] = ()) -> Report:
    """Search all windows of `n` members that an honest member enters; `until`: only until all of these are broken."""
    tried, worlds, found = 0, 0, dict[str, Found]()
    for setting in settings(n, corrupt, rules):
        window = Window(setting, rules)
        tried += 1
        for world, trail in (plain_worlds if plain else reduced_worlds)(window):
            worlds += 1
            for invariant in window.violations(world):
                if invariant not in found:
                    found[invariant] = Found(setting, invariant, moves_of(trail))
            if until and set(until) <= found.keys():
                return Report(tried, worlds, found)
    return Report(tried, worlds, found)


# --- the plain search -------------------------------------------------------------------------------------------------


def plain_worlds(window: Window) -> Iterator[tuple[World, Trail]]:
    """Every world that any order of moves leads to, with a run."""
    seen = {window.start}
    nodes: list[tuple[World, Trail]] = [(window.start, None)]
    while nodes:
        world, trail = nodes.pop()
        yield world, trail
        for i in range(len(world)):
            for move, member in window.moves(world, i):
                after = _with(world, i, member)
                if after not in seen:
                    seen.add(after)
                    nodes.append((after, (trail, move)))


def _with(world: World, i: int, member: Member) -> World:
    return (*world[:i], member, *world[i + 1 :])


# --- the reduced search -----------------------------------------------------------------------------------------------


def reduced_worlds(window: Window) -> Iterator[tuple[World, Trail]]:
    """Enough worlds for every violation to be among them, each with a run."""
    nodes: list[tuple[World, Trail]] = [(window.start, None)]
    yield from nodes
    for phase in range(len(PHASES)):
        for i in range(window.honest):
            reached: dict[object, tuple[World, Trail]] = {}
            for world, trail in nodes:
                for after, longer in _turns(window, world, trail, i, phase):
                    reached.setdefault(canonical(window, after, i + 1), (after, longer))
                    if after is not world:
                        yield after, longer
            nodes = list(reached.values())


def _turns(window: Window, world: World, trail: Trail, i: int, phase: int) -> Iterator[tuple[World, Trail]]:
    """The worlds after member i's turn in a phase."""
    offered = [
        (move, member)
        for move, member in window.moves(world, i)
        if move.event in PHASES[phase] and not (phase == VOTING and _idle(window, world, i, move.about))
    ]
    sending = [(move, member) for move, member in offered if move.event is E.HEAD]
    if not any(_forced(move, world[i], member, phase) for move, member in offered):
        yield world, trail
    for move, member in sending or offered:
        yield from _turns(window, _with(world, i, member), (trail, move), i, phase)


def _forced(move: Move, before: Member, after: Member, phase: int) -> bool:
    """Whether nothing is gained by not making this move: all but an early abort, and what only a mutant does again."""
    if move.event is E.U2:
        return before.state is MemberState.SHARED
    return phase != EARLY_ABORT and (before.state is not after.state or move.event in (E.HEAD, None))


def _idle(window: Window, world: World, i: int, body: Body) -> bool:
    """Whether no certificate can come of a body, even if all vote for it whose turn is still to come."""
    voters = window.voters(world, body)
    for j in range(i, window.honest):
        if world[j].here and (body.kind is VoteKind.ABORT or body.u2 in world[j].masked):
            voters |= 1 << j
    return not any(window.proven(checks, voters) for checks in (window.rules.release, window.rules.freeing))


# --- symmetry ---------------------------------------------------------------------------------------------------------


def canonical(window: Window, world: World, turns: int) -> object:
    """The same for worlds that differ by names only; members before `turns` keep among themselves, and so do the others."""
    shapes = [(i < turns, *_shape(member, i, window.corrupt)) for i, member in enumerate(world)]
    order = sorted(range(len(world)), key=shapes.__getitem__)
    alike = [tuple(group) for _, group in groupby(order, key=shapes.__getitem__)]
    return tuple(map(shapes.__getitem__, order)), min(
        tuple(_renamed(world[i], names) for i in names[: window.honest])
        for names in _namings(tuple(alike), members(window.corrupt))
    )


@cache
def _namings(alike: tuple[tuple[int, ...], ...], corrupt: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """All orders of the members that exchange only those who look alike, and the corrupt ones."""
    orders = product(*(permutations(group) for group in (*alike, corrupt)))
    return tuple(tuple(i for group in order for i in group) for order in orders)


@cache
def _shape(member: Member, i: int, corrupt: Members) -> tuple[object, ...]:
    """What of a member no renaming changes."""
    masked = tuple(_size(u2, i, corrupt) for u2 in member.masked)
    votes = tuple((body.kind, _size(body.u2, i, corrupt), _size(body.u3, i, corrupt)) for body in member.votes)
    counts = len(member.sent), len(member.released)
    return _STATES[member.state], member.here, member.elsewhere, member.freed, counts, masked, votes


def _size(group: Members, i: int, corrupt: Members) -> tuple[int, int, int]:
    return (group & ~corrupt).bit_count(), (group & corrupt).bit_count(), group >> i & 1


@cache
def _renamed(member: Member, names: tuple[int, ...]) -> tuple[object, ...]:
    """A member's past with the k-th of `names` called k, in a form that can be ordered."""

    def bodies(those: Iterable[Body]) -> tuple[tuple[int, ...], ...]:
        return tuple((b.kind, _moved(b.u2, names), _moved(b.u3, names)) for b in those)

    def groups(those: Iterable[Members]) -> tuple[int, ...]:
        return tuple(_moved(group, names) for group in those)

    flags = _STATES[member.state], member.here, member.elsewhere, member.freed
    return flags, groups(member.masked), groups(member.sent), bodies(member.votes), bodies(member.released)


@cache
def _moved(group: Members, names: tuple[int, ...]) -> Members:
    return sum(1 << k for k, i in enumerate(names) if group >> i & 1)


# --- traces -----------------------------------------------------------------------------------------------------------


def replay(window: Window, moves: Sequence[Move]) -> World | None:
    """The world after these moves, or None where one of them cannot be made."""
    world = window.start
    for move in moves:
        member = dict(window.moves(world, move.i)).get(move)
        if member is None:
            return None
        world = _with(world, move.i, member)
    return world


def shortened(found: Found, rules: Rules) -> Found:
    """The run without any move that its violation does not need; the last moves go first, because they rest on the others."""
    window, moves = Window(found.setting, rules), list(found.moves)
    needless = True
    while needless:
        needless = False
        for k in reversed(range(len(moves))):
            fewer = [*moves[:k], *moves[k + 1 :]]
            world = replay(window, fewer)
            if world is not None and found.invariant in window.violations(world):
                moves, needless = fewer, True
    return found._replace(moves=tuple(moves))
