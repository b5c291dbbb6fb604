"""Who gets a certificate: the rules over the ledger. Time is an argument; nothing here listens or prints.

Both answers are repeatable: a device that lost the answer asks again and gets the same certificate.
"""

from __future__ import annotations

import hashlib

from whimbrel_authority.issuing import Issuer, check_renewal, check_renewal_date
from whimbrel_authority.ledger import Enrolment, Ledger
from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.messages import Enrol, Enrolled, Renew
from whimbrel_protocol.objects import Certificate, CertificateRequest


def enrol(ledger: Ledger, issuer: Issuer, message: Enrol, now: int) -> Enrolled:
    """Answer a request with an enrolment token. The same token, device and key give the same certificate again.

    Raises WireError 200 or 201, RuleError 208, 210 or 211 for the request, 221 for the token, 222 where the device or the key
    is taken, 223 where it was revoked.
    """
    request = issuer.check_request(message.request)
    with ledger.transaction():
        repeat = ledger.token_used_by(message.token, request.device)
        if not repeat and not ledger.token_valid(message.token, now):
            raise RuleError(Code.ENROLMENT_TOKEN)
        row = _claim_with_key(ledger, request)
        if row is not None and repeat:
            return _answer(row, issuer)
        ledger.use_token(message.token, request.device)
        return _answer(_certify(ledger, issuer, request, message.request, now), issuer)


def enrol_offline(ledger: Ledger, issuer: Issuer, request_bytes: bytes, now: int) -> Enrolled:
    """Answer a request that the operator vouches for, without a token. Raises as `enrol`, but for 221."""
    request = issuer.check_request(request_bytes)
    with ledger.transaction():
        _claim_with_key(ledger, request)
        return _answer(_certify(ledger, issuer, request, request_bytes, now), issuer)


def renew(ledger: Ledger, issuer: Issuer, message: Renew, now: int) -> Enrolled:
    """Answer a request of a device that has a certificate; it may bring a new key. The same renewal gets the same answer.

    Raises WireError 200 or 201, RuleError 205, 208, 209, 210, 211 or 224 for the request and the certificate, 222 where the
    new key is taken, 223 where the device was revoked, 413 where it was never enrolled.
    """
    request = issuer.check_request(message.request)
    certificate = issuer.check_certificate(message.certificate)
    check_renewal(certificate, request, message.request, message.signature)
    with ledger.transaction():
        row = _claim(ledger, request)
        if row is None:
            raise RuleError(Code.UNKNOWN_DEVICE)
        if row.request_sha256 == _sha256(message.request) and _current(row, issuer):
            return _answer(row, issuer)
        if row.public_key != certificate.public_key:
            raise RuleError(Code.KEY_MISMATCH, "the certificate's key was replaced")
        check_renewal_date(certificate, now)
        return _answer(_certify(ledger, issuer, request, message.request, now), issuer)


def revoke(ledger: Ledger, device: bytes, epoch: int) -> int:
    """Mark the device and return the epoch that the policy must ask for; `epoch` is the policy's present one.

    A device that is marked already keeps its mark: so a revocation whose policy was never signed can be repeated.
    Raises RuleError 413 where the device was never enrolled.
    """
    with ledger.transaction():
        row = ledger.find(device)
        if row is None:
            raise RuleError(Code.UNKNOWN_DEVICE, f"device {device.hex()} was never enrolled")
        if row.revoked_epoch is None:
            ledger.revoke(device, epoch + 1)
        return ledger.least_epoch()


def _claim(ledger: Ledger, request: CertificateRequest) -> Enrolment | None:
    """Return the device's row. Raises RuleError 222 where another device has the key, 223 where the device was revoked."""
    holder = ledger.holder(request.public_key)
    if holder is not None and holder.device != request.device:
        raise RuleError(Code.DEVICE_TAKEN, "the key is enrolled for another device")
    row = ledger.find(request.device)
    if row is not None and row.revoked_epoch is not None:
        raise RuleError(Code.DEVICE_REVOKED)
    return row


def _claim_with_key(ledger: Ledger, request: CertificateRequest) -> Enrolment | None:
    """Return the device's row, which must have the request's key: only a renewal, signed by the old key, brings a new one."""
    row = _claim(ledger, request)
    if row is not None and row.public_key != request.public_key:
        raise RuleError(Code.DEVICE_TAKEN, f"device {request.device.hex()} is enrolled with another key")
    return row


def _certify(ledger: Ledger, issuer: Issuer, request: CertificateRequest, request_bytes: bytes, now: int) -> Enrolment:
    certificate = issuer.issue(request, ledger.next_serial(), now)
    row = Enrolment(request.device, request.public_key, _sha256(request_bytes), certificate, now)
    ledger.record(row)
    return row


def _current(row: Enrolment, issuer: Issuer) -> bool:
    return Certificate.decode(row.certificate).epoch >= issuer.policy.min_epoch


def _answer(row: Enrolment, issuer: Issuer) -> Enrolled:
    return Enrolled(row.certificate, issuer.policy.encode())


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
