"""Certificates: what a request must show, and what it gets. Pure: time, serial and keys are arguments.

What does not belong here: tokens, revocation and everything else that needs the ledger (`enrolment.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.objects import ISSUER_BYTES, RENEW_KIND, Certificate, CertificateRequest
from whimbrel_protocol.primitives import SigningKey, in_prime_subgroup, verify
from whimbrel_protocol.signed import Policy

DAY_S = 86_400
LIFETIME_S = 90 * DAY_S
RENEWAL_S = 365 * DAY_S
# A server admits only certificates that have been valid for ten minutes by its own clock; an hour covers any honest clock.
BACKDATE_S = 3_600


@dataclass(frozen=True)
class Issuer:
    """The issuer's key with the policy in force, which names it."""

    key: SigningKey
    policy: Policy

    def issue(self, request: CertificateRequest, serial: int, now: int) -> bytes:
        """Return the certificate, 172 bytes, for a request that was checked; valid for 90 days from `now` (Unix seconds)."""
        certificate = Certificate.issue(
            self.key,
            fleet=self.policy.fleet,
            device=request.device,
            public_key=request.public_key,
            not_before=now - BACKDATE_S,
            not_after=now + LIFETIME_S,
            serial=serial,
            attest_class=request.attest_class,
            flags=request.flags,
            epoch=self.policy.min_epoch,
        )
        return certificate.encode()

    def check_request(self, data: bytes) -> CertificateRequest:
        """Return the request in `data`.

        Raises WireError 200 or 201 for other bytes, RuleError 208 for another fleet, 210 for a key outside the prime-order
        subgroup, 211 where the key did not sign the request.
        """
        request = CertificateRequest.decode(data)
        if request.fleet != self.policy.fleet:
            raise RuleError(Code.OTHER_FLEET, f"the request names fleet {request.fleet.hex()}")
        if not in_prime_subgroup(request.public_key):
            raise RuleError(Code.WEAK_KEY, f"{request.public_key.hex()} is not a point of the prime-order subgroup")
        if not request.proves_possession():
            raise RuleError(Code.BAD_REQUEST_SIGNATURE)
        return request

    def check_certificate(self, data: bytes) -> Certificate:
        """Return the certificate in `data`, whatever its dates and epoch.

        Raises WireError 200 or 201 for other bytes, RuleError 208 for another fleet, 205 where no issuer of the policy signed.
        """
        certificate = Certificate.decode(data)
        if certificate.fleet != self.policy.fleet:
            raise RuleError(Code.OTHER_FLEET, f"the certificate names fleet {certificate.fleet.hex()}")
        issuers = [key for key in self.policy.issuers if key[:ISSUER_BYTES] == certificate.issuer]
        if not any(certificate.signed_by(key) for key in issuers):
            raise RuleError(Code.BAD_CERTIFICATE)
        return certificate


def check_renewal(certificate: Certificate, request: CertificateRequest, request_bytes: bytes, signature: bytes) -> None:
    """Check that the certificate's key asks for this request, for its own device.

    Raises RuleError 209 for another device, 211 for a signature of another key.
    """
    if certificate.device != request.device:
        raise RuleError(Code.KEY_MISMATCH, "the request and the certificate name different devices")
    if not verify(RENEW_KIND, certificate.public_key, request_bytes, signature):
        raise RuleError(Code.BAD_REQUEST_SIGNATURE, "the request is not signed by the certificate's key")


def check_renewal_date(certificate: Certificate, now: int) -> None:
    """Raise RuleError 224 more than 365 days after the certificate expired."""
    if now > certificate.not_after + RENEWAL_S:
        raise RuleError(Code.RENEWAL_TOO_LATE)
