"""One masking window of members in this process, some of which vanish, lie about shares or send garbage.

What belongs here: playing one window message by message, and holding what became of it against what was put in. What does not:
how many windows there are and their figures (`soak.py`). Everything follows from the seats and the random source.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from random import Random

import numpy as np
from numpy.typing import NDArray

from whimbrel_kernels import ring_add
from whimbrel_protocol.blame import Fault, FaultKind, canaries_of
from whimbrel_protocol.collector import Collector
from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.masks import SHARE_BYTES, WORD_BYTES
from whimbrel_protocol.member import Identity, Member
from whimbrel_protocol.messages import Quorum, Unmask, Vote
from whimbrel_protocol.objects import VectorSpec
from whimbrel_protocol.packing import pack
from whimbrel_protocol.signed import Policy
from whimbrel_protocol.spent import SpentRecord, Verdict, verify_certificate
from whimbrel_protocol.window import Shortage

POINTS = ("shares", "masked", "vector", "vote", "unmask", "")
"""Before what a member vanishes; the last: not at all."""


class Outcome(StrEnum):
    """How a window ended."""

    SUMMED = "summed"
    ABORTED = "aborted"  # with a certificate, or before anything was sent
    UNCERTIFIED = "uncertified"  # given up, and too few votes to free what was sent
    SHORT = "short"  # after the quorum too few right shares came
    SPOILED = "spoiled"  # a garbage vector


class Broken(Exception):
    """The product did not keep a promise; the message says which."""


def demand(holds: bool, promise: str) -> None:
    """Raise Broken with the promise unless it was kept."""
    if not holds:
        raise Broken(promise)


@dataclass(frozen=True)
class Terms:
    """What all windows have in common."""

    policy: Policy
    root: bytes
    lane: bytes
    spec: VectorSpec
    now: int


@dataclass
class Seat:
    """A device in one window: its update, what goes wrong with it, and what its disk would hold."""

    identity: Identity
    update: NDArray[np.int64]
    weight: int
    leaves: str
    lies: str  # "", "one" share or "all" of them
    garbage: bool
    member: Member
    durable: str = ""
    revealed: bool = False

    @property
    def record(self) -> SpentRecord | None:
        """What a process that starts anew reads from the disk."""
        return SpentRecord.decode(json.loads(self.durable)) if self.durable else None

    def keep(self, record: SpentRecord) -> None:
        """Make the record durable."""
        self.durable = json.dumps(record.encode())

    def here(self, point: str) -> bool:
        """Whether the member has not vanished before this point."""
        return POINTS.index(self.leaves) > POINTS.index(point)


@dataclass
class Played:
    """What became of a window: who is counted, whose update is free again, whose is spent and whose can never be known."""

    outcome: Outcome
    counted: list[int] = field(default_factory=list)
    freed: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    unresolved: list[int] = field(default_factory=list)
    untouched: list[int] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    retries: int = 0


class WindowPlay:
    """One window; `seats` in roster order."""

    def __init__(self, seats: list[Seat], terms: Terms, random: Random) -> None:
        self.seats = sorted(seats, key=lambda seat: seat.identity.device)
        self._terms, self._random = terms, random
        entries, policy = [seat.member.entry for seat in seats], terms.policy
        self.collector = Collector.form(entries, policy.fleet, terms.lane, terms.spec, policy, random.getrandbits(63))
        self._total = bytearray(WORD_BYTES * terms.spec.words)
        self._retries = 0

    def play(self) -> Played:
        """Play the window to its end and check it. Raises Broken."""
        outcome = self._outcome()
        played = Played(outcome, faults=self.collector.faults, retries=self._retries)
        if outcome is Outcome.SUMMED:
            self._check_sum()
        self._check_verdicts(played)
        self._check_faults(played)
        return played

    def _outcome(self) -> Outcome:
        self._deal()
        try:
            self.collector.close_shares()
            self._mask()
            self.collector.close_masked()
        except Shortage:
            return self._abort()
        self._vote()
        return self._unmask()

    def _there(self, point: str) -> Iterator[tuple[int, Seat]]:
        return ((i, seat) for i, seat in enumerate(self.seats) if seat.here(point))

    # --- the phases ---------------------------------------------------------------------------------------------------

    def _deal(self) -> None:
        for _, seat in self._there("shares"):
            self.collector.on_shares(seat.member.on_open(self.collector.open, self._terms.now, self._terms.policy))

    def _mask(self) -> None:
        for i, seat in self._there("masked"):
            seat.keep(seat.member.on_u2(self.collector.u2_for(i)))
            vector = seat.member.mask(pack(self._terms.spec, seat.update, seat.weight))
            if seat.garbage:
                vector = self._random.randbytes(len(vector))
            self.collector.on_head(seat.member.head(hashlib.sha256(vector).digest()))
            if seat.here("vector"):
                self.collector.on_vector(i, canaries_of(vector))
                ring_add(self._total, vector)

    def _vote(self) -> None:
        """Those who are there vote; where that is too little, the others come back and vote from what their disk holds."""
        survivors = self.collector.survivors
        for _, seat in self._there("vote"):
            vote = seat.member.on_survivors(survivors)
            seat.keep(seat.member.record)
            self._cast(vote)
        for seat in self.seats:
            record = seat.record
            if self.collector.quorum is None and record is not None and record.vote is None:
                record = record.commit(seat.identity.key, survivors)
                seat.keep(record)
                self._cast(record.ballot)

    def _cast(self, vote: Vote) -> None:
        if self.collector.quorum is None and self.collector.abort_certificate is None:
            self.collector.on_vote(vote)

    def _abort(self) -> Outcome:
        """Everybody who knows the window votes for its end, those too who come back."""
        self.collector.ask_abort()
        for seat in self.seats:
            record = seat.record
            if record is not None and not seat.here("vote"):
                record = record.abort(seat.identity.key)
                seat.keep(record)
                self._cast(record.ballot)
            elif seat.here("masked"):
                self._cast(seat.member.abort_vote())
                seat.keep(seat.member.record)
        spent = any(seat.durable for seat in self.seats)
        return Outcome.ABORTED if self.collector.abort_certificate or not spent else Outcome.UNCERTIFIED

    def _unmask(self) -> Outcome:
        quorum = self.collector.quorum
        demand(quorum is not None, "a survivor set whose members come back gets its quorum")
        assert quorum is not None
        for i, seat in self._there("unmask"):
            self.collector.on_unmask(self._told(seat, seat.member.on_quorum(quorum)))
            seat.revealed = i in self.collector.u3
            outcome = self._try_to_finish() if self.collector.ready_to_unmask else None
            if outcome is not None:
                return self._blame() if outcome is Outcome.SPOILED else outcome
        return Outcome.SHORT

    def _told(self, seat: Seat, answer: Unmask) -> Unmask:
        shares, size = bytearray(answer.shares), len(answer.shares)
        if seat.lies == "all":
            shares[:] = self._random.randbytes(size)
        elif seat.lies == "one":
            at = SHARE_BYTES * self._random.randrange(size // SHARE_BYTES)
            shares[at] ^= 1 + self._random.randrange(255)
        return replace(answer, shares=bytes(shares))

    def _try_to_finish(self) -> Outcome | None:
        total = bytearray(self._total)
        try:
            self.collector.finish(total)
        except RuleError as error:
            if error.code is Code.SPOILED_SUM:
                return Outcome.SPOILED
            demand(error.code is Code.BAD_SHARES, f"{error} is no answer to shares enough")
            demand(total == self._total, "shares that give no secret change nothing")
            self._retries += 1
            return None
        return Outcome.SUMMED

    def _blame(self) -> Outcome:
        quorum, blame = self.collector.quorum, self.collector.blame
        assert quorum is not None and blame is not None
        for i, seat in self._there("unmask"):
            if i not in self.collector.u3:
                continue
            seat.revealed or seat.member.on_quorum(quorum)
            self.collector.on_canaries(seat.member.on_blame(blame))
        return Outcome.SPOILED

    # --- what was promised --------------------------------------------------------------------------------------------

    def _check_sum(self) -> None:
        result, survivors = self.collector.result, [self.seats[i] for i in self.collector.u3]
        assert result is not None
        exact = np.sum([seat.update for seat in survivors], axis=0)
        demand(np.array_equal(result.values, exact), "a completed window's sum is exact")
        demand(result.weight_sum == sum(seat.weight for seat in survivors), "so is the sum of its weights")
        demand(result.count == len(survivors) >= self.collector.s_min, "and it counts its survivors")

    def _check_verdicts(self, played: Played) -> None:
        """What each device concludes, from its disk and the certificate alone, is what happened to its update."""
        certificate = self.collector.quorum or self.collector.abort_certificate
        for i, seat in enumerate(self.seats):
            if seat.record is None or not seat.record.tau1:
                played.untouched.append(i)  # no byte of it was masked
            elif certificate is None:
                played.unresolved.append(i)
            else:
                self._judge(played, i, verify_certificate(seat.record, certificate), certificate)

    def _judge(self, played: Played, i: int, verdict: Verdict, certificate: Quorum) -> None:
        spent = self.collector.quorum is not None and i in self.collector.u3
        demand((verdict is Verdict.SPENT) == spent, "an update is spent where it may be in a sum and freed where not")
        summed = played.outcome is Outcome.SUMMED
        (played.freed if not spent else played.counted if summed else played.lost).append(i)

    def _check_faults(self, played: Played) -> None:
        bad = {i for i, seat in enumerate(self.seats) if seat.lies or seat.garbage}
        for fault in played.faults:
            demand(bool(bad & set(fault.members)), f"no honest member is blamed: {fault}")
        if played.outcome is Outcome.SPOILED:
            told = {i for i in self.collector.told if self.seats[i].garbage}
            named = {fault.members[0] for fault in played.faults if fault.kind is FaultKind.VECTOR}
            demand(named == told, f"who sent garbage and tells its masks is named: {told}, not {named}")
            present = any(self.seats[i].garbage for i in self.collector.u3)
            demand(present, "only garbage spoils a sum")
