"""Rules that are left out on purpose, one at a time: the model must find what each protects.

Here belong the nine mutants that the masking protocol names (section 8) and further ones for the other checks that it calls
needed for privacy. A mutant differs from the product by the row or the entry that is named here and by nothing else.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from tests.model.search import Found, explore, shortened
from tests.model.window_model import Checks, Rules
from whimbrel_protocol.checks import CERTIFICATE_CHECKS, PARAMS_CHECKS, SURVIVORS_CHECKS, Opening
from whimbrel_protocol.errors import Code
from whimbrel_protocol.rules import threshold
from whimbrel_protocol.spent import Verdict
from whimbrel_protocol.window import MEMBER, MemberEvent, MemberState

PRODUCT = Rules()


class Mutant(NamedTuple):
    """Rules with one left out, the invariants that it protects, and a window in which its loss shows."""

    rules: Rules
    breaks: tuple[str, ...]
    n: int = 4
    corrupt: int = 1

    def caught(self) -> dict[str, Found]:
        """For each of those invariants that the adversary can break a run in which it does, without needless moves."""
        found = explore(self.n, self.corrupt, self.rules, until=self.breaks).found
        return {name: shortened(found[name], self.rules) for name in self.breaks if name in found}


def without(checks: Checks, *codes: Code) -> Checks:
    """The checks but for those with these numbers, which must be there."""
    assert set(codes) <= {code for code, _ in checks}
    return tuple((code, holds) for code, holds in checks if code not in codes)


def instead(checks: Checks, code: Code, weaker: Any) -> Checks:
    """The checks with a weaker one in one row."""
    return (*without(checks, code), (code, weaker))


def taking(*rows: tuple[MemberState, MemberEvent, MemberState]) -> Any:
    """The members' table with further rows."""
    added = {(state, event): after for state, event, after in rows}
    assert not added.keys() & MEMBER.keys()
    return {**MEMBER, **added}


class ServersCount(Opening):
    """An OPEN whose c is believed."""

    @property
    def c(self) -> int:
        return self.params.c


S, E = MemberState, MemberEvent

NAMED: dict[str, Mutant] = {
    "t lowered by one": Mutant(
        replace(
            PRODUCT, params=instead(PARAMS_CHECKS, Code.OPEN_THRESHOLD_LOW, lambda o, p, q: p.t >= threshold(p.n, o.c) - 1)
        ),
        breaks=("I1",),
    ),
    "s_min = 1": Mutant(
        replace(PRODUCT, params=instead(PARAMS_CHECKS, Code.OPEN_FLOOR_LOW, lambda o, p, q: p.s_min >= 1)), breaks=("I5",)
    ),
    "no quorum check": Mutant(replace(PRODUCT, release=()), breaks=("I2",)),
    "two votes": Mutant(
        replace(PRODUCT, table=taking((S.COMMITTED, E.SURVIVORS, S.COMMITTED), (S.COMMITTED, E.ABORT, S.COMMITTED))),
        breaks=("I2",),
    ),
    "free on the server's word": Mutant(replace(PRODUCT, freeing=()), breaks=("I3",)),
    "no msig check": Mutant(
        replace(PRODUCT, survivors=without(SURVIVORS_CHECKS, Code.SURVIVORS_SIGNATURE)), breaks=("I6", "alone")
    ),
    "msig without tau1": Mutant(replace(PRODUCT, signs=lambda tau1: 0), breaks=("I6", "alone")),
    "second U2 accepted": Mutant(replace(PRODUCT, table=taking((S.MASKING, E.U2, S.MASKING))), breaks=("I6", "alone")),
    # With four members the threshold does not depend on whether c is 0 or 1.
    "c taken from the server": Mutant(replace(PRODUCT, opening=ServersCount), breaks=("I1",), n=5),
}


def proof_without(code: Code) -> Checks:
    """The checks of certificates but for one."""
    return without(CERTIFICATE_CHECKS, code)


FURTHER: dict[str, Mutant] = {
    "second OPEN accepted": Mutant(replace(PRODUCT, table=taking((S.SHARED, E.OPEN, S.SHARED))), breaks=("I6", "alone")),
    "survivors under the floor": Mutant(
        replace(PRODUCT, survivors=without(SURVIVORS_CHECKS, Code.SURVIVORS_TOO_FEW)), breaks=("I5",)
    ),
    "votes after an abort": Mutant(replace(PRODUCT, table=taking((S.ABORTED, E.SURVIVORS, S.COMMITTED))), breaks=("I4",)),
    "masks after an abort": Mutant(replace(PRODUCT, table=taking((S.ABORTED, E.U2, S.MASKING))), breaks=("I3",)),
    "quorum of too few votes": Mutant(replace(PRODUCT, release=proof_without(Code.QUORUM_TOO_FEW)), breaks=("I2",)),
    "quorum of repeated members": Mutant(replace(PRODUCT, release=proof_without(Code.QUORUM_INDICES)), breaks=("I2",)),
    "quorum of forged votes": Mutant(replace(PRODUCT, release=proof_without(Code.QUORUM_SIGNATURE)), breaks=("I2",)),
    "quorum for another body": Mutant(replace(PRODUCT, own_body=False), breaks=("I2",)),
    "freed by too few votes": Mutant(replace(PRODUCT, freeing=proof_without(Code.QUORUM_TOO_FEW)), breaks=("I3",)),
    "freed by repeated members": Mutant(replace(PRODUCT, freeing=proof_without(Code.QUORUM_INDICES)), breaks=("I3",)),
    "freed by forged votes": Mutant(replace(PRODUCT, freeing=proof_without(Code.QUORUM_SIGNATURE)), breaks=("I3",)),
    "freed by survivors that include it": Mutant(replace(PRODUCT, verdict=lambda kind, i, u3: Verdict.FREED), breaks=("I3",)),
}
