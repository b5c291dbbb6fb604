"""From a frozen update to a window's receipt, and what to do about a window that a dead process left behind.

What belongs here: the scripts around `whimbrel_protocol.member.Member`, which makes every check and holds every key. The order
of writing and sending is the point: the mark "spent" is durable before the first masked byte leaves, a vote before it leaves,
and a spent update is freed by a certificate alone, or because no byte of it was sent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Literal

from whimbrel.actions import Script
from whimbrel.device import DAY_S, Device, Refused, Stage, code_of
from whimbrel.device_policy import Cost
from whimbrel.preparing import Base, Prepared
from whimbrel.records import Contribution, UpdateRecord, UpdateState
from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.member import Member
from whimbrel_protocol.messages import (
    U2,
    Accepted,
    Blame,
    Done,
    Failure,
    Join,
    Joined,
    Message,
    Open,
    Quorum,
    Survivors,
    VoteKind,
    Wait,
)
from whimbrel_protocol.objects import JoinEntry
from whimbrel_protocol.primitives import sha256
from whimbrel_protocol.spent import SpentRecord, Verdict, verify_certificate

ENTRY_LIFE_S = 14 * 60  # a server admits at most 15 minutes
RENDEZVOUS_MOST_S = 86_400  # no server has a device sign further ahead
ENTRY_REST_S = 60  # an entry that lives no longer opens no window
CERTIFICATE_LIFE_S = 30 * DAY_S  # how long a server keeps certificates
CONTRIBUTIONS_KEPT = 1000
_ASKS = 3  # for the receipt, or for what helps to find who spoiled it
_POLL_LEAST_S = 0.2  # between two polls that were answered at once
_RETRY_S = 2.0  # at most, between two tries inside a window: its phases last seconds
_KEY_S = 0.003  # public-key work for one other member, on a slow phone
_MASK_BYTES_S = 0.3e9  # mask stream, on a slow phone


class Outcome(Enum):
    """What became of one try to contribute."""

    CONTRIBUTED = "contributed"
    AGAIN = "again"  # the update is free: it may join another window
    STALE = "stale"  # its lane is closed
    UNRESOLVED = "unresolved"  # it is spent and no certificate was to be had


@dataclass(frozen=True)
class Seat:
    """One member in one window."""

    device: Device
    prepared: Prepared
    member: Member

    @property
    def path(self) -> str:
        """The window's address."""
        return f"/v1/windows/{self.member.record.cohort.tau0.hex()}"

    @property
    def record(self) -> UpdateRecord:
        """The update's record as the journal has it."""
        return next(one for one in self.device.state.updates if one.update_id == self.prepared.record.update_id)

    def mark(self, authority_time: int = 0, **changes: Any) -> Script[None]:
        """Change the update's record, durably, and with it the latest date seen that the authority signed."""
        state = self.device.state.with_update(replace(self.record, **changes))
        latest = max(state.authority_time, authority_time)
        yield from self.device.commit(replace(state, authority_time=latest))

    def unresolved(self, refusal: Failure | None) -> Outcome:
        """Note why there is no certificate: whatever a server says instead, it frees nothing."""
        if refusal is not None:
            self.device.trouble = Refused(refusal)
        return Outcome.UNRESOLVED

    def insist(self, method: Literal["GET", "POST"], phase: str, *types: type, message: Message | None = None) -> Script[Any]:
        """Call the window until there is an answer; see `insist`."""
        return (yield from insist(self.device, method, f"{self.path}/{phase}", *types, message=message))


def one_window(device: Device, prepared: Prepared) -> Script[Outcome]:
    """Join one window and go through it. Raises Refused where the server does not take the join."""
    device.stage = Stage.JOIN
    yield from device.permission(cost_of(device, prepared.base))
    yield from device.be_known()
    if not prepared.base.takes(prepared.record, device.state.policy):
        return Outcome.STALE  # a new policy made another lane: the update is made anew for it
    device.in_window = True
    seat = yield from _join(device, prepared)
    try:
        return (yield from _from_join_to_done(seat))
    except RuleError as error:
        device.trouble = error
        yield from device.report(error.code, prepared.record.task, prepared.record.version)
        return Outcome.UNRESOLVED if seat.record.state is UpdateState.SPENT else Outcome.AGAIN
    finally:
        device.in_window = False
        seat.member.wipe()


def cost_of(device: Device, base: Base) -> Cost:
    """Return what a window of the largest size that plan and policy allow may cost."""
    n, vector = min(base.plan.n_max, device.policy.n_max), 8 * base.spec.words
    seconds = n * (_KEY_S + vector / _MASK_BYTES_S)
    return Cost("window", 1.0 + seconds, 1024 + 112 * n + vector, 1024 + 700 * n)


# --- JOIN to U2: nothing of the update has left ---------------------------------------------------------------------


def _join(device: Device, prepared: Prepared) -> Script[Seat]:
    """Make fresh window keys, and count the join before any server sees it."""
    state, base = device.state, prepared.base
    lane, seq = base.lane(state.policy), state.join_seq + 1
    member = Member.join(
        device.identity,
        lane=lane,
        spec=base.spec,
        policy=device.policy,
        root=device.settings.root,
        rho=device.entropy(32),
        seq=seq,
        expires=device.server_now + int(max(0.0, device.rendezvous - device.now)) + ENTRY_LIFE_S,
    )
    record = replace(prepared.record, state=UpdateState.JOINED, lane=lane, tau0=b"", spent=None)
    yield from device.commit(replace(state, join_seq=seq).with_update(record))
    return Seat(device, prepared, member)


def _from_join_to_done(seat: Seat) -> Script[Outcome]:
    device, member = seat.device, seat.member
    opened = yield from _await_open(seat)
    if not isinstance(opened, Open):
        return opened
    device.stage = Stage.SHARE
    shares = member.on_open(opened, device.time, device.policy_in_force)
    latest = max(JoinEntry.decode(entry).certificate.not_before for entry in opened.roster)
    accepted = yield from seat.insist("POST", "shares", Accepted, message=shares)
    u2 = (yield from seat.insist("GET", "u2", U2, Survivors)) if isinstance(accepted, Accepted) else accepted
    if isinstance(u2, Survivors) and not u2.abort:
        raise RuleError(Code.OUT_OF_TURN, "survivors before U2")
    if not isinstance(u2, U2):
        yield from _leave(seat)
        return Outcome.AGAIN
    spent = member.on_u2(u2)
    device.stage = Stage.MASK
    facts = {"tau0": spent.cohort.tau0, "spent": spent.encode(), "spent_at": device.time}
    yield from seat.mark(latest, state=UpdateState.SPENT, **facts)
    return (yield from _from_masked_to_done(seat))


def _await_open(seat: Seat) -> Script[Open | Outcome]:
    """Hand in the entry and wait for its window; the outcome where there will be none."""
    device, assignment = seat.device, seat.prepared.base.assignment
    message = Join(seat.member.entry, assignment.id)
    joined = yield from insist(device, "POST", "/v1/joins", Joined, message=message)
    if isinstance(joined, Joined):
        if joined.come_back_s > device.settings.policy.poll_s:
            yield from device.rest(joined.come_back_s)
        patience = ENTRY_LIFE_S - ENTRY_REST_S
        path = f"/v1/joins/{joined.ticket.hex()}"
        joined = yield from insist(device, "GET", path, Open, patience_s=patience)
    if isinstance(joined, Open):
        return joined
    code = code_of(joined) if isinstance(joined, Failure) else Code.UNREACHABLE
    if code is Code.STALE_VERSION:
        return Outcome.STALE
    if code is Code.ENTRY_LANE:  # the version is trained on, under a newer policy: hear of it and join that lane
        yield from device.check_in()
        return Outcome.AGAIN
    if code is Code.ENTRY_SHORT_LIVED and isinstance(joined, Failure):
        device.rendezvous = device.now + min(joined.come_back_s, RENDEZVOUS_MOST_S)
    if code in (Code.UNKNOWN_TICKET, Code.UNREACHABLE, Code.ENTRY_SHORT_LIVED):
        return Outcome.AGAIN
    raise Refused(joined)


def _leave(seat: Seat) -> Script[None]:
    """Go without having sent a byte of the update; if votes for an abort are collected, others wait for this one to be free."""
    asked = yield from seat.device.call("GET", f"{seat.path}/survivors", Survivors, Wait)
    if isinstance(asked, Survivors) and asked.abort:
        vote = seat.member.abort_vote()
        if seat.record.state is UpdateState.SPENT:
            yield from seat.mark(spent=seat.member.record.encode())
        yield from seat.insist("POST", "vote", Accepted, message=vote)


# --- MASKED to DONE: the update is spent ------------------------------------------------------------------------------


def _from_masked_to_done(seat: Seat) -> Script[Outcome]:
    device, member = seat.device, seat.member
    masked = member.mask(seat.prepared.words)
    head = yield from seat.insist("POST", "masked", Accepted, message=member.head(sha256(masked)))
    if not isinstance(head, Accepted):
        yield from _leave(seat)
        yield from conclude(device, seat.record, Verdict.FREED)  # the announcement was not taken: no byte was sent
        return Outcome.AGAIN
    yield from _upload(seat, masked)
    del masked
    device.stage = Stage.VOTE
    survivors = yield from seat.insist("GET", "survivors", Survivors)
    if not isinstance(survivors, Survivors):
        return seat.unresolved(survivors)
    vote = member.on_survivors(survivors)
    yield from seat.mark(spent=member.record.encode())
    yield from seat.insist("POST", "vote", Accepted, message=vote)
    quorum = yield from seat.insist("GET", "quorum", Quorum)
    if not isinstance(quorum, Quorum):
        return seat.unresolved(quorum)
    return (yield from _release(seat, quorum))


def _upload(seat: Seat, masked: bytes) -> Script[None]:
    """Send the vector; where the server takes no more of it, the certificate will tell whether it was counted."""
    device, until = seat.device, seat.device.now + seat.device.settings.policy.window_patience_s
    while device.now < until:
        answer = yield from device.upload(f"{seat.path}/masked", masked)
        if not isinstance(answer, Failure) or not passing(answer):
            return
        yield from device.rest(_POLL_LEAST_S + device.jitter(_RETRY_S))


def _release(seat: Seat, quorum: Quorum) -> Script[Outcome]:
    """Reveal the shares where the certificate is the one voted for, and conclude what it says of the update."""
    device, member = seat.device, seat.member
    device.stage = Stage.UNMASK
    verdict, receipt = verify_certificate(member.record, quorum), b""
    vote = member.record.vote
    if quorum.kind is VoteKind.COMMIT and vote is not None and vote.kind is VoteKind.COMMIT:
        revealed = member.on_quorum(quorum)
        yield from seat.insist("POST", "unmask", Accepted, message=revealed)
        if verdict is Verdict.SPENT:
            receipt = yield from _receipt(seat)
    yield from conclude(device, seat.record, verdict, receipt)
    return Outcome.CONTRIBUTED if verdict is Verdict.SPENT else Outcome.AGAIN


def _receipt(seat: Seat) -> Script[bytes]:
    """Return the hash of the window's sum, empty where no receipt came: the certificate counts the update either way.

    Where the sum was spoiled the member is asked, once, what helps to find by whom; the update stays spent for good.
    """
    for _ in range(_ASKS):  # a server that starts again asks again, and gets the same answer
        done = yield from seat.insist("GET", "done", Done, Survivors, Blame)
        if not isinstance(done, Blame):
            break
        yield from seat.insist("POST", "canaries", Accepted, message=seat.member.on_blame(done))
    if isinstance(done, Failure):
        seat.device.trouble = Refused(done)
    if not isinstance(done, Done):
        return b""
    seat.member.on_done(done)
    return done.sum_sha256


def conclude(device: Device, record: UpdateRecord, verdict: Verdict, receipt: bytes = b"") -> Script[None]:
    """Write down what a certificate, or a receipt, says of a spent update."""
    if verdict is Verdict.FREED:
        freed = replace(record, state=UpdateState.FREED, tau0=b"", spent=None)
        yield from device.commit(device.state.with_update(freed))
        return
    memory = device.state.task(record.task)
    contribution = Contribution(device.time, record.version, record.model_hash)
    memory = replace(memory, contributions=(*memory.contributions, contribution)[-CONTRIBUTIONS_KEPT:])
    counted = replace(record, state=UpdateState.CONTRIBUTED, spent=None, receipt=receipt)
    state = device.state.with_task(record.task, memory).with_update(counted)
    past = [one for one in state.updates if one.state is UpdateState.CONTRIBUTED]
    for old in past[: max(len(past) - device.settings.policy.history, 0)]:
        state = state.without_update(old)
    yield from device.commit(state)


# --- windows of a process that died -----------------------------------------------------------------------------------


def settle(device: Device, record: UpdateRecord) -> Script[None]:
    """Ask for the certificate of a window that this device left spent, and cast its vote there if it never did.

    The keys died with the process, so nothing can be revealed; what can be done is to vote and to learn the verdict. After as
    long as a server keeps certificates the update is given up, counted as a contribution so that it is never repeated.
    """
    device.stage = Stage.SETTLE
    spent = SpentRecord.decode(record.spent or {})
    path = f"/v1/windows/{spent.cohort.tau0.hex()}"
    quorum = yield from device.call("GET", f"{path}/quorum", Quorum, Wait)
    if isinstance(quorum, Wait):
        yield from _vote_late(device, record, spent, path)
        quorum = yield from device.call("GET", f"{path}/quorum", Quorum, Wait, wait_s=device.settings.policy.poll_s)
    if isinstance(quorum, Quorum):
        yield from conclude(device, record, verify_certificate(spent, quorum))
    elif device.time - record.spent_at > CERTIFICATE_LIFE_S:
        yield from conclude(device, record, Verdict.SPENT)


def _vote_late(device: Device, record: UpdateRecord, spent: SpentRecord, path: str) -> Script[None]:
    if spent.vote is None:
        survivors = yield from device.call("GET", f"{path}/survivors", Survivors, Wait)
        if not isinstance(survivors, Survivors):
            return
        spent = spent.abort(device.key) if survivors.abort else spent.commit(device.key, survivors)
        yield from device.commit(device.state.with_update(replace(record, spent=spent.encode())))
    yield from device.call("POST", f"{path}/vote", Accepted, message=spent.vote)


# --- patience ---------------------------------------------------------------------------------------------------------


def insist(
    device: Device,
    method: Literal["GET", "POST"],
    path: str,
    *types: type,
    message: Message | None = None,
    patience_s: float = 0.0,
) -> Script[Any]:
    """Call until there is an answer of `types` or a final Failure; None when patience (the app's by default) is over.

    Between two tries only moments pass, because a window's phases last seconds; a server that restarts has them too.
    """
    wait_s = device.settings.policy.poll_s if method == "GET" else 0.0
    until = device.now + (patience_s or device.settings.policy.window_patience_s)
    expects = (*types, Wait) if method == "GET" else types
    answer: Any = None
    while device.now < until:
        begin = device.now
        answer = yield from device.call(method, path, *expects, message=message, wait_s=wait_s)
        if isinstance(answer, Wait):
            pause = answer.come_back_s or max(0.0, _POLL_LEAST_S - (device.now - begin))
        elif isinstance(answer, Failure) and passing(answer):
            pause = max(answer.come_back_s, _POLL_LEAST_S + device.jitter(_RETRY_S))
        else:
            break
        yield from device.rest(pause)
    else:
        device.trouble = Refused(answer) if isinstance(answer, Failure) else device.trouble
        return None
    return answer


def passing(failure: Failure) -> bool:
    """Whether the same call may succeed a moment later: no answer, a garbled one, a server in trouble, a phase not begun."""
    code = code_of(failure)
    return code.http >= 500 or code < Code.BAD_SIZE or code in (Code.PHASE_NOT_YET, Code.UPLOAD_TOO_SLOW, Code.BAD_OFFSET)
