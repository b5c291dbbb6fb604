"""A run of the model as a story that a reader can follow, one line a move."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from tests.model.search import Found, replay
from tests.model.window_model import INVARIANTS, NOBODYS, Body, Members, Move, Rules, Window, World, members
from whimbrel_protocol.messages import VoteKind
from whimbrel_protocol.window import MemberEvent

E = MemberEvent

Line = Callable[[Any], str]

OPENED = {
    "here": "accepts OPEN and deals shares",
    "elsewhere": "accepts the other window's OPEN for the same entry; its mask key is revealed there (a ghost)",
}

LINES: dict[MemberEvent | None, Line] = {
    E.OPEN: lambda window: OPENED[window],
    E.U2: lambda u2: f"is told U2 {named(u2)} and masks its update with it",
    E.HEAD: lambda u2: f"sends its masked update, and its signature over U2 {named(u2)}",
    E.SURVIVORS: lambda body: f"is shown survivors {named(body.u3)} and votes for {told(body)}",
    E.ABORT: lambda body: "is asked for an abort and votes for it",
    E.QUORUM: lambda body: f"is shown a quorum and reveals {revealed(body)}",
    None: lambda body: f"is shown a certificate for {told(body)} and sets its update free",
}


def named(group: Members) -> str:
    """A set of members as people write it."""
    return "{" + ", ".join(map(str, members(group))) + "}"


def told(body: Body) -> str:
    """What a vote is for."""
    if body == NOBODYS:
        return "survivors without it, with no honest vote"
    return "the abort" if body.kind is VoteKind.ABORT else f"(U2 {named(body.u2)}, U3 {named(body.u3)})"


def revealed(body: Body) -> str:
    """Which shares a member reveals for a body."""
    dropped = body.u2 & ~body.u3
    keys = f", of the mask keys of {named(dropped)}" if dropped else ""
    return f"its shares of the self seeds of {named(body.u3)}{keys}"


def tell(found: Found, rules: Rules) -> str:
    """The setting, the moves and what they break."""
    n, corrupt, c, t, s_min = found.setting
    window = Window(found.setting, rules)
    villains = f"{named(window.corrupt)} with the server" if corrupt else "the server alone"
    head = f"{n} members, corrupt: {villains}. OPEN says c = {c}, t = {t}, s_min = {s_min}."
    alike = [list(moves) for _, moves in groupby(found.moves, key=lambda move: (move.event, move.about))]
    lines = [f"{k:3}. {_actors(moves)} {LINES[moves[0].event](moves[0].about)}" for k, moves in enumerate(alike, 1)]
    world = replay(window, found.moves)
    assert world is not None
    return "\n".join([head, *lines, _end(window, world), f"{found.invariant} is broken: {INVARIANTS[found.invariant]}."])


def _actors(moves: Sequence[Move]) -> str:
    names = ", ".join(str(move.i) for move in moves)
    return f"members {names}: each" if len(moves) > 1 else f"member {names}"


def _end(window: Window, world: World) -> str:
    seeds, keys = window.revealed(world)
    t = window.setting.t
    known = [f"the self seed of {i}" for i, count in enumerate(seeds) if count >= t]
    known += [f"the mask key of {i}" for i, count in enumerate(keys) if count >= t or world[i].elsewhere]
    return f"     The adversary has {', '.join(known) or 'no secret of an honest member'}."
