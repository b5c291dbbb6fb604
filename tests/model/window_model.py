"""One masking window in which the server and `corrupt` of the members are one adversary: what it can do, what must never hold.

Here belong the members' moves and the invariants (masking protocol, sections 1.5 and 8). How all runs are searched belongs
in `search.py`, the rules that are left out on purpose in `mutants.py`.

The honest members are the product's. Their states move by `whimbrel_protocol.window.MEMBER` through its `Machine`, and each
acceptance is decided by the rows of `checks.py` and by `spent.verdict`, called on decoded values. The adversary is whatever it
likes: it opens windows to whom it likes, shows each member any U2 and any survivor set, asks for aborts, forwards or forges
votes and certificates, and knows all that corrupt members know.

What is left out, and why no attack is lost by it:

* Bytes. A hash is its argument, so tau1 is the U2 itself; a signature is a fact "member j signed s" that only j makes. This
  is the ideal cipher suite: collisions and forgeries are out of scope, as in the protocol's own argument.
* Numbers. A share is a fact "r revealed a share of j's self seed / mask key"; t of them, corrupt holders included, give the
  secret and fewer give nothing. The mask graph is complete: that a sparse one stays connected is a bound of `rules.py`.
* Messages that only do harm to the adversary: shares held back or garbled, certificates with fewer votes than it has. A member
  accepts the fullest message whenever it accepts a lesser one, and reveals at least as much afterwards.
* The receipt, and the blame after a spoiled sum: neither reveals a share, a key or a mask of the update's words.
* Leaving, crashing, restarting, repeats. A member that left is one that is not spoken to again. A restarted
  device has no keys and one vote at most, the one that its record still allows: a member whose quorum is not shown.
* The second window. A device whose entry the adversary also put into another roster accepts whichever OPEN comes first. In
  the other window everything is granted to the adversary: its mask key is revealed there (a "ghost" here), and every honest
  device, ghost or not, has signed a U2 there. So any number of other windows, with any behaviour, is covered; and their own
  safety is this same model with the roles exchanged.
* Freeing does not stop a member here, though an abort certificate stops it in the product: more behaviours, not fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from whimbrel_protocol.checks import (
    CERTIFICATE_CHECKS,
    PARAMS_CHECKS,
    SHARES_CHECKS,
    SURVIVORS_CHECKS,
    U2_CHECKS,
    Dealing,
    Opening,
    Proof,
    Survival,
    Terms,
)
from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.messages import VoteKind
from whimbrel_protocol.objects import Params, VectorSpec
from whimbrel_protocol.rules import COMPLETE, survivor_floor, threshold
from whimbrel_protocol.signed import Policy
from whimbrel_protocol.spent import Verdict, verdict
from whimbrel_protocol.window import MEMBER, Machine, MemberEvent, MemberState

# A set of members is an int whose bit j is member j. A U2 is such a set, and stands for its tau1 as well.
Members = int

# The tau1 of the other window: no U2 of this one.
OTHER_TAU1 = -1

# The policy's n_min is out of the way, so that floors from the threshold upwards are all tried.
N_MIN = 1

# How often a mutant may repeat what the product does once. It only ends the search; two are enough to catch it.
TWICE = 2

Checks = Sequence[tuple[Code, Callable[..., bool]]]
Steps = dict[tuple[MemberState, MemberEvent], MemberState]


class Body(NamedTuple):
    """What a vote is for."""

    kind: VoteKind
    u2: Members
    u3: Members


ABORT = Body(VoteKind.ABORT, 0, 0)
NOBODYS = Body(VoteKind.COMMIT, 0, 0)  # stands for every body that no honest member voted for


class Member(NamedTuple):
    """An honest member's past, as far as anybody learns of it; the tuples are in the order of events."""

    state: MemberState = MemberState.JOINED
    here: bool = False  # accepted this window's OPEN
    elsewhere: bool = False  # accepted the other window's
    masked: tuple[Members, ...] = ()  # each U2 that masks were derived for
    sent: tuple[Members, ...] = ()  # those whose masked vector and signature left
    votes: tuple[Body, ...] = ()
    released: tuple[Body, ...] = ()
    freed: bool = False


World = tuple[Member, ...]  # the honest members, 0 to h - 1; the corrupt ones follow and have no state


class Move(NamedTuple):
    """What the adversary makes one honest member do. `event` is None for showing it a certificate to free its update."""

    event: MemberEvent | None
    i: int
    about: Any = None


class Setting(NamedTuple):
    """The numbers of a window: how many members, how many of them corrupt, and what the server says in OPEN."""

    n: int
    corrupt: int
    c: int
    t: int
    s_min: int


@dataclass(frozen=True)
class Rules:
    """What an honest member goes by: by default the product's tables."""

    table: Any = field(default_factory=lambda: MEMBER)
    opening: type[Opening] = Opening
    params: Checks = PARAMS_CHECKS
    u2: Checks = U2_CHECKS
    shares: Checks = SHARES_CHECKS
    survivors: Checks = SURVIVORS_CHECKS
    release: Checks = CERTIFICATE_CHECKS
    freeing: Checks = CERTIFICATE_CHECKS
    own_body: bool = True  # a quorum must be for the body voted for
    verdict: Callable[[VoteKind, int, Any], Verdict] = verdict
    signs: Callable[[Members], int] = lambda tau1: tau1  # what the signature beside a masked vector says


def steps_of(table: Any) -> Steps:
    """Where each event leads from each state, asked of the product's machine."""
    steps: Steps = {}
    for state in MemberState:
        for event in MemberEvent:
            machine = Machine(table, state)
            try:
                machine.advance(event)
            except RuleError:
                continue
            steps[state, event] = machine.state
    return steps


def settings(n: int, corrupt: int, rules: Rules) -> Iterator[Setting]:
    """All numbers that the server may say in OPEN and an honest member accepts, where the policy expects `corrupt` of n."""
    gamma = -(-1000 * corrupt // n)
    policy = Policy(bytes(16), 1, 0, gamma, 1, N_MIN, n, 0, 0, (), ())
    terms, spec = Terms(bytes(16), bytes(32), policy, b"", 0), VectorSpec.make(16, n, 1, 1.0, 0)
    for c in range(n + 1):
        for t in range(1, n + 1):
            for s_min in range(1, n + 1):
                params = Params(bytes(16), bytes(32), n, t, s_min, c, COMPLETE, 0)
                opening = rules.opening(params, (), (b"",) * n, terms, spec, b"", policy.serial)
                if all(holds(opening, params, policy) for _, holds in rules.params):
                    yield Setting(n, corrupt, c, t, s_min)


@cache
def members(group: Members) -> tuple[int, ...]:
    """The members of a set, ascending."""
    return tuple(j for j in range(group.bit_length()) if group >> j & 1)


def group_of(indices: Iterator[int] | Sequence[int]) -> Members:
    """The set of these members."""
    return sum(1 << j for j in set(indices))


class Window:
    """All moves in a window with these numbers under these rules, and the invariants."""

    def __init__(self, setting: Setting, rules: Rules) -> None:
        self.setting = setting
        self.rules = rules
        self.steps = steps_of(rules.table)
        self.honest = setting.n - setting.corrupt
        self.corrupt: Members = group_of(range(self.honest, setting.n))
        self.everybody: Members = 2**setting.n - 1
        self.start: World = (Member(),) * self.honest
        # What the protocol promises, whatever numbers the server got accepted: m = s_min - c honest members.
        floor = survivor_floor(threshold(setting.n, setting.corrupt), N_MIN)
        self.least_honest = max(setting.s_min, floor) - setting.corrupt
        self._u2_holds = cache(self._u2_accepted)
        self._u3_holds = cache(self._u3_accepted)

    # --- the moves ----------------------------------------------------------------------------------------------------

    def moves(self, world: World, i: int) -> Iterator[tuple[Move, Member]]:
        """All that the adversary can make member i do now, each with what the member is afterwards."""
        member = world[i]
        acts: dict[MemberEvent, Callable[[World, int, Member], Iterator[tuple[Any, Member]]]] = {
            MemberEvent.OPEN: self._open,
            MemberEvent.U2: self._mask,
            MemberEvent.HEAD: self._send,
            MemberEvent.SURVIVORS: self._commit,
            MemberEvent.ABORT: self._abort,
            MemberEvent.QUORUM: self._release,
        }
        for event, act in acts.items():
            after = self.steps.get((member.state, event))
            if after is not None and (member.here or event is MemberEvent.OPEN):
                for about, changed in act(world, i, member):
                    yield Move(event, i, about), changed._replace(state=after)
        for about, changed in self._free(world, i, member):
            yield Move(None, i, about), changed

    def _open(self, world: World, i: int, member: Member) -> Iterator[tuple[str, Member]]:
        if not member.here:
            yield "here", member._replace(here=True)
        if not member.elsewhere:
            yield "elsewhere", member._replace(elsewhere=True)

    def _mask(self, world: World, i: int, member: Member) -> Iterator[tuple[Members, Member]]:
        live = self._live(world)
        for u2 in range(1, self.everybody + 1):
            if len(member.masked) < TWICE and u2 not in member.masked and self._u2_holds(i, u2, live):
                yield u2, member._replace(masked=(*member.masked, u2))

    def _u2_accepted(self, i: int, u2: Members, live: Members) -> bool:
        dealing = Dealing(i, self.setting.s_min, members(u2), members(u2 & live))
        return all(holds(dealing) for _, holds in (*self.rules.u2, *self.rules.shares))

    def _send(self, world: World, i: int, member: Member) -> Iterator[tuple[Members, Member]]:
        if member.masked and member.masked[-1] not in member.sent:
            yield member.masked[-1], member._replace(sent=(*member.sent, member.masked[-1]))

    def _commit(self, world: World, i: int, member: Member) -> Iterator[tuple[Body, Member]]:
        if not member.masked:
            return
        u2 = member.masked[-1]
        signers = self._signers(world, u2)
        for u3 in range(self.everybody + 1):
            body = Body(VoteKind.COMMIT, u2, u3)
            if self._may_cast(member, body) and self._u3_holds(u2, u3, signers):
                yield body, member._replace(votes=(*member.votes, body))

    def _u3_accepted(self, u2: Members, u3: Members, signers: Members) -> bool:
        survival = Survival(self.setting.s_min, members(u2), members(u3), lambda j: bool(signers >> j & 1))
        return all(holds(survival) for _, holds in self.rules.survivors)

    def _abort(self, world: World, i: int, member: Member) -> Iterator[tuple[Body, Member]]:
        """The vote for an abort, which by itself frees an update of which no byte was sent."""
        if self._may_cast(member, ABORT):
            yield ABORT, member._replace(votes=(*member.votes, ABORT), freed=member.freed or not member.sent)

    def _may_cast(self, member: Member, body: Body) -> bool:
        return len(member.votes) < TWICE and body not in member.votes

    def _release(self, world: World, i: int, member: Member) -> Iterator[tuple[Body, Member]]:
        """Reveal shares by the own vote, when a quorum is shown for it (or for any body, where that rule is left out)."""
        own = next(body for body in reversed(member.votes) if body.kind is VoteKind.COMMIT)
        bodies = {own} if self.rules.own_body else {own, *self._cast(world)} - {ABORT}
        if own not in member.released and any(self.proven(self.rules.release, self.voters(world, b)) for b in bodies):
            yield own, member._replace(released=(*member.released, own))

    def _free(self, world: World, i: int, member: Member) -> Iterator[tuple[Body, Member]]:
        """Show a certificate, in whatever state the member is: a restarted device judges it by its record alone."""
        if not member.masked or member.freed:
            return
        for body in sorted({ABORT, NOBODYS, *self._cast(world)}):
            frees = self.rules.verdict(body.kind, i, members(body.u3)) is Verdict.FREED
            if frees and self.proven(self.rules.freeing, self.voters(world, body)):
                yield body, member._replace(freed=True)

    # --- what the adversary has in hand -------------------------------------------------------------------------------

    def _live(self, world: World) -> Members:
        """Who deals readable shares in this window."""
        return self.corrupt | group_of([j for j, member in enumerate(world) if member.here])

    def _signers(self, world: World, u2: Members) -> Members:
        """Whose signature, wherever it was made, says what one over this U2 must say."""
        wanted = self.rules.signs(u2)
        if wanted == self.rules.signs(OTHER_TAU1):
            return self.everybody
        return self.corrupt | group_of([j for j, m in enumerate(world) if any(self.rules.signs(s) == wanted for s in m.sent)])

    def _cast(self, world: World) -> set[Body]:
        return {body for member in world for body in member.votes}

    def voters(self, world: World, body: Body) -> Members:
        """Whose vote for a body the adversary can show: the corrupt members vote for everything."""
        return self.corrupt | group_of([j for j, member in enumerate(world) if body in member.votes])

    def proven(self, checks: Checks, voters: Members) -> bool:
        """Whether some certificate is accepted: all the votes there are, one of them repeated, or forged ones of everybody."""
        first, n = members(voters)[:1], self.setting.n
        for shown in (members(voters), first * n, tuple(range(n))):
            proof = Proof(n, self.setting.t, shown, lambda j: bool(voters >> j & 1))
            if all(holds(proof) for _, holds in checks):
                return True
        return False

    # --- what must never hold -----------------------------------------------------------------------------------------

    def revealed(self, world: World) -> tuple[list[int], list[int]]:
        """For each honest member, how many shares of its self seed and of its mask key the adversary has."""
        seeds, keys = [0] * self.honest, [0] * self.honest
        live = self._live(world)
        for j in range(self.honest):
            if world[j].here:
                seeds[j] = keys[j] = self.setting.corrupt
        for member in world:
            held = live & group_of([j for u2 in member.masked for j in members(u2)])
            for j in members(held & ~self.corrupt):
                seeds[j] += any(body.u3 >> j & 1 for body in member.released)
                keys[j] += any(not body.u3 >> j & 1 for body in member.released)
        return seeds, keys

    def violations(self, world: World) -> Iterator[str]:
        """The invariants that do not hold in this world, by name (section 8)."""
        t, least = self.setting.t, self.least_honest
        seeds, keys = self.revealed(world)
        opened = {i for i in range(self.honest) if seeds[i] >= t}
        stripped = {i for i in range(self.honest) if keys[i] >= t}
        bodies = {body for member in world for body in member.released}
        if opened & stripped:
            yield "I1"
        if len(bodies) > 1:
            yield "I2"
        if any(world[i].freed and world[i].sent for i in opened):
            yield "I3"
        if bodies and self.voters(world, ABORT).bit_count() >= t:
            yield "I4"
        if any((body.u3 & ~self.corrupt).bit_count() < least for body in bodies):
            yield "I5"
        hidden = [member for j, member in enumerate(world) if j not in stripped and not member.elsewhere]
        if any(sum(u2 in m.masked for m in hidden) < least for i in opened for u2 in world[i].sent):
            yield "I6"
        known = self.corrupt | group_of([j for j, m in enumerate(world) if j in stripped or m.elsewhere])
        if any(not u2 & ~(1 << i) & ~known for i in opened for u2 in world[i].sent):
            yield "alone"


INVARIANTS = {
    "I1": "never t shares of both secrets of one honest member",
    "I2": "all honest members that reveal shares reveal them for one and the same (U2, U3)",
    "I3": "a freed update cannot be unmasked in this window",
    "I4": "where an abort certificate can be shown, nobody reveals shares",
    "I5": "at least s_min - c honest members are in any sum",
    "I6": "who is unmasked shares its masks with s_min - c honest members (itself included) whose mask keys stay secret",
    # Not in section 8, and weaker than I6: it tells the attacks that succeed from those that are merely possible.
    "alone": "nobody's masked update can be stripped of all its masks",
}
