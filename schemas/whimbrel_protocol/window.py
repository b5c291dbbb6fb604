"""The two state tables of a masking window, a member's and the server's, and what drives them.

All that affects transitions is in this file. A message is accepted (the table has a row for it), rejected (it is wrong,
or comes before its time) or discarded (right but late); a byte-identical repeat changes nothing. What a message must
satisfy to be accepted belongs in `checks.py`, what it causes in `member.py` and `collector.py`. No I/O, no clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Generic, TypeVar

from whimbrel_protocol.errors import Code, ProtocolError, RuleError


class MemberState(Enum):
    """Where a member stands."""

    JOINED = "joined"  # entry sent, keys held
    SHARED = "shared"  # the roster is accepted, shares are dealt
    MASKING = "masking"  # U2 is accepted, the update is spent, masked words leave
    COMMITTED = "committed"  # voted for a survivor set
    RELEASED = "released"  # shares revealed, keys gone
    SHOWN = "shown"  # the sum was spoiled and the masks of the canary words were told, once; nothing else will be
    DONE = "done"  # the receipt is here
    ABORTED = "aborted"  # voted for an abort: nothing else will be sent
    ENDED = "ended"  # a check failed, a certificate ended it or the caller gave up: keys gone


class MemberEvent(Enum):
    """What can happen to a member."""

    OPEN = "open"
    U2 = "u2"
    HEAD = "head"
    SURVIVORS = "survivors"
    ABORT = "abort"
    QUORUM = "quorum"
    BLAME = "blame"
    DONE = "done"
    END = "end"


MEMBER: Mapping[tuple[MemberState, MemberEvent], MemberState] = {
    (MemberState.JOINED, MemberEvent.OPEN): MemberState.SHARED,
    (MemberState.SHARED, MemberEvent.U2): MemberState.MASKING,
    (MemberState.SHARED, MemberEvent.ABORT): MemberState.ABORTED,
    (MemberState.MASKING, MemberEvent.HEAD): MemberState.MASKING,
    (MemberState.MASKING, MemberEvent.ABORT): MemberState.ABORTED,
    (MemberState.MASKING, MemberEvent.SURVIVORS): MemberState.COMMITTED,
    (MemberState.COMMITTED, MemberEvent.QUORUM): MemberState.RELEASED,
    (MemberState.RELEASED, MemberEvent.DONE): MemberState.DONE,
    (MemberState.RELEASED, MemberEvent.BLAME): MemberState.SHOWN,
    # A member may leave at any moment, and leaves when a check fails: it keeps quiet and deletes its keys.
    **{(state, MemberEvent.END): MemberState.ENDED for state in MemberState if state is not MemberState.DONE},
}


class ServerState(Enum):
    """Where the server's side of a window stands."""

    SHARE = "share"  # the roster is fixed; collects shares
    MASK = "mask"  # U2 is fixed; collects masked vectors
    VOTE = "vote"  # the survivor set is fixed; collects votes
    ABORTING = "aborting"  # asked for abort votes; a commit quorum may still come
    UNMASK = "unmask"  # t commits; collects revealed shares
    DONE = "done"  # the sum is known
    ABORTED = "aborted"  # t aborts: the updates are free
    FAILED = "failed"  # unmasked to a wrong sum: the updates are lost; collects canary masks, to know by whom


class ServerEvent(Enum):
    """What can happen to the server's side."""

    SHARES = "shares"
    U2_FIXED = "u2 fixed"
    HEAD = "head"
    VECTOR = "vector"
    U3_FIXED = "u3 fixed"
    COMMIT = "commit"
    ABORT = "abort"
    ABORT_ASKED = "abort asked"
    QUORUM = "quorum"
    ABORT_CERTIFIED = "abort certified"
    UNMASK = "unmask"
    SUMMED = "summed"
    SPOILED = "spoiled"
    CANARIES = "canaries"


SERVER: Mapping[tuple[ServerState, ServerEvent], ServerState] = {
    (ServerState.SHARE, ServerEvent.SHARES): ServerState.SHARE,
    (ServerState.SHARE, ServerEvent.U2_FIXED): ServerState.MASK,
    (ServerState.SHARE, ServerEvent.ABORT_ASKED): ServerState.ABORTING,
    (ServerState.MASK, ServerEvent.HEAD): ServerState.MASK,
    (ServerState.MASK, ServerEvent.VECTOR): ServerState.MASK,
    (ServerState.MASK, ServerEvent.U3_FIXED): ServerState.VOTE,
    (ServerState.MASK, ServerEvent.ABORT_ASKED): ServerState.ABORTING,
    (ServerState.VOTE, ServerEvent.COMMIT): ServerState.VOTE,
    (ServerState.VOTE, ServerEvent.QUORUM): ServerState.UNMASK,
    (ServerState.VOTE, ServerEvent.ABORT_ASKED): ServerState.ABORTING,
    (ServerState.ABORTING, ServerEvent.COMMIT): ServerState.ABORTING,
    (ServerState.ABORTING, ServerEvent.ABORT): ServerState.ABORTING,
    (ServerState.ABORTING, ServerEvent.QUORUM): ServerState.UNMASK,
    (ServerState.ABORTING, ServerEvent.ABORT_CERTIFIED): ServerState.ABORTED,
    (ServerState.UNMASK, ServerEvent.UNMASK): ServerState.UNMASK,
    (ServerState.UNMASK, ServerEvent.SUMMED): ServerState.DONE,
    (ServerState.UNMASK, ServerEvent.SPOILED): ServerState.FAILED,
    (ServerState.FAILED, ServerEvent.CANARIES): ServerState.FAILED,
}


class Outcome(Enum):
    """What can become of a message."""

    ACCEPTED = "accepted"
    REPEATED = "repeated"
    REJECTED = "rejected"
    DISCARDED = "discarded"


class Discarded(RuleError):
    """A message that is right but late: the sender did nothing wrong and nothing was changed."""


class Shortage(RuleError):
    """Too few members are left for the next phase: nothing was changed, and the abort should be asked for."""


State = TypeVar("State", bound=Enum)
Event = TypeVar("Event", bound=Enum)


class Machine(Generic[State, Event]):
    """A state that moves by a table and by nothing else, and counts what became of the messages."""

    def __init__(self, table: Mapping[tuple[State, Event], State], start: State) -> None:
        self._table = table
        self.state = start
        self.counts: Counter[Outcome] = Counter()

    def demand(self, event: Event) -> None:
        """Raise Discarded TOO_LATE or RuleError OUT_OF_TURN where the state does not take the event."""
        if (self.state, event) in self._table:
            return
        detail = f"{event.value} in state {self.state.value}"
        if any(self.state in self._after(state) for state, taken in self._table if taken is event):
            raise Discarded(Code.TOO_LATE, detail)
        raise RuleError(Code.OUT_OF_TURN, detail)

    def advance(self, event: Event) -> None:
        """Move along the table; errors as for `demand`."""
        self.demand(event)
        self.state = self._table[self.state, event]

    def counted(self, take: Callable[[], Outcome]) -> None:
        """Count what becomes of a message: what `take` says, or its refusal, which goes on to the caller."""
        try:
            outcome = take()
        except Discarded:
            self.counts[Outcome.DISCARDED] += 1
            raise
        except ProtocolError:
            self.counts[Outcome.REJECTED] += 1
            raise
        self.counts[outcome] += 1

    def _after(self, state: State) -> set[State]:
        reached, fresh = {state}, {state}
        while fresh:
            fresh = {to for (at, _), to in self._table.items() if at in fresh} - reached
            reached |= fresh
        return reached
