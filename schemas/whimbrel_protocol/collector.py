"""The server's side of one masking window: no I/O, no clock, a function of the messages in their order.

Here belongs what an accepted message causes: who is in U2 and U3, who voted, when a certificate stands. The order of
states is `window.py`'s table; summing the masked vectors, deadlines and storage are the caller's, and so is knowing
that a message is its member's (the check-in token). Inputs are idempotent by (phase, member): the same body again
changes nothing, another one is refused. `events` lists what was accepted, and `restore` gets the same collector from
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Self

from whimbrel_protocol.blame import CANARY_BYTES, Fault, Pair, Spoiled, canary_faults, read_masks
from whimbrel_protocol.errors import Code, ProtocolError, RuleError
from whimbrel_protocol.forming import choose_roster, window_params
from whimbrel_protocol.masks import CIPHERTEXT_BYTES, SHARE_BYTES, WORD_BYTES
from whimbrel_protocol.messages import (
    U2,
    Blame,
    CanaryMasks,
    MaskedHead,
    Open,
    Quorum,
    Shares,
    Survivors,
    Unmask,
    Vote,
    VoteKind,
)
from whimbrel_protocol.objects import JoinEntry, Params, VectorSpec
from whimbrel_protocol.packing import WindowSum, decode_sum
from whimbrel_protocol.primitives import verify
from whimbrel_protocol.rules import bitmap, members_of
from whimbrel_protocol.signed import Policy
from whimbrel_protocol.transcript import NO_TAU1, Cohort, shares_body, tau1_of, vote_body
from whimbrel_protocol.trust import demand
from whimbrel_protocol.unmask import Masked, Unmasking
from whimbrel_protocol.window import SERVER, Machine, Outcome, ServerEvent, ServerState, Shortage


@dataclass(frozen=True)
class Arrived:
    """Member `i`'s masked vector is complete and has the hash that it announced.

    `canaries` are its first and last word, 16 bytes; without them (empty) nobody can be blamed for a wrong canary.
    """

    i: int
    canaries: bytes = b""


class Decision(Enum):
    """What the caller decides: that a phase is over, or that the window shall be aborted."""

    CLOSE_SHARES = "close shares"
    CLOSE_MASKED = "close masked"
    ASK_ABORT = "ask abort"


Event = Shares | MaskedHead | Arrived | Vote | Unmask | Decision
Input = Event | CanaryMasks


class Collector:
    """One window. Made by `form` or `restore`; the methods follow the phases."""

    def __init__(self, params: Params, roster: Sequence[bytes], spec: VectorSpec) -> None:
        self.spec = spec
        self.params = params
        self.open = Open(params.encode(), tuple(roster))
        self._entries = tuple(JoinEntry.decode(entry) for entry in roster)
        demand(len(self._entries) == params.n, Code.OPEN_COUNT)
        self.cohort = Cohort.of(params, roster, self._entries)
        self._machine = Machine(SERVER, ServerState.SHARE)
        self._inputs: dict[tuple[str, int], Input] = {}
        self._events: list[Event] = []
        self._shares: dict[int, Shares] = {}
        self._heads: dict[int, MaskedHead] = {}
        self._arrived: dict[int, bytes] = {}  # with their canary words
        self._votes: dict[VoteKind, dict[int, bytes]] = {VoteKind.COMMIT: {}, VoteKind.ABORT: {}}
        self._u2: tuple[int, ...] = ()
        self._u3: tuple[int, ...] = ()
        self._certificate: Quorum | None = None
        self.tau1 = b""
        self.responses: dict[int, Unmask] = {}
        self.told: dict[int, dict[int, Pair]] = {}  # by survivor, its masks on the canary words
        self._unmasking: Unmasking | None = None
        self._spoiled: Spoiled | None = None
        self.result: WindowSum | None = None

    @classmethod
    def form(
        cls,
        entries: Iterable[bytes],
        fleet: bytes,
        lane: bytes,
        spec: VectorSpec,
        policy: Policy,
        window_id: int,
    ) -> Self:
        """A window of entries that passed `check_entry`, in order of arrival.

        Raises Shortage below the policy's n_min, RuleError OPEN_TOO_LARGE above its or the spec's n_max, OPEN_FLEET or
        ENTRY_LANE for what belongs elsewhere.
        """
        roster = choose_roster(entries)
        n, greatest = len(roster), min(policy.n_max, spec.n_max)
        demand(fleet == policy.fleet, Code.OPEN_FLEET)
        demand(all(JoinEntry.decode(entry).lane == lane for entry in roster), Code.ENTRY_LANE)
        if n < policy.n_min:
            raise Shortage(Code.SHORTAGE, f"{n} members can open no window, the policy's floor is {policy.n_min}")
        demand(n <= greatest, Code.OPEN_TOO_LARGE, f"{n} members, at most {greatest} are allowed")
        return cls(window_params(n, lane, policy, window_id), roster, spec)

    @classmethod
    def restore(cls, params: bytes, roster: Sequence[bytes], spec: VectorSpec, events: Iterable[Event]) -> Self:
        """The collector that accepted these events in this order; they are checked again."""
        collector = cls(Params.decode(params), roster, spec)
        for event in events:
            collector._replay(event)
        return collector

    def _replay(self, event: Event) -> None:
        match event:
            case Shares():
                self.on_shares(event)
            case MaskedHead():
                self.on_head(event)
            case Arrived():
                self.on_vector(event.i, event.canaries)
            case Vote():
                self.on_vote(event)
            case Unmask():
                self.on_unmask(event)
            case Decision.CLOSE_SHARES:
                self.close_shares()
            case Decision.CLOSE_MASKED:
                self.close_masked()
            case Decision.ASK_ABORT:
                self.ask_abort()

    # --- what can be read at any time ---------------------------------------------------------------------------------

    @property
    def state(self) -> ServerState:
        """Where the window stands."""
        return self._machine.state

    @property
    def counts(self) -> Mapping[Outcome, int]:
        """How many messages were accepted, repeated, rejected (wrong or early) and discarded (right but late)."""
        return self._machine.counts

    @property
    def tau0(self) -> bytes:
        """The window's name, 32 bytes."""
        return self.cohort.tau0

    @property
    def n(self) -> int:
        """Members in the roster."""
        return self.cohort.n

    @property
    def t(self) -> int:
        """The threshold: votes for a certificate, shares for a secret."""
        return self.cohort.t

    @property
    def s_min(self) -> int:
        """The fewest members that U2 and U3 may have."""
        return self.cohort.s_min

    @property
    def devices(self) -> tuple[bytes, ...]:
        """The members' device ids in roster order."""
        return tuple(entry.device for entry in self._entries)

    @property
    def u2(self) -> tuple[int, ...]:
        """Who dealt shares, ascending; empty before `close_shares`."""
        return self._u2

    @property
    def u3(self) -> tuple[int, ...]:
        """Who survived, ascending; empty before `close_masked`."""
        return self._u3

    def events(self) -> list[Event]:
        """What was accepted, in order."""
        return list(self._events)

    # --- SHARES -> U2 -------------------------------------------------------------------------------------------------

    def on_shares(self, message: Shares) -> None:
        """Take a member's dealt shares."""
        self._take(ServerEvent.SHARES, message.i, message, lambda: self._check_shares(message))
        self._shares.setdefault(message.i, message)

    def _check_shares(self, message: Shares) -> None:
        size = CIPHERTEXT_BYTES * (self.n - 1)
        demand(message.tau0 == self.tau0 and len(message.cts) == size, Code.SHARES_MALFORMED)
        body = shares_body(self.tau0, message.i, message.bcommit, message.cts)
        demand(verify("shares", self.cohort.keys[message.i], body, message.sig), Code.BAD_SIGNATURE)

    def close_shares(self) -> bytes:
        """Fix U2 and return tau1; again, the same. Raises Shortage below the survivor floor."""
        if self.tau1:
            return self.tau1
        self._machine.demand(ServerEvent.U2_FIXED)
        self._demand_enough(len(self._shares), "dealt shares")
        self._u2 = tuple(sorted(self._shares))
        self.tau1 = tau1_of(self.tau0, bitmap(self._u2, self.n))
        self._decide(ServerEvent.U2_FIXED, Decision.CLOSE_SHARES)
        return self.tau1

    def u2_for(self, i: int) -> U2:
        """U2 and the ciphertexts for member i of it. Raises RuleError NO_SUCH_MEMBER for any other."""
        demand(i in self._u2, Code.NO_SUCH_MEMBER, f"member {i} is not in U2")
        cts = b"".join(_ciphertext_for(self._shares[j], i) for j in self._u2 if j != i)
        return U2(bitmap(self._u2, self.n), cts)

    # --- MASKED -> SURVIVORS ------------------------------------------------------------------------------------------

    def on_head(self, message: MaskedHead) -> None:
        """Take a member's announcement of its masked vector."""
        self._take(ServerEvent.HEAD, message.i, message, lambda: self._check_head(message))
        self._heads.setdefault(message.i, message)

    def _check_head(self, message: MaskedHead) -> None:
        demand(message.i in self._u2, Code.NO_SUCH_MEMBER, f"member {message.i} is not in U2")
        present = self._members(message.present, Code.MASKED_MALFORMED)
        fits = message.tau1 == self.tau1 and message.words == self.spec.words
        demand(fits and message.i in present and present <= set(self._u2), Code.MASKED_MALFORMED)
        demand(verify("masked", self.cohort.keys[message.i], self.tau1, message.msig), Code.BAD_SIGNATURE)

    def on_vector(self, i: int, canaries: bytes = b"") -> None:
        """Note that member i's vector is complete and has the announced hash. Raises NO_SUCH_MEMBER without a head."""
        arrived = Arrived(i, canaries)
        self._take(ServerEvent.VECTOR, i, arrived, lambda: demand(i in self._heads, Code.NO_SUCH_MEMBER, "no head"))
        self._arrived[i] = canaries

    def close_masked(self) -> tuple[int, ...]:
        """Fix the survivors and return them; again, the same.

        Raises Shortage below the survivor floor, or where some dealer's shares are held by fewer than t survivors: once
        unmasking began its secret could not be recovered, and the updates would be lost.
        """
        if self._u3:
            return self._u3
        self._machine.demand(ServerEvent.U3_FIXED)
        arrived = sorted(self._arrived)
        self._demand_enough(len(arrived), "masked vectors")
        holdings = [self._members(self._heads[i].present, Code.MASKED_MALFORMED) for i in arrived]
        for j in self._u2:
            holders = sum(j in held for held in holdings)
            if holders < self.t:
                raise Shortage(Code.SHORTAGE, f"{holders} survivors hold shares of member {j}, {self.t} are needed")
        self._u3 = tuple(arrived)
        self._decide(ServerEvent.U3_FIXED, Decision.CLOSE_MASKED)
        return self._u3

    @property
    def survivors(self) -> Survivors:
        """SURVIVORS as members get it: the survivors with their signatures, or the request for an abort.

        An abort that can no longer be reached is asked of nobody: who has not voted yet may then complete the quorum.
        """
        if self.state in (ServerState.ABORTING, ServerState.ABORTED) and self.abort_reachable:
            return Survivors(b"", b"", abort=True)
        demand(bool(self._u3), Code.OUT_OF_TURN, "the survivors are not fixed")
        return Survivors(bitmap(self._u3, self.n), b"".join(self._heads[i].msig for i in self._u3))

    # --- VOTE -> QUORUM -----------------------------------------------------------------------------------------------

    def ask_abort(self) -> None:
        """Ask for abort votes from now on; again, nothing. A commit quorum that still forms wins."""
        if self.state in (ServerState.ABORTING, ServerState.ABORTED):
            return
        self._decide(ServerEvent.ABORT_ASKED, Decision.ASK_ABORT)

    @property
    def abort_reachable(self) -> bool:
        """Whether t abort votes can still come: no longer once more than n - t members voted commit (section 1.9)."""
        return len(self._votes[VoteKind.COMMIT]) <= self.n - self.t

    def on_vote(self, message: Vote) -> None:
        """Take a member's one vote; the t-th of a kind makes the certificate."""
        event = ServerEvent.COMMIT if message.kind is VoteKind.COMMIT else ServerEvent.ABORT
        self._take(event, message.i, message, lambda: self._check_vote(message))
        votes = self._votes[message.kind]
        votes.setdefault(message.i, message.sig)
        if len(votes) == self.t and self._certificate is None:
            self._certificate = self._certify(message.kind, votes)
            commit = message.kind is VoteKind.COMMIT
            self._machine.advance(ServerEvent.QUORUM if commit else ServerEvent.ABORT_CERTIFIED)

    def _check_vote(self, message: Vote) -> None:
        commit = message.kind is VoteKind.COMMIT
        demand(bool(self._u3) or not commit, Code.OUT_OF_TURN, "there is nothing to commit to")
        body = vote_body(self.tau0, message.kind, *self._voted(message.kind))
        demand(verify("vote", self.cohort.keys[message.i], body, message.sig), Code.BAD_SIGNATURE)

    def _voted(self, kind: VoteKind) -> tuple[bytes, bytes]:
        return (self.tau1, bitmap(self._u3, self.n)) if kind is VoteKind.COMMIT else (NO_TAU1, b"")

    def _certify(self, kind: VoteKind, votes: dict[int, bytes]) -> Quorum:
        voters = tuple(sorted(votes))
        return Quorum(kind, *self._voted(kind), voters, b"".join(votes[i] for i in voters))

    @property
    def quorum(self) -> Quorum | None:
        """The commit certificate, once it stands: it frees those whom it leaves out."""
        return self._certificate_of(VoteKind.COMMIT)

    @property
    def abort_certificate(self) -> Quorum | None:
        """The abort certificate, once it stands: it frees all."""
        return self._certificate_of(VoteKind.ABORT)

    def _certificate_of(self, kind: VoteKind) -> Quorum | None:
        return self._certificate if self._certificate is not None and self._certificate.kind is kind else None

    # --- UNMASK -> the sum --------------------------------------------------------------------------------------------

    def on_unmask(self, message: Unmask) -> None:
        """Take the shares that a member reveals."""
        self._take(ServerEvent.UNMASK, message.i, message, lambda: self._check_unmask(message))
        self.responses.setdefault(message.i, message)

    def _check_unmask(self, message: Unmask) -> None:
        demand(message.i in self._u2, Code.NO_SUCH_MEMBER, f"member {message.i} is not in U2")
        present = self._members(message.present, Code.UNMASK_MALFORMED)
        fits = present <= set(self._u2) and len(message.shares) == SHARE_BYTES * len(present)
        demand(fits, Code.UNMASK_MALFORMED)

    @property
    def ready_to_unmask(self) -> bool:
        """Whether each member's secret has the t shares that it takes."""
        held = [self._members(answer.present, Code.UNMASK_MALFORMED) for answer in self.responses.values()]
        return self.state is ServerState.UNMASK and all(sum(j in h for h in held) >= self.t for j in self._u2)

    def finish(self, total: bytearray) -> WindowSum:
        """Unmask the sum of the survivors' masked vectors, in place, and check it; again, the same result.

        `total` holds 8 * words bytes. Wrong shares are corrected as far as there are answers enough; `faults` says whose
        they are. Raises RuleError BAD_SHARES or SHORTAGE before anything is changed (the window may wait for more
        answers), or SPOILED_SUM, which ends the window: a member's vector was wrong. No update is freed by either: shares
        of all of them were revealed.
        """
        if self.result is not None:
            return self.result
        self._machine.demand(ServerEvent.SUMMED)
        demand(len(total) == WORD_BYTES * self.spec.words, Code.MASKED_MALFORMED, "size of the sum")
        self._unmasking = self._unmasking or Unmasking(self._masked())
        self._unmasking.attempt(list(self.responses.values()))
        self._unmasking.masks_in_sum().apply(total)
        try:
            self.result = decode_sum(self.spec, bytes(total), len(self._u3))
        except RuleError:
            if all(len(self._arrived[i]) == CANARY_BYTES for i in self._u3):
                self._spoiled = self._unmasking.spoiled(self.spec.words, self._arrived)
            self._machine.advance(ServerEvent.SPOILED)
            raise
        self._machine.advance(ServerEvent.SUMMED)
        return self.result

    def _masked(self) -> Masked:
        bcommits = {j: self._shares[j].bcommit for j in self._u2}
        mask_keys = [entry.mask_key for entry in self._entries]
        return Masked(self.cohort, self.params.c, self.tau1, self.params.p32, self._u2, self._u3, bcommits, mask_keys)

    # --- whose fault: BLAME -> CANARIES -------------------------------------------------------------------------------

    @property
    def blame(self) -> Blame | None:
        """What asks survivors for their masks on the canary words: only once the sum is spoiled, and if that can help."""
        return Blame(self.tau1) if self._spoiled is not None else None

    def on_canaries(self, message: CanaryMasks) -> None:
        """Take what a survivor says of its masks on the canary words."""
        self._take(ServerEvent.CANARIES, message.i, message, lambda: self._check_canaries(message))
        self.told.setdefault(message.i, read_masks(message, self.n))

    def _check_canaries(self, message: CanaryMasks) -> None:
        demand(message.i in self._u3, Code.NO_SUCH_MEMBER, f"member {message.i} is no survivor")
        edges = self._members(message.edges, Code.CANARIES_MALFORMED)
        fits = edges <= set(self._u2) - {message.i} and len(message.masks) == CANARY_BYTES * len(edges)
        demand(fits, Code.CANARIES_MALFORMED)

    @property
    def faults(self) -> list[Fault]:
        """Who revealed or dealt wrong shares, and, of a spoiled sum, who masked wrongly, by what is known so far."""
        if self._unmasking is None:
            return []
        found = self._unmasking.faults
        if self._spoiled is not None:
            found += canary_faults(replace(self._spoiled, told=self.told))
        return found

    # --- the discipline that all inputs share -------------------------------------------------------------------------

    def _take(self, event: ServerEvent, i: int, body: Input, check: Callable[[], None]) -> None:
        """Accept an input or its repeat, or raise: RuleError for what is wrong or early, Discarded for what is late."""
        self._machine.counted(lambda: self._accept(event, i, body, check))

    def _accept(self, event: ServerEvent, i: int, body: Input, check: Callable[[], None]) -> Outcome:
        phase = "vote" if isinstance(body, Vote) else event.value
        known = self._inputs.get((phase, i))
        if known is not None:
            demand(known == body, Code.SECOND_BODY, f"{phase} of member {i}")
            return Outcome.REPEATED
        demand(0 <= i < self.n, Code.NO_SUCH_MEMBER, f"there is no member {i}")
        self._machine.demand(event)
        check()
        self._machine.advance(event)
        self._inputs[phase, i] = body
        if not isinstance(body, CanaryMasks):  # a restored window is not spoiled yet: it asks again
            self._events.append(body)
        return Outcome.ACCEPTED

    def _decide(self, event: ServerEvent, decision: Decision) -> None:
        self._machine.advance(event)
        self._events.append(decision)

    def _demand_enough(self, count: int, what: str) -> None:
        if count < self.s_min:
            raise Shortage(Code.SHORTAGE, f"{count} {what}, the floor is {self.s_min}")

    def _members(self, bits: bytes, malformed: Code) -> set[int]:
        try:
            return set(members_of(bits, self.n))
        except ProtocolError as reason:
            raise RuleError(malformed, reason.detail) from None


def _ciphertext_for(message: Shares, recipient: int) -> bytes:
    """A dealer's ciphertexts leave out the dealer, so those for later members stand one place earlier."""
    at = CIPHERTEXT_BYTES * (recipient - (recipient > message.i))
    return message.cts[at : at + CIPHERTEXT_BYTES]
