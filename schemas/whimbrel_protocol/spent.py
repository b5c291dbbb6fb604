"""What a member must keep of a window once its update is spent, and what may free the update again.

Here belongs the record that is durable from before the first masked byte on, so that a restarted device, which has no
keys any more, can still cast its one vote and judge a certificate (masking protocol, section 1.5). Storing it is the
caller's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Self

from whimbrel_protocol.checks import check_certificate, check_survivors
from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.messages import Quorum, Survivors, Vote, VoteKind
from whimbrel_protocol.primitives import SigningKey
from whimbrel_protocol.rules import members_of
from whimbrel_protocol.transcript import Cohort, vote_body


class Verdict(Enum):
    """What a certificate says of the member's update."""

    FREED = "freed"
    SPENT = "spent"


@dataclass(frozen=True)
class SpentRecord:
    """Member `i` of a cohort, the U2 that it masked with (empty before U2), and its one vote if it was cast.

    `u3` is the survivor bitmap of a commit vote. The caller keeps the record before the next thing leaves the device:
    with the mark "spent" before it asks for the masked vector, and again before it sends a vote.
    """

    cohort: Cohort
    i: int
    tau1: bytes = b""
    u2: bytes = b""
    vote: Vote | None = None
    u3: bytes = b""

    @property
    def ballot(self) -> Vote:
        """The vote that was cast. Raises RuleError OUT_OF_TURN before."""
        if self.vote is None:
            raise RuleError(Code.OUT_OF_TURN, "no vote was cast")
        return self.vote

    def commit(self, key: SigningKey, message: Survivors) -> Self:
        """The record with a vote for these survivors, checked.

        The same survivors again give the same record. Raises RuleError VOTED_BEFORE after another vote, OUT_OF_TURN
        before U2, or what `check_survivors` finds.
        """
        if self.vote is not None and self.vote.kind is VoteKind.COMMIT and self.u3 == message.bitmap:
            return self
        self._demand_no_vote()
        if not self.u2:
            raise RuleError(Code.OUT_OF_TURN, "no commit before U2")
        check_survivors(message, self.cohort, self.tau1, self.u2)
        body = vote_body(self.cohort.tau0, VoteKind.COMMIT, self.tau1, message.bitmap)
        return replace(self, vote=Vote(self.i, VoteKind.COMMIT, key.sign("vote", body)), u3=message.bitmap)

    def abort(self, key: SigningKey) -> Self:
        """The record with a vote for an abort; again, the same. Raises RuleError VOTED_BEFORE after a commit."""
        if self.vote is not None and self.vote.kind is VoteKind.ABORT:
            return self
        self._demand_no_vote()
        body = vote_body(self.cohort.tau0, VoteKind.ABORT)
        return replace(self, vote=Vote(self.i, VoteKind.ABORT, key.sign("vote", body)))

    def _demand_no_vote(self) -> None:
        if self.vote is not None:
            raise RuleError(Code.VOTED_BEFORE, f"member {self.i} voted {self.vote.kind.name.lower()}")

    def encode(self) -> dict[str, Any]:
        """The record as plain JSON values, byte strings in hexadecimal."""
        cohort = self.cohort
        vote = None if self.vote is None else {"kind": int(self.vote.kind), "sig": self.vote.sig.hex()}
        return {
            "tau0": cohort.tau0.hex(),
            "n": cohort.n,
            "t": cohort.t,
            "s_min": cohort.s_min,
            "keys": [key.hex() for key in cohort.keys],
            "i": self.i,
            "tau1": self.tau1.hex(),
            "u2": self.u2.hex(),
            "vote": vote,
            "u3": self.u3.hex(),
        }

    @classmethod
    def decode(cls, data: Mapping[str, Any]) -> Self:
        """The record of `encode`. Raises KeyError, TypeError or ValueError for anything else."""
        keys = tuple(bytes.fromhex(key) for key in data["keys"])
        cohort = Cohort(bytes.fromhex(data["tau0"]), data["n"], data["t"], data["s_min"], keys)
        cast, i = data["vote"], data["i"]
        vote = None if cast is None else Vote(i, VoteKind(cast["kind"]), bytes.fromhex(cast["sig"]))
        tau1, u2, u3 = (bytes.fromhex(data[name]) for name in ("tau1", "u2", "u3"))
        return cls(cohort, i, tau1, u2, vote, u3)


def verify_certificate(record: SpentRecord, certificate: Quorum) -> Verdict:
    """What a certificate of the record's window means for its update.

    t abort votes free it; so do t commit votes on one body of the window, under any tau1, whose survivors leave it out.
    A commit with it spends it for good. Raises RuleError where the certificate proves nothing.
    """
    check_certificate(certificate, record.cohort)
    abort = certificate.kind is VoteKind.ABORT
    return verdict(certificate.kind, record.i, () if abort else members_of(certificate.u3, record.cohort.n))


def verdict(kind: VoteKind, i: int, u3: Collection[int]) -> Verdict:
    """What a proven certificate with the survivors `u3` says of member `i`'s update."""
    return Verdict.SPENT if kind is VoteKind.COMMIT and i in u3 else Verdict.FREED
