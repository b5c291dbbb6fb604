"""Every check that a member makes on what the server sends it, in the order of the phases (masking protocol, section 1.5).

Here belong the conditions, each with the error number of the rule that it guards; a client that leaves one out gives up
what that rule protects. Nothing here changes anything. What an accepted message causes belongs in `member.py`, what a
vote or a certificate means for the update in `spent.py`. The server uses the checks of single entries too: one bad
entry stops every client.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from whimbrel_protocol.errors import Code, ProtocolError, RuleError
from whimbrel_protocol.masks import CIPHERTEXT_BYTES
from whimbrel_protocol.messages import U2, Open, Quorum, Survivors, VoteKind
from whimbrel_protocol.objects import JoinEntry, Params, VectorSpec
from whimbrel_protocol.primitives import SIGNATURE_BYTES, verify
from whimbrel_protocol.rules import corrupt, graph_holds, members_of, survivor_floor, threshold
from whimbrel_protocol.signed import Policy
from whimbrel_protocol.transcript import NO_TAU1, Cohort, vote_body
from whimbrel_protocol.trust import SKEW_S, dates_hold, demand, issued_by_authority


@dataclass(frozen=True)
class Terms:
    """What an entry is held against; `skew_s` is the tolerance for dates, negative to demand more than validity now."""

    fleet: bytes
    lane: bytes
    policy: Policy
    root: bytes
    now: int
    skew_s: int = SKEW_S


EntryCheck = Callable[[JoinEntry, Terms], bool]

ENTRY_CHECKS: tuple[tuple[Code, EntryCheck], ...] = (
    (Code.ENTRY_FLEET, lambda e, t: e.fleet == e.certificate.fleet == t.fleet),
    (Code.ENTRY_DEVICE, lambda e, t: e.device == e.certificate.device),
    (Code.ENTRY_LANE, lambda e, t: e.lane == t.lane),
    (Code.ENTRY_CERTIFICATE_DATES, lambda e, t: dates_hold(e.certificate, t.now, t.skew_s)),
    (Code.ENTRY_EXPIRED, lambda e, t: t.now <= e.expires + max(t.skew_s, 0)),
    (Code.ENTRY_EPOCH, lambda e, t: e.certificate.epoch >= t.policy.min_epoch),
    (Code.ENTRY_CERTIFICATE, lambda e, t: issued_by_authority(e.certificate, t.root, t.policy)),
    (Code.ENTRY_SIGNATURE, lambda e, t: e.signed_by_certificate()),
)


@dataclass(frozen=True)
class Opening:
    """An OPEN, decoded, beside what the member knows by itself."""

    params: Params
    entries: tuple[JoinEntry, ...]
    roster: tuple[bytes, ...]
    terms: Terms
    spec: VectorSpec
    own_entry: bytes
    newest_policy_serial: int

    @property
    def c(self) -> int:
        """The corrupt members that the policy, never the server, says to expect."""
        return corrupt(self.params.n, self.terms.policy.gamma_milli)


ParamsCheck = Callable[[Opening, Params, Policy], bool]

# o: the opening, p: its parameters, q: the policy that the member joined under.
PARAMS_CHECKS: tuple[tuple[Code, ParamsCheck], ...] = (
    (Code.OPEN_FLEET, lambda o, p, q: p.fleet == o.terms.fleet),
    (Code.OPEN_LANE, lambda o, p, q: p.lane == o.terms.lane),
    (Code.OPEN_POLICY_NEWER, lambda o, p, q: o.newest_policy_serial <= q.serial),
    (Code.OPEN_COUNT, lambda o, p, q: p.n == len(o.roster)),
    (Code.OPEN_TOO_SMALL, lambda o, p, q: p.n >= q.n_min),
    (Code.OPEN_TOO_LARGE, lambda o, p, q: p.n <= min(q.n_max, o.spec.n_max)),
    (Code.OPEN_CORRUPT_COUNT, lambda o, p, q: p.c == o.c),
    (Code.OPEN_THRESHOLD_LOW, lambda o, p, q: p.t >= threshold(p.n, o.c)),
    (Code.OPEN_THRESHOLD_HIGH, lambda o, p, q: p.t <= p.n),
    (Code.OPEN_FLOOR_LOW, lambda o, p, q: p.s_min >= survivor_floor(p.t, q.n_min)),
    (Code.OPEN_FLOOR_HIGH, lambda o, p, q: p.s_min <= p.n),
    (Code.OPEN_GRAPH_SPARSE, lambda o, p, q: graph_holds(p.p32, p.s_min - o.c, q.sigma)),
)

Ordered = TypeVar("Ordered", bytes, int)

RosterCheck = Callable[[Opening], bool]

ROSTER_CHECKS: tuple[tuple[Code, RosterCheck], ...] = (
    (Code.ROSTER_ORDER, lambda o: _ascends_strictly([entry.device for entry in o.entries])),
    (Code.ROSTER_KEYS, lambda o: all_distinct(window_keys(o.entries))),
    (Code.ROSTER_OWN_ENTRY, lambda o: o.own_entry in o.roster),
)


def _ascends_strictly(items: Sequence[Ordered]) -> bool:
    return all(a < b for a, b in pairwise(items))


def all_distinct(keys: Sequence[bytes]) -> bool:
    """Whether no two keys are equal as bytes."""
    return len(set(keys)) == len(keys)


def window_keys(entries: Sequence[JoinEntry]) -> list[bytes]:
    """The 2n public keys of a roster."""
    return [key for entry in entries for key in (entry.mask_key, entry.channel_key)]


def read_open(message: Open) -> tuple[Params, tuple[JoinEntry, ...]]:
    """The parameters and entries of an OPEN. Raises RuleError OPEN_MALFORMED: a wrong length or magic."""
    try:
        return Params.decode(message.params), tuple(JoinEntry.decode(entry) for entry in message.roster)
    except ProtocolError as reason:
        raise RuleError(Code.OPEN_MALFORMED, str(reason)) from None


def check_open(opening: Opening) -> None:
    """The checks of OPEN but for low-order keys, which the key agreement finds. Raises RuleError, the first that fails."""
    for code, params_hold in PARAMS_CHECKS:
        demand(params_hold(opening, opening.params, opening.terms.policy), code)
    for index, entry in enumerate(opening.entries):
        check_entry_terms(entry, opening.terms, f"entry {index}")
    for code, roster_holds in ROSTER_CHECKS:
        demand(roster_holds(opening), code)


def check_entry_terms(entry: JoinEntry, terms: Terms, name: str) -> None:
    """The checks of one entry. Raises RuleError, the first that fails."""
    for code, holds in ENTRY_CHECKS:
        demand(holds(entry, terms), code, f"{code.title} ({name})")


# --- U2 ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dealing:
    """A U2, decoded, for member `i` of a window with the survivor floor `s_min`; `held`: whose shares are at hand."""

    i: int
    s_min: int
    u2: Collection[int]
    held: Collection[int] = ()

    def __str__(self) -> str:
        return f"{len(self.u2)} members, {len(self.held)} shares at hand, the floor is {self.s_min}"


U2_CHECKS: tuple[tuple[Code, Callable[[Dealing], bool]], ...] = (
    (Code.U2_WITHOUT_SELF, lambda d: d.i in d.u2),
    (Code.U2_TOO_SMALL, lambda d: len(d.u2) >= d.s_min),
)

# After the ciphertexts were opened. It proves s_min live members that hold keys of this window.
SHARES_CHECKS: tuple[tuple[Code, Callable[[Dealing], bool]], ...] = (
    (Code.U2_SHARES_MISSING, lambda d: len(d.held) >= d.s_min),
)


def check_u2(message: U2, n: int, i: int, s_min: int) -> tuple[int, ...]:
    """The members of U2, ascending, for member `i`. Raises RuleError, the first check that fails."""
    u2 = _members(message.bitmap, n, Code.U2_MALFORMED)
    check_all(U2_CHECKS, Dealing(i, s_min, u2))
    demand(len(message.cts) == CIPHERTEXT_BYTES * (len(u2) - 1), Code.U2_MALFORMED, "size of the ciphertexts")
    return u2


# --- SURVIVORS --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Survival:
    """A survivor set, decoded, for a member that masked with `u2`; `signed(j)`: member j's signature over that U2 is shown.

    Each survivor must show it: a server that told somebody another U2, or names members whose keys were revealed
    elsewhere, has none.
    """

    s_min: int
    u2: Collection[int]
    u3: Collection[int]
    signed: Callable[[int], bool]

    def __str__(self) -> str:
        unsigned = [j for j in self.u3 if not self.signed(j)]
        return f"{len(self.u3)} members, the floor is {self.s_min}; without a signature over this U2: {unsigned}"


SURVIVORS_CHECKS: tuple[tuple[Code, Callable[[Survival], bool]], ...] = (
    (Code.SURVIVORS_NOT_IN_U2, lambda s: set(s.u3) <= set(s.u2)),
    (Code.SURVIVORS_TOO_FEW, lambda s: len(s.u3) >= s.s_min),
    (Code.SURVIVORS_SIGNATURE, lambda s: all(s.signed(j) for j in s.u3)),
)


def check_survivors(message: Survivors, cohort: Cohort, tau1: bytes, u2: bytes) -> tuple[int, ...]:
    """The survivors, ascending, for a member that masked under `tau1` with the bitmap `u2`.

    Raises RuleError, the first check that fails.
    """
    u3 = _members(message.bitmap, cohort.n, Code.SURVIVORS_MALFORMED)
    shown = dict(zip(u3, _signatures(message.msigs, len(u3), Code.SURVIVORS_MALFORMED), strict=True))

    def signed(j: int) -> bool:
        return verify("masked", cohort.keys[j], tau1, shown[j])

    check_all(SURVIVORS_CHECKS, Survival(cohort.s_min, members_of(u2, cohort.n), u3, signed))
    return u3


# --- certificates: QUORUM, and what frees an update -------------------------------------------------------------------


@dataclass(frozen=True)
class Proof:
    """The votes of a certificate on one body; `signed(j)`: the vote shown for member j is that member's."""

    n: int
    t: int
    voters: Sequence[int]
    signed: Callable[[int], bool]

    def __str__(self) -> str:
        return f"votes of {list(self.voters)} among {self.n} members, the threshold is {self.t}"


CERTIFICATE_CHECKS: tuple[tuple[Code, Callable[[Proof], bool]], ...] = (
    (Code.QUORUM_TOO_FEW, lambda p: len(p.voters) >= p.t),
    (Code.QUORUM_INDICES, lambda p: _ascends_strictly(p.voters) and all(0 <= j < p.n for j in p.voters)),
    (Code.QUORUM_SIGNATURE, lambda p: all(p.signed(j) for j in p.voters)),
)


def check_certificate(message: Quorum, cohort: Cohort) -> None:
    """Demand t valid votes on one body, be it commit or abort. Raises RuleError, the first check that fails."""
    if message.kind == VoteKind.ABORT:
        demand(message.tau1 == NO_TAU1 and message.u3 == b"", Code.QUORUM_MALFORMED, "an abort names no survivors")
    else:
        _members(message.u3, cohort.n, Code.QUORUM_MALFORMED)
    signatures = _signatures(message.sigs, len(message.idx), Code.QUORUM_MALFORMED)
    body = vote_body(cohort.tau0, message.kind, message.tau1, message.u3)
    shown = dict(zip(message.idx, signatures, strict=True))

    def signed(j: int) -> bool:
        return verify("vote", cohort.keys[j], body, shown[j])

    check_all(CERTIFICATE_CHECKS, Proof(cohort.n, cohort.t, message.idx, signed))


# --- BLAME --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accusation:
    """A BLAME for a member that masked under `tau1`; `survived`: whether its vector is in the sum."""

    tau1: bytes
    asked: bytes
    survived: bool

    def __str__(self) -> str:
        return "in the sum" if self.survived else "not in the sum"


# That this member revealed its shares before, and was not asked yet, is the state table's. What is told follows from the
# member's own spec and masks: the server has no word in it, or it could ask for the masks of the update itself.
BLAME_CHECKS: tuple[tuple[Code, Callable[[Accusation], bool]], ...] = (
    (Code.BLAME_OTHER_WINDOW, lambda a: a.asked == a.tau1),
    (Code.BLAME_NOT_SURVIVED, lambda a: a.survived),
)


# --- what the phases share --------------------------------------------------------------------------------------------

Subject = TypeVar("Subject")


def check_all(checks: Sequence[tuple[Code, Callable[[Subject], bool]]], subject: Subject) -> None:
    """Raise RuleError with the code of the first check that does not hold, and the subject's numbers."""
    for code, holds in checks:
        if not holds(subject):
            raise RuleError(code, str(subject))


def _signatures(data: bytes, count: int, malformed: Code) -> list[bytes]:
    demand(len(data) == SIGNATURE_BYTES * count, malformed, f"{count} signatures are needed, not {len(data)} bytes")
    return [data[at : at + SIGNATURE_BYTES] for at in range(0, len(data), SIGNATURE_BYTES)]


def _members(bits: bytes, n: int, malformed: Code) -> tuple[int, ...]:
    try:
        return members_of(bits, n)
    except ProtocolError as reason:
        raise RuleError(malformed, reason.detail) from None
