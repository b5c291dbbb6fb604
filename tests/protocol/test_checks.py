"""A hostile server: each check of a member is attacked alone, and the answer is its number and silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.protocol import world
from tests.protocol.world import AUTHORITY, FLEET, LANE, NOW, Window, certificate, identity, join, resigned, secret
from whimbrel_protocol.checks import ENTRY_CHECKS, PARAMS_CHECKS, ROSTER_CHECKS
from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.member import Member
from whimbrel_protocol.messages import U2, Done, Open, Quorum, Survivors, VoteKind
from whimbrel_protocol.objects import JoinEntry, Params
from whimbrel_protocol.primitives import SigningKey
from whimbrel_protocol.rules import bitmap
from whimbrel_protocol.spent import SpentRecord, Verdict, verify_certificate
from whimbrel_protocol.window import Discarded, MemberState

N, VICTIM, OTHER = 7, 2, 4
STRANGER = SigningKey(secret("stranger"))


def scene() -> Window:
    return Window(N)


def refuses(code: Code, act: Callable[[], object]) -> None:
    with pytest.raises(RuleError) as refused:
        act()
    assert refused.value.code is code


def is_silenced(member: Member) -> None:
    """The member left the window: it answers nothing, not even what would have been right."""
    assert member.state is MemberState.ENDED
    refuses(Code.WINDOW_ENDED, lambda: member.mask(bytes(8 * world.SPEC.words)))
    refuses(Code.WINDOW_ENDED, lambda: member.on_survivors(Survivors(b"\x7f", b"")))


# --- OPEN -------------------------------------------------------------------------------------------------------------

Attack = Callable[[Window], Open]


def params(**changes: Any) -> Attack:
    """OPEN with other parameters."""

    def attack(window: Window) -> Open:
        return Open(replace(window.collector.params, **changes).encode(), window.collector.open.roster)

    return attack


def entry(at: int = OTHER, signer: SigningKey | None = None, **changes: Any) -> Attack:
    """OPEN with another entry at one place: fields changed, signed by its device or by `signer`."""

    def attack(window: Window) -> Open:
        honest = JoinEntry.decode(window.collector.open.roster[at])
        return in_roster(window, at, resigned(honest, signer or window.identities[at].key, **changes).encode())

    return attack


def certified(signer: SigningKey = AUTHORITY, **changes: Any) -> Attack:
    """OPEN with an entry whose certificate was changed and signed by `signer`."""

    def attack(window: Window) -> Open:
        honest = JoinEntry.decode(window.collector.open.roster[OTHER]).certificate
        return entry(certificate=resigned(honest, signer, **changes))(window)

    return attack


def in_roster(window: Window, at: int, data: bytes) -> Open:
    roster = list(window.collector.open.roster)
    roster[at] = data
    return Open(window.collector.open.params, tuple(roster))


def roster(change: Callable[[tuple[bytes, ...]], tuple[bytes, ...]]) -> Attack:
    """OPEN with another roster."""
    return lambda window: Open(window.collector.open.params, change(window.collector.open.roster))


def small_open(window: Window) -> Open:
    """A cohort below the policy's floor, right in all else."""
    kept = tuple(data for i, data in enumerate(window.collector.open.roster) if i in (0, VICTIM, OTHER))
    return Open(Params(FLEET, LANE, 3, 2, 4, 0, 2**32 - 1, 1).encode(), kept)


def large_open(window: Window) -> Open:
    """A cohort above the spec's n_max, right in all else."""
    crowd = [join(identity(k), window.rules).entry for k in range(100, 164)] + [window.members[VICTIM].entry]
    by_device = sorted(crowd, key=lambda data: JoinEntry.decode(data).device)
    return Open(Params(FLEET, LANE, 65, 40, 40, 13, 2**32 - 1, 1).encode(), tuple(by_device))


T = 5  # of seven members, one corrupt: floor((7 + 1) / 2) + 1

OPEN_ATTACKS: list[tuple[str, Code, Attack]] = [
    ("params cut", Code.OPEN_MALFORMED, lambda w: Open(w.collector.open.params[:-1], w.collector.open.roster)),
    ("params magic", Code.OPEN_MALFORMED, lambda w: Open(b"M" * 72, w.collector.open.roster)),
    ("entry cut", Code.OPEN_MALFORMED, roster(lambda r: (*r[:-1], r[-1][:-1]))),
    ("entry magic", Code.OPEN_MALFORMED, roster(lambda r: (*r[:-1], r[-1][:172] + b"X" + r[-1][173:]))),
    ("certificate magic", Code.OPEN_MALFORMED, roster(lambda r: (*r[:-1], b"X" + r[-1][1:]))),
    ("other fleet", Code.OPEN_FLEET, params(fleet=bytes(16))),
    ("other lane", Code.OPEN_LANE, params(lane=bytes(32))),
    ("n too high", Code.OPEN_COUNT, params(n=N + 1)),
    ("an entry left out", Code.OPEN_COUNT, roster(lambda r: r[:-1])),
    ("small cohort", Code.OPEN_TOO_SMALL, small_open),
    ("large cohort", Code.OPEN_TOO_LARGE, large_open),
    ("c of the server", Code.OPEN_CORRUPT_COUNT, params(c=0)),
    ("c too high", Code.OPEN_CORRUPT_COUNT, params(c=2)),
    ("t too low", Code.OPEN_THRESHOLD_LOW, params(t=T - 1)),
    ("t above n", Code.OPEN_THRESHOLD_HIGH, params(t=N + 1, s_min=N + 1)),
    ("floor below t", Code.OPEN_FLOOR_LOW, params(s_min=T - 1)),
    ("floor above n", Code.OPEN_FLOOR_HIGH, params(s_min=N + 1)),
    ("sparse graph", Code.OPEN_GRAPH_SPARSE, params(p32=2**31)),
    ("no graph", Code.OPEN_GRAPH_SPARSE, params(p32=0)),
    ("entry of another fleet", Code.ENTRY_FLEET, entry(fleet=bytes(16))),
    ("certificate of another fleet", Code.ENTRY_FLEET, certified(fleet=bytes(16))),
    ("entry of another device", Code.ENTRY_DEVICE, entry(device=bytes(16))),
    ("entry of another lane", Code.ENTRY_LANE, entry(lane=bytes(32))),
    ("certificate not yet valid", Code.ENTRY_CERTIFICATE_DATES, certified(not_before=NOW + 601)),
    ("certificate over", Code.ENTRY_CERTIFICATE_DATES, certified(not_after=NOW - 601)),
    ("entry over", Code.ENTRY_EXPIRED, entry(expires=NOW - 601)),
    ("certificate revoked", Code.ENTRY_EPOCH, certified(epoch=2)),
    ("certificate forged", Code.ENTRY_CERTIFICATE, certified(STRANGER)),
    ("certificate by a stranger", Code.ENTRY_CERTIFICATE, certified(STRANGER, issuer=STRANGER.public[:8])),
    ("entry by another key", Code.ENTRY_SIGNATURE, entry(signer=STRANGER)),
    ("ids descend", Code.ROSTER_ORDER, roster(lambda r: (r[1], r[0], *r[2:]))),
    ("an entry twice", Code.ROSTER_ORDER, roster(lambda r: (r[0], r[0], *r[2:]))),
    ("a mask key twice", Code.ROSTER_KEYS, lambda w: entry(mask_key=_entry(w, 0).mask_key)(w)),
    ("a mask key as channel key", Code.ROSTER_KEYS, lambda w: entry(channel_key=_entry(w, OTHER).mask_key)(w)),
    ("own entry changed", Code.ROSTER_OWN_ENTRY, entry(VICTIM, nonce=bytes(16))),
    ("own keys replaced", Code.ROSTER_OWN_ENTRY, entry(VICTIM, mask_key=b"k" * 32)),
    ("low-order mask key", Code.LOW_ORDER_KEY, entry(mask_key=bytes(32))),
    ("low-order channel key", Code.LOW_ORDER_KEY, entry(channel_key=(1).to_bytes(32, "little"))),
]  # fmt: skip


def _entry(window: Window, at: int) -> JoinEntry:
    return JoinEntry.decode(window.collector.open.roster[at])


@pytest.mark.parametrize(("code", "attack"), [row[1:] for row in OPEN_ATTACKS], ids=[row[0] for row in OPEN_ATTACKS])
def test_a_wrong_opening_is_refused_and_ends_the_window(code: Code, attack: Attack) -> None:
    window = scene()
    member, message = window.members[VICTIM], attack(window)
    refuses(code, lambda: member.on_open(message, NOW, window.rules))
    is_silenced(member)
    refuses(Code.WINDOW_ENDED, lambda: member.on_open(window.collector.open, NOW, window.rules))


def test_an_opening_is_refused_once_a_newer_policy_is_known() -> None:
    window = scene()
    member = window.members[VICTIM]
    refuses(Code.OPEN_POLICY_NEWER, lambda: member.on_open(window.collector.open, NOW, world.policy(serial=8)))
    is_silenced(member)


def test_no_check_of_the_opening_goes_without_an_attack() -> None:
    attacked = {code for _, code, _ in OPEN_ATTACKS} | {Code.OPEN_POLICY_NEWER}
    assert {code for code, _ in (*PARAMS_CHECKS, *ENTRY_CHECKS, *ROSTER_CHECKS)} <= attacked


@pytest.mark.parametrize(
    "attack",
    [entry(expires=NOW - 600), certified(not_after=NOW - 600), certified(not_before=NOW + 600), params(p32=2**32 - 1),
     params(t=T + 1, s_min=N)],
)  # fmt: skip
def test_what_lies_within_the_limits_is_accepted(attack: Attack) -> None:
    """Ten minutes of skew; a complete graph; a higher threshold and floor than need be."""
    window = scene()
    window.members[VICTIM].on_open(attack(window), NOW, window.rules)
    assert window.members[VICTIM].state is MemberState.SHARED


def test_certificates_of_an_issuer_in_the_policy_count() -> None:
    issuer = SigningKey(secret("issuer"))
    attack = certified(issuer, issuer=issuer.public[:8])
    trusting, strict = Window(N, world.policy(issuers=(issuer.public,))), scene()
    trusting.members[VICTIM].on_open(attack(trusting), NOW, trusting.rules)
    refuses(Code.ENTRY_CERTIFICATE, lambda: strict.members[VICTIM].on_open(attack(strict), NOW, strict.rules))


# --- U2, SURVIVORS, QUORUM --------------------------------------------------------------------------------------------


def dealt() -> Window:
    window = scene()
    window.deal(range(N))
    window.collector.close_shares()
    return window


def masked() -> Window:
    window = dealt()
    window.mask(range(N))
    window.collector.close_masked()
    return window


def voted() -> Window:
    window = masked()
    window.vote(range(N))
    return window


def u2_of(window: Window, members: set[int], cts: bytes | None = None) -> U2:
    honest = window.collector.u2_for(VICTIM).cts
    places = [j for j in range(N) if j != VICTIM]
    kept = b"".join(honest[80 * at : 80 * at + 80] for at, j in enumerate(places) if j in members)
    return U2(bitmap(members, N), kept if cts is None else cts)


ALL = set(range(N))


@pytest.mark.parametrize(
    ("code", "attack"),
    [
        (Code.U2_MALFORMED, lambda w: U2(b"\xff", w.collector.u2_for(VICTIM).cts)),
        (Code.U2_MALFORMED, lambda w: U2(b"\x7f\0", w.collector.u2_for(VICTIM).cts)),
        (Code.U2_MALFORMED, lambda w: u2_of(w, ALL, w.collector.u2_for(VICTIM).cts[:-80])),
        (Code.U2_WITHOUT_SELF, lambda w: u2_of(w, ALL - {VICTIM}, bytes(400))),
        (Code.U2_TOO_SMALL, lambda w: u2_of(w, {0, 1, VICTIM, 3})),
        (Code.U2_SHARES_MISSING, lambda w: u2_of(w, ALL, bytes(240) + w.collector.u2_for(VICTIM).cts[240:])),
        (Code.U2_SHARES_MISSING, lambda w: u2_of(w, ALL, w.collector.u2_for(OTHER).cts)),
    ],
)
def test_a_wrong_u2_is_refused_and_ends_the_window(code: Code, attack: Callable[[Window], U2]) -> None:
    window = dealt()
    member, message = window.members[VICTIM], attack(window)
    refuses(code, lambda: member.on_u2(message))
    is_silenced(member)


def survivors_of(window: Window, members: set[int]) -> Survivors:
    honest = window.collector.survivors.msigs
    return Survivors(bitmap(members, N), b"".join(honest[64 * i : 64 * i + 64] for i in sorted(members)))


def another_u2(window: Window) -> Survivors:
    """The survivors masked with a U2 without member 6; the victim was told of all."""
    told = Window(N)
    told.deal(range(N - 1))
    told.mask(range(N - 1))
    told.collector.close_masked()
    return told.collector.survivors


def ghosts(window: Window) -> Survivors:
    """Signatures of true members, over the tau1 of another window of theirs."""
    other = Window(N, world.policy(n_min=6))
    other.deal(range(N))
    other.mask(range(N))
    other.collector.close_masked()
    msigs = bytearray(window.collector.survivors.msigs)
    msigs[64 * OTHER : 64 * OTHER + 64] = other.collector.survivors.msigs[64 * OTHER : 64 * OTHER + 64]
    return Survivors(b"\x7f", bytes(msigs))


@pytest.mark.parametrize(
    ("code", "attack"),
    [
        (Code.SURVIVORS_MALFORMED, lambda w: Survivors(b"\xff", w.collector.survivors.msigs)),
        (Code.SURVIVORS_MALFORMED, lambda w: Survivors(b"", b"")),
        (Code.SURVIVORS_MALFORMED, lambda w: replace(w.collector.survivors, msigs=w.collector.survivors.msigs[:-1])),
        (Code.SURVIVORS_TOO_FEW, lambda w: survivors_of(w, {0, 1, 2, 3})),
        (Code.SURVIVORS_SIGNATURE, lambda w: Survivors(b"\x7f", bytes(64) + w.collector.survivors.msigs[64:])),
        (Code.SURVIVORS_SIGNATURE, another_u2),
        (Code.SURVIVORS_SIGNATURE, ghosts),
    ],
)
def test_wrong_survivors_get_no_vote(code: Code, attack: Callable[[Window], Survivors]) -> None:
    window = masked()
    member, message = window.members[VICTIM], attack(window)
    refuses(code, lambda: member.on_survivors(message))
    is_silenced(member)
    assert member.record.vote is None


def test_survivors_that_never_dealt_get_no_vote() -> None:
    window = scene()
    window.deal(range(N - 1))
    window.mask(range(N - 1))
    window.collector.close_masked()
    honest = window.collector.survivors
    padded = Survivors(b"\x7f", honest.msigs + window.identities[N - 1].key.sign("masked", window.collector.tau1))
    refuses(Code.SURVIVORS_NOT_IN_U2, lambda: window.members[VICTIM].on_survivors(padded))


def test_a_member_may_vote_for_survivors_without_itself() -> None:
    window = masked()
    member = window.members[VICTIM]
    vote = member.on_survivors(survivors_of(window, ALL - {VICTIM}))
    assert vote.kind is VoteKind.COMMIT
    quorum = certificate(window, VoteKind.COMMIT, [0, 1, 2, 3, 4], window.collector.tau1, bitmap(ALL - {VICTIM}, N))
    assert len(member.on_quorum(quorum).shares) == 32 * N
    assert verify_certificate(member.record, quorum) is Verdict.FREED


def commit(window: Window, voters: list[int], u3: set[int] = ALL, tau1: bytes | None = None) -> Quorum:
    return certificate(window, VoteKind.COMMIT, voters, window.collector.tau1 if tau1 is None else tau1, bitmap(u3, N))


FIVE = [0, 1, 3, 4, 6]


@pytest.mark.parametrize(
    ("code", "attack"),
    [
        (Code.QUORUM_OTHER_BODY, lambda w: commit(w, FIVE, ALL - {6})),
        (Code.QUORUM_OTHER_BODY, lambda w: commit(w, FIVE, tau1=bytes(32))),
        (Code.QUORUM_OTHER_BODY, lambda w: certificate(w, VoteKind.ABORT, FIVE)),
        (Code.QUORUM_TOO_FEW, lambda w: commit(w, FIVE[:-1])),
        (Code.QUORUM_INDICES, lambda w: commit(w, [0, 1, 3, 6, 4])),
        (Code.QUORUM_INDICES, lambda w: commit(w, [0, 1, 3, 3, 4])),
        (Code.QUORUM_INDICES, lambda w: replace(commit(w, FIVE), idx=(0, 1, 3, 4, 7))),
        (Code.QUORUM_MALFORMED, lambda w: replace(commit(w, FIVE), sigs=commit(w, FIVE).sigs[:-64])),
        (Code.QUORUM_SIGNATURE, lambda w: replace(commit(w, FIVE), sigs=bytes(64) + commit(w, FIVE).sigs[64:])),
        (Code.QUORUM_SIGNATURE, lambda w: replace(commit(w, FIVE), idx=(0, 1, 2, 3, 4))),
    ],
)
def test_a_wrong_quorum_opens_nothing(code: Code, attack: Callable[[Window], Quorum]) -> None:
    window = voted()
    member, message = window.members[VICTIM], attack(window)
    refuses(code, lambda: member.on_quorum(message))
    is_silenced(member)
    refuses(Code.WINDOW_ENDED, lambda: member.on_quorum(commit(window, FIVE)))


# --- order, repeats, one vote -----------------------------------------------------------------------------------------


def test_messages_out_of_turn_change_nothing() -> None:
    window = voted()
    early = Window(N).members[VICTIM]
    u2, survivors, quorum = window.collector.u2_for(VICTIM), window.collector.survivors, commit(window, FIVE)
    for act in (
        lambda: early.on_u2(u2),
        lambda: early.on_survivors(survivors),
        lambda: early.on_quorum(quorum),
        lambda: early.mask(bytes(8 * world.SPEC.words)),
        lambda: early.head(bytes(32)),
        lambda: early.abort_vote(),
        lambda: early.on_done(Done(LANE, bytes(32))),
        lambda: early.record,
    ):
        refuses(Code.OUT_OF_TURN, act)
    assert early.state is MemberState.JOINED
    assert early.on_open(window.collector.open, NOW, window.rules).i == VICTIM


@pytest.mark.rule("1.5 repeats: the stored answer again")
@pytest.mark.rule("1.5 OPEN: the first only")
@pytest.mark.rule("1.5 U2: the first only")
def test_a_repeat_gets_the_same_answer_and_another_message_none() -> None:
    window = voted()
    member, collector = window.members[VICTIM], window.collector

    def opened(message: Open) -> object:
        return member.on_open(message, NOW + 9_999, window.rules)

    steps: list[tuple[Callable[[Any], object], object, object]] = [
        (opened, collector.open, params(window_id=2)(window)),
        (member.on_u2, collector.u2_for(VICTIM), u2_of(window, ALL - {6})),
        (member.head, window.vectors[VICTIM][0].sha256, bytes(32)),
        (member.on_survivors, collector.survivors, survivors_of(window, ALL - {6})),
        (member.on_quorum, commit(window, FIVE), commit(window, FIVE, ALL - {6})),
    ]
    for act, honest, other in steps:
        first = act(honest)
        state = member.state
        refuses(Code.SECOND_BODY, lambda act=act, other=other: act(other))  # type: ignore[misc]
        assert act(honest) == first
        assert member.state is state
    assert member.on_quorum(commit(window, [0, 1, 2, 3, 5])) == first


def test_a_repeated_u2_never_gives_back_a_record_without_the_vote() -> None:
    window = voted()
    member = window.members[VICTIM]
    assert member.on_u2(window.collector.u2_for(VICTIM)).vote is not None


@pytest.mark.rule("1.5 VOTE: one in a window")
def test_a_member_votes_once() -> None:
    committed, aborted = voted(), masked()
    refuses(Code.TOO_LATE, committed.members[VICTIM].abort_vote)
    refuses(Code.TOO_LATE, lambda: committed.members[VICTIM].on_survivors(Survivors(b"", b"", abort=True)))
    vote = aborted.members[VICTIM].abort_vote()
    assert aborted.members[VICTIM].on_survivors(Survivors(b"", b"", abort=True)) == vote
    with pytest.raises(Discarded):
        aborted.members[VICTIM].on_survivors(aborted.collector.survivors)


@pytest.mark.rule("1.9 abort: the last word")
def test_after_an_abort_vote_nothing_leaves_a_member() -> None:
    window = masked()
    member = window.members[VICTIM]
    member.abort_vote()
    window.vote(ALL - {VICTIM})
    refuses(Code.TOO_LATE, lambda: member.mask(window.plain(VICTIM)))
    refuses(Code.OUT_OF_TURN, lambda: member.on_quorum(commit(window, FIVE)))
    assert member.state is MemberState.ABORTED


def test_an_abort_before_u2_costs_nothing() -> None:
    window = scene()
    window.deal(range(N))
    member = window.members[VICTIM]
    record, key = member.record, window.identities[VICTIM].key
    refuses(Code.OUT_OF_TURN, lambda: record.commit(key, masked().collector.survivors))
    refuses(Code.OUT_OF_TURN, lambda: record.ballot)
    assert member.abort_vote() == record.abort(key).ballot
    refuses(Code.TOO_LATE, lambda: member.on_u2(u2_of(dealt(), ALL)))
    assert member.record.u2 == b""


# --- what frees an update ---------------------------------------------------------------------------------------------


def test_an_abort_or_an_exclusion_frees_and_a_commit_spends() -> None:
    window = voted()
    record = window.members[VICTIM].record
    for certified_by, verdict in (
        (certificate(window, VoteKind.ABORT, FIVE), Verdict.FREED),
        (commit(window, FIVE, ALL - {VICTIM}), Verdict.FREED),
        (commit(window, FIVE, ALL - {VICTIM}, tau1=b"any" + bytes(29)), Verdict.FREED),
        (commit(window, FIVE), Verdict.SPENT),
        (commit(window, FIVE, tau1=bytes(32)), Verdict.SPENT),
    ):
        assert verify_certificate(record, certified_by) is verdict


@pytest.mark.rule("3 freed by a certificate alone")
@pytest.mark.parametrize(
    ("code", "forge"),
    [
        (Code.QUORUM_TOO_FEW, lambda w: certificate(w, VoteKind.ABORT, FIVE[:-1])),
        (Code.QUORUM_INDICES, lambda w: certificate(w, VoteKind.ABORT, [0, 0, 1, 1, 3])),
        (Code.QUORUM_MALFORMED, lambda w: certificate(w, VoteKind.ABORT, FIVE, tau1=b"1" * 32)),
        (Code.QUORUM_MALFORMED, lambda w: certificate(w, VoteKind.ABORT, FIVE, u3=b"\x7f")),
        (Code.QUORUM_MALFORMED, lambda w: replace(commit(w, FIVE), u3=b"")),
        (Code.QUORUM_MALFORMED, lambda w: replace(commit(w, FIVE), u3=b"\xfb")),
        (Code.QUORUM_SIGNATURE, lambda w: replace(commit(w, FIVE), u3=bitmap(ALL - {VICTIM}, N))),
        (Code.QUORUM_SIGNATURE, lambda w: certificate(Window(N, world.policy(n_min=6)), VoteKind.ABORT, FIVE)),
        (Code.QUORUM_SIGNATURE, lambda w: replace(certificate(w, VoteKind.ABORT, FIVE), kind=VoteKind.COMMIT, u3=b"\x7b")),
    ],
)
def test_nothing_less_than_a_certificate_frees(code: Code, forge: Callable[[Window], Quorum]) -> None:
    window = masked()
    forged = forge(window)
    refuses(code, lambda: verify_certificate(window.members[VICTIM].record, forged))
    refuses(code, lambda: window.members[VICTIM].on_certificate(forged))
    assert window.members[VICTIM].state is MemberState.MASKING


def test_an_abort_certificate_ends_the_window_unless_shares_were_revealed() -> None:
    window = voted()
    abort = certificate(window, VoteKind.ABORT, FIVE)
    assert window.members[VICTIM].on_certificate(abort) is Verdict.FREED
    is_silenced(window.members[VICTIM])
    revealed = window.members[OTHER]
    revealed.on_quorum(commit(window, FIVE))
    refuses(Code.OUT_OF_TURN, lambda: revealed.on_certificate(abort))


def restarted(record: SpentRecord) -> SpentRecord:
    """What a device finds in its journal."""
    return SpentRecord.decode(json.loads(json.dumps(record.encode())))


@pytest.mark.rule("1.5 VOTE: one in a window")
def test_a_restarted_device_casts_its_one_vote_and_judges_certificates() -> None:
    window = masked()
    key, survivors = window.identities[VICTIM].key, window.collector.survivors
    record = restarted(window.members[VICTIM].record)
    assert record == window.members[VICTIM].record
    refuses(Code.SURVIVORS_SIGNATURE, lambda: record.commit(key, another_u2(window)))
    committed, aborted = restarted(record.commit(key, survivors)), restarted(record.abort(key))
    assert committed.vote == window.members[VICTIM].on_survivors(survivors)
    assert committed.commit(key, survivors) == committed
    assert aborted.abort(key) == aborted
    refuses(Code.VOTED_BEFORE, lambda: committed.abort(key))
    refuses(Code.VOTED_BEFORE, lambda: committed.commit(key, survivors_of(window, ALL - {6})))
    refuses(Code.VOTED_BEFORE, lambda: aborted.commit(key, survivors))
    assert verify_certificate(committed, commit(window, FIVE)) is Verdict.SPENT
    assert verify_certificate(aborted, certificate(window, VoteKind.ABORT, FIVE)) is Verdict.FREED


def test_the_receipt_of_another_lane_changes_nothing() -> None:
    window = voted()
    member = window.members[VICTIM]
    answer = member.on_quorum(commit(window, FIVE))
    refuses(Code.DONE_LANE, lambda: member.on_done(Done(bytes(32), bytes(32))))
    assert member.on_quorum(commit(window, FIVE)) == answer
    member.on_done(Done(LANE, bytes(32)))
    member.on_done(Done(LANE, bytes(32)))
    member.wipe()
    assert member.state is MemberState.DONE
