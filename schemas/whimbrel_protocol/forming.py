"""How a window comes to be on the server: which entries are admitted, which make the roster, and by which numbers.

Here belongs all that happens before OPEN. What a member demands of an OPEN belongs in `checks.py`, the window itself in
`collector.py`; when to form one is the engine's decision.
"""

from __future__ import annotations

from collections.abc import Iterable

from whimbrel_protocol.checks import Terms, all_distinct, check_entry_terms, window_keys
from whimbrel_protocol.errors import Code
from whimbrel_protocol.objects import JoinEntry, Params
from whimbrel_protocol.primitives import exchange, in_prime_subgroup
from whimbrel_protocol.rules import corrupt, smallest_p32, survivor_floor, threshold
from whimbrel_protocol.signed import Policy
from whimbrel_protocol.trust import SKEW_S, demand

# A server admits an entry with this much of its life left, and none that outlives the rendezvous by more (seconds).
ENTRY_LEAST_LIFE_S = 60
ENTRY_LIFE_S = 15 * 60

# Any scalar shows a low-order point: clamping makes it a multiple of the cofactor.
_PROBE = bytes(31) + b"\x40"


def check_entry(
    data: bytes, fleet: bytes, lane: bytes, policy: Policy, root: bytes, now: int, rendezvous: int | None = None
) -> JoinEntry:
    """What a server demands of an entry at JOIN: all that its peers will, with no tolerance and some life left.

    Certificates must be valid from ten minutes ago to ten minutes ahead, so that no peer's clock refuses them; the
    entry lives at least a minute and at most 15 minutes past `rendezvous` (by default: now). Raises WireError or
    RuleError.
    """
    entry = JoinEntry.decode(data)
    check_entry_terms(entry, Terms(fleet, lane, policy, root, now, -SKEW_S), "at JOIN")
    opens = now if rendezvous is None else rendezvous
    demand(opens + ENTRY_LEAST_LIFE_S <= entry.expires <= opens + ENTRY_LIFE_S, Code.ENTRY_SHORT_LIVED)
    demand(opens + SKEW_S <= entry.certificate.not_after, Code.ENTRY_CERTIFICATE_DATES)
    # An issuer that certified a mixed-order key must not stop every client whose library is stricter than this one.
    demand(in_prime_subgroup(entry.certificate.public_key), Code.WEAK_KEY)
    demand(all_distinct(window_keys([entry])), Code.ROSTER_KEYS)
    for key in window_keys([entry]):
        exchange(_PROBE, key)
    return entry


def choose_roster(entries: Iterable[bytes]) -> tuple[bytes, ...]:
    """The roster of entries in order of arrival: each device's of the highest seq, ascending by device.

    An entry with a window key that an earlier one has is left out: every member would refuse the roster.
    """
    newest: dict[bytes, JoinEntry] = {}
    for entry in map(JoinEntry.decode, entries):
        known = newest.get(entry.device)
        if known is None or entry.seq > known.seq:
            newest[entry.device] = entry
    chosen, seen = [], set[bytes]()
    for entry in newest.values():
        keys = set(window_keys([entry]))
        if len(keys) == 2 and not keys & seen:
            chosen.append(entry)
            seen |= keys
    return tuple(entry.encode() for entry in sorted(chosen, key=lambda entry: entry.device))


def window_params(n: int, lane: bytes, policy: Policy, window_id: int) -> Params:
    """What the policy's formulas give for `n` members (masking protocol, section 1.8)."""
    c = corrupt(n, policy.gamma_milli)
    t = threshold(n, c)
    s_min = survivor_floor(t, policy.n_min)
    return Params(policy.fleet, lane, n, t, s_min, c, smallest_p32(s_min - c, policy.sigma), window_id)
