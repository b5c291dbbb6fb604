"""Who may speak: the fleet's policy, certificates, and signed presence.

What belongs here: judging a check-in, holding the policy in force, refusing what was seen before. What does not: what a
device is told to do (`engine.py`), and the rules themselves (`whimbrel_protocol.trust`). Times are Unix seconds and
arguments.
"""

from __future__ import annotations

from collections import deque

from whimbrel_protocol.errors import Code
from whimbrel_protocol.messages import CheckIn
from whimbrel_protocol.objects import Certificate, CheckInBody
from whimbrel_protocol.signed import Policy
from whimbrel_protocol.trust import SKEW_S, accept_certificate, accept_policy, demand

# A check-in is good for the tolerated skew to either side of its date; for so long it must not be accepted twice.
_REPLAY_S = 2 * SKEW_S


class Fleet:
    """One fleet under the root key that the configuration pins."""

    def __init__(self, root: bytes, policy: bytes, since: int) -> None:
        """`policy` was accepted before; its date is not judged, as a server past it must start to be given the next one.

        `since` is when this process began to remember check-ins: none that is dated earlier is taken.

        Raises WireError for bytes that are no policy, RuleError BAD_POLICY where the root did not sign them.
        """
        self.root = root
        self._since = since
        self._set(policy)
        demand(self.policy.signed_by(root), Code.BAD_POLICY)
        self._seen: set[bytes] = set()
        self._order: deque[tuple[int, bytes]] = deque()

    @property
    def id(self) -> bytes:
        """The fleet's name, 16 bytes."""
        return self.policy.fleet

    def _set(self, policy: bytes) -> None:
        self.policy_bytes, self.policy = policy, Policy.decode(policy)

    def accept(self, data: bytes, now: int) -> Policy:
        """Return the policy in `data` if it may follow the one in force. Raises as `trust.accept_policy` does."""
        policy = accept_policy(data, self.root, self.id, now, self.policy.serial)
        newer = policy.serial > self.policy.serial or data == self.policy_bytes
        demand(newer, Code.POLICY_ROLLED_BACK, "another policy of the same serial is in force")
        return policy

    def install(self, data: bytes) -> None:
        """Put a policy in force that was accepted and made durable."""
        self._set(data)

    def judge(self, message: CheckIn, now: int) -> CheckInBody:
        """Return the body of a check-in that this fleet's device made just now, for the first time.

        Raises WireError, or RuleError for the certificate (2xx), KEY_MISMATCH, BAD_SIGNATURE, CLOCK_SKEW, REPLAYED.
        """
        certificate = accept_certificate(message.certificate, self.root, self.policy, now)
        body = CheckInBody.decode(message.body)
        _demand_same(body, certificate)
        skew = body.now - now
        demand(abs(skew) <= SKEW_S, Code.CLOCK_SKEW, f"the device's clock is {skew:+d} s off; the server's says {now}")
        # A process before this one may have seen it. Who is honest comes again with a new date.
        demand(body.now >= self._since, Code.REPLAYED, "the check-in is dated before the server started: send a new one")
        self._note(body.device + body.nonce, now)
        return body

    def _note(self, name: bytes, now: int) -> None:
        while self._order and self._order[0][0] < now - _REPLAY_S:
            self._seen.discard(self._order.popleft()[1])
        demand(name not in self._seen, Code.REPLAYED)
        self._seen.add(name)
        self._order.append((now, name))


def _demand_same(body: CheckInBody, certificate: Certificate) -> None:
    demand(body.fleet == certificate.fleet, Code.OTHER_FLEET)
    demand(body.device == certificate.device, Code.KEY_MISMATCH)
    demand(body.signed_by(certificate.public_key), Code.BAD_SIGNATURE, "the check-in is not signed by the certificate's key")
