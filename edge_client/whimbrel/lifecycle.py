"""A device's life from enrolment to its receipts, as a pure state machine: the order of things and nothing else.

What belongs here: the main script, and its driver. The script yields actions and is sent their answers; it has no I/O, no clock
and no randomness, so a simulation runs thousands of lives under one virtual clock. What does not: what a device believes
(`device.py`), the work before a window (`preparing.py`), the window itself (`windowing.py`), the shell (`participant.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from whimbrel.actions import Action, Script
from whimbrel.device import Device, Refused, Settings, Stage
from whimbrel.preparing import prepare
from whimbrel.records import UNSENT, Assigned, DeviceState, UpdateState
from whimbrel.windowing import Outcome, one_window, settle
from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.messages import Assignment

RENEW_SHARE = 1 / 3  # of a certificate's life that is left when it is time for the next
RENEW_AGAIN_S = 3600.0
_REJOIN_S = 1.0
_REST_LEAST_S = 0.2  # whatever a server says, a device does not spin
# Troubles that time alone does not mend: a person has to.
FOR_PEOPLE = frozenset(
    {
        Code.OTHER_FLEET,
        Code.KEY_MISMATCH,
        Code.BAD_POLICY,
        Code.POLICY_TOO_WEAK,
        Code.ENROLMENT_TOKEN,
        Code.DEVICE_TAKEN,
        Code.DEVICE_REVOKED,
        Code.RENEWAL_TOO_LATE,
        Code.RUNTIME_MISSING,
        Code.STATE_ROLLED_BACK,
    }
)


class Lifecycle:
    """Drives one life: perform `action`, then hand its answer to `resume`; and so on for ever."""

    def __init__(
        self, settings: Settings, seed: bytes, state: DeviceState, entropy: Callable[[int], bytes], now: float
    ) -> None:
        self.device = Device(settings, seed, state, entropy)
        self.device.now = now
        self._script = _life(self.device)
        self.action: Action = next(self._script)

    def resume(self, answer: object, now: float) -> None:
        """Go on with the answer to `action`; `now` in Unix seconds. After it there is another action."""
        self.device.now = now
        self.action = self._script.send(answer)

    @property
    def stage(self) -> Stage:
        """Where the device is."""
        return self.device.stage

    @property
    def trouble(self) -> ProtocolError | None:
        """What went wrong last, until something goes right."""
        return self.device.trouble


def _life(device: Device) -> Script[None]:
    """Once around: be certified, settle what is open, get an assignment, work on it, rest. For ever."""
    failures = 0
    while True:
        try:
            pause = yield from _once_around(device)
            failures, device.trouble = 0, None
        except ProtocolError as error:
            device.trouble, device.in_window = error, False
            wish = error.failure.come_back_s if isinstance(error, Refused) else 0
            pause = max(device.backoff(failures), wish)
            failures += 1
        device.stage = Stage.REST
        yield from device.rest(pause)


def _once_around(device: Device) -> Script[float]:
    """Return how long to rest afterwards, seconds."""
    yield from _be_certified(device)
    for record in [one for one in device.state.updates if one.state is UpdateState.SPENT]:
        try:
            yield from settle(device, record)
        except ProtocolError as error:  # a wrong certificate for one update must not keep the device from all other work
            device.trouble = error
    assigned = device.state.assigned
    if assigned is None or device.now >= assigned.deadline or _counted(device, assigned.assignment):
        assigned = yield from _be_assigned(device)
    if assigned is not None:
        yield from _work(device, assigned)
    return max(float(device.come_back_s), _REST_LEAST_S)


def _be_certified(device: Device) -> Script[None]:
    """Have a certificate that is valid and not revoked, and renew it in good time."""
    present = device.certificate
    if present is None:
        yield from device.enrol()
        return
    left = present.not_after - device.time
    dead = left <= 0 or present.epoch < device.policy.min_epoch
    due = left < RENEW_SHARE * (present.not_after - present.not_before) and device.now >= device.renew_after
    if not dead and not due:
        return
    try:
        yield from device.renew()
    except ProtocolError as error:
        if dead:
            raise
        device.trouble, device.renew_after = error, device.now + RENEW_AGAIN_S


def _be_assigned(device: Device) -> Script[Assigned | None]:
    """Check in; keep an assignment durably, unless this base was contributed to, or may have been."""
    try:
        answer = yield from device.check_in()
    except Refused as error:
        if error.code is not Code.CERTIFICATE_REVOKED:
            raise
        # The epoch rose, and only a check-in tells the policy that says so: whoever was not meant gets a new certificate.
        yield from device.renew()
        answer = yield from device.check_in()
    offer, assigned = answer.assignment, None
    if offer is not None and not _counted(device, offer):
        assigned = Assigned(offer, device.now + offer.deadline_s)
    elif offer is not None:  # the server does not know what this device knows: tell it, and do not hurry to hear the same
        device.trouble = ProtocolError(Code.CONTRIBUTED_BEFORE)
        yield from device.report(Code.CONTRIBUTED_BEFORE, offer.task, offer.version)
        device.come_back_s = max(device.come_back_s, int(device.settings.policy.backoff_min_s))
    if assigned != device.state.assigned:
        yield from device.commit(replace(device.state, assigned=assigned))
    return assigned


def _counted(device: Device, offer: Assignment) -> bool:
    """Whether an update of this base is counted already or may yet be: there is at most one for each base."""
    spent = any(
        one.task == offer.task and (one.version == offer.version or one.model_hash == offer.model_hash)
        for one in device.state.updates
        if one.state is UpdateState.SPENT
    )
    return spent or device.state.task(offer.task).contributed_to(offer.version, offer.model_hash)


def _work(device: Device, assigned: Assigned) -> Script[None]:
    """Prepare the update and take it to windows until it is counted, its lane is closed or its time is over."""
    assignment = assigned.assignment
    try:
        prepared = yield from prepare(device, assignment)
    except ProtocolError:
        yield from _drop(device)
        raise
    outcome, tries = Outcome.AGAIN, 0
    while outcome is Outcome.AGAIN and device.now < assigned.deadline:
        outcome = yield from one_window(device, prepared)
        if outcome is Outcome.AGAIN:
            yield from device.rest(device.jitter(_REJOIN_S * 2.0 ** min(tries, 6)))
            tries += 1
    yield from _drop(device, assignment.task if outcome is Outcome.STALE else "")


def _drop(device: Device, stale_task: str = "") -> Script[None]:
    """Give the assignment up, and the unsent updates of a task whose lane is closed."""
    state = replace(device.state, assigned=None)
    for record in device.state.updates:
        if record.task == stale_task and record.state in UNSENT:
            state = state.without_update(record)
    yield from device.commit(state)
