"""One running window: the collector's phases, with deadlines, early closing, and what must be durable before it is sent.

Here belong time and order of a window on the server. What a message must satisfy belongs in the protocol's collector;
storage, waking and summing are effects that the shell performs. A phase named `FIX_…` waits for the shell to make durable
what the phase before it decided; nothing of it is shown to anybody until `settle` says that it is. Pure: no I/O, no clock;
times are Unix seconds.

    SHARE -> FIX_U2 -> MASK -> FIX_SURVIVORS -> VOTE -> FIX_QUORUM -> UNMASK -> UNMASKING -> DONE
      any shortage before the quorum: ABORT -> FIX_ABORT -> ABORTED (from VOTE on, late commits may still win)
      after the quorum never an abort: FAILED when the answers do not come, or the sum is spoiled (then after BLAME)

A window that is given up stays in ABORT: its round does not wait for it, and yet every vote is taken for as long as
certificates are kept, because no spent update is settled without one. It asks for aborts while these can be reached, and for
commits once more than n - t members gave theirs. A commit quorum that forms so late leads to UNMASK as one in time does: the
sum counts if its version is still the newest, and the members get their certificate in any case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from enum import Enum
from math import inf
from statistics import median

from whimbrel_protocol import wire
from whimbrel_protocol.collector import Arrived, Collector
from whimbrel_protocol.errors import Code, ProtocolError, RuleError
from whimbrel_protocol.messages import (
    U2,
    Blame,
    CanaryMasks,
    Done,
    MaskedHead,
    Message,
    Open,
    Quorum,
    Shares,
    Survivors,
    Unmask,
    Vote,
)
from whimbrel_protocol.rules import bitmap
from whimbrel_protocol.window import Discarded, Outcome, ServerState, Shortage
from whimbrel_server.settings import WindowLimits
from whimbrel_server.storage.records import EventRecord
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

# A phase closes early after this many times the median answer (masking protocol, section 1.9).
_MEDIANS = 3
# Of the members that a window may lose, one in so many may be given up by closing early, over the whole window.
_GIVEN_UP_PART = 4


class Phase(Enum):
    """Where a window stands."""

    SHARE = "share"
    FIX_U2 = "fix u2"
    MASK = "mask"
    FIX_SURVIVORS = "fix survivors"
    VOTE = "vote"
    FIX_QUORUM = "fix quorum"
    UNMASK = "unmask"
    UNMASKING = "unmasking"
    BLAME = "blame"
    DONE = "done"
    ABORT = "abort"
    FIX_ABORT = "fix abort"
    ABORTED = "aborted"
    FAILED = "failed"


_ABORTING = (Phase.ABORT, Phase.FIX_ABORT, Phase.ABORTED)
_QUORUM_SHOWN = (Phase.UNMASK, Phase.UNMASKING, Phase.BLAME, Phase.DONE, Phase.FAILED)
_U2_SHOWN = (Phase.MASK, Phase.FIX_SURVIVORS, Phase.VOTE, Phase.FIX_QUORUM, *_QUORUM_SHOWN)
_SURVIVORS_SHOWN = (Phase.VOTE, Phase.FIX_QUORUM, *_QUORUM_SHOWN)


class WindowRun:
    """One window from its roster to its sum. Every method returns effects, to be performed in order."""

    def __init__(self, collector: Collector, limits: WindowLimits, now: float) -> None:
        self.collector = collector
        self.phase = Phase.SHARE
        self.counts: Counter[tuple[str, str]] = Counter()  # (message, accepted | repeated | rejected | discarded)
        self.durations: dict[str, float] = {}  # phase -> seconds that it took
        self._limits = limits
        self._answers: dict[int, float] = {}  # member -> seconds into the phase
        self._gone: dict[int, float] = {}
        self._given_up = 0  # members, by closing early
        self._abandoned = False  # the engine was told not to wait
        self._attempted = 0  # responses that the last unmasking had
        self._failure = Code.SHORTAGE  # why there is no sum, until something else is known
        self._began = now
        self._ends: float | None = None
        self._enter(Phase.SHARE, now)

    def _enter(self, phase: Phase, now: float) -> None:
        limits = self._limits
        lengths = {
            Phase.SHARE: limits.share_s,
            Phase.MASK: limits.mask_s,
            Phase.VOTE: limits.vote_s,
            Phase.UNMASK: limits.unmask_s + limits.patience_s,  # late answers are welcome: the updates are spent
            Phase.BLAME: limits.unmask_s,
            Phase.ABORT: limits.patience_s,
        }
        if phase is not self.phase:
            name = self.phase.name.lower()
            self.durations[name] = self.durations.get(name, 0.0) + now - self._began
        self.phase, self._began = phase, now
        self._ends = now + lengths[phase] if phase in lengths else None
        self._answers = {}

    # --- messages ---------------------------------------------------------------------------------------------------

    def on_shares(self, message: Shares, now: float) -> list[WindowEffect]:
        """Take a member's shares. This and the next raise RuleError for what is wrong, Discarded for what is late."""
        self._take("shares", lambda: self.collector.on_shares(message))
        return [_log("shares", message.i, message), *self._answered(message.i, Phase.SHARE, now)]

    def on_head(self, message: MaskedHead, now: float) -> list[WindowEffect]:
        """Take the announcement of a masked vector."""
        self._take("masked", lambda: self.collector.on_head(message))
        self.here(message.i)
        return []

    def on_vector(self, i: int, now: float, canaries: bytes = b"") -> list[WindowEffect]:
        """Member `i`'s vector is complete and verified; it may be added to the sum if this does not raise.

        `canaries` are its first and last word: without them nobody can be blamed for a wrong one. Discarded is raised for a
        vector that was taken before, too: it must not be added twice.
        """
        repeats = self.collector.counts[Outcome.REPEATED]
        self._take("vector", lambda: self.collector.on_vector(i, canaries))
        if self.collector.counts[Outcome.REPEATED] > repeats:
            raise Discarded(Code.TOO_LATE, f"the vector of member {i} was taken before")
        return self._answered(i, Phase.MASK, now)

    def on_vote(self, message: Vote, now: float) -> list[WindowEffect]:
        """Take a member's one vote; the t-th of a kind makes the certificate."""
        self._take("vote", lambda: self.collector.on_vote(message))
        self._answers.setdefault(message.i, now - self._began)
        return [_log("vote", message.i, message), *self._certified(now)]

    def on_unmask(self, message: Unmask, now: float) -> list[WindowEffect]:
        """Take the shares that a member reveals; with enough of them the unmasking begins."""
        self._take("unmask", lambda: self.collector.on_unmask(message))
        self._answers.setdefault(message.i, now - self._began)
        return [_log("unmask", message.i, message), *self._try_unmasking()]

    def on_canaries(self, message: CanaryMasks, now: float) -> list[WindowEffect]:
        """Take what a survivor says of its masks on the canary words; with the last one the window fails."""
        if self.phase is not Phase.BLAME and message.i not in self.collector.told:
            self.counts["canaries", Outcome.DISCARDED.value] += 1
            raise Discarded(Code.TOO_LATE, "nobody is asked for canary masks now")
        self._take("canaries", lambda: self.collector.on_canaries(message))
        heard = len(self.collector.told) == len(self.collector.u3)
        return self._fail(now) if heard and self.phase is Phase.BLAME else []

    def _take(self, kind: str, take: Callable[[], None]) -> None:
        before = Counter(self.collector.counts)
        try:
            take()
        finally:
            for outcome in Counter(self.collector.counts) - before:
                self.counts[kind, outcome.value] += 1

    def _answered(self, i: int, phase: Phase, now: float) -> list[WindowEffect]:
        self.here(i)
        if self.phase is not phase:
            return []
        self._answers.setdefault(i, now - self._began)
        return self._close_early(now)

    def gone(self, i: int, now: float) -> None:
        """Member `i`'s connection broke: after a moment it no longer holds up a phase."""
        self._gone.setdefault(i, now)

    def here(self, i: int) -> None:
        """A call of member `i` arrived."""
        self._gone.pop(i, None)

    # --- time -------------------------------------------------------------------------------------------------------

    @property
    def deadline(self) -> float | None:
        """When `tick` has something to do next."""
        if self._ends is None or self.phase is Phase.UNMASKING:
            return None
        return min(self._ends, self._early_at())

    def tick(self, now: float) -> list[WindowEffect]:
        """Close what is over."""
        effects = self._close_early(now)
        if effects or self.deadline is None or now < self.deadline:
            return effects
        match self.phase:
            case Phase.SHARE | Phase.MASK:
                return self._close(now)
            case Phase.VOTE:
                return self._ask_abort(now)
            case Phase.UNMASK | Phase.BLAME:
                return self._fail(now)
            case Phase.ABORT:
                return self._abandon()
        return []

    def _missing(self) -> list[int]:
        expected: Iterable[int] = range(self.collector.n) if self.phase is Phase.SHARE else self.collector.u2
        return [i for i in expected if i not in self._answers]

    def _early_at(self) -> float:
        """When the phase may close before its deadline: all alive have answered, or few slow ones are left."""
        if self.phase not in (Phase.SHARE, Phase.MASK) or len(self._answers) < self.collector.s_min:
            return inf
        return min(self._all_alive_at(), self._few_left_at())

    def _all_alive_at(self) -> float:
        moment = self._limits.early_min_s
        return max((self._gone.get(i, inf) + moment for i in self._missing()), default=self._began)

    def _few_left_at(self) -> float:
        allowed = (self.collector.n - self.collector.s_min) // _GIVEN_UP_PART - self._given_up
        if len(self._missing()) > allowed:
            return inf
        return self._began + max(self._limits.early_min_s, _MEDIANS * median(self._answers.values()))

    def _close_early(self, now: float) -> list[WindowEffect]:
        if now < self._early_at():
            return []
        if now < self._all_alive_at():
            self._given_up += len(self._missing())
        return self._close(now)

    # --- decisions --------------------------------------------------------------------------------------------------

    def _close(self, now: float) -> list[WindowEffect]:
        """The phase is over: fix who is in, or ask for an abort where too few are."""
        collector = self.collector
        try:
            if self.phase is Phase.SHARE:
                collector.close_shares()
                self._enter(Phase.FIX_U2, now)
                return [FixU2(bitmap(collector.u2, collector.n))]
            collector.close_masked()
        except Shortage:
            return self._ask_abort(now)
        self._enter(Phase.FIX_SURVIVORS, now)
        return [FixSurvivors(bitmap(collector.u3, collector.n), tuple(self._survivors_events()))]

    def _survivors_events(self) -> Iterable[EventRecord]:
        for event in self.collector.events():
            if isinstance(event, MaskedHead) and event.i in self.collector.u3:
                yield EventRecord("masked", event.i, wire.encode(event))
            elif isinstance(event, Arrived) and event.canaries:
                yield EventRecord("canaries", event.i, event.canaries)

    def abort(self, now: float) -> list[WindowEffect]:
        """Ask for an abort although there are members enough: the shell lost what it needs. Raises OUT_OF_TURN from VOTE on."""
        if self.phase not in (Phase.SHARE, Phase.FIX_U2, Phase.MASK, Phase.FIX_SURVIVORS):
            raise RuleError(Code.OUT_OF_TURN, f"no abort for want of data in the phase {self.phase.value}")
        return self._ask_abort(now)

    def _ask_abort(self, now: float) -> list[WindowEffect]:
        # Before a survivor set is shown nothing can become of the window; after it, late commits still can.
        hopeful = self.phase is Phase.VOTE
        self.collector.ask_abort()
        self._enter(Phase.ABORT, now)
        return [Wake()] if hopeful else [Wake(), *self._abandon()]

    def _abandon(self) -> list[WindowEffect]:
        """Let the round go on without this window, which goes on collecting votes."""
        self._abandoned, self._ends = True, None
        return [GiveUp("aborted"), Closed("aborted")]

    def _certified(self, now: float) -> list[WindowEffect]:
        if self.phase not in (Phase.VOTE, Phase.ABORT):
            return []
        if self.collector.quorum is not None:
            self._enter(Phase.FIX_QUORUM, now)
            return [FixQuorum(wire.encode(self.collector.quorum))]
        if self.collector.abort_certificate is not None:
            self._enter(Phase.FIX_ABORT, now)
            return [FixAbort(wire.encode(self.collector.abort_certificate))]
        return []

    def _try_unmasking(self) -> list[WindowEffect]:
        responses = len(self.collector.responses)
        if self.phase is not Phase.UNMASK or responses == self._attempted or not self.collector.ready_to_unmask:
            return []
        self.phase, self._attempted = Phase.UNMASKING, responses
        return [RunUnmasking()]

    def settle(self, now: float) -> list[WindowEffect]:
        """What the last effect asked for is durable: the window goes on. Raises OUT_OF_TURN where nothing was asked for."""
        following = {
            Phase.FIX_U2: Phase.MASK,
            Phase.FIX_SURVIVORS: Phase.VOTE,
            Phase.FIX_QUORUM: Phase.UNMASK,
            Phase.UNMASKING: Phase.DONE,
            Phase.FIX_ABORT: Phase.ABORTED,
        }
        if self.phase not in following:
            raise RuleError(Code.OUT_OF_TURN, f"nothing is to be settled in the phase {self.phase.value}")
        self._enter(following[self.phase], now)
        ended = self.phase is Phase.DONE or (self.phase is Phase.ABORTED and not self._abandoned)
        return [*self._blamed(), Wake(), Closed(self.phase.value)] if ended else [Wake()]

    def _blamed(self) -> list[WindowEffect]:
        faults = tuple(self.collector.faults)
        return [Blamed(faults)] if faults else []

    def fail(self, error: ProtocolError, now: float) -> list[WindowEffect]:
        """Unmasking raised `error`: a spoiled sum ends the window; otherwise more answers may help, within the deadline.

        Before it ends, survivors are asked for what shows by whom the sum was spoiled.
        """
        self._failure = error.code
        if error.code is Code.SPOILED_SUM:
            return self._fail(now) if self.collector.blame is None else self._ask_canaries(now)
        self.phase = Phase.UNMASK
        return self._try_unmasking()

    def _ask_canaries(self, now: float) -> list[WindowEffect]:
        self._enter(Phase.BLAME, now)
        return [Wake()]

    def _fail(self, now: float) -> list[WindowEffect]:
        self._enter(Phase.FAILED, now)
        return [*self._blamed(), GiveUp("failed", self._failure), Wake(), Closed("failed")]

    # --- answers ----------------------------------------------------------------------------------------------------

    def open(self) -> Open:
        """The roster."""
        return self.collector.open

    def u2_for(self, i: int) -> U2 | Survivors | None:
        """U2 for member `i`; the request for an abort vote; None: wait. Raises NO_SUCH_MEMBER for who is not in U2."""
        if self._asks_abort:
            return self.collector.survivors
        return self.collector.u2_for(i) if self.phase in (*_U2_SHOWN, *_ABORTING) else None

    @property
    def _asks_abort(self) -> bool:
        return self.phase in _ABORTING and self.collector.abort_reachable

    def survivors(self) -> Survivors | None:
        """The survivors, or the request for an abort vote; None: wait."""
        return self.collector.survivors if self.phase in (*_SURVIVORS_SHOWN, *_ABORTING) else None

    def quorum(self) -> Quorum | None:
        """The commit or abort certificate; None: wait."""
        if self.phase is Phase.ABORTED:
            return self.collector.abort_certificate
        return self.collector.quorum if self.phase in _QUORUM_SHOWN else None

    def done(self, i: int) -> Done | Survivors | Blame | None:
        """The receipt; the request for an abort vote, or for canary masks; None: wait.

        Raises SPOILED_SUM, BAD_SHARES or SHORTAGE where the sum was lost: shares were revealed, so no update is free again.
        """
        if self.phase is Phase.FAILED:
            raise RuleError(self._failure, f"{self._failure.title}; its updates stay spent")
        if self._asks_abort:
            return self.collector.survivors
        if self.phase is Phase.BLAME:
            asked = i in self.collector.u3 and i not in self.collector.told
            return self.collector.blame if asked else None
        result = self.collector.result
        return Done(self.collector.params.lane, result.sha256) if self.phase is Phase.DONE and result else None

    # --- what it cost -----------------------------------------------------------------------------------------------

    @property
    def lost(self) -> list[int]:
        """The members that are counted on no longer: they did not give what they were last asked for."""
        collector = self.collector
        asked = Vote if collector.u3 else Arrived if collector.u2 else Shares
        answered = {event.i for event in collector.events() if isinstance(event, asked)}
        return [i for i in range(collector.n) if i not in answered]

    @property
    def dropped(self) -> dict[str, int]:
        """How many gave nothing in each phase while it was open; votes and revealed shares close with the t-th."""
        collector = self.collector
        gave = Counter(type(event) for event in collector.events())
        return {
            "shares": collector.n - gave[Shares],
            "masked": len(collector.u2) - gave[Arrived] if collector.u2 else 0,
            "vote": max(0, len(collector.u3) - gave[Vote]),
            "unmask": max(0, len(collector.u3) - gave[Unmask]) if collector.quorum else 0,
        }

    # --- recovery ---------------------------------------------------------------------------------------------------

    def resume(self, state: str, now: float) -> list[WindowEffect]:
        """Go on from the state that storage remembers (`records.TRANSITIONS`), with fresh deadlines.

        Before the survivor set was fixed, abort votes are asked for; after it the window stands where it stood.
        """
        if state == "unmask":
            self._enter(Phase.UNMASK, now)
            return self._try_unmasking()
        if state == "vote" and self.collector.state is ServerState.VOTE:
            self._enter(Phase.VOTE, now)
            return []
        self._enter(Phase.ABORT, now)
        effects = [] if state == "vote" else self._abandon()
        # A window that storage calls aborted was given up before: everybody knows.
        return [*([] if state == "aborted" else effects), *self._certified(now)]


def _log(kind: str, member: int, message: Message) -> Log:
    return Log(kind, member, wire.encode(message))
