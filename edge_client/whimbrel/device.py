"""A device between its actions: what it remembers, what it believes, the time it goes by, and the few things every script does.

What belongs here: the context that the scripts of a device's life share, and checks of what the authority signed. What does
not: the order of life (`lifecycle.py`), plan, model and training (`preparing.py`), windows (`windowing.py`). No I/O, no clock,
no randomness of its own: the shell sets `now`, `entropy` is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, Literal

from whimbrel.actions import Action, Ask, Persist, Script, Send, Sleep, Upload
from whimbrel.device_policy import Cost, DevicePolicy
from whimbrel.records import DeviceState
from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.member import Identity
from whimbrel_protocol.messages import (
    Accepted,
    CheckedIn,
    CheckIn,
    Enrol,
    Enrolled,
    Failure,
    Held,
    Message,
    Renew,
    Report,
)
from whimbrel_protocol.objects import RENEW_KIND, Certificate, CertificateRequest, CheckInBody
from whimbrel_protocol.primitives import SigningKey
from whimbrel_protocol.signed import Policy
from whimbrel_protocol.trust import SKEW_S, accept_certificate, accept_policy, demand, fleet_of

PROTOCOL = 1
DAY_S = 86_400.0
_NO_TOKEN = (Code.TOKEN_MISSING, Code.TOKEN_INVALID, Code.TOKEN_EXPIRED)


class Stage(IntEnum):
    """Where a device is in its life; the number travels in reports."""

    REST = 0
    ENROL = 1
    CHECK_IN = 2
    FETCH = 3
    TRAIN = 4
    JOIN = 5
    SHARE = 6
    MASK = 7
    VOTE = 8
    UNMASK = 9
    SETTLE = 10


class Refused(ProtocolError):
    """The server, or the way to it, said no, with `failure`."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(code_of(failure), failure.detail)
        self.failure = failure


def code_of(failure: Failure) -> Code:
    """Return the failure's error number, INTERNAL where a newer server sent one that is not known here."""
    return next((code for code in Code if code == failure.number), Code.INTERNAL)


@dataclass(frozen=True)
class Settings:
    """What stays the same over a device's life: the authority's root key (32 bytes), the enrolment token, the app's policy."""

    root: bytes
    token: str = field(default="", repr=False)
    app_version: str = ""
    policy: DevicePolicy = field(default_factory=DevicePolicy)

    @property
    def fleet(self) -> bytes:
        """The fleet's id."""
        return fleet_of(self.root)


class Device:
    """The context of all scripts. `state` is always what the journal holds."""

    def __init__(self, settings: Settings, seed: bytes, state: DeviceState, entropy: Callable[[int], bytes]) -> None:
        self.settings = settings
        self.key = SigningKey(seed)
        self.state = state
        self.entropy = entropy
        self.now = 0.0
        self.stage = Stage.REST
        self.trouble: ProtocolError | None = None
        self.come_back_s = 0
        self.in_window = False
        self.renew_after = 0.0
        self.rendezvous = 0.0  # when windows open next, as far as the server told
        self._token, self._token_until, self._server_ahead_s = "", 0.0, 0.0

    # --- what it goes by ------------------------------------------------------------------------------------------------

    @property
    def time(self) -> int:
        """Unix seconds: the latest of the own clock, the last check-in, and any date that the authority signed.

        So a server cannot stop the time and keep stolen keys valid (masking protocol, section 1.4).
        """
        return max(int(self.now), self.state.server_time, self.state.authority_time)

    @property
    def policy(self) -> Policy:
        """The newest policy accepted. Raises RuleError BAD_POLICY before there is one."""
        demand(bool(self.state.policy), Code.BAD_POLICY, "no policy yet")
        return Policy.decode(self.state.policy)

    @property
    def certificate(self) -> Certificate | None:
        """The certificate, or None before enrolment."""
        return Certificate.decode(self.state.certificate) if self.state.certificate else None

    @property
    def identity(self) -> Identity:
        """What the device joins windows as."""
        return Identity(self.state.device, self.key, self.state.certificate)

    def jitter(self, longest_s: float) -> float:
        """Return a time between 0 and `longest_s`, evenly drawn: full jitter keeps a fleet from coming back in step."""
        return longest_s * int.from_bytes(self.entropy(4), "little") / 2**32

    def backoff(self, failures: int) -> float:
        """Return how long to stay away after so many failures in a row, seconds."""
        policy = self.settings.policy
        return self.jitter(min(policy.backoff_max_s, policy.backoff_min_s * 2.0 ** min(failures, 32)))

    # --- what every script does -------------------------------------------------------------------------------------------

    def commit(self, state: DeviceState, files: Mapping[str, bytes] | None = None) -> Script[None]:
        """Make `state` the state, durably, with new large files; files that it no longer names are deleted."""
        gone = dict.fromkeys(self.state.files() - state.files())
        yield Persist(state, {**(files or {}), **gone})
        self.state = state

    def rest(self, seconds: float) -> Script[None]:
        """Do nothing for so long."""
        yield Sleep(self.now + max(seconds, 0.0))

    def permission(self, cost: Cost) -> Script[None]:
        """Wait until the app allows the cost; in a window it allowed the whole."""
        while not self.in_window and not (yield Ask(cost)):
            yield from self.rest(self.settings.policy.refused_s)

    def call(
        self, method: Literal["GET", "POST"], path: str, *expects: type, message: Message | None = None, wait_s: float = 0.0
    ) -> Script[Any]:
        """Call the server with a token; a Failure is an answer like any other."""
        return (yield from self._with_token(lambda token: Send(method, path, expects, message, token, wait_s)))

    def upload(self, path: str, data: bytes) -> Script[Accepted | Failure]:
        """Upload a masked vector with a token."""
        answer: Accepted | Failure = yield from self._with_token(lambda token: Upload(path, data, token))
        return answer

    def _with_token(self, action: Callable[[str], Action]) -> Script[Any]:
        """Perform an action that needs a token; check in for one where there is none, and once more where it is refused."""
        for _ in range(2):
            try:
                yield from self.be_known()
            except Refused as error:
                return error.failure
            answer = yield action(self._token)
            if not isinstance(answer, Failure) or code_of(answer) not in _NO_TOKEN:
                break
            self._token = ""
        return answer

    def be_known(self) -> Script[None]:
        """Have a token of this process's own check-in, and with it a policy in force and the server's time."""
        if not self._token or self.now >= self._token_until or not self._policy_in_force:
            yield from self.check_in()

    @property
    def policy_in_force(self) -> Policy:
        """The newest policy accepted. Raises RuleError POLICY_EXPIRED past its date, however long a token may hold."""
        demand(self._policy_in_force, Code.POLICY_EXPIRED)
        return self.policy

    @property
    def _policy_in_force(self) -> bool:
        return bool(self.state.policy) and self.time <= self.policy.not_after + SKEW_S

    @property
    def server_now(self) -> int:
        """The server's clock, as far as the last check-in told it, Unix seconds."""
        return int(self.now + self._server_ahead_s)

    def report(self, code: Code, task: str, version: int, seconds: float = 0.0) -> Script[None]:
        """Tell the server, if it listens, why a step failed; durations only as powers of two, or they would tell how much
        data there is."""
        duration_class = min(int(1000 * seconds).bit_length(), 63)
        message = Report(int(code), int(self.stage), task, version, duration_class)
        with suppress(ProtocolError):
            yield from self.call("POST", "/v1/reports", Accepted, message=message)

    # --- enrolment and check-in -------------------------------------------------------------------------------------------

    def enrol(self) -> Script[None]:
        """Get the first certificate. Raises what the authority refused, or what is wrong with its answer."""
        self.stage = Stage.ENROL
        demand(bool(self.settings.token), Code.ENROLMENT_TOKEN, "this device has no certificate and was given no token")
        yield from self.permission(Cost("enrol", 1.0, 512, 1024))
        answer = yield Send("POST", "/v1/enrol", (Enrolled,), Enrol(self._request(), self.settings.token))
        yield from self._take_certificate(answer)

    def renew(self) -> Script[None]:
        """Get a new certificate for the present one; errors as for `enrol`."""
        self.stage = Stage.ENROL
        yield from self.permission(Cost("enrol", 1.0, 512, 1024))
        request = self._request()
        message = Renew(request, self.state.certificate, self.key.sign(RENEW_KIND, request))
        yield from self._take_certificate((yield Send("POST", "/v1/renew", (Enrolled,), message)))

    def _request(self) -> bytes:
        names = {"fleet": self.settings.fleet, "device": self.state.device, "public_key": self.key.public}
        return CertificateRequest.sign(self.key, **names, attest_class=0, flags=0, nonce=self.entropy(16)).encode()

    def _take_certificate(self, answer: Enrolled | Failure) -> Script[None]:
        if isinstance(answer, Failure):
            raise Refused(answer)
        state = self._with_policy(self.state, answer.policy)
        policy = Policy.decode(state.policy)
        certificate = accept_certificate(answer.certificate, self.settings.root, policy, self.time)
        own = (certificate.device, certificate.public_key) == (state.device, self.key.public)
        demand(own, Code.KEY_MISMATCH)
        latest = max(state.authority_time, certificate.not_before)
        yield from self.commit(replace(state, certificate=answer.certificate, authority_time=latest))

    def _with_policy(self, state: DeviceState, data: bytes) -> DeviceState:
        """Return the state with a policy accepted: signed by the root, not rolled back, and as strict as the app insists."""
        mine = self.settings.policy
        policy = accept_policy(data, self.settings.root, self.settings.fleet, self.time, state.policy_serial, mine.n_min_floor)
        loose = policy.gamma_milli > 1000 * mine.gamma_max
        demand(not loose, Code.POLICY_TOO_WEAK, f"gamma {policy.gamma_milli}/1000 is above the app's {mine.gamma_max}")
        return replace(state, policy=data, policy_serial=policy.serial)

    def check_in(self) -> Script[CheckedIn]:
        """Say that this device is here; take the token, the time and the policy of the answer.

        Raises Refused, what is wrong with the policy, or RuleError CLOCK_WRONG where the own clock is a day ahead.
        """
        stage, self.stage = self.stage, Stage.CHECK_IN
        yield from self.permission(Cost("check_in", 1.0, 1024, 2048))
        message = CheckIn(self.state.certificate, self._presence(), self.settings.app_version, PROTOCOL, tuple(self._held()))
        answer = yield Send("POST", "/v1/check-in", (CheckedIn,), message, repeatable=False)
        if isinstance(answer, Failure):
            raise Refused(answer)
        demand(self.now <= answer.now + DAY_S, Code.CLOCK_WRONG, f"{self.now - answer.now:.0f} s ahead of the server")
        state = self._with_policy(replace(self.state, server_time=answer.now), answer.policy)
        yield from self.commit(state)
        self._token, self._token_until = answer.token, self.now + answer.token_expires_s
        self._server_ahead_s = answer.now - self.now
        self.come_back_s, self.stage = answer.come_back_s, stage
        checked_in: CheckedIn = answer
        return checked_in

    def _presence(self) -> bytes:
        facts = {"now": int(self.now), "nonce": self.entropy(16), "policy_serial": self.state.policy_serial}
        return CheckInBody.sign(self.key, fleet=self.settings.fleet, device=self.state.device, **facts).encode()

    def _held(self) -> list[Held]:
        return [Held(name, memory.version) for name, memory in self.state.tasks.items() if memory.model_hash]


def expect(answer: Any) -> Any:
    """Return an answer that is no Failure. Raises Refused."""
    if isinstance(answer, Failure):
        raise Refused(answer)
    return answer
